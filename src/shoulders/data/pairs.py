"""A task of examples given as Python values: pairs of strings, records, or a `datasets.Dataset`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from shoulders.data.tasks import DEV, TEST, TRAIN, Task
from shoulders.errors import DataError
from shoulders.records import Example, Question

NAME = "examples"
FIELDS = "question and answer (or answers), and optionally choices and evidence"


@final
@dataclass(frozen=True, slots=True)
class GivenExamples:
    """A task of examples in memory. Every split has all of them: splitting them is up to the caller."""

    examples: Sequence[Example]
    name: str = NAME
    cluster: str = NAME
    wordings: tuple[str, ...] = ("as given",)
    evidence: str = ""

    def split_names(self, wording: str) -> tuple[str, ...]:  # noqa: ARG002
        """Return the names of the splits."""
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
        """Return True: the examples are the data set's own task."""
        return True


def given_task(rows: Iterable[Any]) -> GivenExamples:
    """Return a task of `(question, answer)` pairs, of mappings, or of the rows of a `datasets.Dataset`.

    An answer is a text, or a list of correct texts, the first of which training teaches. With `choices` the answer is
    one of them, and evaluation chooses it by rank classification.

    Raises:
        DataError: there are no examples, or one has another form; the message has its number, from 0.
    """
    examples = [_example(number, row) for number, row in enumerate(rows)]
    if not examples:
        raise DataError(f"there are no examples: give pairs of strings, or records with {FIELDS}")
    return GivenExamples(examples)


def is_tasks(examples: Any) -> bool:
    """Return whether the examples are a list of tasks already."""
    return isinstance(examples, list | tuple) and bool(examples) and all(hasattr(one, "wordings") for one in examples)


def _example(number: int, row: Any) -> Example:
    if isinstance(row, Example):
        return row
    if isinstance(row, Mapping):
        question, answer = row.get("question"), row.get("answers", row.get("answer"))
        choices, evidence = row.get("choices"), row.get("evidence") or ""
    elif isinstance(row, list | tuple) and len(row) == 2:
        (question, answer), choices, evidence = row, None, ""
    else:
        raise DataError(f"example {number} is {row!r:.80}: give (question, answer), or a record with {FIELDS}")
    answers = (answer,) if isinstance(answer, str) else tuple(answer or ())
    texts = [question, evidence, *answers, *(choices or ())]
    if not answers or not question or not all(isinstance(text, str) for text in texts):
        raise DataError(f"example {number} ({row!r:.80}) has no question, or no answer that is a text")
    if choices and answers[0] not in choices:
        raise DataError(f"example {number}: the answer {answers[0]!r} is not among the choices {tuple(choices)!r}")
    asked = Question(question, evidence=evidence)
    return Example(NAME, "as given", str(number), asked, answers[0], answers, tuple(choices) if choices else None)


Examples = str | Sequence[Task] | Iterable[Any]
