"""Thresholds on confidence, chosen on a development set: for cascades, and for 'no answer' of readers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from shoulders.errors import UsageError

SEARCHED = 1000  # maximum number of combinations of thresholds that are tried
STEPS = 100  # maximum number of quantiles of a stage that are tried
POINTS = 20  # number of points of a curve after the first
SLACK = 1e-9  # tolerance for rounding errors

ScoreOf = Callable[[Sequence[int]], float]  # the stage that answers each example -> the score of these answers


@dataclass(frozen=True, slots=True)
class Point:
    """Average passes per input and score of a cascade with these thresholds."""

    thresholds: tuple[float, ...]
    passes: float
    score: float


def stopping_stages(confidences: Float[np.ndarray, "S N"], thresholds: Sequence[float]) -> Int[np.ndarray, "N"]:
    """Return the stage at which each example stops; confidences of the last stage are ignored."""
    sure = np.asarray(confidences[:-1]) >= np.asarray(thresholds)[:, None]
    return np.where(sure.any(axis=0), sure.argmax(axis=0), len(thresholds))


def average_passes(stage_of: Int[np.ndarray, "N"], passes: Sequence[int]) -> float:
    """Return the passes of an example, summed over its stages and averaged over examples.

    Args:
        stage_of: last stage of each example.
        passes: of each stage alone.
    """
    return float(np.cumsum(passes)[stage_of].mean())


def check_budget(budget: float, passes: Sequence[int]) -> None:
    """Raise `UsageError` for a budget that no thresholds can meet."""
    if not math.isfinite(budget) or budget < passes[0]:
        raise UsageError(
            f"an average of {budget} passes cannot be met: it is {passes[0]:.2f} where every input stops at the first "
            f"stage, and {sum(passes):.2f} where none stops before the last (--budget)"
        )


def best_within_budget(
    confidences: Float[np.ndarray, "S N"], passes: Sequence[int], budget: float, score_of: ScoreOf
) -> Point:
    """Return the thresholds with the best score whose average passes are within the budget; among equals the cheapest.

    Thresholds are quantiles of the confidences of a stage, as many as `SEARCHED` allows, in all combinations.

    Args:
        passes: of each stage alone, in the order of the stages.

    Raises:
        UsageError: the first stage alone costs more than the budget.
    """
    check_budget(budget, passes)
    steps = min(STEPS, int(SEARCHED ** (1 / (len(passes) - 1)) + SLACK))
    shares = [step / steps for step in range(steps + 1)]
    exact = min(
        1.0, (budget - passes[0]) / passes[1]
    )  # share that leaves the first stage when the whole budget is spent
    tried = [
        _thresholds(one, [*shares, exact] if number == 0 else shares) for number, one in enumerate(confidences[:-1])
    ]
    best: Point | None = None
    for thresholds in product(*tried):
        found = stopping_stages(confidences, thresholds)
        cost = average_passes(found, passes)
        if cost <= budget + SLACK:
            point = Point(thresholds, cost, score_of(found.tolist()))
            if best is None or (point.score, -point.passes) > (best.score, -best.passes):
                best = point
    assert best is not None  # thresholds that stop every example at the first stage are always within the budget
    return best


def curve(confidences: Float[np.ndarray, "S N"], passes: Sequence[int], score_of: ScoreOf) -> list[Point]:
    """Return points from the cheapest cascade to the most expensive; all stages pass on the same share of examples."""
    found: dict[float, Point] = {}
    for step in range(POINTS + 1):
        thresholds = tuple(threshold_for(one, step / POINTS) for one in confidences[:-1])
        stops = stopping_stages(confidences, thresholds)
        cost = average_passes(stops, passes)
        if cost not in found:
            found[cost] = Point(thresholds, cost, score_of(stops.tolist()))
    return list(found.values())


def threshold_for(confidences: Float[np.ndarray, "N"], share: float) -> float:
    """Return the threshold that a share of the confidences is below; fewer, where confidences are equal.

    It is the mean of two neighbouring confidences, so that rounding does not move an example across it; -inf where no
    confidence is below it, inf where all are.
    """
    ordered = np.sort(confidences)
    below = int(share * len(ordered) + SLACK)
    if below >= len(ordered):
        return math.inf
    below = int(np.searchsorted(ordered, ordered[below]))
    return float(ordered[below - 1] + ordered[below]) / 2 if below else -math.inf


def _thresholds(confidences: Float[np.ndarray, "N"], shares: Sequence[float]) -> Iterator[float]:
    """Yield the threshold of each share, without repetitions."""
    yield from dict.fromkeys(threshold_for(confidences, share) for share in shares)


@dataclass(frozen=True, slots=True)
class Threshold:
    """The minimum probability of an answer; below it, the reader says 'no answer'.

    Attributes:
        standing: for answers that occur in the passages that were read.
        elsewhere: for the others.
    """

    standing: float
    elsewhere: float

    def least(self, *, stands: bool) -> float:
        """Return the minimum probability of an answer.

        Args:
            stands: the answer occurs in the passages that were read.
        """
        return self.standing if stands else self.elsewhere

    def as_json(self) -> dict[str, Any]:
        """Return the thresholds as JSON values; infinity, which JSON lacks, becomes a string."""
        return {key: value if math.isfinite(value) else str(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the threshold that `as_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: the content is no threshold.
        """
        return cls(float(content["standing"]), float(content["elsewhere"]))


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """An answer compared with the gold answers of its question.

    Attributes:
        confidence: probability of the answer.
        stands: the answer occurs in the passages that were read.
        answerable: a gold answer occurs in the passages that were read.
        exact_match, f1: scores of the answer, 0 to 1.
    """

    confidence: float
    stands: bool
    answerable: bool
    exact_match: float
    f1: float


