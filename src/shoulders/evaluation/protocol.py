"""The evaluation protocol (Sanh et al. 2021, section 5; the paper, section 2.2).

Rank classification where a wording has answer choices, greedy generation otherwise. The score of a task is the median
over its wordings, that of a cluster the mean over its tasks; the average is over tasks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any, Protocol, final

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import permute_index
from shoulders.data.tasks import DEV, SkipPolicy, Task, check_has_answers, check_wordings
from shoulders.engine.inference import POSITIONS_AT_ONCE, Answering, answered, choose
from shoulders.errors import BadRow, DataError, TemplateFailed, UnknownName, UsageError
from shoulders.evaluation.metrics import Metric, check_metrics, metrics_for, uncomputed
from shoulders.evaluation.statistics import Measured
from shoulders.evidence.base import Evidence, with_evidence
from shoulders.evidence.demonstrations import stops_of
from shoulders.records import Answer, Chat, Example, Question
from shoulders.scaffolds.base import Scaffold


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Settings of an evaluation.

    Attributes:
        split: "validation" for every choice during development, "test" at the end.
        limit: maximum number of examples of a wording, the same for every scaffold; 0 for all.
        wordings: maximum number of wordings of a task; 0 for all that ask the original task.
        longest: maximum length of a generated answer in tokens.
        positions_at_once: size of a batch in positions.
        seed: of the sample of examples.
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
    """An answered example with its numbers by metric."""

    example: Example
    answer: Answer
    measured: Mapping[str, tuple[float, ...]]

    @property
    def text(self) -> str:
        """Text of the answer."""
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
        """Scores by metric, in percent."""
        return {metric.name: self.total(metric) for metric in self.metrics}

    @property
    def primary(self) -> float:
        """Score by the deciding metric."""
        return self.total(self.metrics[0])

    def total(self, metric: Metric) -> float:
        """Return the score by a metric."""
        rows = [prediction.measured[metric.name] for prediction in self.predictions]
        return metric.total([sum(column) for column in zip(*rows, strict=True)], len(rows))


@dataclass(frozen=True, slots=True)
class Skipped:
    """Examples of a wording that were not measured.

    Attributes:
        count: number of these examples.
        reason: error of the first.
        bad_rows: number of broken lines among them; on the others the template fails.
    """

    count: int
    reason: str
    bad_rows: int = 0


@dataclass(frozen=True, slots=True)
class WordingExamples:
    """A wording of a task with the examples that are measured."""

    task: Task
    wording: str
    examples: Sequence[Example]

    @property
    def metrics(self) -> tuple[str, ...]:
        """PromptSource's names of the metrics of the wording."""
        return self.task.metrics(self.wording)


@dataclass(frozen=True, slots=True)
class ChosenExamples:
    """The examples that a plan measures, and those left out.

    Attributes:
        asked: wordings with their examples.
        skipped: examples left out because a template failed or a line is broken, by "task/wording".
        unmeasured: tasks without the plan's split, and "task/wording" where only that wording lacks it.
    """

    asked: Sequence[WordingExamples]
    skipped: Mapping[str, Skipped]
    unmeasured: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """All scores of one scaffold."""

    wordings: Sequence[WordingScore]
    skipped: Mapping[str, Skipped] = field(default_factory=dict)  # by "task/wording"
    unmeasured: tuple[str, ...] = ()  # tasks that lack the split, or "task/wording"
    truncated: int = 0  # examples whose input was cut to fit the context
    uncomputed: tuple[str, ...] = ()  # PromptSource's names of metrics of generated answers that are no metric here

    @property
    def examples(self) -> int:
        """Number of predictions."""
        return sum(len(score.predictions) for score in self.wordings)

    @property
    def measured(self) -> list[Measured]:
        """Numbers of each example by the deciding metric, for intervals."""
        return [
            Measured(
                row.task, row.wording, metric := row.metrics[0], [p.measured[metric.name] for p in row.predictions]
            )
            for row in self.wordings
        ]

    @property
    def tasks(self) -> dict[str, float]:
        """Score of each task: median over its wordings."""
        grouped: dict[str, list[float]] = {}
        for score in self.wordings:
            grouped.setdefault(score.task, []).append(score.primary)
        return {task: median(values) for task, values in grouped.items()}

    @property
    def clusters(self) -> dict[str, float]:
        """Score of each cluster: mean over its tasks."""
        cluster_of = {score.task: score.cluster for score in self.wordings}
        grouped: dict[str, list[float]] = {}
        for task, value in self.tasks.items():
            grouped.setdefault(cluster_of[task], []).append(value)
        return {cluster: mean(values) for cluster, values in grouped.items()}

    @property
    def average(self) -> float:
        """Mean of the scores of all tasks."""
        return mean(self.tasks.values())

    def first(self, limit: int) -> "Scores":
        """Return the scores on the first examples of each wording, which a plan of that limit measures."""
        return replace(self, wordings=[replace(row, predictions=row.predictions[:limit]) for row in self.wordings])


