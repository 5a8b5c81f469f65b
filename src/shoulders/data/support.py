"""Which of the passages that were read an answer is in, and where."""

from collections.abc import Sequence

from shoulders.data.matching import span_of
from shoulders.records import Passage, Support


def support(answer: str, passages: Sequence[Passage]) -> Support | None:
    """The first passage whose text holds the answer, and where; None if there is none.

    Answers are looked for as recall does it (`matching.has_span`), titles do not count. An answer without a letter or
    sign stands nowhere.
    """
    for number, passage in enumerate(passages):
        if span := span_of(answer, passage.text):
            return Support(number, *span)
    return None
