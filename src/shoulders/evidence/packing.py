"""Packing of passages into the context of the frozen model, best first, until it is full.

Source: the paper, section 3.1.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, final, runtime_checkable

import regex

from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import tokenised
from shoulders.errors import ContextFull, UsageError
from shoulders.evidence.base import Evidence
from shoulders.records import Passage, Question

WORD = regex.compile(r"\S+")
JOINT = 2  # tokens by which a passage may be longer among others than alone: line ends before a word differ


@dataclass(frozen=True, slots=True)
class Packed:
    """A question with the passages that were packed before it.

    Attributes:
        question: the question with its evidence.
        passages: the packed passages, in reading order; the last one may be truncated.
        too_long: number of passages left out because they do not fit even alone.
    """

    question: Question
    passages: tuple[Passage, ...] = ()
    too_long: int = 0


@runtime_checkable
class PackedEvidence(Evidence, Protocol):
    """An evidence source that packs as many of its passages as fit."""

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """Return the question as `write` does, with the passages in it."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Packer:
    """Packs passages before a question, each as a line of title, the text, and an empty line.

    Attributes:
        lm: the frozen model that reads the text.
        room: maximum length of the whole text, passages and question, in tokens.
        truncate: truncate the first passage that does not fit, after a whole word, instead of leaving it out.
    """

    lm: FrozenLM
    room: int
    truncate: bool = False

    def __post_init__(self) -> None:
        if self.room < 1:
            raise UsageError(f"room for passages and question must be at least 1 token, got {self.room}")

    @classmethod
    def beside(cls, lm: FrozenLM, prompt: int, answer: int, longest: int, *, truncate: bool = False) -> "Packer":
        """Return a packer that leaves room for a prompt and an answer in the context window.

        Args:
            prompt: vectors of the prompt.
            answer: tokens of the longest answer, its end included.
            longest: maximum length of passages and question, in tokens.

        Raises:
            ContextFull: there is no room for a question.
        """
        room = min(longest, lm.context - prompt - answer)
        if room < 1:
            raise ContextFull(
                f"a prompt of {prompt} vectors, an answer of {answer} tokens and a question",
                wanted=prompt + answer + 1,
                room=lm.context,
                way_out="lower scaffold.length, suite.lengths.target, development.longest or test.longest",
            )
        return cls(lm, room, truncate)

    def pack(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """Return the question with as many passages before it as fit, in their order.

        Packing ends at the first passage that does not fit: a shorter one further down is trusted less. A passage that
        would not fit even alone is skipped, so that it does not leave the context empty.
        """
        written, count = self._prefix(question, passages)
        read = list(passages[:count])
        too_long = 0
        for passage in passages[count:]:
            longer = self._tokenised(question, [*read, passage])
            if self._fits(longer):
                read.append(passage)
                written = longer
                continue
            if self.truncate:
                read += self._cut(question, read, passage)
                written = self._tokenised(question, read)
                break
            if self._fits(self._tokenised(question, [passage])):
                break
            too_long += 1
        return Packed(written, tuple(read), too_long)

    def _tokenised(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question after the passages with its token ids, even if they do not fit."""
        return tokenised(_with(question, passages), self.lm)

    def _fits(self, question: Question) -> bool:
        return len(question.ids or ()) <= self.room

    def _prefix(self, question: Question, passages: Sequence[Passage]) -> tuple[Question, int]:
        """Return the question after the first passages that fit by the sum of their own lengths, and their number.

        That sum is an upper bound, so that the whole text has to be tokenised for the last few passages only.
        """
        plain = self._tokenised(question, [])
        left = self.room - len(plain.ids or ())
        count = 0
        for passage in passages:
            left -= len(self.lm.ids(_written(passage))) + JOINT
            if left < 0:
                break
            count += 1
        found = self._tokenised(question, passages[:count]) if count else plain
        return (found, count) if self._fits(found) else (plain, 0)

    def _cut(self, question: Question, read: Sequence[Passage], passage: Passage) -> list[Passage]:
        """Return the longest beginning of a passage that fits, as a list; [] if not even one word does."""
        ends = [word.end() for word in WORD.finditer(passage.text)]
        cut = [replace(passage, text=passage.text[:end]) for end in ends]

        def too_long(shorter: Passage) -> bool:
            return not self._fits(self._tokenised(question, [*read, shorter]))

        count = bisect_left(cut, True, key=too_long)
        return cut[count - 1 : count] if count else []


def _with(question: Question, passages: Sequence[Passage]) -> Question:
    """Return the question after the passages, even if they do not fit."""
    if not passages:
        return question
    return replace(question, evidence=f"{''.join(map(_written, passages))}{question.evidence}")


def _written(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}".strip() + "\n\n"
