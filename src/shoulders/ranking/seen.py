"""Which questions a model was trained on, so that none of them is ranked by it where that would teach a bias.

Source: the paper, section 3.1: a re-ranker does far better on its training questions than on any others.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shoulders.data.matching import answer_tokens


@final
@dataclass(frozen=True)
class Seen:
    """A set of questions as 8-byte hashes. Case, punctuation and white space do not matter.

    Two of 100,000 questions share a hash with a probability of 3 in ten thousand millions; then one is refused that
    was not seen.
    """

    hashes: frozenset[int] = frozenset()

    @classmethod
    def of(cls, questions: Iterable[str]) -> Self:
        """The set of these questions."""
        return cls(frozenset(map(_hash, questions)))

    @classmethod
    def from_tensor(cls, hashes: Int[Tensor, "N"]) -> Self:
        """The set that `tensor` gave."""
        return cls(frozenset(hashes.tolist()))

    def tensor(self) -> Int[Tensor, "N"]:
        """The hashes in order."""
        return torch.from_numpy(np.array(sorted(self.hashes), dtype=np.int64))

    def __contains__(self, question: str) -> bool:
        return _hash(question) in self.hashes

    def __len__(self) -> int:
        return len(self.hashes)


def words_of(question: str) -> str:
    """What two questions share that are the same: their words, whatever case and punctuation."""
    return " ".join(token for token in answer_tokens(question) if token[0].isalnum())


def _hash(question: str) -> int:
    digest = blake2b(words_of(question).encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
