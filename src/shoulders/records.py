"""Frozen records that cross module borders.

Shape letters, one glossary for the whole project: B batch, T text positions, P prompt positions, S source positions
(what an encoder reads), D width of the language model, E width of the encoder, V vocabulary, C answer choices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from html import escape
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoulders.errors import UsageError

IGNORE = -100  # label of a position that is not scored, as everywhere in Hugging Face


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation; its role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation whose next message is a question; it is read through the tokenizer's chat template.

    Attributes:
        before: messages before the question: a system text, earlier turns.
    """

    before: tuple[Message, ...] = ()

    @classmethod
    def of(cls, system: str = "") -> "Chat":
        """Return a conversation that begins with the question, after a system text if there is one."""
        return cls((Message("system", system),) if system else ())

    @property
    def system(self) -> str:
        """The system text; "" if there is none."""
        return next((one.content for one in self.before if one.role == "system"), "")


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A text with the token ids that a model reads it as.

    Attributes:
        text, chat: the text, and the conversation that it stands in.
        ids: token ids; in a conversation those of all of it, the template's own among them.
        prefix, infix: in a conversation, number of tokens before its first text, and before the question.
        rest: number of the template's tokens after the question.
    """

    text: str
    ids: tuple[int, ...]
    chat: Chat | None = None
    prefix: int = 0
    infix: int = 0
    rest: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question, with the evidence that is read before it.

    Attributes:
        text: the question in its wording, as the language model reads it ("Question: Who? Answer:").
        evidence: text that is read before `text`: passages or candidates.
        gold: ids of the documents that are annotated as containing the answer, if the data set has them.
        query: the question without a wording ("Who?"), as typed or as in its data set; `text` by default.
        chat: the conversation that it is the next message of; None: it is read as plain text.
        task: task and template that it comes from ("task/template"); "" for a question that was typed.
        tokenised: `whole` with its token ids, once it has been tokenised.
    """

    text: str
    evidence: str = ""
    gold: tuple[str, ...] = ()
    query: str = ""
    chat: Chat | None = None
    task: str = field(default="", compare=False)
    tokenised: Tokenised | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.query:
            object.__setattr__(self, "query", self.text)

    @property
    def whole(self) -> str:
        """Evidence and question: all that the language model reads, apart from a conversation around it."""
        return f"{self.evidence}{self.text}"

    @property
    def ids(self) -> tuple[int, ...] | None:
        """Token ids of the question; None if it has not been tokenised."""
        known = self.tokenised
        return known.ids if known is not None and (known.text, known.chat) == (self.whole, self.chat) else None


QuestionLike = str | Question


def as_question(asked: QuestionLike) -> Question:
    """Return a question that is given as a string or a `Question` as a `Question`.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(asked, str | Question):
        raise UsageError(f"a question is a {type(asked).__name__}: give a string or a Question")
    return Question(asked) if isinstance(asked, str) else asked


def as_questions(asked: Sequence[QuestionLike]) -> list[Question]:
    """Return questions that were given as strings, or as such.

    Raises:
        UsageError: one string was given in the place of a list.
    """
    if isinstance(asked, str):
        raise UsageError(f"the questions are one string ({asked!r:.80}): give a list of questions")
    return [as_question(one) for one in asked]


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of evidence: a retrieved passage, or a candidate answer.

    Attributes:
        text: text that the language model reads.
        score: score of the retriever or re-ranker; for a candidate, the log-probability of the answer.
        title: title of its document; "" for a candidate.
    """

    text: str
    score: float
    title: str = ""


