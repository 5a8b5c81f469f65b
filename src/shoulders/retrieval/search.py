"""The interface of a retriever, and the names of the kinds."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

SPARSE, DENSE, HYBRID, RANKS = "sparse", "dense", "hybrid", "rrf"
RETRIEVERS = (SPARSE, DENSE, HYBRID, RANKS)


class ScoredPassage(NamedTuple):
    """The number of a passage, and its score."""

    passage: int
    score: float


class Searcher(Protocol):
    """A retriever over the passages of an index."""

    def search(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Return for each query at most k passages, best first; of equal scores the lower number first."""
        ...


def best_first(found: Sequence[ScoredPassage], k: int) -> list[ScoredPassage]:
    """Return the k best of some passages, in the order of `Searcher.search`."""
    return sorted(found, key=lambda one: (-one.score, one.passage))[:k]


def fingerprint_of(searcher: Searcher | None) -> str:
    """Return an identity of a retriever apart from its index: its `fingerprint` if it has one, else its class."""
    return str(getattr(searcher, "fingerprint", type(searcher).__name__))
