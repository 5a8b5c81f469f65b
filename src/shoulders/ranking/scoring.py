"""Scores of passages for questions: what a ranker is, and how its rows are batched."""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.data.batching import by_length
from shoulders.ranking.seen import Seen

AT_ONCE = 8_192  # pairs that are held as tokens at the same time, and sorted by length
POSITIONS = {"cpu": 1_024}  # of a batch: what it computes stays in the caches of a processor
MANY_POSITIONS = 65_536  # of a batch on any other device

OnScored = Callable[[int, int], None]  # pairs done, pairs in all
Row = TypeVar("Row", bound=Sized)


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and a passage that is to be scored for it."""

    question: str
    title: str
    text: str


class Ranker(Protocol):
    """A model that reads a question and a passage together and says how relevant the passage is."""

    @property
    def fingerprint(self) -> str:
        """Which model this is: equal fingerprints give equal scores."""
        ...

    @property
    def seen(self) -> Seen:
        """The questions that it is known to have been trained on."""
        ...

    def scores(self, pairs: Sequence[Pair], on_scored: OnScored = lambda _done, _all: None) -> list[float]:
        """A score for each pair, in their order; higher is more relevant."""
        ...


def scored(
    pairs: Sequence[Pair],
    encode: Callable[[Sequence[Pair]], Sequence[Row]],
    score: Callable[[list[Row]], Float[Tensor, "B"]],
    device: torch.device,
    on_scored: OnScored,
) -> list[float]:
    """Scores of pairs that are batched by their number of tokens, whatever questions they belong to.

    Args:
        encode: the tokens of each pair.
        score: the scores of some rows of tokens.
        device: where the model is; it decides how large a batch is.
    """
    budget = positions_at_once(device)
    found = [0.0] * len(pairs)
    done = 0
    for start in range(0, len(pairs), AT_ONCE):
        rows = encode(pairs[start : start + AT_ONCE])
        for numbers in by_length(range(len(rows)), lambda number, rows=rows: len(rows[number]), budget):
            with torch.inference_mode():
                values = score([rows[number] for number in numbers]).float().tolist()
            for number, value in zip(numbers, values, strict=True):
                found[start + number] = value
            done += len(numbers)
            on_scored(done, len(pairs))
    return found


def positions_at_once(device: torch.device) -> int:
    """Positions of a batch, its padding included."""
    return POSITIONS.get(device.type, MANY_POSITIONS)