@dataclass(frozen=True, slots=True)
class Support:
    """Position of an answer in the passages that were read.

    Attributes:
        number: number of the passage, from 0, in reading order.
        start, end: first character of the answer in the passage's text, and the one after its last.
    """

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its probability and the evidence that was read for it.

    Attributes:
        text: text that was generated or chosen, whatever its probability.
        log_probability: sum over its tokens and its end, at temperature 1; for a choice, normalised over the choices.
        margin: smallest difference in log-probability between a generated token and the next best token; for a choice,
            between it and the next best choice.
        passages: passages that were retrieved, best first.
        read: those of them that the model read, in order; the last one may have been truncated.
        support: first place in `read` where the answer occurs; None if it occurs nowhere.
        candidates: answers that the model had sampled and read, with their log-probabilities.
        least: probability below which `answer` is None; 0 without a threshold.
        passes: passes through the frozen model that it took; 0 if they were not counted.
    """

    text: str
    log_probability: float
    margin: float
    passages: tuple[Passage, ...] = ()
    read: tuple[Passage, ...] = ()
    support: Support | None = None
    candidates: tuple[Passage, ...] = ()
    least: float = 0.0
    passes: int = 0

    @property
    def probability(self) -> float:
        """Probability of the whole text, 0 to 1; for a choice, normalised over the choices."""
        return math.exp(self.log_probability)

    @property
    def answer(self) -> str | None:
        """The text; None ("no answer") if it is empty or its probability is below `least`."""
        return self.text if self.text and self.probability >= self.least else None

    @property
    def passage(self) -> Passage | None:
        """The first passage read that contains the answer; None if no passage does."""
        return self.read[self.support.number] if self.support else None

    @property
    def span(self) -> tuple[int, int] | None:
        """Start and end of the answer in the text of `passage`, in characters; None without one."""
        return (self.support.start, self.support.end) if self.support else None

    @property
    def places(self) -> dict[int, int]:
        """Number in `read` (from 0) of each passage that was read, by its rank in `passages` (from 1)."""
        places: dict[int, int] = {}
        for rank, passage in enumerate(self.passages, start=1):
            if len(places) < len(self.read) and _begins(passage, self.read[len(places)]):
                places[rank] = len(places)
        return places

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values, infinite numbers as null."""
        places = self.places
        return {
            "answer": self.answer,
            "said": self.text,
            "probability": self.probability,
            "margin": _finite(self.margin),
            "least": _finite(self.least),
            "passes": self.passes,
            "passage": self.passage and _as_json(self.passage),
            "span": self.span,
            "passages": [
                {**_as_json(passage), "read": rank in places} for rank, passage in enumerate(self.passages, start=1)
            ],
            "candidates": [{"text": one.text, "log_probability": _finite(one.score)} for one in self.candidates],
        }

    def _repr_html_(self) -> str:
        """Return the answer as HTML, for notebooks."""
        answer = "<i>no answer</i>" if self.answer is None else f"<b>{escape(self.answer)}</b>"
        shown = f"<p>{answer} ({self.probability:.2f})</p>"
        if self.support is None or self.passage is None:
            return f"{shown}<p>not in the {len(self.read)} passages that were read</p>" if self.passages else shown
        text, start, end = self.passage.text, self.support.start, self.support.end
        marked = f"{escape(text[:start])}<mark>{escape(text[start:end])}</mark>{escape(text[end:])}"
        return f"{shown}<p><b>{escape(self.passage.title)}</b> {marked}</p>"


def _begins(passage: Passage, read: Passage) -> bool:
    return passage.title == read.title and passage.text.startswith(read.text)


def _as_json(passage: Passage) -> dict[str, Any]:
    return {"title": passage.title, "text": passage.text, "score": _finite(passage.score)}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a task in one wording (template)."""

    task: str
    template: str
    id: str
    question: Question
    target: str  # the answer that training teaches
    references: tuple[str, ...]  # all correct answers, the target among them
    choices: tuple[str, ...] | None = None  # closed set of answers to choose from, the target among them

    def asked(self, chat: Chat | None = None) -> Question:
        """Return its question as a model is asked it: with the name of its task, and in a conversation."""
        return replace(self.question, task=f"{self.task}/{self.template}", chat=chat or self.question.chat)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A padded batch of token ids."""

    ids: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"] | None = None  # False = padding; None = no padding

    def to(self, device: torch.device) -> "Tokens":
        """Return the same tokens on another device."""
        return Tokens(self.ids.to(device), None if self.mask is None else self.mask.to(device))


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Attention keys and values (B, heads, positions, width) of a batch of texts in one pass, by layer.

    Rows end in one column, with zeros before shorter ones. A layer with a sliding window shorter than the texts has the
    positions of its window only.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class ScaffoldInput:
    """Input of every scaffold: embedded text, the position of a prompt, and the tokens that its encoder reads.

    `mask` is None if there is no padding before a row's text: a causal model never sees padding after it, so the
    backbone needs no mask. `slot` has a column for each row: a prompt is placed before that text position, and no
    padding lies between the two. `source` is the input of the encoder of an input-dependent scaffold. `first` are the
    final states of the bare model over `embeds`, and `before` its keys and values of the text before the slot (the same
    column for all rows), if they have been computed already.
    """

    embeds: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    slot: tuple[int, ...] = ()
    source: Tokens | None = None
    first: Float[Tensor, "B T D"] | None = None
    before: KeysValues | None = None

    def continued(self, embeds: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None) -> "ScaffoldInput":
        """Return the input of the next positions of a sequence whose beginning is in the memory already."""
        return replace(self, embeds=embeds, mask=mask, source=None, first=None, before=None)


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of training examples."""

    given: ScaffoldInput
    labels: Int[Tensor, "B T"]  # next token at each text position; IGNORE = not scored


class Placement(StrEnum):
    """Position of a prompt."""

    PREFIX = "prefix"  # before everything (Lester et al. 2021; the paper)
    INFIX = "infix"  # between the evidence and the question
    SUFFIX = "suffix"  # after the question: the text needs no gradients, and is the same for every scaffold
