"""How well retrieved passages are put in order: what a retriever or a re-ranker is selected by while it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from shoulders.corpus.index import Hit, Index
from shoulders.corpus.searching import Searcher
from shoulders.data.matching import NEVER, first_with_answer
from shoulders.data.questions import without_wording
from shoulders.errors import DataError
from shoulders.evaluation.retrieval import RANKS, recall_at
from shoulders.records import Example

Ordered = Callable[[Sequence[str], Sequence[Sequence[Hit]]], list[list[float]]]  # a score for each passage
AMONG = 10  # the reciprocal of a rank beyond counts as 0


@dataclass(frozen=True, slots=True)
class RankingScores:
    """Passages as the retriever orders them, and as they are put in order.

    Attributes:
        questions: with an answer in one of the passages found; the others cannot be told apart by any order.
        reciprocal_rank: mean reciprocal rank of the first passage with an answer, among 10, in percent (MRR@10).
        recall: by number of passages, percentage of these questions with an answer in one of the first of them.
        found_reciprocal_rank, found_recall: the same of the retriever's own order.
    """

    questions: int
    reciprocal_rank: float
    recall: Mapping[int, float]
    found_reciprocal_rank: float
    found_recall: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values; numbers of passages are texts."""
        content = asdict(self)
        for key in ("recall", "found_recall"):
            content[key] = {str(k): value for k, value in content[key].items()}
        return content


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with the passages that were found for it."""

    question: str
    answers: tuple[str, ...]
    hits: Sequence[Hit]


def asked(examples: Sequence[Example], index: Index, depth: int, searcher: Searcher | None = None) -> list[Asked]:
    """The examples with an answer in one of the first `depth` passages that are found.

    Raises:
        DataError: there is no such example.
    """
    queries = [without_wording(example.question.text) for example in examples]
    found = index.search(queries, depth, searcher)
    every = [Asked(*one) for one in zip(queries, (e.references for e in examples), found, strict=True)]
    some = [one for one in every if _first(one.answers, one.hits) != NEVER]
    if not some:
        raise DataError(
            f"of {len(examples)} questions none has an answer in the first {depth} passages of {index.folder}: is it "
            "the index of these questions?"
        )
    return some


def ranking(questions: Sequence[Asked], ordered: Ordered) -> RankingScores:
    """Measure an order of passages."""
    scores = ordered([one.question for one in questions], [one.hits for one in questions])
    before = [_first(one.answers, one.hits) for one in questions]
    after = [_first(one.answers, _by(one.hits, some)) for one, some in zip(questions, scores, strict=True)]
    return RankingScores(len(questions), _reciprocal(after), _recall(after), _reciprocal(before), _recall(before))


def _first(answers: Sequence[str], hits: Sequence[Hit]) -> int:
    return first_with_answer(answers, [hit.text for hit in hits])


def _by(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    return [hit for _, hit in sorted(zip(scores, hits, strict=True), key=lambda one: -one[0])]


def _reciprocal(first: Sequence[int]) -> float:
    return 100 * mean(1 / (place + 1) if place < AMONG else 0.0 for place in first)


def _recall(first: Sequence[int]) -> dict[int, float]:
    return {rank: recall_at(first, rank) for rank in RANKS}
