"""Tasks: records in splits, seen through several wordings each; and a check of a whole suite before a run."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol, TypeVar, final

import numpy as np

from shoulders.data.formats import GOLD, ids_of, missing, texts_of
from shoulders.data.templates import Template, check_choices
from shoulders.errors import BadRow, DataError, TemplateFailed, UnknownName, UsageError
from shoulders.records import Example, Placement, Question

Record = Mapping[str, Any]


class Records(Protocol):
    """The records of a split, each read when it is asked for."""

    def __len__(self) -> int:
        """Records in all."""
        ...

    def __getitem__(self, number: int, /) -> Record:
        """One record, or `BadRow`."""
        ...


R = TypeVar("R", bound=Records)

TRAIN, DEV, TEST = "train", "validation", "test"
FAILED, BAD_ROW = "template failed", "bad row"  # why an example is left out


@dataclass(frozen=True, slots=True)
class Skip:
    """What is left out and counted, instead of stopping a run.

    Attributes:
        failing: examples whose template fails.
        bad_rows: broken lines of a file.
    """

    failing: bool = False
    bad_rows: bool = False

    def reason(self, error: TemplateFailed | BadRow) -> str:
        """What an example is counted as, if it is one to be left out; else the error is raised."""
        if not (self.bad_rows if isinstance(error, BadRow) else self.failing):
            raise error
        return BAD_ROW if isinstance(error, BadRow) else FAILED


class Task(Protocol):
    """One data set as the mixture and the evaluation see it."""

    @property
    def name(self) -> str:
        """Of the data set."""
        ...

    @property
    def cluster(self) -> str:
        """The kind of task; clusters are averaged over."""
        ...

    @property
    def evidence(self) -> str:
        """The field of its records that questions are asked about, such as a passage; "" if it names none."""
        ...

    @property
    def wordings(self) -> tuple[str, ...]:
        """Names of its templates."""
        ...

    def split_names(self, wording: str) -> tuple[str, ...]:
        """The splits that this wording has records in."""
        ...

    def rows(self, split: str, wording: str) -> int:
        """Records of a split that this wording may be applied to.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        ...

    def example(self, split: str, wording: str, row: int) -> Example | None:
        """One record in one wording; None where the wording is not meant for it.

        Raises:
            TemplateFailed: with the task, the template and the example it failed on.
            BadRow: with the file, the line and what is wrong with it.
        """
        ...

    def metrics(self, wording: str) -> tuple[str, ...]:
        """Names of the metrics that the wording is scored with, PromptSource's."""
        ...

    def original(self, wording: str) -> bool:
        """True if the wording asks the data set's own task; evaluation uses only those."""
        ...


@final
@dataclass(frozen=True, slots=True)
class TemplatedTask:
    """Records rendered by PromptSource templates.

    Attributes:
        card: what is known of the data set.
        evidence: the field that is evidence in every question: what a template renders up to its end comes first.
        query: the field that is the question without a wording; "" if there is none.
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
        """Names of the splits."""
        return tuple(self.splits)

    def rows(self, split: str, wording: str) -> int:  # noqa: ARG002 (the same for every wording)
        """Records of a split."""
        return len(records_of(self.name, self.splits, split))

    def example(self, split: str, wording: str, row: int) -> Example | None:
        """One record in one wording."""
        place = f"{split}:{row}"
        try:
            record = records_of(self.name, self.splits, split)[row]
            gold = _gold_ids(self.name, place, record)
            rendered = self.templates[wording].render(record, seed=f"{self.name}/{wording}/{place}")
        except TemplateFailed as error:
            raise _failed(error, self.name, wording, place) from error
        except BadRow as error:
            raise BadRow(
                f"{error}; mend the line, or let such lines be left out and counted (suite.skip_bad_rows=true)"
            ) from error
        if rendered is None:
            return None
        references = (rendered.target,) if rendered.choices else gold_answers(record, rendered.target)
        question = question_of(rendered.text, record.get(self.evidence))
        query = str(record[self.query]) if self.query else question.text
        question = replace(question, gold=gold, query=query)
        return Example(self.name, wording, place, question, rendered.target, references, rendered.choices)

    def metrics(self, wording: str) -> tuple[str, ...]:
        """The template's own metrics."""
        return self.templates[wording].metrics

    def original(self, wording: str) -> bool:
        """As the template's metadata says; true for all where none is marked (kilt_tasks, fever)."""
        return self.templates[wording].original_task or not any(t.original_task for t in self.templates.values())


