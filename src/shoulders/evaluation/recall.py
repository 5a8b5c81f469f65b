"""Recall at k of retrieved passages, of re-ranked passages and of sampled answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from shoulders.data.matching import NOT_FOUND, Rule, find_support, first_with_answer, has_answer, has_span
from shoulders.data.tasks import check_has_answers
from shoulders.errors import CorruptFile, DataError, UsageError, first_line
from shoulders.evaluation.metrics import exact_match
from shoulders.evaluation.protocol import OnDone, WordingExamples
from shoulders.evaluation.results import Result, examples_hash
from shoulders.evidence.packing import PackedEvidence
from shoulders.records import Answer, Example, Question
from shoulders.retrieval.index import Hit, Index
from shoulders.retrieval.scoring import interpolated
from shoulders.retrieval.search import Searcher
from shoulders.store.files import read_json

RANKS = (1, 5, 20)
AT_ONCE = 128  # number of questions whose passages are in memory at the same time


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Recall of retrieved passages, and of those that the model read.

    Attributes:
        recall: by k, percentage of examples with an answer among the first k passages.
        recall_at_input: percentage of examples with an answer among the passages that were read.
        packed: average number of passages read for an example.
        without: number of examples for which no passage was read.
        too_long: number of passages left out because they do not fit the context even alone.
        supported: percentage of given answers that occur in a passage that was read; None without answers.
        recall_by_dpr, recall_at_input_by_dpr: by DPR's rule for matching answers (`matching.has_answer`), to compare
            with published numbers; all others are by `matching.has_span`.
        first_at_input: for each example, the place (from 0) of the first passage that was read and has an answer;
            NOT_FOUND for none.
    """

    recall: Mapping[int, float]
    recall_at_input: float
    packed: float
    without: int
    too_long: int
    supported: float | None = None
    recall_by_dpr: Mapping[int, float] = field(default_factory=dict)
    recall_at_input_by_dpr: float | None = None
    first_at_input: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values; keys k become strings."""
        by_rank = {"recall": self.recall, "recall_by_dpr": self.recall_by_dpr}
        return {**asdict(self), **{key: {str(k): one for k, one in some.items()} for key, some in by_rank.items()}}


def retrieval(
    examples: Sequence[Example], source: PackedEvidence, k: int, answers: Sequence[str] | None = None
) -> Retrieval:
    """Return the recall of the passages of some examples.

    Args:
        k: number of passages that the source retrieves for a question.
        answers: given to the examples, to be looked for in the passages that were read.

    Raises:
        UsageError: there is no example.
    """
    first: dict[Rule, list[int]] = {has_span: [], has_answer: []}
    read: dict[Rule, list[int]] = {has_span: [], has_answer: []}
    packed: list[int] = []
    supported = 0
    too_long = 0
    for start in range(0, len(examples), AT_ONCE):
        some = examples[start : start + AT_ONCE]
        given = answers[start : start + AT_ONCE] if answers is not None else [""] * len(some)
        sought = source.find([one.question for one in some])
        for example, passages, answer in zip(some, sought, given, strict=True):
            found = source.packed(example.question, passages)
            for texts, numbers in ((passages, first), (found.passages, read)):
                for rule, of_rule in numbers.items():
                    of_rule.append(first_with_answer(example.references, [one.text for one in texts], rule))
            packed.append(len(found.passages))
            too_long += found.too_long
            supported += find_support(answer, found.passages) is not None
    ranks = [rank for rank in sorted({*RANKS, k}) if rank <= k]
    recall, by_dpr = ({rank: recall_at(numbers, rank) for rank in ranks} for numbers in first.values())
    at_input, at_input_by_dpr = (recall_at(numbers, k) for numbers in read.values())
    share = 100 * supported / len(examples) if answers is not None else None
    places = tuple(read[has_span])
    return Retrieval(recall, at_input, mean(packed), packed.count(0), too_long, share, by_dpr, at_input_by_dpr, places)


def recall_at(first: Sequence[int], k: int) -> float:
    """Return the percentage of questions whose first passage with an answer is among the first k.

    Args:
        first: of each question, the position of that passage from 0, or NOT_FOUND.

    Raises:
        UsageError: there is no question, or k is below 1.
    """
    if not first or k < 1:
        raise UsageError(
            f"recall at k={k} over {len(first)} questions: k and the number of questions must be at least 1"
        )
    return 100 * sum(0 <= number < k for number in first) / len(first)


PassageScorer = Callable[[Sequence[str], Sequence[Sequence[Hit]]], list[list[float]]]  # a score for each passage
RANK_CUTOFF = 10  # reciprocal ranks beyond it count as 0 (MRR@10)


@dataclass(frozen=True, slots=True)
class OrderScores:
    """MRR@10 and recall of an order of passages.

    Attributes:
        reciprocal_rank: mean reciprocal rank of the first passage with an answer among the first 10, in percent.
        recall: by k, percentage of questions with an answer among the first k passages.
    """

    reciprocal_rank: float
    recall: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values; keys k become strings."""
        return {**asdict(self), "recall": {str(k): value for k, value in self.recall.items()}}


