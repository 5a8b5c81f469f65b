"""One learned prompt for every input."""

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import Memory
from shoulders.records import LMInput
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.program import Pass, Program
from shoulders.scaffolds.weaving import Placement, prompted


@final
class SoftPrompt(Scaffold, kind="soft_prompt"):
    """Prompt tuning: P vectors in the place of token embeddings, trained while the model stays frozen.

    Args:
        prompt: the vectors to start from (`initialise`), fp32 whatever the backbone's type.
        placement: prefix (the source), infix or suffix.

    Source: Lester et al. 2021, section 2; the paper, figure 1a.
    """

    def __init__(self, prompt: Float[Tensor, "P D"], placement: Placement = Placement.PREFIX) -> None:
        super().__init__()
        self.prompt = nn.Parameter(prompt.clone().to(torch.float32))
        self.placement = Placement(placement)

    @property
    def length(self) -> int:
        """P, the number of vectors."""
        return self.prompt.shape[0]

    def program(self, given: LMInput, memory: Memory | None = None) -> Program:
        """Ask for one pass that also reads the prompt."""
        if memory is not None and memory.started:
            return (yield Pass(given.embeds, given.mask, memory.single))
        return (yield from prompted(self.prompt.expand(given.embeds.shape[0], -1, -1), given, memory))

    def description(self) -> dict[str, Any]:
        """Length and placement."""
        return {"length": self.length, "placement": self.placement.value}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """A prompt of zeros."""
        return cls(torch.zeros(description["length"], lm.width), Placement(description["placement"]))
