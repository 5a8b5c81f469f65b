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
class Tokenised:
    """A text with its token ids, as `FrozenLM.ids` gives them."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What a user or an example asks: text that comes first (passages, candidates) and the question itself.

    Attributes:
        text: the question as the language model reads it, in its wording ("Question: Who? Answer:").
        evidence: text that comes first.
        gold: ids of the documents that are annotated as holding the answer, where the data set says.
        query: the question as it was typed, or as its data set has it ("Who?"); `text` where it has no wording.
        tokenised: `whole` with its token ids, where they are known already.
    """

    text: str
    evidence: str = ""
    gold: tuple[str, ...] = ()
    query: str = ""
    tokenised: Tokenised | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.query:
            object.__setattr__(self, "query", self.text)

    @property
    def whole(self) -> str:
        """The text the language model reads, evidence first."""
        return f"{self.evidence}{self.text}"

    @property
    def ids(self) -> tuple[int, ...] | None:
        """The token ids of `whole`, where they are known."""
        known = self.tokenised
        return known.ids if known is not None and known.text == self.whole else None


QuestionLike = str | Question  # what a question may be given as


def as_question(asked: QuestionLike) -> Question:
    """Return a question that was given as a string, or as one."""
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
        text: as the language model reads it.
        score: how far its source trusts it; for a candidate the log-probability of the answer.
        title: of the document that it is from; a candidate has none.
    """

    text: str
    score: float
    title: str = ""


@dataclass(frozen=True, slots=True)
class Support:
    """Where an answer stands in what was read.

    Attributes:
        number: of the passage, from 0, in the order in which they were read.
        start, end: the characters of the answer in the passage's text, from and up to.
    """

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, how sure the model was of it, and what it was read from.

    Attributes:
        text: what was generated or chosen, sure or not.
        log_probability: of its tokens and its end, summed, at temperature 1; of a choice, among the choices.
        margin: the smallest lead, in log-probability, of a chosen token over the best other one; of a choice, its lead.
        passages: that were retrieved, best first, with their scores.
        read: those of them that the model read, in their order; the last one may have been cut.
        support: which of these the answer stands in first, and where.
        candidates: that the model had sampled before and read, with their log-probabilities.
        least: probability below which the answer counts as none; 0 where no threshold was chosen.
        passes: through the frozen model that it took; 0 where nobody counted.
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
        """Of all that was generated, 0 to 1; of a choice, its share among the choices."""
        return math.exp(self.log_probability)

    @property
    def answer(self) -> str | None:
        """The answer; None for "no answer": the model is not sure enough, or says nothing."""
        return self.text if self.text and self.probability >= self.least else None

    @property
    def passage(self) -> Passage | None:
        """The first passage that was read and has the answer."""
        return self.read[self.support.number] if self.support else None

    @property
    def span(self) -> tuple[int, int] | None:
        """The characters of the answer in the text of its passage, from and up to."""
        return (self.support.start, self.support.end) if self.support else None

    @property
    def places(self) -> dict[int, int]:
        """By rank of a passage among those retrieved (from 1), its number among those read (from 0)."""
        places: dict[int, int] = {}
        for rank, passage in enumerate(self.passages, start=1):
            if len(places) < len(self.read) and _begins(passage, self.read[len(places)]):
                places[rank] = len(places)
        return places

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values: an infinite number is null."""
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
        """The answer as a notebook shows it."""
        said = "<i>no answer</i>" if self.answer is None else f"<b>{escape(self.answer)}</b>"
        told = f"<p>{said} ({self.probability:.2f})</p>"
        if self.support is None or self.passage is None:
            return f"{told}<p>not in the {len(self.read)} passages that were read</p>" if self.passages else told
        text, start, end = self.passage.text, self.support.start, self.support.end
        marked = f"{escape(text[:start])}<mark>{escape(text[start:end])}</mark>{escape(text[end:])}"
        return f"{told}<p><b>{escape(self.passage.title)}</b> {marked}</p>"


def _begins(passage: Passage, read: Passage) -> bool:
    return passage.title == read.title and passage.text.startswith(read.text)


def _as_json(passage: Passage) -> dict[str, Any]:
    return {"title": passage.title, "text": passage.text, "score": _finite(passage.score)}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a task seen through one template."""

    task: str
    template: str
    id: str
    question: Question
    target: str  # what training teaches
    references: tuple[str, ...]  # all answers that count as right; the target is among them
    choices: tuple[str, ...] | None = None  # closed set of answers, the target among them


@dataclass(frozen=True, slots=True)
class Tokens:
    """A padded batch of token ids."""

    ids: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"] | None = None  # False = padding; None: there is none

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on another device."""
        return Tokens(self.ids.to(device), None if self.mask is None else self.mask.to(device))


@dataclass(frozen=True, slots=True)
class KeysValues:
    """What the attention of one pass keeps of a batch of texts: keys and values (B, heads, positions, width) by layer.

    Rows end in one column, with zeros before the shorter ones. A layer whose window is shorter than the texts has the
    positions of its window only.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class ScaffoldInput:
    """What every scaffold is given: embedded text, where a prompt may go, and what its encoder reads.

    `mask` is None when padding, if there is any, stands only at the end of rows: a causal model never sees it there, so
    the backbone needs no mask at all. `slot` holds one column per row: a prompt is placed before that text position,
    and padding never lies between the two. `source` is what an input-dependent scaffold's encoder reads. `first` are
    the final states of the bare model's pass over `embeds`, and `before` its keys and values of the text before the
    slot (one column for all rows), where they are known already.
    """

    embeds: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    slot: tuple[int, ...] = ()
    source: Tokens | None = None
    first: Float[Tensor, "B T D"] | None = None
    before: KeysValues | None = None

    def continued(self, embeds: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None) -> "ScaffoldInput":
        """The next positions of a sequence whose beginning is in a memory already."""
        return replace(self, embeds=embeds, mask=mask, source=None, first=None, before=None)


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of training examples."""

    given: ScaffoldInput
    labels: Int[Tensor, "B T"]  # the token to be predicted at each text position; IGNORE where none is scored


class Placement(StrEnum):
    """Where a prompt stands."""

    PREFIX = "prefix"  # before everything (Lester et al. 2021; the paper)
    INFIX = "infix"  # between the evidence and the question
    SUFFIX = "suffix"  # after the question: the text is read without gradients, and alike by every scaffold