OnDone = Callable[[int, int], None]  # called with the number of examples done, and of all


class Answers(Protocol):
    """A model that can be evaluated."""

    def generated(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the greedy answer to each question."""
        ...

    def chosen(self, questions: Sequence[Question], choices: Sequence[Sequence[str]]) -> list[Answer]:
        """Return the most likely choice of each question."""
        ...


@final
@dataclass(frozen=True, slots=True)
class ScaffoldAnswers:
    """A frozen model that answers through a scaffold."""

    lm: FrozenLM
    scaffold: Scaffold
    how: Answering

    def generated(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the greedy answer to each question (`answered`)."""
        return answered(questions, self.lm, self.scaffold, self.how)

    def chosen(self, questions: Sequence[Question], choices: Sequence[Sequence[str]]) -> list[Answer]:
        """Return the most likely choice of each question (`choose`)."""
        return choose(questions, choices, self.lm, self.scaffold, self.how)


def evaluate(tasks: Sequence[Task], lm: FrozenLM, scaffold: Scaffold, plan: EvaluationPlan, **settings: Any) -> Scores:
    """Return the scores of a scaffold on some tasks.

    Args:
        settings: as in `evaluate_answers`.

    Raises:
        TemplateFailed, BadRow: a template fails on an example; a line of a file is broken.
        UnknownName, DataError: no task has the split, or the split or a wording has no usable example.
    """
    return evaluate_answers(tasks, lambda how: ScaffoldAnswers(lm, scaffold, how), plan, **settings)


def evaluate_answers(
    tasks: Sequence[Task],
    model: Callable[[Answering], Answers],
    plan: EvaluationPlan,
    *,
    evidence: Evidence | None = None,
    chat: Chat | None = None,
    without: Sequence[str] = (),
    skip: SkipPolicy = SkipPolicy(),  # noqa: B008 (frozen)
    on_done: OnDone = lambda _done, _all: None,
) -> Scores:
    """Return the scores of any kind of model on some tasks.

    Args:
        model: returns the model for some settings of generation.
        evidence: source of passages or candidates that each question is read with.
        chat: conversation that each question stands in.
        without: wordings to leave out, as "task/wording".
        skip: kinds of bad examples to leave out and count; the others raise.
        on_done: called with the progress.

    Raises:
        TemplateFailed, BadRow, UnknownName, DataError: as `evaluate`.
    """
    cut: list[Question] = []
    how = Answering(
        plan.longest,
        truncate=True,
        positions_at_once=plan.positions_at_once,
        on_cut=cut.append,
        stops=stops_of(evidence),
    )

    def answers(examples: Sequence[Example]) -> list[Answer]:
        questions = [example.asked(chat) for example in examples]
        return _answers(questions, [example.choices for example in examples], model(how), evidence, on_done)

    found = scored(tasks, plan, answers, without=without, skip=skip)
    return replace(found, truncated=len(cut))


def scored(
    tasks: Sequence[Task],
    plan: EvaluationPlan,
    answer_all: Callable[[Sequence[Example]], Sequence[Answer]],
    *,
    without: Sequence[str] = (),
    skip: SkipPolicy = SkipPolicy(),  # noqa: B008 (frozen)
) -> Scores:
    """Return the scores of the answers to the examples of a plan; arguments are those of `evaluate_answers`.

    Args:
        answer_all: returns the answers to all examples.
    """
    chosen = chosen_examples(tasks, plan, without, skip=skip)
    for one in chosen.asked:
        check_has_answers(one.examples[0])
    answers = answer_all([example for one in chosen.asked for example in one.examples])
    scores, start = [], 0
    for one in chosen.asked:
        metrics = metrics_for(one.metrics, choices=one.examples[0].choices is not None)
        found = answers[start : start + len(one.examples)]
        start += len(one.examples)
        rows = [_measured(example, answer, metrics) for example, answer in zip(one.examples, found, strict=True)]
        scores.append(WordingScore(one.task.name, one.task.cluster, one.wording, metrics, rows))
    left = {name for one in chosen.asked if one.examples[0].choices is None for name in uncomputed(one.metrics)}
    return Scores(scores, chosen.skipped, chosen.unmeasured, uncomputed=tuple(sorted(left)))


def chosen_examples(
    tasks: Sequence[Task],
    plan: EvaluationPlan,
    without: Sequence[str] = (),
    *,
    skip: SkipPolicy = SkipPolicy(),  # noqa: B008 (frozen)
) -> ChosenExamples:
    """Return the examples that a plan measures; data sets without the split are left out and named (the paper, 2.2).

    Raises:
        TemplateFailed, BadRow, UnknownName, DataError: as `evaluate`.
    """
    check_wordings(tasks, without)
    asked: list[WordingExamples] = []
    skipped: dict[str, Skipped] = {}
    unmeasured: list[str] = []
    for task in tasks:
        names = [name for name in task.wordings if task.original(name) and f"{task.name}/{name}" not in without]
        present = [name for name in names if plan.split in task.split_names(name)]
        lacking = [f"{task.name}/{name}" for name in names if name not in present]
        unmeasured.extend(lacking if present else [task.name] * bool(lacking))
        for wording in present[: plan.wordings or None]:
            check_metrics(task.name, wording, task.metrics(wording))
            examples, failures = _some(task, wording, plan, skip=skip)
            if not examples:
                why = f": none can be used; the first: {failures[0]}" if failures else ""
                raise DataError(f"wording {wording!r} of task {task.name!r} renders nothing in {plan.split!r}{why}")
            if failures:
                bad_rows = sum(isinstance(error, BadRow) for error in failures)
                skipped[f"{task.name}/{wording}"] = Skipped(len(failures), str(failures[0]), bad_rows)
            asked.append(WordingExamples(task, wording, examples))
    if not asked:
        raise _nothing(tasks, plan.split)
    return ChosenExamples(asked, skipped, tuple(unmeasured))


def _nothing(tasks: Sequence[Task], split: str) -> UsageError:
    """Return the error for a plan without examples: no task has the split, or no wording is left."""
    splits = {name for task in tasks for wording in task.wordings for name in task.split_names(wording)}
    if splits and split not in splits:
        return UnknownName("split (test.split, development.split) called", split, splits)
    return DataError(f"nothing is left to measure in {split!r}: every wording is left out, or its task lacks the split")


def _some(
    task: Task, wording: str, plan: EvaluationPlan, *, skip: SkipPolicy
) -> tuple[list[Example], list[TemplateFailed | BadRow]]:
    """Return the examples of one wording, and failures; the seed draws the same rows for all wordings of a task."""
    size = task.rows(plan.split, wording)
    found: list[Example] = []
    failures: list[TemplateFailed | BadRow] = []
    for place in range(size):
        if plan.limit and len(found) == plan.limit:
            break
        row = permute_index(place, size, f"{plan.seed}/{task.name}") if plan.limit else place
        try:
            example = task.example(plan.split, wording, row)
        except (TemplateFailed, BadRow) as error:
            skip.reason(error)
            failures.append(error)
            continue
        if example is not None:
            found.append(example)
    return found, failures


def _answers(
    questions: Sequence[Question],
    choices: Sequence[Sequence[str] | None],
    model: Answers,
    evidence: Evidence | None,
    on_done: OnDone,
) -> list[Answer]:
    """Return the answer to each question, chosen where it has choices and generated elsewhere."""
    found: dict[int, Answer] = {}
    ranked = [number for number, some in enumerate(choices) if some is not None]
    generated = [number for number, some in enumerate(choices) if some is None]
    for numbers in [*_chunks(ranked), *_chunks(generated)]:
        asked = with_evidence([questions[number] for number in numbers], evidence)
        if choices[numbers[0]] is None:
            answers = model.generated(asked)
        else:
            answers = model.chosen(asked, [choices[number] or () for number in numbers])
        found.update(zip(numbers, answers, strict=True))
        on_done(len(found), len(questions))
    return [found[number] for number in range(len(questions))]


def _chunks(numbers: Sequence[int], size: int = 128) -> Iterator[Sequence[int]]:
    """Yield chunks that are large enough to sort by length and small enough to show progress."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _measured(example: Example, answer: Answer, metrics: Sequence[Metric]) -> Prediction:
    golds = (example.target,) if example.choices is not None else example.references
    return Prediction(example, answer, {metric.name: metric.measure(answer.text, golds) for metric in metrics})
