"""What large backbones need: quantised layers, activation checkpointing, and weights that are larger than memory.

    python -m benchmarks.giants [--rounds N] [--out FILE]

(a) Bytes of SmolLM2-135M's layers as int8 and as nf4 against bf16; its embeddings stay bf16 and are said apart.
(b) A training step of 8 x 512 text tokens of which 6 are scored, prompt 20, SmolLM2-135M in fp32, with activation
    checkpointing and without: seconds (the two alternate), and peak memory (each in its own process).
(c) Four training steps of a prompt around a model of many layers that are streamed from disk, against the same steps
    with the model in memory: peak of what the process holds from before the model is loaded, mapped files among it,
    over its weights. The steps may take no more than 0.3 of the weights (RLIMIT_DATA, set after loading: transformers
    maps every file of a checkpoint at once, which counts as if it was held). The losses must be equal.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from benchmarks.pairs import in_turn, ratio, report, same
from benchmarks.rivals import MODEL, peak_memory, peak_resident, peaks
from shoulders.backbone.checkpointing import checkpointing
from shoulders.backbone.frozen import FrozenLM, token_table
from shoulders.backbone.passes import layers_of
from shoulders.evaluation.results import circumstances
from shoulders.records import IGNORE, ScaffoldInput
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

ROWS, TEXT, SCORED, PROMPT = 8, 512, 6, 20
LAYERS, WIDTH, INNER = 64, 512, 1536
STEPS, ALLOWED = 4, 0.3


def main() -> None:
    """Run all parts and print the ratios last."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    if arguments.memory in RUNS:
        print(peak_memory(RUNS[arguments.memory]()))
        return
    if arguments.memory:
        print(json.dumps(streamed_steps(arguments.memory, streamed=arguments.streamed)))
        return
    sizes = bench_layers()
    steps = bench_checkpointing(arguments.rounds)
    peak = peaks("benchmarks.giants", list(RUNS))
    streamed = bench_streamed()
    ratios = {
        "nf4_layers_vs_bf16": sizes["nf4"]["layers"] / sizes[""]["layers"],
        "int8_layers_vs_bf16": sizes["int8"]["layers"] / sizes[""]["layers"],
        "checkpointing_peak_vs_plain": peak["checkpointing"] / peak["plain"],
        "checkpointing_time_vs_plain": ratio(steps["checkpointing"], steps["plain"]),
        "offloaded_peak_vs_weights": streamed["streamed"]["held"] / streamed["weights"],
    }
    record = {"bytes": sizes, "seconds": steps, "peak_bytes": peak, "streamed": streamed}
    report(ratios, {**record, **circumstances("bitsandbytes")}, arguments.out)


def bench_layers() -> dict[str, dict[str, int]]:
    """Measure (a): bytes of layers and embeddings by scheme."""
    found: dict[str, dict[str, int]] = {}
    for scheme in ("", "int8", "nf4"):
        lm = FrozenLM.load(MODEL, dtype="bfloat16", device="cpu", quantize=scheme)
        layers = layers_of(lm.model, lm.config).state_dict()  # with the scales of quantised weights
        found[scheme] = {
            "layers": sum(tensor.nbytes for tensor in layers.values()),
            "embeddings": token_table(lm.model).nbytes,
        }
        print(f"{scheme or 'bf16'}: {found[scheme]['layers']:,} bytes of layers, {found[scheme]['embeddings']:,} of "
              "embeddings", flush=True)  # fmt: skip
    return found


def _step(on: bool) -> Callable[[], float]:
    """Return a training step: forward, backward, Adam."""
    lm = FrozenLM.load(MODEL, dtype="float32", device="cpu")
    prompt = SoftPrompt(from_vocabulary(lm)(PROMPT))
    optimizer = torch.optim.AdamW(prompt.parameters(), lr=1e-6)
    ids = torch.randint(100, 40_000, (ROWS, TEXT), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, IGNORE)
    labels[:, -SCORED - 1 : -1] = ids[:, -SCORED:]
    given = ScaffoldInput(lm.embed(ids), None, (0,) * ROWS)

    def step() -> float:
        optimizer.zero_grad()
        with checkpointing(on):
            loss = lm.loss(prompt.states(lm, given), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


RUNS = {"checkpointing": lambda: _step(True), "plain": lambda: _step(False)}


def bench_checkpointing(rounds: int) -> dict[str, list[float]]:
    """Measure the time of (b), after one step of each to warm up."""
    runs = {name: make() for name, make in RUNS.items()}
    same("a step's loss", {name: run() for name, run in runs.items()})
    return in_turn("step", runs, rounds)


def bench_streamed() -> dict[str, Any]:
    """Measure (c)."""
    with tempfile.TemporaryDirectory() as folder:
        weights = _save_model(folder)
        found: dict[str, Any] = {"weights": weights}
        for name, options in (("in memory", []), ("streamed", ["--streamed"])):
            command = [sys.executable, "-m", "benchmarks.giants", "--memory", folder, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: {found[name]['held']:,} bytes held at the peak, of {weights:,} of weights", flush=True)
    if found["streamed"]["losses"] != found["in memory"]["losses"]:
        raise SystemExit(f"other losses: {found['streamed']['losses']}, {found['in memory']['losses']}")
    return found


def _save_model(folder: str) -> int:
    """Save a random model of many layers in small files; return the bytes of its weights."""
    alphabet = {sign: number for number, sign in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(alphabet), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256, tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.save_pretrained(folder, max_shard_size="4MB")  # a file is mapped as a whole while it is read
    return sum(weight.nbytes for weight in model.parameters())


def streamed_steps(folder: str, *, streamed: bool) -> dict[str, Any]:
    """Train a prompt for some steps; return the losses, and the bytes held beside those that the process began with."""
    begun, weights = peak_resident(), sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    torch.set_num_threads(1)
    lm = FrozenLM.load(folder, dtype="float32", device="cpu", device_map="disk" if streamed else "")
    if streamed:
        data = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
        limit = data + int(ALLOWED * weights)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    prompt = SoftPrompt(from_vocabulary(lm)(PROMPT))
    optimizer = torch.optim.AdamW(prompt.parameters(), lr=0.01)
    ids = torch.randint(1, lm.vocabulary, (2, 32), generator=torch.Generator().manual_seed(1))
    losses: list[float] = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = lm.loss(prompt.states(lm, ScaffoldInput(lm.embed(ids[:, :-1]), None, (0, 0))), ids[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "held": peak_resident() - begun}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each run of (b)")
    parser.add_argument("--out", help="write all figures to this JSON file")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--streamed", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
