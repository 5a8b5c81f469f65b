"""A scaffold: one trained vector that is added to the embedding of every token."""

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import nn

from shoulders.errors import UsageError
from shoulders.scaffolds.base import NO_DATA, Bare, Scaffold, ScaffoldConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftConfig(ScaffoldConfig):
    """What a recipe says of it.

    Attributes:
        spread: standard deviation of what it starts from.
    """

    kind: str = field(default="toy_shift", init=False)
    spread: float = 0.1

    def __post_init__(self) -> None:
        if self.spread < 0:
            raise UsageError(f"scaffold.spread is {self.spread}: it cannot be negative, and 0.1 is usual")


@final
class Shift(Scaffold, kind="toy_shift"):
    """The scaffold."""

    label = "shifted embeddings"
    Config = ShiftConfig

    def __init__(self, vector: torch.Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(vector)
        self.bare = Bare()

    @property
    def length(self):
        return 0

    def program(self, given, memory=None):
        shifted = given.embeds + self.vector.to(given.embeds.dtype)
        return (yield from self.bare.program(replace(given, embeds=shifted), memory))

    def description(self):
        return {}

    @classmethod
    def rebuilt(cls, description, lm):
        return cls(torch.zeros(lm.width))

    @classmethod
    def new(cls, config, lm, *, seed=0, data=NO_DATA):
        return cls(torch.randn(lm.width) * config.spread)
