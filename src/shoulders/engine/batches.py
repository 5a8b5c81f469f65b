"""From examples and texts to tensors: token ids, the slot of a prompt, and batches of rows of similar length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from shoulders.backbone.chat import template_of
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UsageError
from shoulders.records import IGNORE, Batch, Placement, Question, ScaffoldInput, Tokenised, Tokens
from shoulders.scaffolds.base import Scaffold

Row = TypeVar("Row")
Result = TypeVar("Result")  # of one row


@dataclass(frozen=True, slots=True)
class Lengths:
    """Longest input and target, in tokens; by default those of T0++ (Sanh et al. 2021)."""

    input: int = 1024
    target: int = 256

    def __post_init__(self) -> None:
        if self.input < 1 or self.target < 1:
            raise UsageError(
                f"suite.lengths.input is {self.input} and suite.lengths.target {self.target}: each must be at least 1"
            )


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """A question as token ids, with its answer in training.

    Attributes:
        question: the question.
        ids: token ids of evidence and question, or of the conversation that they stand in.
        question_at: index of the first token of the question, after the evidence.
        target: token ids of the answer and the end token; empty outside training.
        prefix_at: in a conversation, index of the first token of its first text.
        rest: in a conversation, number of the template's tokens after the question.
        taught: the same question and answer as a teacher reads them (`training.distillation`); None without one.
    """

    question: Question
    ids: list[int]
    question_at: int
    target: list[int] = field(default_factory=list)
    prefix_at: int = 0
    rest: int = 0
    taught: "EncodedQuestion | None" = None

    @property
    def length(self) -> int:
        """Number of positions that the language model reads: all but the last token."""
        return len(self.ids) + max(0, len(self.target) - 1)

    def slot(self, placement: Placement) -> int:
        """Return the text position before which a prompt is inserted."""
        end = len(self.ids) - self.rest
        return {Placement.PREFIX: self.prefix_at, Placement.INFIX: self.question_at, Placement.SUFFIX: end}[placement]


def encode(question: Question, lm: FrozenLM, target: str | None = None) -> EncodedQuestion:
    """Return a question as token ids and, for training, its answer with the end token."""
    question = tokenised(question, lm)
    known = question.tokenised
    assert known is not None
    answer = answer_ids(question, target, lm) if target is not None else []
    if question.chat is not None:
        return EncodedQuestion(question, list(known.ids), known.infix, answer, known.prefix, known.rest)
    at = len(lm.ids(question.evidence)) if question.evidence else 0
    return EncodedQuestion(question, list(known.ids), min(at, len(known.ids)), answer)


def tokenised(question: Question, lm: FrozenLM) -> Question:
    """Return the question with its token ids, computed unless it has them already.

    Raises:
        UsageError: it stands in a conversation, and the model has no chat template for it.
    """
    if question.ids is not None:
        return question
    if question.chat is not None:
        return replace(question, tokenised=template_of(lm).read(question))
    whole = question.whole
    return replace(question, tokenised=Tokenised(whole, tuple(lm.ids(whole))))


def answer_ids(question: Question, answer: str, lm: FrozenLM) -> list[int]:
    """Return the token ids of an answer to a question that has its own, with the token that ends it."""
    if question.chat is None:
        return [*lm.continuation_ids(question.whole, answer, list(question.ids or ())), lm.end]
    template = template_of(lm)
    return [*template.answer_ids(answer), lm.end if template.end is None else template.end]


def truncated(row: EncodedQuestion, longest: int) -> EncodedQuestion:
    """Return the row with its input cut to `longest` tokens at the end of the question, as T0 does."""
    kept = max(0, longest - row.rest)
    ids = row.ids[:kept] + row.ids[len(row.ids) - row.rest :]
    return replace(row, ids=ids, question_at=min(row.question_at, kept), prefix_at=min(row.prefix_at, kept))


def by_length(rows: Sequence[Row], length: Callable[[Row], int], budget: int) -> Iterator[list[Row]]:
    """Yield the rows in groups of similar length, each of at most `budget` positions with padding (or of one row)."""
    group: list[Row] = []
    for row in sorted(rows, key=length):
        if group and (len(group) + 1) * length(row) > budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def read_by_length(
    lengths: Sequence[int], budget: int, read: Callable[[Sequence[int]], Sequence[Result]]
) -> list[Result]:
    """Call `read` on the numbers of rows of similar length (`by_length`); return the results in the order of rows."""
    found: dict[int, Result] = {}
    for numbers in by_length(range(len(lengths)), lengths.__getitem__, budget):
        found.update(zip(numbers, read(numbers), strict=True))
    return [found[number] for number in range(len(lengths))]


def training_batch(rows: Sequence[EncodedQuestion], lm: FrozenLM, scaffold: Scaffold) -> Batch:
    """Return a batch of questions with their answers, aligned at the prompt's slot and padded on both sides.

    With a prefix all padding is at the end, and the backbone needs no mask. With an infix or suffix the text before the
    slot ends in one column for all rows, so that it can run without gradients.
    """
    texts = [row.ids + row.target[:-1] for row in rows]
    slots = [row.slot(scaffold.placement) for row in rows]
    start = max(slots)
    length = start + max(len(text) - slot for text, slot in zip(texts, slots, strict=True))
    ids = torch.full((len(rows), length), lm.end)
    labels = torch.full((len(rows), length), IGNORE)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, (row, text, slot) in enumerate(zip(rows, texts, slots, strict=True)):
        first, last = start - slot, start - slot + len(text)
        ids[number, first:last] = torch.tensor(text)
        mask[number, first:last] = True
        labels[number, last - len(row.target) : last] = torch.tensor(row.target)
    padded_left = any(slot != start for slot in slots)
    given = _given(rows, ids, mask if padded_left else None, (start,) * len(rows), lm, scaffold)
    return Batch(given, labels.to(lm.device))


def question_batch(rows: Sequence[EncodedQuestion], lm: FrozenLM, scaffold: Scaffold) -> ScaffoldInput:
    """Return a batch of questions to answer, padded on the left; a prefix goes between padding and question."""
    length = max(len(row.ids) for row in rows)
    pads = [length - len(row.ids) for row in rows]
    ids = torch.tensor([[lm.end] * pad + row.ids for pad, row in zip(pads, rows, strict=True)])
    mask = torch.arange(length)[None] >= torch.tensor(pads)[:, None]
    slots = tuple(pad + row.slot(scaffold.placement) for pad, row in zip(pads, rows, strict=True))
    return _given(rows, ids, mask if any(pads) else None, slots, lm, scaffold)


def rows_of(given: ScaffoldInput) -> list[ScaffoldInput]:
    """Return each row of a batch of questions by itself, without padding."""
    rows: list[ScaffoldInput] = []
    for number, embeds in enumerate(given.embeds.split(1)):
        begin = 0 if given.mask is None else int((~given.mask[number]).sum())
        source = given.source
        if source is not None:
            ids = source.ids[number : number + 1]
            source = Tokens(ids if source.mask is None else ids[:, source.mask[number]])
        rows.append(ScaffoldInput(embeds[:, begin:], None, (given.slot[number] - begin,), source))
    return rows


def _given(
    rows: Sequence[EncodedQuestion],
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    slots: tuple[int, ...],
    lm: FrozenLM,
    scaffold: Scaffold,
) -> ScaffoldInput:
    source: Any = None
    if scaffold.encoder is not None:
        texts = [row.question.whole for row in rows]
        source = scaffold.encoder.source_tokens(texts, scaffold.source_room).to(lm.device)
    embeds = lm.embed(ids.to(lm.device))
    return ScaffoldInput(embeds, None if mask is None else mask.to(lm.device), slots, source)


def text_batch(ids: Int[Tensor, "B T"], lm: FrozenLM) -> Batch:
    """Return a batch of sequences in which every next token is scored, T - 1 in each."""
    ids = ids.to(lm.device)
    return Batch(ScaffoldInput(lm.embed(ids[:, :-1]), None, (0,) * len(ids)), ids[:, 1:].clone())
