"""Examples given as Python values: pairs of strings, records, or a table of the datasets library, as tasks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from shoulders.data.formats import missing, one_text, texts_of
from shoulders.data.readers import open_suite
from shoulders.data.tasks import DEV, TEST, TRAIN, Task
from shoulders.errors import DataError
from shoulders.records import Example, Question

NAME, CLOSED = "examples", "examples with choices"
WORDING = "as given"
FORMS = "(question, answer), or a record with question and answer (or answers), and optionally choices and evidence"
SHOWN = 80  # characters of an example in a message

Examples = str | Path | Sequence[Task] | Iterable[Any]


@final
@dataclass(frozen=True, slots=True)
class InMemoryTask:
    """A task of examples that are at hand. Every split holds all of them: the caller decides what to measure on."""

    name: str
    examples: Sequence[Example]
    cluster: str = NAME
    wordings: tuple[str, ...] = (WORDING,)

    @property
    def evidence(self) -> str:
        """The field that questions are asked about, where a record has it."""
        return "evidence" if any(one.question.evidence for one in self.examples) else ""

    def split_names(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return the usual splits."""
        return TRAIN, DEV, TEST

    def rows(self, split: str, wording: str) -> int:  # noqa: ARG002
        """Return the number of examples."""
        return len(self.examples)

    def example(self, split: str, wording: str, row: int) -> Example:  # noqa: ARG002
        """Return one example."""
        return self.examples[row]

    def metrics(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return the metrics of questions with short answers: exact match and token F1."""
        return ("Accuracy",)

    def original(self, wording: str) -> bool:  # noqa: ARG002
        """Return that the examples are the task itself."""
        return True


def open_examples(examples: Examples) -> list[Task]:
    """Return examples as tasks, whichever way they are given.

    Args:
        examples: the name of a suite (`open_suite`), tasks of one, or rows (`given_tasks`).

    Raises:
        DataError, SourceNotFound, UnknownName: as `given_tasks` and `open_suite`.
    """
    if isinstance(examples, str | Path):
        return open_suite(str(examples))
    if isinstance(examples, list | tuple) and examples and all(hasattr(one, "wordings") for one in examples):
        return list(examples)
    return given_tasks(examples)


def given_tasks(rows: Iterable[Any]) -> list[Task]:
    """Return the tasks of `(question, answer)` pairs, of records, or of the rows of a `datasets.Dataset`.

    An answer is a text, or several texts (a list, or SQuAD's `{"text": [...]}`) that all count as right, the first of
    which is taught. With `choices` the answer is one of them, and is found by rank classification: such examples are a
    task of their own. `evidence` is read before the question, with an empty line after it.

    Raises:
        DataError: there are no examples, or one is of another form; it is named by its number, from 0.
    """
    if isinstance(rows, Mapping):
        parts = [str(name) for name in rows] or ["train"]
        raise DataError(f"the examples are a mapping of {', '.join(parts)}: give rows, e.g. examples[{parts[0]!r}]")
    if not isinstance(rows, Iterable):
        raise DataError(f"the examples are a {type(rows).__name__}: give a list, each {FORMS}")
    examples = [_example(number, row) for number, row in enumerate(rows)]
    if not examples:
        raise DataError(f"there are no examples: give some, each {FORMS}")
    parts = {
        NAME: [one for one in examples if one.choices is None],
        CLOSED: [one for one in examples if one.choices is not None],
    }
    return [InMemoryTask(name, some) for name, some in parts.items() if some]


def _example(number: int, row: Any) -> Example:
    if isinstance(row, Example):
        return row
    record: Any = dict(zip(("question", "answer"), row, strict=True)) if _is_pair(row) else row
    try:
        if not isinstance(record, Mapping):
            raise ValueError("it is neither a pair nor a record")
        question, choices = _question(record), _choices(record)
        field = "answer" if missing(record.get("answers")) else "answers"
        answers = texts_of(record.get(field), field)
        if choices and answers[0] not in choices:
            raise ValueError(f"the answer {answers[0]!r} is none of the choices {', '.join(map(repr, choices))}")
    except ValueError as error:
        shown = " ".join(repr(row).split())[:SHOWN]
        raise DataError(f"example {number}, {shown}: {error}; give {FORMS}") from error
    return Example(CLOSED if choices else NAME, WORDING, str(number), question, answers[0], answers, choices)


def _is_pair(row: Any) -> bool:
    return isinstance(row, list | tuple) and len(row) == 2


def _question(record: Mapping[str, Any]) -> Question:
    question, evidence = record.get("question"), record.get("evidence")
    if isinstance(question, str):
        read_first = "" if missing(evidence) else one_text(evidence, "evidence")
        question = Question(question, evidence=f"{read_first}\n\n" if read_first else "")
    if not isinstance(question, Question):
        raise ValueError("`question` is missing" if missing(question) else "`question` is no text")
    if not question.text.strip():
        raise ValueError("`question` is empty")
    return question


def _choices(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    found = record.get("choices")
    if missing(found):
        return None
    if not isinstance(found, list | tuple):
        raise ValueError(f"`choices` is a {type(found).__name__}, no list")
    return tuple(one_text(choice, "choices") for choice in found) or None
