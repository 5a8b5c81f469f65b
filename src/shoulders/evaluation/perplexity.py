"""How well a text is predicted: perplexity by the backbone's own tokens, and bits a byte, which compares backbones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.text import text_batch
from shoulders.pipeline import POSITIONS_AT_ONCE
from shoulders.scaffolds.base import Scaffold


@dataclass(frozen=True, slots=True)
class Perplexity:
    """What was measured on some sequences.

    Attributes:
        nats: negative log-likelihood of all predicted tokens together.
        tokens: predicted; the first of each sequence is not.
        text_bytes: of the text of those tokens, in UTF-8.
    """

    nats: float
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """Exp of the mean over tokens."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits for a byte of text."""
        return self.nats / math.log(2) / self.text_bytes

    def as_json(self) -> dict[str, Any]:
        """The numbers, as results are kept."""
        return {
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "nats": self.nats,
            "tokens": self.tokens,
        }


@torch.no_grad()
def perplexity(lm: FrozenLM, scaffold: Scaffold, sequences: Sequence[Sequence[int]]) -> Perplexity:
    """Perplexity of packed sequences of one length through a scaffold and the frozen model."""
    nats, size = 0.0, max(1, POSITIONS_AT_ONCE // (len(sequences[0]) + scaffold.length))
    for part in torch.tensor(sequences).split(size):
        batch = text_batch(part, lm)
        nats += lm.nll(scaffold.states(lm, batch.given), batch.labels).sum().item()
    text_bytes = sum(len(lm.text(list(ids[1:])).encode()) for ids in sequences)
    return Perplexity(nats, sum(len(ids) - 1 for ids in sequences), text_bytes)
