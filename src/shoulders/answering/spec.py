"""How something that was trained is asked, as one frozen, self-validating record that lies in its folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, final

from pydantic import TypeAdapter, ValidationError

from shoulders.answering.calibration import Threshold
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.readers import QUERY, QUESTION_WORDING
from shoulders.engine.batches import Lengths
from shoulders.errors import CorruptFile, UsageError
from shoulders.evidence.base import RETRIEVED, SOURCES, Evidence, EvidenceConfig
from shoulders.evidence.choice import PASSAGES, EvidenceChoice
from shoulders.evidence.sources import new_source
from shoulders.records import Question, QuestionLike, as_question

LONGEST = 64  # tokens of an answer, where nobody said how many
READ = 512  # tokens of passages and question that are read where nobody was trained to read any


@final
@dataclass(frozen=True, slots=True)
class AnswerSpec:
    """How a model with its scaffold is asked.

    Attributes:
        wording: of a question; "{query}" stands for what is asked.
        evidence: that questions are read with.
        lengths: tokens of a question with its passages at most, and those left free for an answer.
        longest: tokens of an answer at most.
        threshold: how sure an answer must be to be given; None gives every answer. What `shoulders threshold` wrote
            beside a scaffold takes its place.
    """

    wording: str = QUERY
    evidence: EvidenceConfig = field(default_factory=EvidenceChoice)
    lengths: Lengths = field(default_factory=Lengths)
    longest: int = LONGEST
    threshold: Threshold | None = None

    def __post_init__(self) -> None:
        if self.wording.count(QUERY) != 1:
            raise UsageError(f"the wording {self.wording!r} has {self.wording.count(QUERY)} {QUERY}: it needs one")
        if self.longest < 1:
            raise UsageError(f"an answer of at most {self.longest} tokens is none: raise --longest (test.longest)")

    @property
    def reads_passages(self) -> bool:
        """Whether questions are read with passages of an index."""
        return self.evidence.kind in PASSAGES

    @property
    def index(self) -> str:
        """The folder of the passages that are read; empty where none are."""
        return self.evidence.index if isinstance(self.evidence, EvidenceChoice) else ""

    def question(self, asked: QuestionLike) -> Question:
        """Return a question in the wording; one that has a wording already stays as it is."""
        question = as_question(asked)
        if question.text != question.query or not question.text.strip():
            return question
        before, after = self.wording.split(QUERY)
        query = question.text.removeprefix(before).removesuffix(after)
        return replace(question, text=f"{before}{query}{after}", query=query)

    def source(self, lm: FrozenLM, prompt: int) -> Evidence | None:
        """Return the source of evidence, or none (`new_source`).

        Args:
            prompt: vectors of the prompt that the evidence is read with.
        """
        return new_source(self.evidence, lm, prompt, self.lengths)

    def with_options(self, index: str = "", longest: int | None = None) -> Self:
        """Return the same with passages of another index, and with answers of another length.

        Passages are retrieved, also where they were annotated in training: what people ask is annotated nowhere.
        What was trained without passages reads those of an index as the recipe `reader` does.

        Args:
            index: folder of the passages; empty: its own.
            longest: tokens of an answer; None: its own.
        """
        if index and not self.reads_passages:
            room = LONGEST if longest is None else longest
            evidence = EvidenceChoice(kind=RETRIEVED, index=index)
            return replace(
                self,
                wording=QUESTION_WORDING,
                evidence=evidence,
                lengths=Lengths(READ, max(room, evidence.longest)),
                longest=room,
            )
        evidence = self.evidence
        if isinstance(evidence, EvidenceChoice) and self.reads_passages:
            evidence = replace(evidence, kind=RETRIEVED, index=index or evidence.index)
        longest = self.longest if longest is None else longest
        lengths = replace(self.lengths, target=max(self.lengths.target, longest))
        return replace(self, evidence=evidence, lengths=lengths, longest=longest)

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        plain = asdict(replace(self, threshold=None))
        threshold = self.threshold and self.threshold.as_json()
        return json.loads(json.dumps({**plain, "threshold": threshold}))


def spec_from_json(content: Mapping[str, Any], where: object) -> AnswerSpec:
    """Return the record that `as_json` gave; the defaults where nothing was kept.

    Raises:
        CorruptFile: something else lies there.
        UsageError: a value does not fit.
    """
    try:
        values = dict(content)
        if "evidence" in values:
            values["evidence"] = _evidence(values["evidence"])
        return TypeAdapter(AnswerSpec).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CorruptFile(
            f"what {where} keeps of how it is asked cannot be read ({place}: {first['msg']}): save it anew"
        ) from error


def _evidence(content: Mapping[str, Any]) -> EvidenceConfig:
    """Return the values of a kind of evidence, ours or another package's, by the name of the kind."""
    kind = str(content.get("kind", ""))
    config = SOURCES[kind].Config if kind else EvidenceChoice
    settled = {item.name for item in fields(config) if not item.init}  # the kind, where a class has one only
    return TypeAdapter(config).validate_python({key: content[key] for key in content if key not in settled})
