"""Measuring a scaffold as the literature does (Sanh et al. 2021, section 5; the paper, section 2.2).

Rank classification where a wording has answer choices, greedy generation otherwise; the score of a task is the median
over its wordings, of a cluster the mean over its tasks, and the average is over tasks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Protocol, final

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import permuted
from shoulders.data.tasks import DEV, Skip, Task, check_answered, check_wordings
from shoulders.engine.inference import POSITIONS_AT_ONCE, Answering, answered, choose
from shoulders.errors import BadRow, DataError, TemplateFailed, UnknownName, UsageError
from shoulders.evaluation.metrics import Metric, metrics_for
from shoulders.evaluation.statistics import Measured
from shoulders.evidence.base import Evidence, with_evidence
from shoulders.records import Answer, Example, Question
from shoulders.scaffolds.base import Scaffold


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What is measured.

    Attributes:
        split: "validation" while anything is still being chosen, "test" at the end.
        limit: examples of each wording at most, the same ones for every scaffold; 0 for all.
        wordings: wordings of each task at most; 0 for all that ask the original task.
        longest: tokens of a generated answer at most.
        positions_at_once: size of a batch.
        seed: of the choice of examples.
    """

    split: str = DEV
    limit: int = 0
    wordings: int = 0
    longest: int = 256
    positions_at_once: int = POSITIONS_AT_ONCE
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"limit": 0, "wordings": 0, "longest": 1, "positions_at_once": 1}
        for name, least_value in least.items():
            if getattr(self, name) < least_value:
                raise UsageError(
                    f"test.{name} or development.{name} is {getattr(self, name)}: it must be at least {least_value}"
                )


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answered example with its measured numbers, by metric."""

    example: Example
    answer: Answer
    measured: Mapping[str, tuple[float, ...]]

    @property
    def text(self) -> str:
        """Of the answer."""
        return self.answer.text


@dataclass(frozen=True, slots=True)
class WordingScore:
    """Scores of one task in one wording."""

    task: str
    cluster: str
    wording: str
    metrics: tuple[Metric, ...]
    predictions: Sequence[Prediction]

    @property
    def scores(self) -> dict[str, float]:
        """By metric, in percent."""
        return {metric.name: self.total(metric) for metric in self.metrics}

    @property
    def primary(self) -> float:
        """The score that counts."""
        return self.total(self.metrics[0])

    def total(self, metric: Metric) -> float:
        """The score by one metric."""
        rows = [prediction.measured[metric.name] for prediction in self.predictions]
        return metric.total([sum(column) for column in zip(*rows, strict=True)], len(rows))


@dataclass(frozen=True, slots=True)
class Skipped:
    """Examples of a wording that were not measured.

    Attributes:
        count: of them all.
        reason: of the first.
        bad_rows: those of them whose line is broken; the template fails on the others.
    """

    count: int
    reason: str
    bad_rows: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """One wording of a task with the examples that are measured in it."""

    task: Task
    wording: str
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a plan measures of some tasks, and what it leaves out.

    Attributes:
        asked: wordings with their examples.
        skipped: examples left out because a template failed or a line is broken, by "task/wording".
        unmeasured: tasks without the plan's split, and "task/wording" where only that wording lacks it.
    """

    asked: Sequence[Asked]
    skipped: Mapping[str, Skipped]
    unmeasured: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything measured of one scaffold."""

    wordings: Sequence[WordingScore]
    skipped: Mapping[str, Skipped] = field(default_factory=dict)  # by "task/wording"
    unmeasured: tuple[str, ...] = ()  # tasks that lack the split, or "task/wording"
    truncated: int = 0  # examples whose input was cut to fit the context

    @property
    def examples(self) -> int:
        """Predictions made."""
        return sum(len(score.predictions) for score in self.wordings)

    @property
    def measured(self) -> list[Measured]:
        """By example, for intervals."""
        return [
            Measured(
                row.task, row.wording, metric := row.metrics[0], [p.measured[metric.name] for p in row.predictions]
            )
            for row in self.wordings
        ]

    @property
    def tasks(self) -> dict[str, float]:
        """Median over wordings."""
        grouped: dict[str, list[float]] = {}
        for score in self.wordings:
            grouped.setdefault(score.task, []).append(score.primary)
        return {task: median(values) for task, values in grouped.items()}

    @property
    def clusters(self) -> dict[str, float]:
        """Mean over the tasks of a cluster."""
        cluster_of = {score.task: score.cluster for score in self.wordings}
        grouped: dict[str, list[float]] = {}
        for task, value in self.tasks.items():
            grouped.setdefault(cluster_of[task], []).append(value)
        return {cluster: mean(values) for cluster, values in grouped.items()}

    @property
    def average(self) -> float:
        """Mean over tasks."""
        return mean(self.tasks.values())


OnDone = Callable[[int, int], None]  # examples done, examples in all


class Answers(Protocol):
    """A model as it is measured."""

    def generated(self, questions: Sequence[Question]) -> list[Answer]:
        """The greedy answer to each question."""
        ...

    def chosen(self, questions: Sequence[Question], choices: Sequence[Sequence[str]]) -> list[Answer]:
        """The likeliest of the choices of each question."""
        ...


@final
@dataclass(frozen=True, slots=True)
class ScaffoldAnswers:
    """A frozen model that answers through a scaffold."""

    lm: FrozenLM
    scaffold: Scaffold
    how: Answering

    def generated(self, questions: Sequence[Question]) -> list[Answer]:
        """See `answered`."""
        return answered(questions, self.lm, self.scaffold, self.how)

    def chosen(self, questions: Sequence[Question], choices: Sequence[Sequence[str]]) -> list[Answer]:
        """See `choose`."""
        return choose(questions, choices, self.lm, self.scaffold, self.how)


def evaluate(
    tasks: Sequence[Task],
    lm: FrozenLM,
    scaffold: Scaffold,
    plan: EvaluationPlan,
    *,
    evidence: Evidence | None = None,
    without: Sequence[str] = (),
    skip: Skip = Skip(),  # noqa: B008 (frozen)
    on_done: OnDone = lambda _done, _all: None,
) -> Scores:
    """Scores of a scaffold on the tasks.

    Args:
        evidence: what is put before, or after, each question.
        without: wordings to leave out, as "task/wording".
        skip: what to leave out and count, instead of stopping.

    Raises:
        TemplateFailed, BadRow: a template fails on an example, with both and the reason; a line of a file is broken.
        UnknownName, DataError: no task has the split, it is empty, or nothing of a wording is left to measure.
    """
    return evaluate_answers(
        tasks,
        lambda how: ScaffoldAnswers(lm, scaffold, how),
        plan,
        evidence=evidence,
        without=without,
        skip=skip,
        on_done=on_done,
    )


def evaluate_answers(
    tasks: Sequence[Task],
    model: Callable[[Answering], Answers],
    plan: EvaluationPlan,
    *,
    evidence: Evidence | None = None,
    without: Sequence[str] = (),
    skip: Skip = Skip(),  # noqa: B008 (frozen)
    on_done: OnDone = lambda _done, _all: None,
) -> Scores:
    """Scores of a model of any kind, given how it is to answer; the rest is as in `evaluate`."""
    cut: list[Question] = []
    how = Answering(plan.longest, truncate=True, positions_at_once=plan.positions_at_once, on_cut=cut.append)

    def answers(examples: Sequence[Example]) -> list[Answer]:
        return _answers(examples, model(how), evidence, on_done)

    found = scored(tasks, plan, answers, without=without, skip=skip)
    return replace(found, truncated=len(cut))


def scored(
    tasks: Sequence[Task],
    plan: EvaluationPlan,
    answer_all: Callable[[Sequence[Example]], Sequence[Answer]],
    *,
    without: Sequence[str] = (),
    skip: Skip = Skip(),  # noqa: B008 (frozen)
) -> Scores:
    """Scores of answers, whatever gives them; the rest is as in `evaluate`."""
    chosen = chosen_examples(tasks, plan, without, skip=skip)
    for one in chosen.asked:
        check_answered(one.examples[0])
    answers = answer_all([example for one in chosen.asked for example in one.examples])
    scores, start = [], 0
    for one in chosen.asked:
        metrics = metrics_for(one.task.metrics(one.wording), choices=one.examples[0].choices is not None)
        found = answers[start : start + len(one.examples)]
        start += len(one.examples)
        rows = [_measured(example, answer, metrics) for example, answer in zip(one.examples, found, strict=True)]
        scores.append(WordingScore(one.task.name, one.task.cluster, one.wording, metrics, rows))
    return Scores(scores, chosen.skipped, chosen.unmeasured)


def chosen_examples(
    tasks: Sequence[Task],
    plan: EvaluationPlan,
    without: Sequence[str] = (),
    *,
    skip: Skip = Skip(),  # noqa: B008 (frozen)
) -> Chosen:
    """The examples that the plan measures. A data set without its split is left out and named (the paper, section 2.2).

    Raises:
        TemplateFailed, BadRow, UnknownName, DataError: as `evaluate`.
    """
    check_wordings(tasks, without)
    asked: list[Asked] = []
    skipped: dict[str, Skipped] = {}
    unmeasured: list[str] = []
    for task in tasks:
        names = [name for name in task.wordings if task.original(name) and f"{task.name}/{name}" not in without]
        present = [name for name in names if plan.split in task.split_names(name)]
        lacking = [f"{task.name}/{name}" for name in names if name not in present]
        unmeasured.extend(lacking if present else [task.name] * bool(lacking))
        for wording in present[: plan.wordings or None]:
            examples, failures = _some(task, wording, plan, skip=skip)
            if not examples:
                why = f": none can be used; the first: {failures[0]}" if failures else ""
                raise DataError(f"wording {wording!r} of task {task.name!r} renders nothing in {plan.split!r}{why}")
            if failures:
                bad_rows = sum(isinstance(error, BadRow) for error in failures)
                skipped[f"{task.name}/{wording}"] = Skipped(len(failures), str(failures[0]), bad_rows)
            asked.append(Asked(task, wording, examples))
    if not asked:
        raise _nothing(tasks, plan.split)
    return Chosen(asked, skipped, tuple(unmeasured))


def _nothing(tasks: Sequence[Task], split: str) -> UsageError:
    """Why there is nothing to measure: no task has the split, or no wording is left."""
    splits = {name for task in tasks for wording in task.wordings for name in task.split_names(wording)}
    if splits and split not in splits:
        return UnknownName("split (test.split, development.split) called", split, splits)
    return DataError(f"nothing is left to measure in {split!r}: every wording is left out, or its task lacks the split")


def _some(
    task: Task, wording: str, plan: EvaluationPlan, *, skip: Skip
) -> tuple[list[Example], list[TemplateFailed | BadRow]]:
    """The plan's examples of one wording, the same rows in every wording of a task, drawn by the seed; and failures."""
    size = task.rows(plan.split, wording)
    found: list[Example] = []
    failures: list[TemplateFailed | BadRow] = []
    for place in range(size):
        if plan.limit and len(found) == plan.limit:
            break
        row = permuted(place, size, f"{plan.seed}/{task.name}") if plan.limit else place
        try:
            example = task.example(plan.split, wording, row)
        except (TemplateFailed, BadRow) as error:
            skip.reason(error)
            failures.append(error)
            continue
        if example is not None:
            found.append(example)
    return found, failures


def _answers(examples: Sequence[Example], model: Answers, evidence: Evidence | None, on_done: OnDone) -> list[Answer]:
    """The chosen or generated answer to each example."""
    found: dict[int, Answer] = {}
    ranked = [number for number, example in enumerate(examples) if example.choices is not None]
    generated = [number for number, example in enumerate(examples) if example.choices is None]
    for numbers in [*_chunks(ranked), *_chunks(generated)]:
        questions = with_evidence([examples[number].question for number in numbers], evidence)
        if examples[numbers[0]].choices is None:
            answers = model.generated(questions)
        else:
            answers = model.chosen(questions, [examples[number].choices or () for number in numbers])
        found.update(zip(numbers, answers, strict=True))
        on_done(len(found), len(examples))
    return [found[number] for number in range(len(examples))]


def _chunks(numbers: Sequence[int], size: int = 128) -> Iterator[Sequence[int]]:
    """Enough at once to sort by length, few enough to show progress."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _measured(example: Example, answer: Answer, metrics: Sequence[Metric]) -> Prediction:
    golds = (example.target,) if example.choices is not None else example.references
    return Prediction(example, answer, {metric.name: metric.measure(answer.text, golds) for metric in metrics})
