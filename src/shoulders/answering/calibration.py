"""Thresholds on confidence, chosen on a development part: when a cascade goes on, when a reader says 'no answer'."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from shoulders.errors import UsageError

SEARCHED = 1000  # combinations of thresholds at most
STEPS = 100  # quantiles of a stage that are tried at most
POINTS = 20  # of a curve, beside its beginning
SLACK = 1e-9  # of numbers that are whole but for rounding

ScoreOf = Callable[[Sequence[int]], float]  # the stage that answers each example -> the score of these answers


@dataclass(frozen=True, slots=True)
class Point:
    """What a cascade with these thresholds costs and reaches: average passes of an input, and the score."""

    thresholds: tuple[float, ...]
    passes: float
    score: float


def stages_of(confidences: Float[np.ndarray, "S N"], thresholds: Sequence[float]) -> Int[np.ndarray, "N"]:
    """The stage at which each example stops; the confidence of the last stage does not matter."""
    sure = np.asarray(confidences[:-1]) >= np.asarray(thresholds)[:, None]
    return np.where(sure.any(axis=0), sure.argmax(axis=0), len(thresholds))


def average_passes(stage_of: Int[np.ndarray, "N"], passes: Sequence[int]) -> float:
    """Of an example, over all stages that it went through."""
    return float(np.cumsum(passes)[stage_of].mean())


def check_budget(budget: float, passes: Sequence[int]) -> None:
    """Raise `UsageError` for average passes that no thresholds can keep to."""
    if not math.isfinite(budget) or budget < passes[0]:
        raise UsageError(
            f"an average of {budget} passes cannot be met: it is {passes[0]:.2f} where every input stops at the first "
            f"stage, and {sum(passes):.2f} where none stops before the last (--budget)"
        )


def calibrated(confidences: Float[np.ndarray, "S N"], passes: Sequence[int], budget: float, score_of: ScoreOf) -> Point:
    """The thresholds of the best score among those whose average passes are within the budget; of equals the cheapest.

    Thresholds are quantiles of a stage's confidences, as many as `SEARCHED` allows, all combined with all.

    Args:
        passes: of each stage by itself, in the stages' order.

    Raises:
        UsageError: even the first stage alone is above the budget.
    """
    check_budget(budget, passes)
    steps = min(STEPS, int(SEARCHED ** (1 / (len(passes) - 1)) + SLACK))
    shares = [step / steps for step in range(steps + 1)]
    exact = min(1.0, (budget - passes[0]) / passes[1])  # that go on from the first stage when the budget is spent
    tried = [
        _thresholds(one, [*shares, exact] if number == 0 else shares) for number, one in enumerate(confidences[:-1])
    ]
    best: Point | None = None
    for thresholds in product(*tried):
        found = stages_of(confidences, thresholds)
        cost = average_passes(found, passes)
        if cost <= budget + SLACK:
            point = Point(thresholds, cost, score_of(found.tolist()))
            if best is None or (point.score, -point.passes) > (best.score, -best.passes):
                best = point
    assert best is not None  # that every example stops at the first stage is among them
    return best


def curve(confidences: Float[np.ndarray, "S N"], passes: Sequence[int], score_of: ScoreOf) -> list[Point]:
    """From the cheapest cascade to the dearest, the same share of examples going on from every stage."""
    found: dict[float, Point] = {}
    for step in range(POINTS + 1):
        thresholds = tuple(threshold_for(one, step / POINTS) for one in confidences[:-1])
        stops = stages_of(confidences, thresholds)
        cost = average_passes(stops, passes)
        if cost not in found:
            found[cost] = Point(thresholds, cost, score_of(stops.tolist()))
    return list(found.values())


def threshold_for(confidences: Float[np.ndarray, "N"], share: float) -> float:
    """Below it lies the share of the confidences, or as much less as equal ones demand; infinite where all do or none.

    It stands half-way between two of them, so that rounding does not move an example across it.
    """
    ordered = np.sort(confidences)
    below = int(share * len(ordered) + SLACK)
    if below >= len(ordered):
        return math.inf
    below = int(np.searchsorted(ordered, ordered[below]))
    return float(ordered[below - 1] + ordered[below]) / 2 if below else -math.inf


def _thresholds(confidences: Float[np.ndarray, "N"], shares: Sequence[float]) -> Iterator[float]:
    """Each once."""
    yield from dict.fromkeys(threshold_for(confidences, share) for share in shares)


@dataclass(frozen=True, slots=True)
class Threshold:
    """The least probability of an answer that is given.

    Attributes:
        standing: of one that stands in the passages that were read.
        elsewhere: of one that does not.
    """

    standing: float
    elsewhere: float

    def least(self, *, stands: bool) -> float:
        """The one that counts."""
        return self.standing if stands else self.elsewhere

    def as_json(self) -> dict[str, Any]:
        """JSON has no infinity: an infinite threshold is a text."""
        return {key: value if math.isfinite(value) else str(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """What `as_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(float(content["standing"]), float(content["elsewhere"]))


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer to a question whose answers are known.

    Attributes:
        confidence: probability of the answer.
        stands: it stands in the passages that were read.
        answerable: a gold answer stands in the passages that were read.
        exact_match, f1: of the answer, 0 to 1.
    """

    confidence: float
    stands: bool
    answerable: bool
    exact_match: float
    f1: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What answering or abstaining comes to, in percent.

    Attributes:
        coverage: questions that are answered.
        exact_match_answered: exact match of those; None if none is answered.
        exact_match, f1: of answering or abstaining, over all questions. Of a question whose answer was not read, "no answer" is
            right and every other answer wrong; of one whose answer was read, it is wrong.
    """

    coverage: float
    exact_match_answered: float | None
    exact_match: float
    f1: float


def best_threshold(judged: Sequence[Judged]) -> Threshold:
    """The thresholds of the best F1 of answering or abstaining; of equals the lower ones, which answer more.

    Answers that stand in what was read and the others add up to the score independently, so each gets its own best.
    """
    parts = [[one for one in judged if one.stands is stands] for stands in (True, False)]
    return Threshold(*[_best(part) for part in parts])


def outcome(judged: Sequence[Judged], threshold: Threshold | None) -> Outcome:
    """What a threshold makes of some answers; None gives them all."""
    given = [threshold is None or one.confidence >= threshold.least(stands=one.stands) for one in judged]
    answered = [one for one, yes in zip(judged, given, strict=True) if yes]

    def scored(measure: Callable[[Judged], float]) -> float:
        return 100 * float(np.mean([_worth(one, measure, yes) for one, yes in zip(judged, given, strict=True)]))

    return Outcome(
        coverage=100 * len(answered) / len(judged),
        exact_match_answered=100 * float(np.mean([one.exact_match for one in answered])) if answered else None,
        exact_match=scored(lambda one: one.exact_match),
        f1=scored(lambda one: one.f1),
    )


def _best(part: Sequence[Judged]) -> float:
    """Of answers that one threshold decides on; without any there is nothing to be sure by, and none is given."""
    if not part:
        return math.inf
    confidences = np.array([one.confidence for one in part])
    tried = dict.fromkeys(threshold_for(confidences, step / STEPS) for step in range(STEPS + 1))
    return max(tried, key=lambda least: sum(_worth(one, lambda j: j.f1, one.confidence >= least) for one in part))


def _worth(one: Judged, measure: Callable[[Judged], float], given: bool) -> float:
    return (measure(one) if one.answerable else 0.0) if given else float(not one.answerable)
