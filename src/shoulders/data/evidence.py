"""What is put before a question as text: one interface for every source of it."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from shoulders.errors import UsageError
from shoulders.records import Example, Passage, Question

FOLDS = ("a", "b")  # halves of the training examples, for cross-fitting


class Evidence(Protocol):
    """A source of text for questions."""

    @property
    def passes(self) -> int:
        """Passes through the frozen model that finding it costs; 0 if it comes from elsewhere."""
        ...

    @property
    def fingerprint(self) -> str:
        """Which source this is: a hash over all that what it finds depends on."""
        ...

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """For each question what was found, most trusted first.

        Args:
            fold: the half of the training examples that the questions belong to; "" for any that are not trained on.
        """
        ...

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """The question as it is asked with what was found for it."""
        ...


def with_evidence(questions: Sequence[Question], evidence: Evidence | None, fold: str = "") -> list[Question]:
    """The questions as they are asked with evidence; as they are without a source."""
    if evidence is None:
        return list(questions)
    found = evidence.find(questions, fold)
    return [evidence.write(question, passages) for question, passages in zip(questions, found, strict=True)]


def fold_of(example: Example) -> str:
    """The half of the training examples that one belongs to, the same in all its wordings."""
    return FOLDS[blake2b(f"{example.task}/{example.id}".encode(), digest_size=1).digest()[0] % len(FOLDS)]


def check_fold(fold: str) -> None:
    """Raise `UsageError` for what is no half."""
    if fold and fold not in FOLDS:
        raise UsageError(f"suite.fold={fold!r} is no half of the training examples: a, b, or nothing for all of them")
