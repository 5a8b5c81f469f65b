"""Tasks: records in splits, each in several wordings."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, final

from shoulders.data.formats import GOLD, ids_of, texts_of
from shoulders.data.templates import Template, check_choices
from shoulders.errors import BadRow, DataError, TemplateFailed, UnknownName, UsageError
from shoulders.records import Example, Placement, Question

Record = Mapping[str, Any]


class Records(Protocol):
    """The records of a split, each read when it is accessed."""

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, number: int, /) -> Record:
        """Return one record; raise `BadRow` if it is broken."""
        ...


R = TypeVar("R", bound=Records)

TRAIN, DEV, TEST = "train", "validation", "test"
FAILED, BAD_ROW = "template failed", "bad row"  # reasons to leave out an example


@dataclass(frozen=True, slots=True)
class SkipPolicy:
    """Failures that are left out and counted, instead of stopping a run.

    Attributes:
        failing: leave out examples whose template fails.
        bad_rows: leave out broken records.
    """

    failing: bool = False
    bad_rows: bool = False

    def reason(self, error: TemplateFailed | BadRow) -> str:
        """Return the category that a failed example is counted as, or raise the error if it is not to be left out."""
        if not (self.bad_rows if isinstance(error, BadRow) else self.failing):
            raise error
        return BAD_ROW if isinstance(error, BadRow) else FAILED


class Task(Protocol):
    """Interface of a data set for the mixture and the evaluation."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        ...

    @property
    def cluster(self) -> str:
        """Kind of task; results are averaged over the tasks of a cluster."""
        ...

    @property
    def evidence(self) -> str:
        """Field of the records with the text that questions are about, such as a passage; "" if there is none."""
        ...

    @property
    def wordings(self) -> tuple[str, ...]:
        """Names of the templates."""
        ...

    def split_names(self, wording: str) -> tuple[str, ...]:
        """Return the names of the splits in which this wording has records."""
        ...

    def rows(self, split: str, wording: str) -> int:
        """Return the number of records of a split in this wording.

        Raises:
            UnknownName, DataError: there is no such split, or it is empty.
        """
        ...

    def example(self, split: str, wording: str, row: int) -> Example | None:
        """Return one record in one wording; None if the wording does not apply to it.

        Raises:
            TemplateFailed: the template fails; the message names task, template and example.
            BadRow: the record is broken; the message names file, line and fault.
        """
        ...

    def metrics(self, wording: str) -> tuple[str, ...]:
        """Return PromptSource's names of the metrics that the wording is scored with."""
        ...

    def original(self, wording: str) -> bool:
        """Return whether the wording asks the data set's own task; evaluation uses only those."""
        ...


