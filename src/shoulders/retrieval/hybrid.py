"""Dense and sparse retrieval together: sums of scores, fusion of ranks, and the choice of the weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from shoulders.errors import UnknownName, UsageError
from shoulders.retrieval.search import (
    DENSE,
    HYBRID,
    RETRIEVERS,
    SPARSE,
    ScoredPassage,
    Searcher,
    best_first,
    fingerprint_of,
)

DEPTH = 1000  # candidates of each list
WEIGHTS = tuple(float(weight) for weight in range(1, 11))  # the paper's, for scores of DPR's size
UNIT_WEIGHTS = tuple(weight / 100 for weight in WEIGHTS)  # for vectors of length one, whose scores are below 1
SWEPT_AT = 100  # recall at so many passages chooses the weight
SMOOTHING = 60  # of ranks


@final
class HybridSearcher:
    """The sum of the dense score and the weighted sparse score, over all passages that either of them finds.

    A passage that one of the two does not find counts with the lowest score in that list.

    Attributes:
        weight: the factor of the sparse score (lambda).
    """

    def __init__(self, dense: Searcher, sparse: Searcher, weight: float, depth: int = DEPTH) -> None:
        if not 0 <= weight < float("inf"):
            raise UsageError(f"weight of sparse scores must be at least 0 and finite, got {weight}; 1 to 10 are usual")
        self.dense, self.sparse, self.weight, self.depth = dense, sparse, weight, depth

    @property
    def fingerprint(self) -> str:
        """The identities of both retrievers, the weight and the depth."""
        return f"hybrid {fingerprint_of(self.dense)}, {self.weight} {fingerprint_of(self.sparse)}, {self.depth}"

    def search(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Return for each query the k passages of the highest sum."""
        depth = max(k, self.depth)
        lists = zip(self.dense.search(queries, depth), self.sparse.search(queries, depth), strict=True)
        return [best_first(weighted_sum(dense, sparse, self.weight), k) for dense, sparse in lists]


@final
class ReciprocalRankFusion:
    """Reciprocal rank fusion: the sum of 1 / (60 + rank) over the lists that contain a passage; without parameters."""

    def __init__(self, dense: Searcher, sparse: Searcher, depth: int = DEPTH) -> None:
        self.dense, self.sparse, self.depth = dense, sparse, depth

    @property
    def fingerprint(self) -> str:
        """The identities of both retrievers and the depth."""
        return f"rrf {fingerprint_of(self.dense)}, {fingerprint_of(self.sparse)}, {self.depth}"

    def search(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Return for each query the k passages of the highest sum."""
        depth = max(k, self.depth)
        lists = zip(self.dense.search(queries, depth), self.sparse.search(queries, depth), strict=True)
        return [best_first(reciprocal_ranks(both), k) for both in lists]


def make_retriever(
    kind: str, dense: Callable[[], Searcher], sparse: Callable[[], Searcher], weight: float = 1.0
) -> Searcher:
    """Return the retriever of a kind, opening only the searchers that it needs.

    Args:
        kind: "sparse", "dense", "hybrid" (the sum of their scores), or "rrf" (of their ranks).
        weight: of sparse scores in the hybrid sum.

    Raises:
        UnknownName: there is no such kind.
    """
    if kind not in RETRIEVERS:
        raise UnknownName("retriever", kind, RETRIEVERS)
    if kind == SPARSE:
        return sparse()
    if kind == DENSE:
        return dense()
    return HybridSearcher(dense(), sparse(), weight) if kind == HYBRID else ReciprocalRankFusion(dense(), sparse())


@dataclass(frozen=True, slots=True)
class ChosenWeight:
    """The weight of sparse scores with the best result, and the results of all weights."""

    weight: float
    scores: Mapping[float, float]


def choose_weight(
    dense: Searcher,
    sparse: Searcher,
    queries: Sequence[str],
    score: Callable[[Sequence[Sequence[ScoredPassage]]], float],
    weights: Sequence[float] = WEIGHTS,
    depth: int = DEPTH,
) -> ChosenWeight:
    """Return the weight with the best result on development questions; of equal ones the smallest.

    Both retrievers search once. The questions must not be those of the reported result.

    Args:
        score: result for the first 100 passages of each question, e.g. the share of questions with an answer there.

    Raises:
        UsageError: there is no question or no weight.
    """
    if not queries or not weights:
        raise UsageError(
            f"choosing a weight takes at least 1 weight and 1 question, got {len(weights)} and {len(queries)}"
        )
    lists = list(zip(dense.search(queries, depth), sparse.search(queries, depth), strict=True))
    scores = {
        weight: score([best_first(weighted_sum(*both, weight), SWEPT_AT) for both in lists])
        for weight in sorted(weights)
    }
    return ChosenWeight(max(scores, key=lambda weight: scores[weight]), scores)


def weighted_sum(dense: Sequence[ScoredPassage], sparse: Sequence[ScoredPassage], weight: float) -> list[ScoredPassage]:
    """Return all passages of two lists, with the weighted sum of their scores."""
    first, second = dict(dense), dict(sparse)
    low, lower = min(first.values(), default=0.0), min(second.values(), default=0.0)
    sums = {one: first.get(one, low) + weight * second.get(one, lower) for one in first.keys() | second.keys()}
    return [ScoredPassage(passage, score) for passage, score in sums.items()]


def reciprocal_ranks(lists: Sequence[Sequence[ScoredPassage]]) -> list[ScoredPassage]:
    """Return all passages of some lists, with the sum of their reciprocal ranks."""
    sums: dict[int, float] = {}
    for some in lists:
        for rank, one in enumerate(some, start=1):
            sums[one.passage] = sums.get(one.passage, 0.0) + 1 / (SMOOTHING + rank)
    return [ScoredPassage(passage, score) for passage, score in sums.items()]
