"""Speed and memory of prompts and low-rank updates against PEFT, on SmolLM2-135M.

    python -m benchmarks.train [--suite FOLDER] [--pairs N] [--out FILE]

(a) One step on a fixed batch, 8 x 128 text tokens of which 6 are scored, prompt 20, fp32: time (the two alternate) and
    peak memory (each in its own process). Prompt tuning; a deep prompt against prefix tuning and against our prompt
    tuning; low-rank updates of all linear layers (rank 16) against LoRA.
(b) One pass over 512 examples of a suite's mixture with their own lengths, bf16, 32 examples a step: ours, and PEFT
    with the transformers Trainer, padded to the longest row of a batch of 8. Chunks of 128 examples alternate.

Both have the same initial weights and the same examples in the same order, and must have the same losses.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from benchmarks.pairs import in_turn, ratio, report, same
from benchmarks.rivals import MODEL, peak_memory, peaks, peft_copy, peft_model
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import Mixture
from shoulders.data.readers import open_suite
from shoulders.data.tasks import SkipPolicy
from shoulders.engine.batches import EncodedQuestion, Lengths
from shoulders.evaluation.results import circumstances
from shoulders.records import IGNORE, ScaffoldInput
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.low_rank import LowRank
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import ExampleStep, scaffold_loss
from shoulders.training.plan import TrainPlan
from shoulders.training.stream import Stream

ROWS, TEXT, SCORED, PROMPT = 8, 128, 6, 20
EXAMPLES, CHUNK, BATCH, RATE = 512, 128, 32, 0.01


def main() -> None:
    """Run both parts and print the ratios last."""
    arguments = _arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    if arguments.memory:
        print(peak_memory(STEPS[arguments.memory]()))
        return
    steps = {group: bench_step(group, arguments.pairs) for group in GROUPS}
    prompt, deep, low_rank = (steps[group]["seconds"] for group in GROUPS)
    peak = peaks("benchmarks.train", list(STEPS))
    epoch = bench_epoch(arguments.suite)
    ratios = {
        "train_step_speedup_vs_peft": ratio(prompt["peft"], prompt["ours"]),
        "train_peak_memory_vs_peft": peak["ours"] / peak["peft"],
        "train_epoch_speedup_vs_peft": sum(epoch["peft_seconds"]) / sum(epoch["ours_seconds"]),
        "deep_step_vs_soft_prompt": ratio(deep["deep"], deep["ours"]),
        "deep_step_speedup_vs_peft_prefix": ratio(deep["peft_prefix"], deep["deep"]),
        "lowrank_step_vs_peft_lora": ratio(low_rank["low_rank"], low_rank["peft_lora"]),
        "lowrank_peak_memory_vs_peft_lora": peak["low_rank"] / peak["peft_lora"],
    }
    record = {**steps, "peak_bytes": peak, "epoch": epoch, **circumstances("peft")}
    report(ratios, record, arguments.out)


def bench_step(group: str, pairs: int) -> dict[str, Any]:
    """Measure a group of (a): seconds of a step, ours and PEFT's in turn, after one of each to warm up."""
    runs = {name: STEPS[name]() for name in GROUPS[group]}
    losses = {name: run() for name, run in runs.items()}
    same("a step's loss", dict(list(losses.items())[:2]))
    return {"losses": losses, "seconds": in_turn(group, runs, pairs)}


def _ids() -> Tensor:
    return torch.randint(100, 40_000, (ROWS, TEXT), generator=torch.Generator().manual_seed(1))


