"""Endless streams of training data, addressed by position: encoded examples of a mixture, and packed text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import CAPPED, FOLDS, TRUNCATED, Counts, Mixture, fold_of, left_out, permuted, tally, totals
from shoulders.data.tasks import check_answered
from shoulders.data.text import Documents
from shoulders.engine.batches import Encoded, Lengths, encode, truncated
from shoulders.errors import BadRow, DataError, TemplateFailed
from shoulders.evidence.base import Evidence, with_evidence
from shoulders.records import Example, Question


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


OFFSETS = 1 << 32  # a position is the place of a document and an offset in it, as one number


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
