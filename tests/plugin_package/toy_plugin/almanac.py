"""A kind of evidence: one sentence before every question."""

from dataclasses import dataclass, field, replace

from shoulders.errors import UsageError
from shoulders.evidence.base import EvidenceConfig
from shoulders.records import Passage


@dataclass(frozen=True, slots=True)
class AlmanacConfig(EvidenceConfig):
    """What a recipe says of it.

    Attributes:
        sentence: that is read.
    """

    kind: str = field(default="toy_almanac", init=False)
    sentence: str = "One is odd."

    def __post_init__(self) -> None:
        if not self.sentence:
            raise UsageError("evidence.sentence is empty: say something")


@dataclass(frozen=True, slots=True)
class Almanac:
    """The evidence itself."""

    sentence: str
    passes: int = 0

    @property
    def fingerprint(self):
        return self.sentence

    def find(self, questions, fold=""):
        return [[Passage(self.sentence, 1.0)] for _ in questions]

    def write(self, question, passages):
        return replace(question, evidence=f"{passages[0].text}\n")


class AlmanacKind:
    """How recipes know it."""

    Config = AlmanacConfig

    def new(self, config, lm, room):
        assert room.prompt + room.input + room.answer > 0
        return Almanac(config.sentence)


SOURCE = AlmanacKind()
