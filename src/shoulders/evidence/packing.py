"""Passages into the context of the frozen model, the most trusted first, until it is full.

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
JOINT = 2  # tokens that a passage may take more among others than alone: line ends are told apart before a word


@dataclass(frozen=True, slots=True)
class Packed:
    """A question with what its context holds.

    Attributes:
        passages: that are read, in their order; the last one is shorter than it was where it was cut.
        too_long: passages left out because they fit no context, not even alone.
    """

    question: Question
    passages: tuple[Passage, ...] = ()
    too_long: int = 0


@runtime_checkable
class PackedEvidence(Evidence, Protocol):
    """A source of more passages than are read."""

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """The question as `write` writes it, and the passages in it."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Packer:
    """Puts passages before a question: title in the first line, text in the next, an empty line after it.

    What counts is the number of tokens of the whole text as it is read, passages and question together.

    Attributes:
        room: tokens of that text at most.
        truncate: cut the first passage that does not fit after one of its words, instead of leaving it out.
    """

    lm: FrozenLM
    room: int
    truncate: bool = False

    def __post_init__(self) -> None:
        if self.room < 1:
            raise UsageError(f"a context of {self.room} tokens holds no question: 1 at least")

    @classmethod
    def beside(cls, lm: FrozenLM, prompt: int, answer: int, longest: int, *, truncate: bool = False) -> "Packer":
        """A packer that leaves room for a prompt and an answer in the context, and packs `longest` tokens at most.

        Args:
            prompt: vectors of the prompt.
            answer: tokens of the longest answer, its end included.

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
        """The question with as many passages before it as fit, taken in their order.

        The first that does not fit any more ends it: a shorter one further down is trusted less, and is not tried. One
        that would not fit alone is passed over, so that it does not leave the context empty.
        """
        written, sure = self._surely(question, passages)
        read = list(passages[:sure])
        too_long = 0
        for passage in passages[sure:]:
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
        """Return the question after the passages with its token ids, whether they fit or not."""
        return tokenised(_with(question, passages), self.lm)

    def _fits(self, question: Question) -> bool:
        return len(question.ids or ()) <= self.room

    def _surely(self, question: Question, passages: Sequence[Passage]) -> tuple[Question, int]:
        """The question after the passages that fit by the sum of their own tokens, and how many they are.

        So the whole is counted near the end only.
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
        """The beginning of a passage that still fits; nothing where not one word does."""
        ends = [word.end() for word in WORD.finditer(passage.text)]
        cut = [replace(passage, text=passage.text[:end]) for end in ends]

        def too_long(shorter: Passage) -> bool:
            return not self._fits(self._tokenised(question, [*read, shorter]))

        count = bisect_left(cut, True, key=too_long)
        return cut[count - 1 : count] if count else []


def _with(question: Question, passages: Sequence[Passage]) -> Question:
    """The question after the passages, whether they fit or not."""
    if not passages:
        return question
    return replace(question, evidence=f"{''.join(map(_written, passages))}{question.evidence}")


def _written(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}".strip() + "\n\n"
