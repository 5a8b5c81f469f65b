"""From examples and texts to tensors: token ids, the slot of a prompt, and batches of rows of similar length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import CAPPED, FOLDS, TRUNCATED, Counts, Mixture, fold_of, left_out, permuted, tally, totals
from shoulders.data.tasks import check_answered
from shoulders.data.text import Documents
from shoulders.errors import BadRow, DataError, TemplateFailed, UsageError
from shoulders.plugins import Registry
from shoulders.records import IGNORE, Batch, Example, Passage, Placement, Question, ScaffoldInput, Tokenised
from shoulders.scaffolds.base import Scaffold

CANDIDATES, RETRIEVED, ORACLE = "candidates", "retrieved", "oracle"  # our own kinds


class Evidence(Protocol):
    """A source of text for questions."""

    @property
    def passes(self) -> int:
        """Passes through the frozen model that finding it costs; 0 if it comes from elsewhere."""
        ...

    @property
    def fingerprint(self) -> str:
        """Which source this is: a hash over all that what it finds depends on."""
        ...

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """For each question what was found, most trusted first.

        Args:
            fold: the half of the training examples that the questions belong to; "" for any that are not trained on.
        """
        ...

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """The question as it is asked with what was found for it."""
        ...


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """What a recipe says of a source of evidence (`evidence.kind`). Each kind has its own, which checks its values."""

    kind: str = field(default="", init=False)


@dataclass(frozen=True, slots=True)
class Room:
    """What stands in the context beside evidence, in tokens.

    Attributes:
        prompt: vectors of the prompt.
        input: evidence and question at most.
        answer: at most.
    """

    prompt: int
    input: int
    answer: int


class EvidenceKind(Protocol):
    """A kind of evidence as recipes know it: what they say of it, and how it is made."""

    Config: type[EvidenceConfig]

    def new(self, config: Any, lm: Any, room: Room) -> Evidence:
        """A source of it.

        Args:
            config: a `Config` of this kind.
            lm: the frozen model that reads the evidence.
            room: that it has to fit into.
        """
        ...


def _fault(name: str, found: Any) -> str:
    """What is wrong with a kind of evidence of another package."""
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and issubclass(config, EvidenceConfig) and callable(getattr(found, "new", None))):
        return "is no EvidenceKind: it has no Config, a subclass of EvidenceConfig, or no `new`"
    kind = config().kind
    return "" if kind in ("", name) else f"has a Config of kind {kind!r}: it is to be {name!r}"


# By the name that recipes call them.
SOURCES: Registry[EvidenceKind] = Registry(
    "shoulders.evidence",
    "kind of evidence",
    {
        CANDIDATES: "shoulders.evidence.sources:SAMPLED",
        RETRIEVED: "shoulders.evidence.sources:FOUND",
        ORACLE: "shoulders.evidence.sources:FOUND",
    },
    _fault,
)


def with_evidence(questions: Sequence[Question], evidence: Evidence | None, fold: str = "") -> list[Question]:
    """The questions as they are asked with evidence; as they are without a source."""
    if evidence is None:
        return list(questions)
    found = evidence.find(questions, fold)
    return [evidence.write(question, passages) for question, passages in zip(questions, found, strict=True)]


Row = TypeVar("Row")


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
class Encoded:
    """A question as token ids, with its answer in training.

    Attributes:
        question: the question.
        ids: token ids of evidence and question.
        question_at: index of the first token of the question, after the evidence.
        target: token ids of the answer and the end token; empty outside training.
    """

    question: Question
    ids: list[int]
    question_at: int
    target: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of positions that the language model reads: all but the last token."""
        return len(self.ids) + max(0, len(self.target) - 1)

    def slot(self, placement: Placement) -> int:
        """Return the text position before which a prompt is inserted."""
        return {Placement.PREFIX: 0, Placement.INFIX: self.question_at, Placement.SUFFIX: len(self.ids)}[placement]


