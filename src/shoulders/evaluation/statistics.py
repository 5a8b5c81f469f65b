"""How sure a score is: bootstrap intervals over the examples it was measured on."""

from dataclasses import dataclass

import numpy as np

from shoulders.evaluation.protocol import Scores

RESAMPLES = 1000
SURE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def average_interval(scores: Scores, seed: int = 0) -> Interval:
    """The average over tasks; examples are resampled within each wording."""
    return _interval(scores.average, _averages(scores, seed))


def difference_interval(scores: Scores, other: Scores, seed: int = 0) -> Interval:
    """How far `scores` is above `other` on the same examples; both are resampled together (paired bootstrap)."""
    mine, theirs = _averages(scores, seed), _averages(other, seed)
    return _interval(scores.average - other.average, mine - theirs)


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [(1 - SURE) / 2, (1 + SURE) / 2])
    return Interval(value, float(low), float(high))


def _averages(scores: Scores, seed: int) -> np.ndarray:
    """The average over tasks of each resample; the same seed and sizes draw the same examples."""
    generator = np.random.default_rng(seed)
    by_task: dict[str, list[np.ndarray]] = {}
    for wording in scores.wordings:
        metric = wording.metrics[0]
        measured = np.array([row.measured[metric.name] for row in wording.predictions])
        count = len(measured)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        sums = weights @ measured
        by_task.setdefault(wording.task, []).append(np.array([metric.total(row, count) for row in sums]))
    medians = [np.median(np.stack(values), axis=0) for values in by_task.values()]
    return np.mean(np.stack(medians), axis=0)
