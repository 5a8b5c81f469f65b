"""A small task to train on, small runs of it in this process or in two others, and a small source of evidence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from shoulders.backbone.caches import windows
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import Mixture
from shoulders.data.tasks import TemplatedTask
from shoulders.data.templates import Template
from shoulders.engine.batches import Lengths
from shoulders.records import Passage, Placement
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt, InputDeepPrompt
from shoulders.scaffolds.input_prompt import InputPromptShape
from shoulders.scaffolds.low_rank import GatedLowRank, GatedScales, LowRank, Scales
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import ExampleSource, scaffold_loss
from shoulders.training.plan import TrainPlan
from shoulders.training.stream import Stream

PLAN = TrainPlan(steps=4, batch_size=8, learning_rate=0.01, warmup=0.5, positions_at_once=256)


def toy_task() -> TemplatedTask:
    """Whether a number is even, with questions of different lengths."""
    records = [{"t": f"{'really ' * (n % 7)}what is {n}?", "a": "even" if n % 2 == 0 else "odd"} for n in range(40)]
    template = Template("w", "id", "{{t}} ||| {{a}}")
    return TemplatedTask("parity", "Toys", {"w": template}, {"train": records})


def source(lm: FrozenLM, scaffold: Scaffold, plan: TrainPlan = PLAN) -> ExampleSource:
    """The task's 40 examples as steps."""
    mixture = Mixture([toy_task()], split="train", seed=plan.seed)
    stream = Stream(mixture, lm, lengths=Lengths(), prompt_length=scaffold.length)
    return ExampleSource(stream, plan.batch_size, plan.positions_at_once, scaffold.length, plan.average)


def small_run(model: str, folder: Path, told: Callable[[int], object] = lambda _: None) -> None:
    """Train a prompt for 24 steps, telling of each, with a checkpoint at each, and write the losses down."""
    lm = FrozenLM.load(model, dtype="float32", device="cpu")
    plan = replace(PLAN, steps=24, save_every=1)
    losses: list[float] = []
    hooks = Hooks(on_step=lambda step: (losses.append(step.loss), told(step.number)))
    prompt = SoftPrompt(from_vocabulary(lm)(4))
    fit(prompt, scaffold_loss(lm, prompt), source(lm, prompt, plan), plan, folder=folder, hooks=hooks)
    if PartialState().is_main_process:
        found = {"losses": losses, "processes": PartialState().num_processes}
        (folder / "losses.json").write_text(json.dumps(found))


EVERYWHERE = ("all-linear",)


def layered(lm, tiny_encoder):
    """Scaffolds that reach every layer, by name: each kind, each placement, and each kind of encoder."""
    shape = InputPromptShape(length=4, encoder_length=3, head_width=8)
    deep = {placement: DeepPrompt.from_vocabulary(lm, length=4, placement=placement) for placement in Placement}
    low = {
        placement: LowRank.new(LowRank.Config(rank=2, alpha=2.0, placement=placement), lm)
        for placement in (Placement.PREFIX, Placement.SUFFIX)
    }
    everywhere = {"outputs": EVERYWHERE, "inputs": EVERYWHERE}
    after = Scales.new(Scales.Config(**everywhere, placement=Placement.SUFFIX), lm)
    return {
        **{f"deep {placement}": one for placement, one in deep.items()},
        **{f"low rank {placement}": one for placement, one in low.items()},
        "scales": Scales.new(Scales.Config(**everywhere), lm),
        "input deep": InputDeepPrompt(tiny_encoder("bert"), lm, shape, deep[Placement.PREFIX]),
        "input deep self": InputDeepPrompt(lm, lm, shape, deep[Placement.SUFFIX]),
        "gated": GatedLowRank(tiny_encoder("t5"), lm, shape, low[Placement.PREFIX]),
        "gated self": GatedLowRank(lm, lm, shape, low[Placement.SUFFIX]),
        "gated scales": GatedScales(tiny_encoder("bert"), lm, shape, after),
    }


@torch.no_grad()
def moved(scaffold: Scaffold, by: float = 0.1) -> Scaffold:
    """The scaffold away from its start, so that each of its weights has an effect."""
    for weight in scaffold.parameters():
        weight.add_(by * torch.randn_like(weight))
    return scaffold


PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def in_processes(arguments: list[str], *, two: bool, launcher: list[str] = PROCESSES) -> None:
    """Run Python with these arguments, in one process or in two under PyTorch's launcher or Accelerate's."""
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1] / 'src'}", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *(launcher if two else []), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Fact:
    """Evidence that is the same for every question, and remembers what it was asked."""

    passes = 1

    def __init__(self, text):
        self.fingerprint = self.text = text
        self.asked = []

    def find(self, questions, fold=""):
        self.asked.append(list(questions))
        return [[Passage(self.text, 0.0)] for _ in questions]

    def write(self, question, passages):
        return replace(question, evidence=passages[0].text)


def in_parts(lm):
    """Recursions that reach into the passes through three layers, with nothing left at 0."""
    prompt = SoftPrompt(from_vocabulary(lm)(3), Placement.SUFFIX)
    for shape, inner in (
        (RecursionShape(rank=4, into=1, out_of=2), None),
        (RecursionShape(passes=3, rank=4, into=1, before=True, after=True), prompt),
        (RecursionShape(rank=4, into=1, out_of=2, repeat="gated"), prompt),
        (RecursionShape(passes=3, into=1, out_of=2, repeat="gated_layers"), None),
        (RecursionShape(into=1, out_of=2, repeat="damped"), None),
        (RecursionShape(rank=4, keys_values=True), prompt),
        (RecursionShape(passes=3, rank=4, keys_values=True, shared=True, into=1, out_of=2), None),
        (RecursionShape(passes=3, into=1, out_of=2, repeat="gated", beside=True), prompt),
    ):
        if not shape.beside or not (any(windows(lm.config)) or lm.config.model_type == "bloom"):
            yield moved(Recursion(lm, shape, inner))
