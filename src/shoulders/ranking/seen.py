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
from shoulders.data.questions import without_wording


@final
@dataclass(frozen=True)
class Seen:
    """A set of questions as 8-byte hashes. Case, punctuation, white space and the suite's wording do not matter.

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


def _hash(question: str) -> int:
    words = [token for token in answer_tokens(without_wording(question)) if token[0].isalnum()]
    digest = blake2b(" ".join(words).encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
