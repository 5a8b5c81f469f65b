"""BM25 in memory, with any k1 and b: for corpora that fit, and for figures beside Pyserini's (k1 = 0.9, b = 0.4)."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import final

import numpy as np

from shoulders.corpus.analyser import Analyser
from shoulders.corpus.searching import Scored
from shoulders.corpus.store import Stored
from shoulders.errors import UsageError

PYSERINI = (0.9, 0.4)


def check_bm25(k1: float, b: float) -> None:
    """Raise `UsageError` for parameters that BM25 cannot have."""
    if not (0 <= k1 < math.inf and 0 <= b <= 1):
        raise UsageError(f"BM25 with k1 = {k1} and b = {b}: k1 is at least 0, b between 0 and 1")


@final
class ExactBM25:
    """Every passage is scored. Source: Robertson and Zaragoza 2009, with Lucene's idf, which is never negative.

    Raises:
        UsageError: k1 is negative, or b not between 0 and 1.
    """

    def __init__(self, passages: Iterable[Stored], analyser: Analyser, k1: float, b: float) -> None:
        check_bm25(k1, b)
        self.analyser = analyser
        self._vocabulary: dict[str, int] = {}
        numbers, lengths, terms, rows, counts = array("q"), array("q"), array("q"), array("q"), array("f")
        for row, passage in enumerate(passages):
            found = Counter(analyser.terms(passage.searched))
            numbers.append(passage.id)
            lengths.append(found.total())
            for term, count in found.items():
                terms.append(self._vocabulary.setdefault(term, len(self._vocabulary)))
                rows.append(row)
                counts.append(count)
        self._numbers = np.array(numbers)
        order = np.argsort(np.array(terms), kind="stable")
        frequency = np.bincount(np.array(terms)[order], minlength=len(self._vocabulary))
        self._ends = np.cumsum(frequency)
        self._rows, tf = np.array(rows, np.int32)[order], np.array(counts)[order]
        length = np.array(lengths, np.float32)
        norm = k1 * (1 - b + b * length / max(length.mean(), 1)) if len(length) else length
        idf = np.log(1 + (len(length) - frequency + 0.5) / (frequency + 0.5))
        self._weights = (np.repeat(idf, frequency) * tf * (k1 + 1) / (tf + norm[self._rows])).astype(np.float32)

    def search(self, queries: Sequence[str], k: int) -> list[list[Scored]]:
        """For each query the k passages with the highest scores, of those that have a term of it."""
        return [self._find(Counter(self.analyser.terms(query)), k) for query in queries]

    def _find(self, terms: Counter[str], k: int) -> list[Scored]:
        scores = np.zeros(len(self._numbers), np.float32)
        for term, count in terms.items():
            number = self._vocabulary.get(term)
            if number is not None:
                part = slice(self._ends[number - 1] if number else 0, self._ends[number])
                scores[self._rows[part]] += count * self._weights[part]
        found = np.flatnonzero(scores)
        if len(found) > k:  # all that tie with the last one stay until they are sorted
            found = found[scores[found] >= np.partition(scores[found], -k)[-k]]
        found = found[np.lexsort((self._numbers[found], -scores[found]))][:k]
        return [Scored(int(self._numbers[row]), float(scores[row])) for row in found]
