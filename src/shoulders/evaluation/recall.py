"""Recall at k: how often an answer is in one of the first k passages, of re-ordered passages, or of k samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from shoulders.data.matching import NEVER, Rule, first_with_answer, has_answer, has_span, support
from shoulders.data.tasks import check_answered
from shoulders.errors import CorruptFile, DataError, UsageError, first_line
from shoulders.evaluation.metrics import exact_match
from shoulders.evaluation.protocol import Asked, OnDone
from shoulders.evaluation.results import Result, examples_hash
from shoulders.evidence.packing import PackedEvidence
from shoulders.records import Answer, Example, Question
from shoulders.retrieval.index import Hit, Index
from shoulders.retrieval.scoring import interpolated
from shoulders.retrieval.search import Searcher
from shoulders.store.files import read_json

RANKS = (1, 5, 20)
AT_ONCE = 128  # questions whose passages are held at the same time


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What was retrieved for some examples, and what of it was read.

    Attributes:
        recall: by number of passages, the percentage of examples with an answer in one of the first of them.
        recall_at_input: percentage of examples with an answer in one of the passages that were read.
        packed: passages read for an example, on average.
        without: examples for which no passage was read.
        too_long: passages left out because they fit no context, not even alone.
        supported: percentage of the answers given that stand in one of the passages that were read; None without any.
        recall_by_dpr, recall_at_input_by_dpr: by DPR's rule of where an answer stands (`matching.has_answer`), for
            figures beside published ones; all others are by `matching.has_span`.
    """

    recall: Mapping[int, float]
    recall_at_input: float
    packed: float
    without: int
    too_long: int
    supported: float | None = None
    recall_by_dpr: Mapping[int, float] = field(default_factory=dict)
    recall_at_input_by_dpr: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values; numbers of passages are texts."""
        by_rank = {"recall": self.recall, "recall_by_dpr": self.recall_by_dpr}
        return {**asdict(self), **{key: {str(k): one for k, one in some.items()} for key, some in by_rank.items()}}


def retrieval(
    examples: Sequence[Example], source: PackedEvidence, k: int, answers: Sequence[str] | None = None
) -> Retrieval:
    """How often an answer of the examples is retrieved, and how often it is read.

    Args:
        k: passages that the source retrieves for a question.
        answers: that were given to the examples, to be looked for in what was read.

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
            supported += support(answer, found.passages) is not None
    ranks = [rank for rank in sorted({*RANKS, k}) if rank <= k]
    recall, by_dpr = ({rank: recall_at(numbers, rank) for rank in ranks} for numbers in first.values())
    at_input, at_input_by_dpr = (recall_at(numbers, k) for numbers in read.values())
    share = 100 * supported / len(examples) if answers is not None else None
    return Retrieval(recall, at_input, mean(packed), packed.count(0), too_long, share, by_dpr, at_input_by_dpr)


def recall_at(first: Sequence[int], k: int) -> float:
    """Percentage of questions whose first passage with an answer is among the k best.

    Raises:
        UsageError: there is no question, or k is below 1.
    """
    if not first or k < 1:
        raise UsageError(f"recall at {k} of {len(first)} questions: 1 at least of each")
    return 100 * sum(0 <= number < k for number in first) / len(first)


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
class FoundFor:
    """A question with the passages that were found for it.

    Attributes:
        answers: a passage that holds one of them is right; where none is known,
        judged: are the texts that are.
    """

    question: str
    answers: tuple[str, ...]
    hits: Sequence[Hit]
    judged: frozenset[str] = frozenset()


