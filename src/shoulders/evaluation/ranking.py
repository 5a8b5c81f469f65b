"""How well retrieved passages are put in order: what a retriever or a re-ranker is selected by while it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from shoulders.corpus.index import Hit, Index
from shoulders.corpus.searching import Searcher
from shoulders.data.matching import NEVER, first_with_answer
from shoulders.errors import DataError
from shoulders.evaluation.retrieval import RANKS, recall_at
from shoulders.ranking.interpolation import interpolated
from shoulders.records import Example

Ordered = Callable[[Sequence[str], Sequence[Sequence[Hit]]], list[list[float]]]  # a score for each passage
AMONG = 10  # the reciprocal of a rank beyond counts as 0


@dataclass(frozen=True, slots=True)
class OrderScores:
    """How good an order of passages is.

    Attributes:
        reciprocal_rank: mean reciprocal rank of the first passage with an answer, among 10, in percent (MRR@10).
        recall: by number of passages, percentage of the questions with an answer in one of the first of them.
    """

    reciprocal_rank: float
    recall: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values; numbers of passages are texts."""
        return {**asdict(self), "recall": {str(k): value for k, value in self.recall.items()}}


@dataclass(frozen=True, slots=True)
class RankingScores:
    """Passages as the retriever orders them, and as they are put in order.

    Attributes:
        questions: with an answer in one of the passages found; the others cannot be told apart by any order.
        found: the retriever's own order.
        ordered: the one that is measured.
        interpolated: by weight of the retriever's scores beside its own, the order of both (`interpolated`).
    """

    questions: int
    found: OrderScores
    ordered: OrderScores
    interpolated: Mapping[float, OrderScores] = field(default_factory=dict)

    @property
    def best_weight(self) -> float:
        """The weight of the highest MRR@10, of equal ones the smallest; 0 where none was tried."""
        tried = self.interpolated
        return max(sorted(tried), key=lambda weight: tried[weight].reciprocal_rank, default=0.0)

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        found = {f"found_{key}": value for key, value in self.found.as_json().items()}
        content = {"questions": self.questions, **self.ordered.as_json(), **found}
        if not self.interpolated:
            return content
        weights = {str(weight): scores.as_json() for weight, scores in self.interpolated.items()}
        return {**content, "retriever_weights": weights, "best_retriever_weight": self.best_weight}


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with the passages that were found for it.

    Attributes:
        answers: a passage that holds one of them is right; where none is known,
        judged: are the texts that are.
    """

    question: str
    answers: tuple[str, ...]
    hits: Sequence[Hit]
    judged: frozenset[str] = frozenset()


def asked(examples: Sequence[Example], index: Index, depth: int, searcher: Searcher | None = None) -> list[Asked]:
    """The examples with an answer, or a relevant document, in one of the first `depth` passages that are found.

    Raises:
        DataError: there is no such example.
    """
    queries = [example.question.query for example in examples]
    found = index.search(queries, depth, searcher)
    every = [
        Asked(query, example.references, hits, _judged(example, index))
        for query, example, hits in zip(queries, examples, found, strict=True)
    ]
    some = [one for one in every if _first(one, one.hits) != NEVER]
    if not some:
        raise DataError(
            f"of {len(examples)} questions none has an answer, or a document judged relevant, in the first {depth} "
            f"passages of {index.folder}: is it the index of these questions?"
        )
    return some


def _judged(example: Example, index: Index) -> frozenset[str]:
    """The texts of a question's annotated documents, where that is all that is known of it."""
    if example.references:
        return frozenset()
    return frozenset(one.text for one in index.store.of_documents(example.question.gold))


def ranking(questions: Sequence[Asked], ordered: Ordered, weights: Sequence[float] = ()) -> RankingScores:
    """Measure an order of passages.

    Args:
        weights: of the retriever's scores, to measure the order of both together by.
    """
    scores = ordered([one.question for one in questions], [one.hits for one in questions])
    found = [[hit.score for hit in one.hits] for one in questions]

    def with_weight(weight: float) -> OrderScores:
        pairs = zip(scores, found, strict=True)
        return _measured(questions, [interpolated(some, theirs, weight) for some, theirs in pairs])

    together = {weight: with_weight(weight) for weight in weights}
    return RankingScores(len(questions), _measured(questions, found), _measured(questions, scores), together)


def _measured(questions: Sequence[Asked], scores: Sequence[Sequence[float]]) -> OrderScores:
    first = [_first(one, _by(one.hits, some)) for one, some in zip(questions, scores, strict=True)]
    return OrderScores(_reciprocal(first), {rank: recall_at(first, rank) for rank in RANKS})


def _first(asked: Asked, hits: Sequence[Hit]) -> int:
    """The place of the first right passage; NEVER if there is none."""
    if asked.answers:
        return first_with_answer(asked.answers, [hit.text for hit in hits])
    return next((place for place, hit in enumerate(hits) if hit.text in asked.judged), NEVER)


def _by(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    return [hit for _, hit in sorted(zip(scores, hits, strict=True), key=lambda one: -one[0])]


def _reciprocal(first: Sequence[int]) -> float:
    return 100 * mean(1 / (place + 1) if place < AMONG else 0.0 for place in first)
