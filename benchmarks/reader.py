"""Training a prompt over contexts on SmolLM2-135M, as for a reader of open-domain QA, against PEFT.

    python -m benchmarks.reader [--data FOLDER] [--pairs N] [--out FILE]

Steps on batches of 4 contexts of 512 tokens with answers of 6 tokens, a prompt of 20, fp32, the same initial prompt:

    peft     PEFT's prompt tuning: the prompt before the text
    prefix   ours with the prompt in the same place; its losses must equal PEFT's
    suffix   ours with the prompt after the text, which is read in every step
    stored   like suffix, over keys and values read from disk, as in every epoch after the first

(a) Seconds of a step, in turn; the losses of `stored` must equal those of `suffix`.
(b) Peak memory, each in its own process.
(c) Pairs of question and passage scored by a cross-encoder (`benchmarks.reranking`).
(d) Queries for the 100 best passages by BM25 (`benchmarks.sparse`).

The texts are those of the passages in `--data`; without that folder they are random, and (d) is left out.
"""

import argparse
import gzip
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks import reranking, sparse
from benchmarks.pairs import in_turn, ratio, report, same
from benchmarks.reranking import made_pairs, real_pairs
from benchmarks.rivals import MODEL, peak_memory, peaks, peft_model
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.engine.batches import EncodedQuestion
from shoulders.engine.precomputed import Contexts
from shoulders.evaluation.results import circumstances
from shoulders.records import IGNORE, Placement, Question
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.losses import scaffold_loss

ROWS, CONTEXT, SCORED, PROMPT, BATCHES, RATE = 4, 512, 6, 20, 3, 1e-6

Batches = list[list[EncodedQuestion]]


def main() -> None:
    """Run all parts and print the ratios last."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        rivals = steps(arguments.data, folder)
        if arguments.memory:
            print(peak_memory(rivals[arguments.memory]()))
            return
        training = bench_steps(rivals, arguments.pairs)
    peak = peaks("benchmarks.reader", ["peft", "suffix", "stored"], "--data", arguments.data)
    seconds = training["seconds"]
    pairs = (real_pairs if has_data(arguments.data) else made_pairs)(32, 20, Path(arguments.data))
    ranking = reranking.bench(pairs, rounds=5)
    searching = sparse.bench(arguments.data, 60_250, 900) if has_data(arguments.data) else None
    ratios = {
        "reader_step_speedup_vs_peft": ratio(seconds["peft"], seconds["suffix"]),
        "reader_peak_memory_vs_peft": peak["suffix"] / peak["peft"],
        "reader_step_speedup_stored": ratio(seconds["peft"], seconds["stored"]),
        "rerank_speedup_vs_crossencoder": ratio(ranking["sentence-transformers"], ranking["ours"]),
    }
    if searching:
        ratios["sparse_p95_ms"] = searching["milliseconds"]["p95"]
    record = {"training": training, "peak_bytes": peak, "ranking": {"pairs": len(pairs), "seconds": ranking}}
    libraries = circumstances("peft", "sentence-transformers", "tantivy")
    report(ratios, {**record, "sparse": searching, **libraries}, arguments.out)


def has_data(folder: str) -> bool:
    """Whether there are passages and questions to measure on; without them texts are random."""
    return (Path(folder) / "passages.jsonl.gz").exists()


def steps(data: str, folder: str) -> dict[str, Callable[[], Callable[[], float]]]:
    """Return functions that make the step of each variant; keys and values are stored in the folder."""
    batches = _batches(data)
    return {
        "peft": partial(peft_step, batches),
        "prefix": partial(our_step, batches, Placement.PREFIX),
        "suffix": partial(our_step, batches, Placement.SUFFIX),
        "stored": partial(our_step, batches, Placement.SUFFIX, folder),
    }


def bench_steps(rivals: dict[str, Callable[[], Callable[[], float]]], pairs: int) -> dict[str, Any]:
    """Measure (a): losses, and seconds of a step, after one epoch of each to warm up and to fill the store."""
    runs = {name: make() for name, make in rivals.items()}
    losses = {name: [run() for _ in range(BATCHES)] for name, run in runs.items()}
    for one, other in (("prefix", "peft"), ("stored", "suffix")):
        for number in range(BATCHES):
            same(f"loss of step {number + 1}", {name: losses[name][number] for name in (one, other)})
    return {"losses": losses, "seconds": in_turn("step", runs, pairs)}


def our_step(batches: Batches, placement: Placement, folder: str = "") -> Callable[[], float]:
    """Return our step: forward, backward, Adam; over stored keys and values if a folder is named."""
    lm = _our_lm()
    prompt = SoftPrompt(from_vocabulary(lm)(PROMPT), placement)
    optimizer = torch.optim.AdamW(prompt.parameters(), lr=RATE)
    loss_of = scaffold_loss(lm, prompt, contexts=Contexts(lm, folder) if folder else None)
    coming = itertools.cycle(batches)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(prompt, next(coming)) / (ROWS * SCORED)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


@cache
def _our_lm() -> FrozenLM:
    return FrozenLM.load(MODEL, dtype="float32", device="cpu")


def peft_step(batches: Batches) -> Callable[[], float]:
    """Return the same step with PEFT's prompt tuning."""
    model = peft_model(torch.float32, PROMPT)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    coming = itertools.cycle(batches)

    def step() -> float:
        optimizer.zero_grad()
        rows = next(coming)
        ids = torch.tensor([row.ids + row.target for row in rows])
        labels = ids.clone()
        labels[:, :CONTEXT] = IGNORE
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _batches(data: str) -> Batches:
    """Return contexts, with the tokens after them as answers."""
    found = _tokens(Path(data) / "passages.jsonl.gz")
    rows = [list(itertools.islice(found, CONTEXT + SCORED)) for _ in range(BATCHES * ROWS)]
    encoded = [EncodedQuestion(Question(""), row[:CONTEXT], 0, row[CONTEXT:]) for row in rows]
    return [encoded[start : start + ROWS] for start in range(0, len(encoded), ROWS)]


def _tokens(passages: Path) -> Iterator[int]:
    if not passages.exists():
        count, generator = BATCHES * ROWS * (CONTEXT + SCORED), torch.Generator().manual_seed(1)
        yield from torch.randint(100, 40_000, (count,), generator=generator).tolist()
        return
    tokenizer = AutoTokenizer.from_pretrained(locate(MODEL))
    with gzip.open(passages, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from tokenizer(json.loads(line)["text"]).input_ids


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", default="../shared/data/odqa", help="folder of passages")
    parser.add_argument("--pairs", type=int, default=7, help="rounds of (a)")
    parser.add_argument("--out", help="write all figures to this JSON file")
    parser.add_argument("--memory", choices=["peft", "suffix", "stored"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
