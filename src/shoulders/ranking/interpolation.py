"""A re-ranker's scores with the retriever's: what a re-ranker overlooks, the retriever's order may still know.

Not in the paper, whose re-ranker alone orders the passages.
"""

from collections.abc import Sequence
from statistics import fmean, pstdev

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)  # tried on development questions


def interpolated(scores: Sequence[float], found: Sequence[float], weight: float) -> list[float]:
    """The scores of one question's passages plus `weight` times the retriever's, both standardised over them.

    Standardised, because the two are on scales of their own; so a sum depends on which passages stand beside it.

    Args:
        scores: of the re-ranker.
        found: of the retriever, for the same passages.
        weight: 0 leaves the re-ranker's scores as they are.
    """
    if not weight:
        return list(scores)
    pairs = zip(_standardised(scores), _standardised(found), strict=True)
    return [score + weight * other for score, other in pairs]


def _standardised(scores: Sequence[float]) -> list[float]:
    """With mean 0 and standard deviation 1; all 0 where they are equal."""
    spread = pstdev(scores) if scores else 0.0
    mean = fmean(scores) if scores else 0.0
    return [(score - mean) / spread if spread else 0.0 for score in scores]