@dataclass(frozen=True, slots=True)
class RankingScores:
    """Scores of the order of a retriever, and of a re-ranker.

    Attributes:
        questions: number of questions with an answer among the retrieved passages; no order helps the others.
        found: scores of the retriever's order.
        ordered: scores of the new order.
        interpolated: by weight of the retriever, scores of the interpolated order (`scoring.interpolated`).
    """

    questions: int
    found: OrderScores
    ordered: OrderScores
    interpolated: Mapping[float, OrderScores] = field(default_factory=dict)

    @property
    def best_weight(self) -> float:
        """Weight of the retriever with the highest MRR@10, the smallest of equals; 0 if none was tried."""
        tried = self.interpolated
        return max(sorted(tried), key=lambda weight: tried[weight].reciprocal_rank, default=0.0)

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        found = {f"found_{key}": value for key, value in self.found.as_json().items()}
        content = {"questions": self.questions, **self.ordered.as_json(), **found}
        if not self.interpolated:
            return content
        weights = {str(weight): scores.as_json() for weight, scores in self.interpolated.items()}
        return {**content, "retriever_weights": weights, "best_retriever_weight": self.best_weight}


@dataclass(frozen=True, slots=True)
class RankedQuestion:
    """A question with its retrieved passages.

    Attributes:
        answers: a passage that contains one of them is relevant.
        judged: texts of the relevant passages, if no answer is known.
    """

    question: str
    answers: tuple[str, ...]
    hits: Sequence[Hit]
    judged: frozenset[str] = frozenset()


def answerable_questions(
    examples: Sequence[Example], index: Index, depth: int, searcher: Searcher | None = None
) -> list[RankedQuestion]:
    """Return the examples with a relevant passage among the first `depth` retrieved ones.

    Raises:
        DataError: no example has one.
    """
    queries = [example.question.query for example in examples]
    found = index.search(queries, depth, searcher)
    every = [
        RankedQuestion(query, example.references, hits, _judged(example, index))
        for query, example, hits in zip(queries, examples, found, strict=True)
    ]
    some = [one for one in every if _first(one, one.hits) != NOT_FOUND]
    if not some:
        raise DataError(
            f"of {len(examples)} questions none has an answer, or a document judged relevant, in the first {depth} "
            f"passages of {index.folder}: is it the index of these questions?"
        )
    return some


def _judged(example: Example, index: Index) -> frozenset[str]:
    """Return the texts of a question's annotated documents, if its answers are unknown."""
    if example.references:
        return frozenset()
    return frozenset(one.text for one in index.store.of_documents(example.question.gold))


def ranking(
    questions: Sequence[RankedQuestion], ordered: PassageScorer, weights: Sequence[float] = ()
) -> RankingScores:
    """Return the scores of an order of passages.

    Args:
        ordered: returns a score for each passage of each question.
        weights: of the retriever, at which the interpolated order is measured too.
    """
    scores = ordered([one.question for one in questions], [one.hits for one in questions])
    found = [[hit.score for hit in one.hits] for one in questions]

    def with_weight(weight: float) -> OrderScores:
        pairs = zip(scores, found, strict=True)
        return _measured(questions, [interpolated(some, theirs, weight) for some, theirs in pairs])

    together = {weight: with_weight(weight) for weight in weights}
    return RankingScores(len(questions), _measured(questions, found), _measured(questions, scores), together)


def _measured(questions: Sequence[RankedQuestion], scores: Sequence[Sequence[float]]) -> OrderScores:
    first = [_first(one, _by(one.hits, some)) for one, some in zip(questions, scores, strict=True)]
    return OrderScores(_reciprocal(first), {rank: recall_at(first, rank) for rank in RANKS})


def _first(asked: RankedQuestion, hits: Sequence[Hit]) -> int:
    """Return the position of the first relevant passage; NOT_FOUND if there is none."""
    if asked.answers:
        return first_with_answer(asked.answers, [hit.text for hit in hits])
    return next((place for place, hit in enumerate(hits) if hit.text in asked.judged), NOT_FOUND)