@final
@dataclass(frozen=True, slots=True)
class TemplatedTask:
    """Records rendered by PromptSource templates.

    Attributes:
        name, cluster: as in `Task`.
        templates: templates by name.
        splits: records by split.
        card: description of the data set.
        evidence: field with the evidence: rendered text up to the end of its value is a question's evidence.
        query: field with the question without a wording; "" if there is none.
    """

    name: str
    cluster: str
    templates: Mapping[str, Template]
    splits: Mapping[str, Records]
    card: Mapping[str, Any] = field(default_factory=dict)
    evidence: str = ""
    query: str = ""

    @property
    def wordings(self) -> tuple[str, ...]:
        """Names of the templates."""
        return tuple(self.templates)

    def split_names(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002 (the same for every wording)
        """Return the names of the splits."""
        return tuple(self.splits)

    def rows(self, split: str, wording: str) -> int:  # noqa: ARG002 (the same for every wording)
        """Return the number of records of a split."""
        return len(records_of(self.name, self.splits, split))

    def example(self, split: str, wording: str, row: int) -> Example | None:
        """Return one record in one wording; None if the template does not apply to it."""
        place = f"{split}:{row}"
        try:
            record = records_of(self.name, self.splits, split)[row]
            gold = _gold_ids(self.name, place, record)
            rendered = self.templates[wording].render(record, seed=f"{self.name}/{wording}/{place}")
        except TemplateFailed as error:
            raise _failed(error, self.name, wording, place) from error
        except BadRow as error:
            raise BadRow(
                f"{error}; correct the line, or leave out and count such lines (suite.skip_bad_rows=true)"
            ) from error
        if rendered is None:
            return None
        references = (rendered.target,) if rendered.choices else gold_answers(record, rendered.target)
        question = question_of(rendered.text, record.get(self.evidence))
        query = str(record[self.query]) if self.query else question.text
        question = replace(question, gold=gold, query=query)
        return Example(self.name, wording, place, question, rendered.target, references, rendered.choices)

    def metrics(self, wording: str) -> tuple[str, ...]:
        """Return the metrics of the template."""
        return self.templates[wording].metrics

    def original(self, wording: str) -> bool:
        """Return the template's `original_task`; True for all templates if it is false for all (kilt_tasks, fever)."""
        return self.templates[wording].original_task or not any(t.original_task for t in self.templates.values())


@final
@dataclass(frozen=True, slots=True)
class RenderedTask:
    """Records that were rendered before, as in `bigscience/P3`: one table for each wording."""

    name: str
    cluster: str
    tables: Mapping[str, Mapping[str, Records]]  # wording -> split -> rows
    scored_by: tuple[str, ...] = ()  # PromptSource's names of metrics, which the tables lack

    @property
    def evidence(self) -> str:
        """No field: the tables do not say where a passage ends in a rendered text."""
        return ""

    @property
    def wordings(self) -> tuple[str, ...]:
        """Names of the wordings."""
        return tuple(self.tables)

    def split_names(self, wording: str) -> tuple[str, ...]:
        """Return the names of the splits of the wording's table."""
        return tuple(self.tables[wording])

    def rows(self, split: str, wording: str) -> int:
        """Return the number of rows of the wording's table."""
        return len(records_of(f"{self.name}/{wording}", self.tables[wording], split))

    def example(self, split: str, wording: str, row: int) -> Example | None:
        """Return one row as an example; None if its input or target is empty.

        Raises:
            TemplateFailed: the target is not among the choices.
        """
        record = records_of(f"{self.name}/{wording}", self.tables[wording], split)[row]
        text, target = ((record[column] or "").strip() for column in ("inputs_pretokenized", "targets_pretokenized"))
        if not text or not target:
            return None
        choices = tuple((choice or "").strip() for choice in record.get("answer_choices") or ()) or None
        place = f"{split}:{row}"
        try:
            check_choices(choices, target)
        except TemplateFailed as error:
            raise _failed(error, self.name, wording, place) from error
        return Example(self.name, wording, place, Question(text), target, (target,), choices)

    def metrics(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return the metrics of the data set, the same for all wordings."""
        return self.scored_by

    def original(self, wording: str) -> bool:  # noqa: ARG002
        """Return True: P3 does not tell, so every wording is evaluated."""
        return True


def _failed(error: TemplateFailed, task: str, wording: str, place: str) -> TemplateFailed:
    return TemplateFailed(
        f"template {wording!r} of task {task!r} on example {place}: {error}; correct it, leave the template out "
        "(suite.without_templates), or leave out and count such examples (suite.skip_failing=true)"
    )


def _gold_ids(task: str, place: str, record: Record) -> tuple[str, ...]:
    try:
        return ids_of(record.get(GOLD), GOLD)
    except ValueError as error:
        raise BadRow(f"example {place} of task {task!r}: {error}") from error


def question_of(text: str, evidence: Any) -> Question:
    """Return a rendered text as a question, split into evidence (up to the end of `evidence` in it) and question.

    All of it is the question if `evidence` is not a text or does not occur in it.
    """
    found = evidence.strip() if isinstance(evidence, str) else ""
    if not found or found not in text:
        return Question(text)
    end = text.index(found) + len(found)
    return Question(text[end:], evidence=text[:end])


def check_placement(tasks: Sequence[Task], placement: Placement) -> None:
    """Raise `UsageError` for an infix prompt if no task has evidence that it could follow."""
    if placement is Placement.INFIX and not any(task.evidence for task in tasks):
        names = ", ".join(task.name for task in tasks[:3]) + (", ..." if len(tasks) > 3 else "")
        raise UsageError(
            f"scaffold.placement=infix puts the prompt between evidence and question, and no task ({names}) names its "
            'evidence: add "evidence": "FIELD" to its card.json, or choose prefix or suffix'
        )


def check_has_answers(example: Example) -> None:
    """Raise `UsageError` for an example without answers, which is of use for retrieval only."""
    if not example.references:
        raise UsageError(
            f"task {example.task!r} has relevant documents for its questions, but no answers: only retrievers and "
            "re-rankers can be trained and measured on it"
        )


def check_wordings(tasks: Sequence[Task], wordings: Sequence[str]) -> None:
    """Raise `UnknownName` for a wording ("task/wording") that does not exist."""
    known = {f"{task.name}/{wording}" for task in tasks for wording in task.wordings}
    for wording in wordings:
        if wording not in known:
            raise UnknownName("template (suite.without_templates)", wording, known)


def class_labels(tasks: Sequence[Task], split: str = TRAIN, compared: int = 8) -> list[str]:
    """Return the distinct answer choices of all wordings that offer the same ones in every example: class labels.

    Multiple-choice questions, whose choices differ between examples, have none. Choices that are the same in the first
    `compared` examples are taken to be the same in all.
    """
    found: dict[str, None] = {}
    for task in tasks:
        for wording in task.wordings:
            rows = range(min(compared, task.rows(split, wording)))
            try:
                some = [one.choices for row in rows if (one := task.example(split, wording, row)) is not None]
            except (TemplateFailed, BadRow):  # the mixture decides whether that stops the run
                continue
            if some and some[0] and all(choices == some[0] for choices in some):
                found.update(dict.fromkeys(some[0]))
    return list(found)


def records_of(task: str, splits: Mapping[str, R], name: str) -> R:
    """Return the records of a split.

    Raises:
        UnknownName, DataError: there is no such split, or it is empty.
    """
    if name not in splits:
        raise UnknownName(f"split of task {task!r} called", name, splits)
    if not len(splits[name]):
        raise DataError(f"split {name!r} of task {task!r} is empty: nothing can be trained or measured on it")
    return splits[name]


def gold_answers(record: Record, target: str) -> tuple[str, ...]:
    """Return all correct answers of a record if the target is one of them; else the target alone.

    Reads the fields of open question answering data: `answers` (NQ, WebQuestions), `answers.text` (SQuAD),
    `answer.aliases` (TriviaQA), `output[].answer` (KILT), `answer` as a list.
    """
    for name in ("answers", "answer", "output"):
        with suppress(ValueError):  # a field of this name may be something else
            golds = texts_of(record.get(name), name)
            if target in golds:
                return golds
    return (target,)