def encode(question: Question, lm: FrozenLM, target: str | None = None) -> Encoded:
    """Return a question as token ids and, for training, its answer with the end token."""
    ids = list(tokenised(question, lm).ids or ())
    at = len(lm.ids(question.evidence)) if question.evidence else 0
    answer = [*lm.continuation_ids(question.whole, target, ids), lm.end] if target is not None else []
    return Encoded(question, ids, min(at, len(ids)), answer)


def tokenised(question: Question, lm: FrozenLM) -> Question:
    """Return the question with its token ids, computed unless it has them already."""
    if question.ids is not None:
        return question
    whole = question.whole
    return replace(question, tokenised=Tokenised(whole, tuple(lm.ids(whole))))


def truncated(row: Encoded, longest: int) -> Encoded:
    """Return the row with its input cut at the end to `longest` tokens, as T0 does."""
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
    """Yield the rows in groups of similar length, each of at most `budget` positions with padding (or of one row)."""
    group: list[Row] = []
    for row in sorted(rows, key=length):
        if group and (len(group) + 1) * length(row) > budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def training_batch(rows: Sequence[Encoded], lm: FrozenLM, scaffold: Scaffold) -> Batch:
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


def question_batch(rows: Sequence[Encoded], lm: FrozenLM, scaffold: Scaffold) -> ScaffoldInput:
    """Return a batch of questions to answer, padded on the left; a prefix goes between padding and question."""
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
) -> ScaffoldInput:
    source: Any = None
    if scaffold.encoder is not None:
        texts = [row.question.whole for row in rows]
        source = scaffold.encoder.source_tokens(texts, scaffold.source_room).to(lm.device)
    embeds = lm.embed(ids.to(lm.device))
    return ScaffoldInput(embeds, None if mask is None else mask.to(lm.device), slots, source)


OFFSETS = 1 << 32  # a position is the place of a document and an offset in it, as one number


def text_batch(ids: Int[Tensor, "B T"], lm: FrozenLM) -> Batch:
    """Return a batch of sequences in which every next token is scored, T - 1 in each."""
    ids = ids.to(lm.device)
    return Batch(ScaffoldInput(lm.embed(ids[:, :-1]), None, (0,) * len(ids)), ids[:, 1:])


@final
class PackedText:
    """An endless stream of token sequences of one length, without padding, addressed by position.

    Documents follow each other in an order shuffled anew in every epoch, each ended by the end token; sequences are cut
    wherever they are full. A position leads to its sequence at once, so a resumed run goes on exactly where it was.
    """

    def __init__(self, documents: Documents, lm: FrozenLM, length: int, seed: int) -> None:
        if length < 2:
            raise DataError(f"text.length is {length}: a sequence has at least 2 tokens")
        lm.check_room("a sequence of text", length, "lower text.length")
        self.documents, self.lm, self.length, self.seed = documents, lm, length, seed
        self.position = 0
        self._read: tuple[int, list[int]] = (-1, [])  # the document that was tokenised last

    @property
    def epoch(self) -> int:
        """The position at which every document has been read once."""
        return len(self.documents) * OFFSETS

    def take(self) -> list[int]:
        """The next sequence."""
        place, offset = divmod(self.position, OFFSETS)
        ids: list[int] = []
        while len(ids) < self.length:
            tokens = self._tokens(place)
            part = tokens[offset : offset + self.length - len(ids)]
            ids += part
            offset += len(part)
            if offset == len(tokens):
                place, offset = place + 1, 0
        self.position = place * OFFSETS + offset
        return ids

    def _tokens(self, place: int) -> list[int]:
        if self._read[0] != place:
            epoch, number = divmod(place, len(self.documents))
            document = permuted(number, len(self.documents), f"{self.seed}/text/{epoch}")
            text = self.documents[document]
            self._read = place, [*self.lm.ids(text), self.lm.end] if text.strip() else []
        return self._read[1]
