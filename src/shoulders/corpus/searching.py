"""What every retriever does: numbered passages for queries, with scores."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

SPARSE, DENSE, HYBRID, RANKS = "sparse", "dense", "hybrid", "rrf"
RETRIEVERS = (SPARSE, DENSE, HYBRID, RANKS)


class Scored(NamedTuple):
    """A passage's number and its score."""

    passage: int
    score: float


class Searcher(Protocol):
    """A retriever over the passages of an index."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Scored]]:
        """For each query at most k passages, best first; of equal scores the lower number first."""
        ...


def best_first(found: Sequence[Scored], k: int) -> list[Scored]:
    """The k best of some passages, in the order of `Searcher.search`."""
    return sorted(found, key=lambda one: (-one.score, one.passage))[:k]


def fingerprint_of(searcher: Searcher | None) -> str:
    """What a retriever's answers depend on beside the index: its `fingerprint` if it has one, else its kind."""
    return str(getattr(searcher, "fingerprint", type(searcher).__name__))
