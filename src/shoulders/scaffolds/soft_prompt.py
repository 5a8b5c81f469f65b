"""One learned prompt for every input."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import Memory
from shoulders.records import LMInput
from shoulders.scaffolds import initialise
from shoulders.scaffolds.base import NO_DATA, Scaffold, TrainingData
from shoulders.scaffolds.initialise import PromptConfig
from shoulders.scaffolds.program import Pass, Program
from shoulders.scaffolds.weaving import Placement, prompted


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftPromptConfig(PromptConfig):
    """What a recipe says of a soft prompt (`PromptConfig`)."""

    kind: str = field(default="soft_prompt", init=False)


@final
class SoftPrompt(Scaffold, kind="soft_prompt"):
    """Prompt tuning: P vectors in the place of token embeddings, trained while the model stays frozen.

    Args:
        prompt: the vectors to start from (`initialise`), fp32 whatever the backbone's type.
        placement: prefix (the source), infix or suffix.

    Source: Lester et al. 2021, section 2; the paper, figure 1a.
    """

    label = "prompt tuning"
    Config = SoftPromptConfig
    usual_rate = 0.05  # with a rate that falls to 0 (experiments/006)

    def __init__(self, prompt: Float[Tensor, "P D"], placement: Placement = Placement.PREFIX) -> None:
        super().__init__()
        self.prompt = nn.Parameter(prompt.clone().to(torch.float32))
        self.placement = Placement(placement)

    @classmethod
    def from_text(
        cls, lm: FrozenLM, text: str, *, length: int = 16, placement: Placement | str = Placement.PREFIX
    ) -> Self:
        """Return a prompt that starts as the embeddings of a text, repeated or cut to its length.

        Args:
            length: P, vectors of the prompt.
            placement: "prefix", "infix" (between evidence and question) or "suffix".
        """
        return cls(initialise.from_text(lm, text)(length), Placement(placement)).around(lm)

    @classmethod
    def from_vocabulary(
        cls, lm: FrozenLM, *, length: int = 16, placement: Placement | str = Placement.PREFIX, seed: int = 0
    ) -> Self:
        """Return a prompt that starts as embeddings of frequent tokens, drawn by the seed."""
        return cls(initialise.from_vocabulary(lm, seed)(length), Placement(placement)).around(lm)

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

    @classmethod
    def new(cls, config: SoftPromptConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """A prompt that starts as `config.init` says."""
        return cls(initialise.chosen(config, lm, seed, data)(config.length), config.placement)

    @property
    def reads_before(self) -> bool:
        """Unless it stands before everything."""
        return self.length > 0 and self.placement is not Placement.PREFIX