def asked(examples: Sequence[Example], index: Index, depth: int, searcher: Searcher | None = None) -> list[FoundFor]:
    """The examples with an answer, or a relevant document, in one of the first `depth` passages that are found.

    Raises:
        DataError: there is no such example.
    """
    queries = [example.question.query for example in examples]
    found = index.search(queries, depth, searcher)
    every = [
        FoundFor(query, example.references, hits, _judged(example, index))
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


def ranking(questions: Sequence[FoundFor], ordered: Ordered, weights: Sequence[float] = ()) -> RankingScores:
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


def _measured(questions: Sequence[FoundFor], scores: Sequence[Sequence[float]]) -> OrderScores:
    first = [_first(one, _by(one.hits, some)) for one, some in zip(questions, scores, strict=True)]
    return OrderScores(_reciprocal(first), {rank: recall_at(first, rank) for rank in RANKS})


def _first(asked: FoundFor, hits: Sequence[Hit]) -> int:
    """The place of the first right passage; NEVER if there is none."""
    if asked.answers:
        return first_with_answer(asked.answers, [hit.text for hit in hits])
    return next((place for place, hit in enumerate(hits) if hit.text in asked.judged), NEVER)


def _by(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    return [hit for _, hit in sorted(zip(scores, hits, strict=True), key=lambda one: -one[0])]


def _reciprocal(first: Sequence[int]) -> float:
    return 100 * mean(1 / (place + 1) if place < AMONG else 0.0 for place in first)


SAMPLES = "samples"  # what the kind of file is called
TOGETHER = 64  # questions between two reports of progress

DrawSamples = Callable[[Sequence[Question], int], list[list[Answer]]]


@dataclass(frozen=True, slots=True)
class Recall:
    """Where among its samples each question has its first right answer.

    Attributes:
        asked: the questions, by wording.
        counts: of samples that recall is given for, rising.
        first: for each wording and example the number of the first right sample, from 0; NEVER if none is right.
    """

    asked: Sequence[Asked]
    counts: tuple[int, ...]
    first: Sequence[Sequence[int]]

    def at(self, count: int) -> float:
        """Percentage of questions with a right answer among the first `count` samples."""
        return recall_at([number for some in self.first for number in some], count)

    def as_json(self) -> dict[str, Any]:
        """The numbers, as results are kept."""
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


def recall(asked: Sequence[Asked], samples: DrawSamples, counts: Sequence[int], on_done: OnDone) -> Recall:
    """Sample the largest of some numbers of answers to each question; the smaller ones are its first.

    An answer is right if it equals a gold answer, both normalised (exact match).

    Raises:
        UsageError: a count below 1, or none; questions without answers.
    """
    for one in asked:
        check_answered(one.examples[0])
    counts = sorted(set(counts))
    if not counts or counts[0] < 1:
        raise UsageError(f"recall among {counts[0] if counts else 'no'} samples: ask for 1 at least, e.g. 1,8,16,64")
    flat = [example for one in asked for example in one.examples]
    first: list[int] = []
    for start in range(0, len(flat), TOGETHER):
        part = flat[start : start + TOGETHER]
        drawn = samples([example.question for example in part], counts[-1])
        first += [_first_right(some, example.references) for some, example in zip(drawn, part, strict=True)]
        on_done(len(first), len(flat))
    numbers = iter(first)
    return Recall(asked, tuple(counts), [[next(numbers) for _ in one.examples] for one in asked])


def _first_right(samples: Sequence[Answer], golds: Sequence[str]) -> int:
    return next((number for number, one in enumerate(samples) if exact_match(one.text, golds)), NEVER)


KEYS = {"recipe", "examples", "examples_hash", "split", "recall", "wordings"}


@dataclass(frozen=True, slots=True)
class Samples:
    """What was sampled under one prompt (the paper, section 4.1).

    Attributes:
        name: as printed.
        content: of the file.
        recall: percent of the questions with a right answer among the first so many samples.
        first: by task and wording, for each example the number of its first right sample, or `NEVER`.
    """

    name: str
    content: Mapping[str, Any]
    recall: Mapping[int, float]
    first: Mapping[tuple[str, str], Sequence[int]]

    @property
    def most(self) -> int:
        """Samples of a question."""
        return max(self.recall)

    def unanswered(self, result: Result) -> list[list[bool]] | None:
        """For each wording and example of a result, whether no sample answers it; None if others were sampled for.

        Raises:
            CorruptFile: the file names the same examples and does not hold them.
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
            found.append([number == NEVER for number in first])
        return found


def read_samples(path: Path, name: str) -> Samples | None:
    """The samples in a file; None for a folder or a file of another kind, or none at all.

    Raises:
        CorruptFile: the file says that it holds samples and lacks some of what they are.
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
