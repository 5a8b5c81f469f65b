"""Sources of evidence: the interface, the kinds that recipes can name, and questions with their evidence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoulders.plugins import Registry
from shoulders.records import Passage, Question

# The built-in kinds.
CANDIDATES, RETRIEVED, ORACLE, DEMONSTRATIONS = "candidates", "retrieved", "oracle", "demonstrations"


class Evidence(Protocol):
    """A source of text that is read before or after a question."""

    @property
    def passes(self) -> int:
        """Passes through the frozen model for each question; 0 where the language model takes no part."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash over everything that the evidence of a question depends on."""
        ...

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Return the evidence of each question, most trusted first.

        Args:
            fold: half of the training examples that the questions belong to; "" for questions outside training.
        """
        ...

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question with this evidence written into it."""
        ...


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """Values of a recipe's `evidence`. Each kind of evidence has a subclass of its own, which checks its values."""

    kind: str = field(default="", init=False)


@dataclass(frozen=True, slots=True)
class Room:
    """Sizes that evidence has to respect, in tokens of the language model.

    Attributes:
        prompt: vectors of the prompt.
        input: maximum length of evidence and question together.
        answer: maximum length of an answer.
    """

    prompt: int
    input: int
    answer: int


class EvidenceKind(Protocol):
    """A kind of evidence that recipes can name: its configuration class and its constructor."""

    Config: type[EvidenceConfig]

    def new(self, config: Any, lm: Any, room: Room) -> Evidence:
        """Return a source of this kind.

        Args:
            config: an instance of `Config`.
            lm: the frozen model that reads the evidence.
            room: sizes that the evidence has to respect.
        """
        ...


def _fault(name: str, kind: Any) -> str:
    """Return why a kind of evidence from another package cannot be used; "" if it can."""
    config = getattr(kind, "Config", None)
    if not (isinstance(config, type) and issubclass(config, EvidenceConfig) and callable(getattr(kind, "new", None))):
        return "is no EvidenceKind: it has no Config, a subclass of EvidenceConfig, or no `new`"
    named = config().kind
    return "" if named in ("", name) else f"has a Config of kind {named!r}: it must be {name!r}"


SOURCES: Registry[EvidenceKind] = Registry(
    "shoulders.evidence",
    "kind of evidence",
    {
        CANDIDATES: "shoulders.evidence.kinds:CANDIDATES_KIND",
        RETRIEVED: "shoulders.evidence.kinds:PASSAGES_KIND",
        ORACLE: "shoulders.evidence.kinds:PASSAGES_KIND",
        DEMONSTRATIONS: "shoulders.evidence.demonstrations:KIND",
    },
    _fault,
)


def with_evidence(questions: Sequence[Question], evidence: Evidence | None, fold: str = "") -> list[Question]:
    """Return the questions with their evidence written into them; unchanged if there is no source."""
    if evidence is None:
        return list(questions)
    found = evidence.find(questions, fold)
    return [evidence.write(question, passages) for question, passages in zip(questions, found, strict=True)]