@dataclass(frozen=True, slots=True)
class AbstentionScores:
    """Scores of a reader that may abstain, in percent.

    Attributes:
        coverage: share of the questions that are answered.
        exact_match_answered: exact match over the answered questions; None if there are none.
        exact_match, f1: over all questions. If no gold answer was among the passages, "no answer" is right and every
            answer wrong; otherwise "no answer" is wrong.
    """

    coverage: float
    exact_match_answered: float | None
    exact_match: float
    f1: float


def best_threshold(judged: Sequence[GradedAnswer]) -> Threshold:
    """Return the thresholds with the best F1 of answering or abstaining; among equals the lower, which answer more.

    Answers that occur in the passages and the others add to the score independently, so each has its own threshold.
    """
    parts = [[one for one in judged if one.stands is stands] for stands in (True, False)]
    return Threshold(*[_best(part) for part in parts])


def abstention_scores(judged: Sequence[GradedAnswer], threshold: Threshold | None) -> AbstentionScores:
    """Return the scores of answers under a threshold; None gives every answer."""
    given = [threshold is None or one.confidence >= threshold.least(stands=one.stands) for one in judged]
    answered = [one for one, yes in zip(judged, given, strict=True) if yes]

    def scored(measure: Callable[[GradedAnswer], float]) -> float:
        return 100 * float(np.mean([_worth(one, measure, yes) for one, yes in zip(judged, given, strict=True)]))

    return AbstentionScores(
        coverage=100 * len(answered) / len(judged),
        exact_match_answered=100 * float(np.mean([one.exact_match for one in answered])) if answered else None,
        exact_match=scored(lambda one: one.exact_match),
        f1=scored(lambda one: one.f1),
    )


def _best(part: Sequence[GradedAnswer]) -> float:
    """Return the best threshold for some answers; infinity, which gives none, if there is no answer."""
    if not part:
        return math.inf
    confidences = np.array([one.confidence for one in part])
    tried = dict.fromkeys(threshold_for(confidences, step / STEPS) for step in range(STEPS + 1))
    return max(tried, key=lambda least: sum(_worth(one, lambda j: j.f1, one.confidence >= least) for one in part))


def _worth(one: GradedAnswer, measure: Callable[[GradedAnswer], float], given: bool) -> float:
    return (measure(one) if one.answerable else 0.0) if given else float(not one.answerable)
