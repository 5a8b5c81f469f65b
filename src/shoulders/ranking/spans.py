"""Where answers stand in a passage: as characters, and as tokens of an encoder.

Source: Karpukhin et al. 2020, sections 6.1 and 6.2; `dpr/data/reader_data.py`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.data.matching import answer_tokens, placed_tokens

Span = tuple[int, int]  # first place and the one after the last
MOST = 10  # occurrences that are trained on
LONGEST = 10  # tokens of an extracted answer


def answer_spans(answers: Sequence[str], text: str, most: int = MOST) -> list[Span]:
    """Where the answers stand in a text, in characters, from its beginning on.

    They are looked for as `has_answer` does: a text that has an answer has a span.
    """
    words, places = placed_tokens(text)
    wanted = {tuple(found) for answer in answers if (found := answer_tokens(answer))}
    spans = {
        (places[start][0], places[start + len(answer) - 1][1])
        for answer in wanted
        for start in range(len(words) - len(answer) + 1)
        if tuple(words[start : start + len(answer)]) == answer
    }
    return sorted(spans)[:most]


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
    """The span of characters, made longer where it ends inside a word."""
    first, last = span
    while 0 < first < last and text[first - 1].isalnum() and text[first].isalnum():
        first -= 1
    while first < last < len(text) and text[last - 1].isalnum() and text[last].isalnum():
        last += 1
    return first, last
