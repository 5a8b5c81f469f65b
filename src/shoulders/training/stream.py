"""Endless streams of training data, addressed by position: encoded examples of a mixture, and packed text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.matching import question_words
from shoulders.data.mixture import (
    CAPPED,
    FOLDS,
    TRUNCATED,
    Counts,
    Mixture,
    add_count,
    describe_counts,
    fold_of,
    in_one_fold,
    permute_index,
    total_counts,
)
from shoulders.data.tasks import check_has_answers
from shoulders.data.text import Documents
from shoulders.engine.batches import EncodedQuestion, Lengths, encode, truncated
from shoulders.errors import BadRow, DataError, TemplateFailed
from shoulders.evidence.base import Evidence, with_evidence
from shoulders.records import Chat, Example, Question
from shoulders.training.distillation import Teacher


@final
class Stream:
    """An endless stream of encoded examples of a mixture.

    An example whose input or target is longer than `lengths` is discarded, as in the paper (section 2.2). The input of
    an example that is longer than the context window, beside prompt and target, is truncated. An example whose evidence
    does not fit the teacher's context is left out.

    Attributes:
        position: position in the mixture of the next example; set when a run is resumed.
        counts: examples read, left out and truncated, by data set.
    """

    def __init__(
        self,
        mixture: Mixture,
        lm: FrozenLM,
        *,
        lengths: Lengths,
        prompt_length: int,
        evidence: Evidence | None = None,
        fold: str = "",
        chat: Chat | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.mixture, self.lm, self.lengths, self.evidence, self.fold = mixture, lm, lengths, evidence, fold
        self.chat, self.teacher = chat, teacher
        self.questions = in_one_fold(mixture, fold) if fold else set()
        self.room = lm.context - prompt_length
        self.position = 0
        self.counts: Counts = {task: {CAPPED: number} if number else {} for task, number in mixture.capped.items()}

    def take(self, wanted: int) -> list[EncodedQuestion]:
        """Return the next `wanted` examples that can be used.

        Raises:
            DataError: there is no usable example in a whole epoch.
            TemplateFailed, BadRow: a template fails or a record is broken, and the mixture does not skip such failures.
        """
        rows: list[EncodedQuestion] = []
        since = 0
        while len(rows) < wanted:
            read = [self._next() for _ in range(wanted - len(rows))]
            found = self._rows([replace(one, question=one.asked(self.chat)) for one in read if one is not None])
            rows += found
            since = 0 if found else since + len(read)
            if since >= 2 * len(self.mixture):  # an example can be first in one epoch and last in the next
                raise self._no_example()
        return rows

    def _rows(self, examples: Sequence[Example]) -> list[EncodedQuestion]:
        """Return those examples that can be used, with their evidence, and as the teacher reads them."""
        asked = _with_evidence(examples, self.evidence)
        rows = [self._usable(example) for example in asked]
        if self.teacher is not None:
            taught = _with_evidence(examples, self.teacher.evidence)
            rows = [row and self._taught(row, *pair) for row, *pair in zip(rows, examples, taught, strict=True)]
        return [row for row in rows if row is not None]

    def _taught(self, row: EncodedQuestion, plain: Example, taught: Example) -> EncodedQuestion | None:
        """Return the row with what the teacher reads; None if it has no evidence, or not the room for it."""
        assert self.teacher is not None
        if taught.question == plain.question:
            add_count(self.counts, plain.task, "without evidence that fits the teacher")
            return None
        read = self.teacher.row(taught.question, row.target)
        if read is None:
            add_count(self.counts, plain.task, "too long for the teacher")
            return None
        return replace(row, taught=read)

    def _next(self) -> Example | None:
        """Return the example at the position, and advance the position; None if it is left out."""
        example = self.mixture.read(self.position, self.counts, self.fold)
        self.position += 1
        if example is not None and self.fold and question_words(example.question.query) not in self.questions:
            add_count(self.counts, example.task, "in both folds")
            return None
        return example

    def _no_example(self) -> DataError:
        """Return the error that says why no example of an epoch can be used."""
        counted, first = describe_counts(self.counts), self._first_failure()
        if any("teacher" in reason for reason in total_counts(self.counts)):
            return DataError(
                f"no example can be taught ({counted}): raise teacher.input, make passages shorter, or name an index "
                "that holds the evidence (teacher.evidence.index)"
            )
        if total_counts(self.counts).get("discarded") or first is None:
            return DataError(
                f"no example fits {self.lengths.input} input and {self.lengths.target} target tokens beside the prompt "
                f"in {self.lm.context} positions ({counted}): raise suite.lengths or lower scaffold.length"
            )
        return DataError(f"no example can be used ({counted}); the first: {first}")

    def _first_failure(self) -> TemplateFailed | BadRow | None:
        for position in range(len(self.mixture)):
            try:
                self.mixture.example(position)
            except (TemplateFailed, BadRow) as error:
                return error
        return None

    def _usable(self, example: Example) -> EncodedQuestion | None:
        check_has_answers(example)
        row = encode(example.question, self.lm, example.target)
        room = self.room - len(row.target)
        if len(row.ids) > self.lengths.input or len(row.target) > self.lengths.target or room <= row.rest:
            add_count(self.counts, example.task, "discarded")
            return None
        if len(row.ids) > room:
            add_count(self.counts, example.task, TRUNCATED)
            return truncated(row, room)
        return row


def _with_evidence(examples: Sequence[Example], evidence: Evidence | None) -> Sequence[Example]:
    """Return the examples with their evidence, which is found for all of a fold together."""
    if evidence is None:
        return examples
    found: dict[int, Question] = {}
    for fold in FOLDS:
        numbers = [number for number, example in enumerate(examples) if fold_of(example) == fold]
        questions = with_evidence([examples[number].question for number in numbers], evidence, fold)
        found.update(zip(numbers, questions, strict=True))
    return [replace(example, question=found[number]) for number, example in enumerate(examples)]


OFFSETS = 1 << 32  # a position is place of a document * OFFSETS + offset in its tokens


@final
class PackedText:
    """An endless stream of token sequences of one length, without padding, addressed by position.

    Documents are concatenated in an order that is shuffled in every epoch, each followed by the end token, and cut into
    sequences of `length` tokens. A position leads directly to its sequence, so that a resumed run continues exactly.

    Attributes:
        position: position of the next sequence.
    """

    def __init__(self, documents: Documents, lm: FrozenLM, length: int, seed: int) -> None:
        if length < 2:
            raise DataError(f"text.length is {length}: it must be at least 2 tokens")
        lm.check_room("a sequence of text", length, "lower text.length")
        self.documents, self.lm, self.length, self.seed = documents, lm, length, seed
        self.position = 0
        self._read: tuple[int, list[int]] = (-1, [])  # place and tokens of the document that was read last

    @property
    def epoch(self) -> int:
        """Number of positions in an epoch, in which every document is read once."""
        return len(self.documents) * OFFSETS

    def take(self) -> list[int]:
        """Return the next sequence, and advance the position."""
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
            document = permute_index(number, len(self.documents), f"{self.seed}/text/{epoch}")
            text = self.documents[document]
            self._read = place, [*self.lm.ids(text), self.lm.end] if text.strip() else []
        return self._read[1]
