"""A small task to train on, small runs of it in this process or in two others, and a small source of evidence."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import Mixture
from shoulders.data.tasks import TemplatedTask
from shoulders.data.templates import Template
from shoulders.engine.batches import Lengths
from shoulders.records import Passage
from shoulders.scaffolds.base import Scaffold
from shoulders.training.losses import ExampleSource
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


PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def in_processes(arguments: list[str], *, two: bool) -> None:
    """Run Python with these arguments, in one process or in two under PyTorch's launcher."""
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1] / 'src'}", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *(PROCESSES if two else []), *arguments]
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
