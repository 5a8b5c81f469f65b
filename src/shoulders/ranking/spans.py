"""Where answers stand in a passage: as characters, and as tokens of an encoder.

Source: Karpukhin et al. 2020, sections 6.1 and 6.2; `dpr/data/reader_data.py`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.data.matching import spans_of, word_places

Span = tuple[int, int]  # first place and the one after the last
MOST = 10  # occurrences that are trained on
LONGEST = 10  # tokens of an extracted answer


def answer_spans(answers: Sequence[str], text: str, most: int = MOST) -> list[Span]:
    """Where the answers stand in a text, in characters, from its beginning on.

    They are looked for as `has_span` does: a text that has an answer has a span.
    """
    return sorted(set(spans_of(answers, text)))[:most]


def token_spans(spans: Sequence[Span], offsets: Sequence[Span]) -> list[Span]:
    """Spans of characters as spans of tokens; those that are not wholly among the tokens are left out.

    Args:
        offsets: characters of each token, in their order.
    """
    found: dict[Span, None] = {}
    for start, end in spans:
        inside = [number for number, (first, last) in enumerate(offsets) if first < end and last > start]
        if inside and offsets[inside[-1]][1] >= end:
            found[inside[0], inside[-1] + 1] = None
    return list(found)


def best_span(start: Float[Tensor, "S"], end: Float[Tensor, "S"], longest: int = LONGEST) -> Span:
    """The tokens from a start to an end with the largest sum of the two logits, at most `longest` of them."""
    size = len(start)
    allowed = torch.ones(size, size, dtype=torch.bool, device=start.device).triu().tril(longest - 1)
    sums = (start[:, None] + end[None]).masked_fill(~allowed, -torch.inf)
    first, last = divmod(int(sums.argmax()), size)
    return first, last + 1


def whole_words(span: Span, text: str) -> Span:
    """The span of characters, made longer where it ends inside a word, or a character of several code points."""
    first, last = span
    inside = [place for place in word_places(text) if place[0] < last and place[1] > first]
    return (min(first, inside[0][0]), max(last, inside[-1][1])) if inside else span
