"""Questions in, answers out, for whatever answers: `Answerer`, and a model under a scaffold as one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, final

from shoulders.answering.models import LoadedModel, ModelInfo
from shoulders.answering.spec import AnswerSpec
from shoulders.answering.threshold import read_threshold
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.matching import support
from shoulders.engine import inference
from shoulders.engine.batches import Evidence
from shoulders.engine.inference import Answering, Sampling, answered, choose
from shoulders.evidence.packing import PackedEvidence
from shoulders.records import Answer, Passage, Question, QuestionLike, as_questions
from shoulders.scaffolds.base import Scaffold


class Answerer(ABC):
    """Something that answers questions: the bare model, a scaffold, a reader, a cascade, or a rival.

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
            UsageError, ContextFull: as `pipeline.answer`.
        """
        return self.ask_all([question], [choices] if choices else ())[0]

    @abstractmethod
    def ask_all(self, questions: Sequence[QuestionLike], choices: Sequence[Sequence[str]] = ()) -> list[Answer]:
        """Return the answers to several questions, which share batches.

        Args:
            choices: of each question; without any, answers are generated.
        """

    @abstractmethod
    def rank(self, question: QuestionLike, choices: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each choice (`pipeline.rank`)."""

    @abstractmethod
    def sample(self, question: QuestionLike, sampling: Sampling | None = None) -> list[Answer]:
        """Return several answers, drawn from the model's distribution (`pipeline.sample`)."""

    @abstractmethod
    def stream(self, question: QuestionLike) -> Iterator[str]:
        """Yield the text of the answer in pieces, as they come."""


@dataclass(frozen=True, slots=True)
class _Given:
    """A question as the model reads it, and what it is read with; the names are those of `Answer`."""

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
        how: answers are generated.
        spec: wording and threshold.
        evidence: that questions are read with.
        doubt: why the threshold may not fit what is read; empty where it was chosen over the same passages.
    """

    lm: FrozenLM
    scaffold: Scaffold
    how: Answering
    spec: AnswerSpec = field(default_factory=AnswerSpec)
    evidence: Evidence | None = None
    doubt: str = ""

    @classmethod
    def load(cls, info: ModelInfo, lm: FrozenLM, spec: AnswerSpec, *, truncate: bool = False) -> Self:
        """Return what a name stands for, asked as a record says.

        Args:
            lm: the backbone.
            truncate: cut questions that do not fit the context.

        Raises:
            SourceNotFound, CorruptFile, WrongBackbone: as `ModelInfo.load` and `new_source`.
        """
        model = info.load(lm)
        evidence = spec.source(lm, model.scaffold.length)  # candidates are the frozen model's
        return cls(model.lm, model.scaffold, Answering(spec.longest, truncate), spec, evidence)

    def with_threshold_of(self, name: str) -> Self:
        """Return the same with the threshold that lies in a folder, if there is one.

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
        """Passes through the frozen model that an answer costs, those of its evidence among them."""
        return self.scaffold.passes + (self.evidence.passes if self.evidence else 0)

    @property
    def reads_passages(self) -> bool:
        """Whether questions are read with passages."""
        return isinstance(self.evidence, PackedEvidence)

    def ask_all(self, questions: Sequence[QuestionLike], choices: Sequence[Sequence[str]] = ()) -> list[Answer]:
        """Return the answers to several questions, which share batches."""
        given = self._given(questions)
        whole = [one.question for one in given]
        if choices:
            said = choose(whole, choices, self.lm, self.scaffold, self.how)
        else:
            said = answered(whole, self.lm, self.scaffold, self.how)
        return [self._answer(one, told, chosen=bool(choices)) for one, told in zip(given, said, strict=True)]

    def rank(self, question: QuestionLike, choices: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each choice."""
        (one,) = self._given([question])
        return inference.rank([one.question], [choices], self.lm, self.scaffold, self.how)[0]

    def sample(self, question: QuestionLike, sampling: Sampling | None = None) -> list[Answer]:
        """Return several answers, drawn from the model's distribution after one reading of the question."""
        (one,) = self._given([question])
        drawn = inference.sample([one.question], self.lm, self.scaffold, sampling or Sampling(), self.how)[0]
        return [self._answer(one, told) for told in drawn]

    def stream(self, question: QuestionLike) -> Iterator[str]:
        """Yield the text of the answer in pieces, as they are generated."""
        (one,) = self._given([question])
        pieces = inference.stream(one.question, self.lm, self.scaffold, self.how)
        yield from _trimmed(pieces, first_line=self.reads_passages)

    def _given(self, questions: Sequence[QuestionLike]) -> list[_Given]:
        asked = [self.spec.question(one) for one in as_questions(questions)]
        if self.evidence is None:
            return [_Given(one) for one in asked]
        found = self.evidence.find(asked)
        if not isinstance(self.evidence, PackedEvidence):
            write = self.evidence.write
            return [_Given(write(one, some), candidates=tuple(some)) for one, some in zip(asked, found, strict=True)]
        packed = [self.evidence.packed(one, some) for one, some in zip(asked, found, strict=True)]
        return [_Given(pack.question, tuple(some), pack.passages) for pack, some in zip(packed, found, strict=True)]

    def _answer(self, given: _Given, said: Answer, *, chosen: bool = False) -> Answer:
        """Return an answer with what it was read from."""
        # a bare model that reads goes on with a question of its own
        text = said.text.split("\n", 1)[0].rstrip() if self.reads_passages else said.text
        stands = support(text, given.read)
        threshold = None if chosen else self.spec.threshold
        return replace(
            said,
            text=text,
            passages=given.passages,
            read=given.read,
            candidates=given.candidates,
            support=stands,
            least=threshold.least(stands=stands is not None) if threshold else 0.0,
            passes=self.passes,
        )


def _trimmed(pieces: Iterable[str], *, first_line: bool) -> Iterator[str]:
    """Yield the pieces without the white space around the whole of them.

    Args:
        first_line: end with the first line.
    """
    whole = told = ""
    for piece in pieces:
        whole += piece
        text = whole.strip()
        line = text.split("\n", 1)[0].rstrip() if first_line else text
        if len(line) > len(told):
            yield line[len(told) :]
            told = line
