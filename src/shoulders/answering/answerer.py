"""`Answerer`, the interface of everything that answers questions, and the answerer of one model with its scaffold."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, final

from shoulders.answering.models import LoadedModel, ModelInfo
from shoulders.answering.spec import AnswerSpec
from shoulders.answering.threshold import read_threshold
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.matching import find_support
from shoulders.engine import inference
from shoulders.engine.inference import Answering, Engine, Sampling, answered, choose
from shoulders.evidence.base import Evidence
from shoulders.evidence.candidates import Candidates
from shoulders.evidence.demonstrations import Demonstrations, stops_of
from shoulders.evidence.packing import PackedEvidence
from shoulders.records import Answer, Passage, Question, QuestionLike, as_questions
from shoulders.scaffolds.base import Scaffold


class Answerer(ABC):
    """The interface of everything that answers questions: the bare model, a scaffold, a reader, a cascade or a rival.

    >>> answerer = shoulders.open("runs/reader", index="runs/index")  # doctest: +SKIP
    >>> found = answerer.ask("Who wrote The Hobbit?")
    >>> found.answer, found.probability, found.passage, found.span

    A question is a string, put into the wording that the model was trained with, or a `Question`.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def reads_passages(self) -> bool:
        """Whether questions are read with passages."""

    def ask(self, question: QuestionLike, choices: Sequence[str] = ()) -> Answer:
        """Return the answer to a question, or the most likely of some choices.

        Raises:
            UsageError, ContextFull: as `engine.inference.answered`.
        """
        return self.ask_all([question], [choices] if choices else ())[0]

    @abstractmethod
    def ask_all(self, questions: Sequence[QuestionLike], choices: Sequence[Sequence[str]] = ()) -> list[Answer]:
        """Return the answers to several questions, which share batches.

        Args:
            choices: of each question; if empty, answers are generated.
        """

    @abstractmethod
    def rank(self, question: QuestionLike, choices: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each choice (`engine.inference.rank`)."""

    @abstractmethod
    def sample(self, question: QuestionLike, sampling: Sampling | None = None) -> list[Answer]:
        """Return several answers, drawn from the model's distribution (`engine.inference.sample`)."""

    @abstractmethod
    def stream(self, question: QuestionLike) -> Iterator[str]:
        """Yield the text of the answer in pieces, as they are generated."""

    @abstractmethod
    def over(self, engine: Engine) -> Self:
        """Return the same answerer, whose passes an engine runs: a scheduler that many threads share.

        What has no passes through a frozen model, and evidence of another package, stays as it is.
        """


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A question as the model reads it, with its evidence; fields are named as in `Answer`."""

    question: Question
    passages: tuple[Passage, ...] = ()
    read: tuple[Passage, ...] = ()
    candidates: tuple[Passage, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class ModelAnswerer(Answerer):
    """A frozen model, bare or under a scaffold, or a rival of one; with or without evidence.

    Source: the paper, section 3, for passages; section 4.1, for candidates.

    Attributes:
        how: settings of the generation of answers.
        spec: wording of questions, and threshold.
        evidence: source of passages or candidates that questions are read with.
        doubt: why the threshold may not fit the passages; empty if it was chosen over the same passages.
    """

    lm: FrozenLM
    scaffold: Scaffold
    how: Answering
    spec: AnswerSpec = field(default_factory=AnswerSpec)
    evidence: Evidence | None = None
    doubt: str = ""

    @classmethod
    def load(cls, info: ModelInfo, lm: FrozenLM, spec: AnswerSpec, *, truncate: bool = False) -> Self:
        """Return the answerer of a model that is described by its files.

        Args:
            lm: the backbone.
            spec: how the model is asked.
            truncate: cut questions that do not fit the context instead of refusing them.

        Raises:
            SourceNotFound, CorruptFile, WrongBackbone: as `ModelInfo.load` and `new_source`.
        """
        model = info.load(lm)
        evidence = spec.source(lm, model.scaffold.length)  # candidates are the frozen model's
        how = Answering(spec.longest, truncate, stops=stops_of(evidence))
        return cls(model.lm, model.scaffold, how, spec, evidence)

    def with_threshold_of(self, name: str) -> Self:
        """Return the answerer with the threshold that is stored in a folder, if there is one.

        Raises:
            CorruptFile, UsageError: as `read_threshold`.
        """
        kept = read_threshold(name, LoadedModel(self.lm, self.scaffold)) if self.spec.reads_passages else None
        if kept is None or self.evidence is None:
            return self
        doubt = kept.doubt(self.spec.index, self.evidence.fingerprint)
        return replace(self, spec=replace(self.spec, threshold=kept.threshold), doubt=doubt)

    @property
    def passes(self) -> int:
        """Number of passes through the frozen model for an answer, including those for its evidence."""
        return self.scaffold.passes + (self.evidence.passes if self.evidence else 0)

    @property
    def reads_passages(self) -> bool:
        """Whether questions are read with passages."""
        return isinstance(self.evidence, PackedEvidence)

    def ask_all(self, questions: Sequence[QuestionLike], choices: Sequence[Sequence[str]] = ()) -> list[Answer]:
        """Return the answers to several questions, which share batches."""
        given = self.prepared(questions)
        whole = [one.question for one in given]
        if choices:
            answers = choose(whole, choices, self.lm, self.scaffold, self.how)
        else:
            answers = answered(whole, self.lm, self.scaffold, self.how)
        return [self.finished(one, answer, chosen=bool(choices)) for one, answer in zip(given, answers, strict=True)]

    def rank(self, question: QuestionLike, choices: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each choice."""
        (one,) = self.prepared([question])
        return inference.rank([one.question], [choices], self.lm, self.scaffold, self.how)[0]

    def sample(self, question: QuestionLike, sampling: Sampling | None = None) -> list[Answer]:
        """Return several answers, drawn from the model's distribution; the question is read once."""
        (one,) = self.prepared([question])
        drawn = inference.sample([one.question], self.lm, self.scaffold, sampling or Sampling(), self.how)[0]
        return [self.finished(one, answer) for answer in drawn]

    def stream(self, question: QuestionLike) -> Iterator[str]:
        """Yield the text of the answer in pieces, as they are generated."""
        (one,) = self.prepared([question])
        pieces = inference.stream(one.question, self.lm, self.scaffold, self.how)
        yield from _trimmed(pieces, first_line=self.reads_passages)

    def over(self, engine: Engine) -> Self:
        """Return the same answerer, with its evidence, whose passes an engine runs."""
        return replace(self, how=replace(self.how, engine=engine), evidence=evidence_over(self.evidence, engine))

    def prepared(self, questions: Sequence[QuestionLike]) -> list[ModelInput]:
        """Return questions as the model reads them, with their evidence."""
        asked = [self.spec.question(one) for one in as_questions(questions)]
        if self.evidence is None:
            return [ModelInput(one) for one in asked]
        found = self.evidence.find(asked)
        if isinstance(self.evidence, Demonstrations):
            return [ModelInput(self.evidence.write(one, some)) for one, some in zip(asked, found, strict=True)]
        if not isinstance(self.evidence, PackedEvidence):
            write = self.evidence.write
            return [
                ModelInput(write(one, some), candidates=tuple(some)) for one, some in zip(asked, found, strict=True)
            ]
        packed = [self.evidence.packed(one, some) for one, some in zip(asked, found, strict=True)]
        return [ModelInput(pack.question, tuple(some), pack.passages) for pack, some in zip(packed, found, strict=True)]

    def finished(self, given: ModelInput, answer: Answer, *, chosen: bool = False) -> Answer:
        """Return the answer with the passages or candidates that it was read from."""
        # After an answer, a bare model with passages writes a further question: only the first line is the answer.
        text = answer.text.split("\n", 1)[0].rstrip() if self.reads_passages else answer.text
        stands = find_support(text, given.read)
        threshold = None if chosen else self.spec.threshold
        return replace(
            answer,
            text=text,
            passages=given.passages,
            read=given.read,
            candidates=given.candidates,
            support=stands,
            least=threshold.least(stands=stands is not None) if threshold else 0.0,
            passes=self.passes,
        )


def evidence_over(evidence: Evidence | None, engine: Engine) -> Evidence | None:
    """Return the same source of evidence, whose passes an engine runs; passages are found without any."""
    return evidence.over(engine) if isinstance(evidence, Candidates) else evidence


def _trimmed(pieces: Iterable[str], *, first_line: bool) -> Iterator[str]:
    """Yield the pieces of a text as far as it is `trimmed`."""
    whole = shown = ""
    for piece in pieces:
        whole += piece
        text = trimmed(whole, first_line=first_line)
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text


def trimmed(text: str, *, first_line: bool) -> str:
    """Return a text without the white space before and after it.

    Args:
        first_line: end at the end of the first line.
    """
    text = text.strip()
    return text.split("\n", 1)[0].rstrip() if first_line else text
