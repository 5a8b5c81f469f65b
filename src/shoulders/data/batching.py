"""From examples to tensors: token ids, where a prompt goes, and micro-batches that spend nothing on padding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, final

import torch

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.counts import CAPPED, TRUNCATED, Counts, left_out, tally, totals
from shoulders.data.evidence import FOLDS, Evidence, fold_of, with_evidence
from shoulders.data.mixture import Mixture
from shoulders.data.tasks import check_answered
from shoulders.errors import BadRow, DataError, TemplateFailed, UsageError
from shoulders.records import IGNORE, Batch, Example, LMInput, Question, Tokenised
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.weaving import Placement

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Longest input and target, in tokens of the language model; T0++'s by default (Sanh et al. 2021)."""

    input: int = 1024
    target: int = 256

    def __post_init__(self) -> None:
        if self.input < 1 or self.target < 1:
            raise UsageError(
                f"suite.lengths.input is {self.input} and suite.lengths.target {self.target}: each must be at least 1"
            )


@dataclass(frozen=True, slots=True)
class Encoded:
    """A question as token ids, with the answer that training teaches."""

    question: Question
    ids: list[int]
    question_at: int  # where the evidence ends and the question begins
    target: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions the language model reads: all but the last token that is predicted."""
        return len(self.ids) + max(0, len(self.target) - 1)

    def slot(self, placement: Placement) -> int:
        """The text position before which a prompt stands."""
        return {Placement.PREFIX: 0, Placement.INFIX: self.question_at, Placement.SUFFIX: len(self.ids)}[placement]


def encode(question: Question, lm: FrozenLM, target: str | None = None) -> Encoded:
    """Token ids of a question and, for training, of its answer with the end token."""
    ids = list(tokenised(question, lm).ids or ())
    at = len(lm.ids(question.evidence)) if question.evidence else 0
    answer = [*lm.continuation_ids(question.whole, target, ids), lm.end] if target is not None else []
    return Encoded(question, ids, min(at, len(ids)), answer)


def tokenised(question: Question, lm: FrozenLM) -> Question:
    """Return the question with its token ids, which are worked out where it does not carry them already."""
    if question.ids is not None:
        return question
    whole = question.whole
    return replace(question, tokenised=Tokenised(whole, tuple(lm.ids(whole))))


def truncated(row: Encoded, longest: int) -> Encoded:
    """The row with its input cut at the end to `longest` tokens, as T0 does."""
    return Encoded(row.question, row.ids[:longest], min(row.question_at, longest), row.target)


@final
class Stream:
    """Encoded examples of a mixture from a position on; what it left out is counted, by data set.

    An example whose input or target is longer than `lengths` is discarded, as in the paper (section 2.2); one that fits
    those but not the context, prompt included, has its input truncated.
    """

    def __init__(
        self,
        mixture: Mixture,
        lm: FrozenLM,
        *,
        lengths: Lengths,
        prompt_length: int,
        position: int = 0,
        evidence: Evidence | None = None,
        fold: str = "",
    ) -> None:
        self.mixture, self.lm, self.lengths, self.evidence, self.fold = mixture, lm, lengths, evidence, fold
        self.room = lm.context - prompt_length
        self.position = position
        self.counts: Counts = {task: {CAPPED: number} if number else {} for task, number in mixture.capped.items()}

    def take(self, wanted: int) -> list[Encoded]:
        """The next `wanted` examples that can be used.

        Raises:
            DataError: a whole epoch went by without a usable example.
            TemplateFailed, BadRow: a template fails or a line is broken, and the mixture is not to skip that.
        """
        rows: list[Encoded] = []
        since = 0
        while len(rows) < wanted:
            examples = [self._rendered() for _ in range(wanted - len(rows))]
            found = [row for example in self._evident(examples) if (row := self._usable(example))]
            rows += found
            since = 0 if found else since + len(examples)
            if since >= 2 * len(self.mixture):  # the one at the beginning of an epoch can be at the end of the next
                raise self._nothing()
        return rows

    def _evident(self, examples: Sequence[Example | None]) -> list[Example]:
        """The examples that there are, with their evidence, found for all of a fold at once."""
        there = [example for example in examples if example is not None]
        if self.evidence is None:
            return there
        found: dict[int, Question] = {}
        for fold in FOLDS:
            numbers = [number for number, example in enumerate(there) if fold_of(example) == fold]
            questions = with_evidence([there[number].question for number in numbers], self.evidence, fold)
            found.update(zip(numbers, questions, strict=True))
        return [replace(example, question=found[number]) for number, example in enumerate(there)]

    def _rendered(self) -> Example | None:
        """The example at the position, which moves on."""
        example = self.mixture.read(self.position, self.counts)
        self.position += 1
        if example is not None and self.fold and fold_of(example) != self.fold:
            tally(self.counts, example.task, "of the other fold")
            return None
        return example

    def _nothing(self) -> DataError:
        """Why no example of a whole epoch could be used."""
        told, first = left_out(self.counts), self._first_failure()
        if totals(self.counts).get("discarded") or first is None:
            return DataError(
                f"no example fits {self.lengths.input} input and {self.lengths.target} target tokens beside the prompt "
                f"in {self.lm.context} positions ({told}): raise suite.lengths or lower scaffold.length"
            )
        return DataError(f"no example can be used ({told}); the first: {first}")

    def _first_failure(self) -> TemplateFailed | BadRow | None:
        for position in range(len(self.mixture)):
            try:
                self.mixture.example(position)
            except (TemplateFailed, BadRow) as error:
                return error
        return None

    def _usable(self, example: Example) -> Encoded | None:
        check_answered(example)
        row = encode(example.question, self.lm, example.target)
        room = self.room - len(row.target)
        if len(row.ids) > self.lengths.input or len(row.target) > self.lengths.target or room < 1:
            tally(self.counts, example.task, "discarded")
            return None
        if len(row.ids) > room:
            tally(self.counts, example.task, TRUNCATED)
            return truncated(row, room)
        return row


def by_length(rows: Sequence[Row], length: Callable[[Row], int], budget: int) -> Iterator[list[Row]]:
    """The rows in groups of similar length, each of at most `budget` positions with its padding (or of one row)."""
    group: list[Row] = []
    for row in sorted(rows, key=length):
        if group and (len(group) + 1) * length(row) > budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def training_batch(rows: Sequence[Encoded], lm: FrozenLM, scaffold: Scaffold) -> Batch:
    """Questions with their answers; rows are aligned at the prompt's slot and padded outwards.

    With a prefix that is plain padding at the end, and the backbone needs no mask. With an infix or suffix the text
    before the slot ends in one column for all rows, so that it can be read without gradients.
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


def question_batch(rows: Sequence[Encoded], lm: FrozenLM, scaffold: Scaffold) -> LMInput:
    """Questions to be answered: they end in one column, padding stands before them, and the prompt between the two."""
    length = max(len(row.ids) for row in rows)
    pads = [length - len(row.ids) for row in rows]
    ids = torch.tensor([[lm.end] * pad + row.ids for pad, row in zip(pads, rows, strict=True)])
    mask = torch.arange(length)[None] >= torch.tensor(pads)[:, None]
    slots = tuple(pad + row.slot(scaffold.placement) for pad, row in zip(pads, rows, strict=True))
    return _given(rows, ids, mask if any(pads) else None, slots, lm, scaffold)


def _given(
    rows: Sequence[Encoded],
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    slots: tuple[int, ...],
    lm: FrozenLM,
    scaffold: Scaffold,
) -> LMInput:
    source: Any = None
    if scaffold.encoder is not None:
        texts = [row.question.whole for row in rows]
        source = scaffold.encoder.source_tokens(texts, scaffold.source_room).to(lm.device)
    embeds = lm.embed(ids.to(lm.device))
    return LMInput(embeds, None if mask is None else mask.to(lm.device), slots, source)