@final
@dataclass(frozen=True, slots=True)
class RenderedTask:
    """Records that were rendered elsewhere, as `bigscience/P3` holds them: one table for each wording."""

    name: str
    cluster: str
    tables: Mapping[str, Mapping[str, Records]]  # wording -> split -> rows
    scored_by: tuple[str, ...] = ()  # PromptSource's names of metrics; the tables do not say

    @property
    def evidence(self) -> str:
        """None: where a passage ends in a rendered text is not stored."""
        return ""

    @property
    def wordings(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(self.tables)

    def split_names(self, wording: str) -> tuple[str, ...]:
        """Splits of the wording's table."""
        return tuple(self.tables[wording])

    def rows(self, split: str, wording: str) -> int:
        """Rows of the wording's table."""
        return len(records_of(f"{self.name}/{wording}", self.tables[wording], split))

    def example(self, split: str, wording: str, row: int) -> Example | None:
        """One row; None where input or target is empty.

        Raises:
            TemplateFailed: its target is not among its choices.
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
        """Those of the data set, for all its wordings."""
        return self.scored_by

    def original(self, wording: str) -> bool:  # noqa: ARG002
        """P3 does not say; every wording is evaluated."""
        return True


def _failed(error: TemplateFailed, task: str, wording: str, place: str) -> TemplateFailed:
    return TemplateFailed(
        f"template {wording!r} of task {task!r} on example {place}: {error}; mend it, leave the template out "
        "(suite.without_templates), or let such examples be left out and counted (suite.skip_failing=true)"
    )


def _gold_ids(task: str, place: str, record: Record) -> tuple[str, ...]:
    try:
        return ids_of(record.get(GOLD), GOLD)
    except ValueError as error:
        raise BadRow(f"example {place} of task {task!r}: {error}") from error


def question_of(text: str, evidence: Any) -> Question:
    """A rendered text as evidence, up to the end of the evidence's own text in it, and the question that follows.

    All of it is the question where the evidence is no text or does not occur.
    """
    found = evidence.strip() if isinstance(evidence, str) else ""
    if not found or found not in text:
        return Question(text)
    end = text.index(found) + len(found)
    return Question(text[end:], evidence=text[:end])


def check_placement(tasks: Sequence[Task], placement: Placement) -> None:
    """Raise `UsageError` for an infix where no task has evidence to put it after: it would be a prefix."""
    if placement is Placement.INFIX and not any(task.evidence for task in tasks):
        names = ", ".join(task.name for task in tasks[:3]) + (", ..." if len(tasks) > 3 else "")
        raise UsageError(
            f"scaffold.placement=infix puts the prompt between evidence and question, and no task ({names}) names its "
            'evidence: add "evidence": "FIELD" to its card.json, or choose prefix or suffix'
        )


def check_answered(example: Example) -> None:
    """Raise `UsageError` for a question without answers, of which retrieval alone can make something."""
    if not example.references:
        raise UsageError(
            f"task {example.task!r} names the documents of its questions and no answers: retrievers and re-rankers are "
            "trained and measured on it, answers are not"
        )


def check_wordings(tasks: Sequence[Task], wordings: Sequence[str]) -> None:
    """Raise `UnknownName` for a wording, as "task/wording", that no task has."""
    known = {f"{task.name}/{wording}" for task in tasks for wording in task.wordings}
    for wording in wordings:
        if wording not in known:
            raise UnknownName("template (suite.without_templates)", wording, known)


def class_labels(tasks: Sequence[Task], split: str = TRAIN, looked_at: int = 8) -> list[str]:
    """Answers that a wording offers for every example: the classes of classification tasks, each once.

    Multiple-choice questions, whose choices change from example to example, have none. What is the same in the first
    `looked_at` examples counts as the same in all.
    """
    found: dict[str, None] = {}
    for task in tasks:
        for wording in task.wordings:
            rows = range(min(looked_at, task.rows(split, wording)))
            try:
                some = [one.choices for row in rows if (one := task.example(split, wording, row)) is not None]
            except (TemplateFailed, BadRow):  # whether that stops the run is for the mixture to say
                continue
            if some and some[0] and all(choices == some[0] for choices in some):
                found.update(dict.fromkeys(some[0]))
    return list(found)


def records_of(task: str, splits: Mapping[str, R], name: str) -> R:
    """The records of a split.

    Raises:
        UnknownName, DataError: there is no such split, or nothing in it.
    """
    if name not in splits:
        raise UnknownName(f"split of task {task!r} called", name, splits)
    if not len(splits[name]):
        raise DataError(f"split {name!r} of task {task!r} is empty: nothing can be trained or measured on it")
    return splits[name]


def gold_answers(record: Record, target: str) -> tuple[str, ...]:
    """All answers that a record gives as right, if the target is one of them; else the target alone.

    Knows the fields of the open question answering sets: `answers` (NQ, WebQuestions), `answers.text` (SQuAD),
    `answer.aliases` (TriviaQA), `output[].answer` (KILT), `answer` as a list.
    """
    for name in ("answers", "answer", "output"):
        with suppress(ValueError):  # what a field of this name holds is the template's business
            golds = texts_of(record.get(name), name)
            if target in golds:
                return golds
    return (target,)


REPEATED = "repeated id"
ID = "id"  # the field of records that tells them apart


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong in a split of a task.

    Attributes:
        what: "bad row", "template failed" (the wording is in `first`) or "repeated id".
        count: records that it is wrong with.
        first: of them, and why.
    """

    task: str
    split: str
    what: str
    count: int
    first: str


def problems(task: Task) -> Iterator[Problem]:
    """What is wrong with a task, split by split: broken lines, failing templates, ids that stand there twice.

    Every record is rendered in every wording; 8 bytes of a record stay in memory, for its id. Ids are compared within
    a split, since many data sets number each of theirs from 0.

    Raises:
        DataError: a file cannot be read to its end.
    """
    for split in dict.fromkeys(name for wording in task.wordings for name in task.split_names(wording)):
        broken: list[Problem] = []
        for wording in task.wordings:
            if split in task.split_names(wording):
                found = _failures(task, split, wording)
                yield from (one for one in found if one.what == FAILED)
                broken = broken or [one for one in found if one.what == BAD_ROW]  # the same lines in every wording
        yield from broken
        if isinstance(task, TemplatedTask) and (repeated := _repeated(task.splits[split])):
            first, again = repeated[0]
            told = (
                f"{ID} {task.splits[split][again].get(ID)!r} of record {split}:{first} is that of {split}:{again} too"
            )
            yield Problem(task.name, split, REPEATED, len(repeated), told)


def _failures(task: Task, split: str, wording: str) -> list[Problem]:
    """What fails in one wording: one problem of each kind."""
    found: dict[str, Problem] = {}
    for row in range(task.rows(split, wording)):
        try:
            task.example(split, wording, row)
        except (TemplateFailed, BadRow) as error:
            what = BAD_ROW if isinstance(error, BadRow) else FAILED
            before = found.get(what) or Problem(task.name, split, what, 0, str(error))
            found[what] = replace(before, count=before.count + 1)
    return list(found.values())


def _repeated(records: Records) -> Sequence[tuple[int, int]]:
    """Records whose id an earlier one has: both numbers, in the order of the later one."""
    hashes, numbers = array("Q"), array("Q")
    for number in range(len(records)):
        try:
            value = records[number].get(ID)
        except BadRow:
            continue
        if not missing(value):
            hashes.append(
                int.from_bytes(blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
            )
            numbers.append(number)
    keys, places = np.array(hashes, dtype=np.uint64), np.array(numbers, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    found = [(int(places[order[at]]), int(places[order[at + 1]])) for at in same]
    # Two ids may have one hash: what is told is looked at.
    return sorted((pair for pair in found if _id(records, pair[0]) == _id(records, pair[1])), key=lambda pair: pair[1])


def _id(records: Records, number: int) -> str:
    return str(records[number].get(ID))
