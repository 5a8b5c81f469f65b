"""The re-ranker as the extractive reader that it is trained as: the answer is a span of the most relevant passage.

Source: Karpukhin et al. 2020, section 6.1 (the paper uses its relevance scores only).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoulders.data.batching import by_length
from shoulders.errors import UsageError
from shoulders.ranking.reranker import Reranker
from shoulders.ranking.rows import Row
from shoulders.ranking.scoring import OnScored, Pair, positions_at_once
from shoulders.ranking.spans import Span, best_span, whole_words
from shoulders.records import Passage


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer found in a passage.

    Attributes:
        text: of the answer; "" where no passage has a word.
        passage: number of the passage that it is from.
        characters: where it stands in the passage's text.
    """

    text: str
    passage: int
    characters: Span


def extract(
    reranker: Reranker,
    questions: Sequence[str],
    passages: Sequence[Sequence[Passage]],
    on_scored: OnScored = lambda _done, _all: None,
) -> list[str]:
    """The answer to each question in its passages; "" where there is none."""
    return [found.text for found in best_spans(reranker, questions, passages, on_scored)]


def best_spans(
    reranker: Reranker,
    questions: Sequence[str],
    passages: Sequence[Sequence[Passage]],
    on_scored: OnScored = lambda _done, _all: None,
) -> list[Extracted]:
    """For each question the best answer of at most 10 tokens in the most relevant passage that has a word.

    An answer that begins or ends inside a word has the whole word.

    Args:
        on_scored: is told how many passages have their relevance.

    Raises:
        UsageError: a question has no passage.
    """
    without = next((question for question, some in zip(questions, passages, strict=True) if not some), None)
    if without is not None:
        raise UsageError(f"there is no passage for {without!r}: an answer is found in one, so retrieve 1 at least")
    together = list(zip(questions, passages, strict=True))
    pairs = [Pair(question, one.title, one.text) for question, some in together for one in some]
    scores = iter(reranker.frozen().scores(pairs, on_scored))
    chosen = [_most_relevant(some, [next(scores) for _ in some]) for some in passages]
    best = [
        Pair(question, some[at].title, some[at].text) for (question, some), at in zip(together, chosen, strict=True)
    ]
    found = [Extracted("", at, (0, 0)) for at in chosen]
    for number, (first, last) in _spans(reranker, reranker.rows(best)).items():
        text = best[number].text
        first, last = whole_words((first, last), text)
        found[number] = Extracted(text[first:last], chosen[number], (first, last))
    return found


def _most_relevant(passages: Sequence[Passage], scores: Sequence[float]) -> int:
    """The best passage that is not empty; the best where all are."""
    return max(range(len(passages)), key=lambda at: (bool(passages[at].text.strip()), scores[at]))


def _spans(reranker: Reranker, rows: Sequence[Row]) -> dict[int, Span]:
    """By number of the row, the characters of the best span of its passage; rows without a passage have none."""
    found: dict[int, Span] = {}
    told = [number for number, row in enumerate(rows) if row.offsets]
    budget = positions_at_once(reranker.tower.device)
    for numbers in by_length(told, lambda number: len(rows[number]), budget):
        tokens = reranker.rows.padded([rows[number] for number in numbers]).to(reranker.tower.device)
        with torch.inference_mode():
            logits = reranker.span(reranker.tower.states(tokens)).cpu()
        for number, some in zip(numbers, logits, strict=True):
            row = rows[number]
            start, end = some[row.passage : len(row)].unbind(1)
            first, last = best_span(start, end)
            found[number] = (row.offsets[first][0], row.offsets[last - 1][1])
    return found