def _by(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    return [hit for _, hit in sorted(zip(scores, hits, strict=True), key=lambda one: -one[0])]


def _reciprocal(first: Sequence[int]) -> float:
    return 100 * mean(1 / (place + 1) if place < RANK_CUTOFF else 0.0 for place in first)


SAMPLES = "samples"  # kind of the file
PROGRESS_EVERY = 64  # number of questions between two reports of progress

DrawSamples = Callable[[Sequence[Question], int], list[list[Answer]]]


@dataclass(frozen=True, slots=True)
class Recall:
    """The position of the first right answer among the samples of each question.

    Attributes:
        asked: the questions, by wording.
        counts: numbers of samples for which recall is computed, ascending.
        first: for each wording and example, the position of the first right sample from 0; NOT_FOUND if none is right.
    """

    asked: Sequence[WordingExamples]
    counts: tuple[int, ...]
    first: Sequence[Sequence[int]]

    def at(self, count: int) -> float:
        """Return the percentage of questions with a right answer among the first `count` samples."""
        return recall_at([number for some in self.first for number in some], count)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as results store them."""
        examples = [(one.task.name, one.wording, example) for one in self.asked for example in one.examples]
        return {
            "kind": SAMPLES,
            "examples": len(examples),
            "examples_hash": examples_hash(examples),
            "recall": {str(count): self.at(count) for count in self.counts},
            "wordings": [
                {"task": one.task.name, "wording": one.wording, "first": list(first)}
                for one, first in zip(self.asked, self.first, strict=True)
            ],
        }


def recall(asked: Sequence[WordingExamples], samples: DrawSamples, counts: Sequence[int], on_done: OnDone) -> Recall:
    """Return the recall among samples; each question is sampled once, and smaller counts are the first samples.

    An answer is right if it matches a gold answer exactly, both normalised.

    Args:
        samples: returns some number of samples for each question.
        counts: numbers of samples for which recall is computed.

    Raises:
        UsageError: there is no count, a count is below 1, or questions have no gold answers.
    """
    for one in asked:
        check_has_answers(one.examples[0])
    counts = sorted(set(counts))
    if not counts or counts[0] < 1:
        raise UsageError(
            f"recall among {counts[0] if counts else 'no'} samples: the number must be at least 1, e.g. 1,8,16,64"
        )
    flat = [example for one in asked for example in one.examples]
    first: list[int] = []
    for start in range(0, len(flat), PROGRESS_EVERY):
        part = flat[start : start + PROGRESS_EVERY]
        drawn = samples([example.question for example in part], counts[-1])
        first += [_first_right(some, example.references) for some, example in zip(drawn, part, strict=True)]
        on_done(len(first), len(flat))
    numbers = iter(first)
    return Recall(asked, tuple(counts), [[next(numbers) for _ in one.examples] for one in asked])


def _first_right(samples: Sequence[Answer], golds: Sequence[str]) -> int:
    return next((number for number, one in enumerate(samples) if exact_match(one.text, golds)), NOT_FOUND)


KEYS = {"recipe", "examples", "examples_hash", "split", "recall", "wordings"}


@dataclass(frozen=True, slots=True)
class Samples:
    """Recall among the samples under one prompt, as read from a file (the paper, section 4.1).

    Attributes:
        name: of the samples in reports.
        content: of the file.
        recall: by k, percentage of questions with a right answer among the first k samples.
        first: by task and wording, for each example the position of its first right sample, or `NOT_FOUND`.
    """

    name: str
    content: Mapping[str, Any]
    recall: Mapping[int, float]
    first: Mapping[tuple[str, str], Sequence[int]]

    @property
    def most(self) -> int:
        """Number of samples of a question."""
        return max(self.recall)

    def unanswered(self, result: Result) -> list[list[bool]] | None:
        """Return, for each wording and example of a result, whether no sample is right; None for other examples.

        Raises:
            CorruptFile: the file names the same examples as the result and does not contain them.
        """
        if result.content.get("examples_hash") != self.content["examples_hash"]:
            return None
        found = []
        for row in result.content["wordings"]:
            first = self.first.get((row["task"], row["wording"]), ())
            if len(first) != len(row["measured"]):
                raise CorruptFile(
                    f"the samples {self.name} hold {len(first)} examples of {row['task']}/{row['wording']}, the "
                    f"results {result.name} {len(row['measured'])}, though both name the same: sample them again"
                )
            found.append([number == NOT_FOUND for number in first])
        return found


def read_samples(path: Path, name: str) -> Samples | None:
    """Return the samples of a file; None for a missing file, a folder or a file of another kind.

    Raises:
        CorruptFile: the file is of the kind "samples", and incomplete.
    """
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("kind") != SAMPLES:
        return None
    if missing := KEYS - set(content):
        raise CorruptFile(f"{path} holds no samples of shoulders: it lacks {', '.join(sorted(missing))}")
    try:
        recall = {int(count): float(percent) for count, percent in content["recall"].items()}
        first = {(row["task"], row["wording"]): [int(number) for number in row["first"]] for row in content["wordings"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            f"{path} holds no samples of shoulders: `recall` or `wordings` is broken ({first_line(error)})"
        ) from error
    if not recall:
        raise CorruptFile(f"{path} holds no samples of shoulders: `recall` is empty")
    return Samples(name, content, recall, first)
