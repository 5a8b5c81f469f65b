"""Which of the passages that were read an answer is in, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoulders.data.evidence import Passage
from shoulders.data.matching import span_of


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


def support(answer: str, passages: Sequence[Passage]) -> Support | None:
    """The first passage whose text holds the answer, and where; None if there is none.

    Answers are looked for as recall does it (`matching.has_span`), titles do not count. An answer without a letter or
    sign stands nowhere.
    """
    for number, passage in enumerate(passages):
        if span := span_of(answer, passage.text):
            return Support(number, *span)
    return None