def scaffold_step(make: Callable[[FrozenLM], Scaffold]) -> Callable[[], float]:
    """Return a step of a scaffold of ours: forward, backward, Adam."""
    lm = FrozenLM.load(MODEL, dtype="float32", device="cpu")
    scaffold = make(lm)
    optimizer = torch.optim.AdamW(scaffold.parameters(), lr=1e-6)
    ids = _ids()
    labels = torch.full_like(ids, IGNORE)
    labels[:, -SCORED - 1 : -1] = ids[:, -SCORED:]
    given = ScaffoldInput(lm.embed(ids), None, (0,) * ROWS)

    def step() -> float:
        optimizer.zero_grad()
        loss = lm.loss(scaffold.states(lm, given), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def peft_step(make: Callable[[], Any]) -> Callable[[], float]:
    """Return the same step of a method of PEFT."""
    model = make()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    ids = _ids()
    labels = torch.full_like(ids, IGNORE)
    labels[:, -SCORED:] = ids[:, -SCORED:]

    def step() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _soft_prompt(lm: FrozenLM) -> SoftPrompt:
    return SoftPrompt(from_vocabulary(lm)(PROMPT))


def _deep_prompt(lm: FrozenLM) -> DeepPrompt:
    return DeepPrompt.from_vocabulary(lm, length=PROMPT)


def _low_rank(lm: FrozenLM) -> LowRank:
    """Return updates of rank 16 in all linear layers, which change the loss."""
    updates = LowRank.new(LowRank.Config(), lm)
    with torch.no_grad():
        updates.up.normal_(std=0.01, generator=torch.Generator().manual_seed(2))
    return updates


# What is compared, by name: two that must have the same loss, and others that take their turns with them.
STEPS: dict[str, Callable[[], Callable[[], float]]] = {
    "ours": partial(scaffold_step, _soft_prompt),
    "peft": partial(peft_step, partial(peft_model, torch.float32, PROMPT)),
    "deep": partial(scaffold_step, _deep_prompt),
    "peft_prefix": partial(peft_step, partial(peft_copy, _deep_prompt)),
    "low_rank": partial(scaffold_step, _low_rank),
    "peft_lora": partial(peft_step, partial(peft_copy, _low_rank)),
}
GROUPS = {
    "step": ("ours", "peft"),
    "deep_step": ("deep", "peft_prefix", "ours"),
    "low_rank_step": ("low_rank", "peft_lora"),
}


class _Chunk:
    """A fixed list of examples as a source of steps."""

    def __init__(self, rows: list[EncodedQuestion], positions_at_once: int) -> None:
        self.rows, self.position = rows, 0
        self.counts: dict[str, dict[str, int]] = {}
        self.positions_at_once = positions_at_once

    def step(self) -> ExampleStep:
        from shoulders.engine.batches import by_length

        rows = self.rows[self.position : self.position + BATCH]
        self.position += BATCH
        parts = list(by_length(rows, lambda row: row.length + PROMPT, self.positions_at_once))
        return ExampleStep(parts, sum(len(row.target) for row in rows), 1)


def bench_epoch(suite: str) -> dict[str, Any]:
    """Measure (b): seconds of each chunk of the pass, ours and PEFT's in turn."""
    lm = FrozenLM.load(MODEL, dtype="bfloat16", device="cpu")
    mixture = Mixture(open_suite(suite), split="train", seed=0, skip=SkipPolicy(failing=True))
    rows = Stream(mixture, lm, lengths=Lengths(), prompt_length=PROMPT).take(EXAMPLES)
    prompt, model = SoftPrompt(from_vocabulary(lm)(PROMPT)), peft_model(torch.bfloat16, PROMPT)
    found: dict[str, Any] = {"ours_seconds": [], "peft_seconds": [], "ours_losses": [], "peft_losses": []}
    found["tokens"] = sum(row.length for row in rows)
    # The learning rate is almost 0: every chunk starts from the same prompts, so that losses can be compared.
    for number, start in enumerate(range(0, EXAMPLES, CHUNK)):
        chunk = rows[start : start + CHUNK]
        runs = {"ours": lambda c=chunk: _our_pass(lm, prompt, c), "peft": lambda c=chunk: _peft_pass(model, lm, c)}
        for name in ("ours", "peft") if number % 2 else ("peft", "ours"):
            begun = time.perf_counter()
            losses = runs[name]()
            found[f"{name}_seconds"].append(time.perf_counter() - begun)
            found[f"{name}_losses"] += losses
        ours, peft = found["ours_seconds"][-1], found["peft_seconds"][-1]
        print(f"chunk {number + 1}: ours {ours:.1f} s, PEFT under Trainer {peft:.1f} s", flush=True)
    same("the pass's mean loss", {name: statistics.fmean(found[f"{name}_losses"]) for name in ("ours", "peft")})
    return found


def _our_pass(lm: FrozenLM, prompt: SoftPrompt, rows: list[EncodedQuestion]) -> list[float]:
    losses: list[float] = []
    plan = TrainPlan(steps=len(rows) // BATCH, batch_size=BATCH, learning_rate=1e-12, positions_at_once=2048)
    hooks = Hooks(on_step=lambda step: losses.append(step.loss))
    fit(prompt, scaffold_loss(lm, prompt), _Chunk(rows, plan.positions_at_once), plan, hooks=hooks)
    return losses


class _Losses(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.found.append(logs["loss"])


def _peft_pass(model: Any, lm: FrozenLM, rows: list[EncodedQuestion]) -> list[float]:
    """Train with PEFT and the Trainer: batches of 8 padded to their longest row, four of them a step."""
    examples = [
        {
            "input_ids": row.ids + row.target,
            "attention_mask": [1] * (len(row.ids) + len(row.target)),
            "labels": [IGNORE] * len(row.ids) + row.target,
        }
        for row in rows
    ]
    kept = _Losses()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, per_device_train_batch_size=8, gradient_accumulation_steps=BATCH // 8, num_train_epochs=1,
            learning_rate=1e-12, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
            train_sampling_strategy="sequential", use_cpu=True, disable_tqdm=True, logging_nan_inf_filter=False,
        )  # fmt: skip
        collator = DataCollatorForSeq2Seq(lm.tokenizer, label_pad_token_id=IGNORE)
        Trainer(model, settings, train_dataset=examples, data_collator=collator, callbacks=[kept]).train()  # type: ignore[arg-type]
    return kept.found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--suite", default="../shared/data/suite", help="suite of (b), by name or folder")
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs of (a)")
    parser.add_argument("--out", help="write all figures to this JSON file")
    parser.add_argument("--memory", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not Path(arguments.suite).exists():
        arguments.suite = "bundled"
    return arguments


if __name__ == "__main__":
    main()
