"""When a reader says "no answer": a threshold on how probable its answer is, another for answers it did not read.

Source: the thresholds of SQuAD 2.0 (Rajpurkar et al. 2018, `evaluate-v2.0.py`), with two differences: whether a
question has an answer is decided by what was read for it, and an answer that does not stand there has a threshold of
its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from shoulders.adaptive.calibration import STEPS, threshold_for


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
        em, f1: of the answer, 0 to 1.
    """

    confidence: float
    stands: bool
    answerable: bool
    em: float
    f1: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What answering or abstaining comes to, in percent.

    Attributes:
        coverage: questions that are answered.
        em_answered: exact match of those; None if none is answered.
        em, f1: of answering or abstaining, over all questions. Of a question whose answer was not read, "no answer" is
            right and every other answer wrong; of one whose answer was read, it is wrong.
    """

    coverage: float
    em_answered: float | None
    em: float
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
        em_answered=100 * float(np.mean([one.em for one in answered])) if answered else None,
        em=scored(lambda one: one.em),
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
