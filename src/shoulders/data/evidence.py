"""What is put before a question as text: one interface for every source of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from shoulders.errors import UsageError
from shoulders.plugins import Registry
from shoulders.records import Example, Passage, Question

CANDIDATES, RETRIEVED, ORACLE = "candidates", "retrieved", "oracle"  # our own kinds
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


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """What a recipe says of a source of evidence (`evidence.kind`). Each kind has its own, which checks its values."""

    kind: str = field(default="", init=False)


@dataclass(frozen=True, slots=True)
class Room:
    """What stands in the context beside evidence, in tokens.

    Attributes:
        prompt: vectors of the prompt.
        input: evidence and question at most.
        answer: at most.
    """

    prompt: int
    input: int
    answer: int


class EvidenceKind(Protocol):
    """A kind of evidence as recipes know it: what they say of it, and how it is made."""

    Config: type[EvidenceConfig]

    def new(self, config: Any, lm: Any, room: Room) -> Evidence:
        """A source of it.

        Args:
            config: a `Config` of this kind.
            lm: the frozen model that reads the evidence.
            room: that it has to fit into.
        """
        ...


def _fault(name: str, found: Any) -> str:
    """What is wrong with a kind of evidence of another package."""
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and issubclass(config, EvidenceConfig) and callable(getattr(found, "new", None))):
        return "is no EvidenceKind: it has no Config, a subclass of EvidenceConfig, or no `new`"
    kind = config().kind
    return "" if kind in ("", name) else f"has a Config of kind {kind!r}: it is to be {name!r}"


# By the name that recipes call them.
SOURCES: Registry[EvidenceKind] = Registry(
    "shoulders.evidence",
    "kind of evidence",
    {
        CANDIDATES: "shoulders.evidence.sources:SAMPLED",
        RETRIEVED: "shoulders.evidence.sources:FOUND",
        ORACLE: "shoulders.evidence.sources:FOUND",
    },
    _fault,
)


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
