"""`AnswerSpec`: how a trained model is asked, a frozen, validated record that is stored in its folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, final

from pydantic import TypeAdapter, ValidationError

from shoulders.answering.calibration import Threshold
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.readers import QUERY, QUESTION_WORDING
from shoulders.engine.batches import Lengths
from shoulders.errors import CorruptFile, UsageError, misfit
from shoulders.evidence.base import RETRIEVED, SOURCES, Evidence, EvidenceConfig
from shoulders.evidence.choice import PASSAGES, EvidenceChoice
from shoulders.evidence.kinds import new_source
from shoulders.records import Chat, Question, QuestionLike, as_question

LONGEST = 64  # default maximum length of an answer, in tokens
READ = 512  # tokens of passages and question that a model reads which was trained without passages


@final
@dataclass(frozen=True, slots=True)
class AnswerSpec:
    """How a model with its scaffold is asked.

    Attributes:
        wording: template of a question; "{query}" stands for the question itself.
        evidence: config of the evidence that questions are read with.
        lengths: maximum tokens of a question with its passages, and tokens left free for an answer.
        longest: maximum length of an answer in tokens.
        threshold: minimum probability of an answer; None gives every answer. A threshold that `shoulders threshold`
            stored beside the scaffold takes precedence.
        chat: conversation that a question stands in, read through the tokenizer's chat template; None: plain text.
    """

    wording: str = QUERY
    evidence: EvidenceConfig = field(default_factory=EvidenceChoice)
    lengths: Lengths = field(default_factory=Lengths)
    longest: int = LONGEST
    threshold: Threshold | None = None
    chat: Chat | None = None

    def __post_init__(self) -> None:
        if self.wording.count(QUERY) != 1:
            raise UsageError(f"the wording {self.wording!r} has {self.wording.count(QUERY)} {QUERY}: it needs one")
        if self.longest < 1:
            raise UsageError(
                f"the length of an answer must be at least 1 token, got {self.longest}: raise --longest (test.longest)"
            )

    @property
    def reads_passages(self) -> bool:
        """Whether questions are read with passages of an index."""
        return self.evidence.kind in PASSAGES

    @property
    def index(self) -> str:
        """Folder of the index of passages; empty if none are read."""
        return self.evidence.index if isinstance(self.evidence, EvidenceChoice) else ""

    def question(self, asked: QuestionLike) -> Question:
        """Return a question in the wording and conversation; it keeps its own wording, and its own conversation."""
        question = as_question(asked)
        if self.chat is not None and question.chat is None:
            question = replace(question, chat=self.chat)
        if question.text != question.query or not question.text.strip():
            return question
        before, after = self.wording.split(QUERY)
        query = question.text.removeprefix(before).removesuffix(after)
        return replace(question, text=f"{before}{query}{after}", query=query)

    def source(self, lm: FrozenLM, prompt: int) -> Evidence | None:
        """Return the source of evidence, or none (`new_source`).

        Args:
            prompt: length of the prompt that the evidence is read with.
        """
        return new_source(self.evidence, lm, prompt, self.lengths)

    def in_chat(self, chat: bool | str | None) -> Self:
        """Return the spec with or without the chat template.

        Args:
            chat: True or a system text: with the template; False: without it; None: no change.
        """
        if chat is None or (chat is True and self.chat is not None):
            return self
        return replace(self, chat=None if chat is False else Chat.of("" if chat is True else chat))

    def with_options(self, index: str = "", longest: int | None = None) -> Self:
        """Return the spec with another index of passages, or another length of answers.

        Passages are always retrieved, also if they were annotated in training: new questions have no annotations. A
        model that was trained without passages reads those of an index as the recipe `reader` does.

        Args:
            index: folder of the passages; empty: no change.
            longest: maximum length of an answer in tokens; None: no change.
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
        """Return the record as plain JSON values."""
        plain = asdict(replace(self, threshold=None))
        threshold = self.threshold and self.threshold.as_json()
        return json.loads(json.dumps({**plain, "threshold": threshold}))


def spec_from_json(content: Mapping[str, Any], where: object) -> AnswerSpec:
    """Return the record that `as_json` wrote; missing values are the defaults.

    Raises:
        CorruptFile: the content is no such record.
        UsageError: a value does not fit.
    """
    try:
        values = TypeAdapter(dict[str, Any]).validate_python(content)
        if "evidence" in values:
            values["evidence"] = _evidence(values["evidence"])
        return TypeAdapter(AnswerSpec).validate_python(values)
    except ValidationError as error:
        raise CorruptFile(
            f"the answer settings of {where} cannot be read ({misfit('', error.errors())}): save it again"
        ) from error


def _evidence(content: Any) -> EvidenceConfig:
    """Return the config of a kind of evidence from JSON, also of another package."""
    content = TypeAdapter(dict[str, Any]).validate_python(content)
    kind = str(content.get("kind", ""))
    config = SOURCES[kind].Config if kind else EvidenceChoice
    settled = {item.name for item in fields(config) if not item.init}  # the kind, where a class fixes it
    return TypeAdapter(config).validate_python({key: content[key] for key in content if key not in settled})
