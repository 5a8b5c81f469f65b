"""How sure a score is: bootstrap intervals over the examples it was measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoulders.evaluation.metrics import Metric

RESAMPLES = 1000
SURE = 0.95


@dataclass(frozen=True, slots=True)
class Measured:
    """What one wording's examples were measured as, by the metric that counts."""

    task: str
    wording: str
    metric: Metric
    rows: Sequence[Sequence[float]]  # examples x numbers of the metric


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Average:
    """A score, and what it would have been with other examples.

    Attributes:
        value: of the examples as they are.
        resampled: of each resample; those of averages over the same examples belong together.
    """

    value: float
    resampled: np.ndarray

    @property
    def interval(self) -> Interval:
        """The score with its interval."""
        return _interval(self.value, self.resampled)

    def over(self, other: "Average") -> Interval:
        """How far it is above another one on the same examples (paired bootstrap)."""
        return _interval(self.value - other.value, self.resampled - other.resampled)


def average(runs: Sequence[Sequence[Measured]], seed: int = 0) -> Average:
    """The average over tasks; of several runs of one method, such as its seeds, their mean.

    Examples are resampled within each wording, the same ones for all runs of the same examples. How much runs of one
    method differ is not in the interval.
    """
    value = float(np.mean([_average(measured) for measured in runs]))
    return Average(value, np.mean([_resampled(measured, seed) for measured in runs], axis=0))


def average_interval(measured: Sequence[Measured], seed: int = 0) -> Interval:
    """The average over tasks; examples are resampled within each wording."""
    return average([measured], seed).interval


def difference_interval(measured: Sequence[Measured], other: Sequence[Measured], seed: int = 0) -> Interval:
    """How far the first is above the other on the same examples; both are resampled together (paired bootstrap).

    Raises:
        ValueError: they were not measured on the same examples.
    """
    if [(row.task, row.wording, len(row.rows)) for row in measured] != [
        (row.task, row.wording, len(row.rows)) for row in other
    ]:
        raise ValueError("a paired difference needs both scaffolds measured on the same examples")
    return average([measured], seed).over(average([other], seed))


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [(1 - SURE) / 2, (1 + SURE) / 2])
    return Interval(value, float(low), float(high))


def _average(measured: Sequence[Measured]) -> float:
    return float(_over_tasks(measured, [np.ones((1, len(row.rows))) for row in measured])[0])


def _resampled(measured: Sequence[Measured], seed: int) -> np.ndarray:
    """The average of each resample; the same seed and sizes draw the same examples."""
    generator = np.random.default_rng(seed)
    sizes = [len(row.rows) for row in measured]
    return _over_tasks(measured, [generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in sizes])


def _over_tasks(measured: Sequence[Measured], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over tasks of the median over wordings, for each row of weights on the examples."""
    by_task: dict[str, list[list[float]]] = {}
    for row, weight in zip(measured, weights, strict=True):
        sums = weight @ np.asarray(row.rows, dtype=float)
        by_task.setdefault(row.task, []).append([row.metric.total(list(values), len(row.rows)) for values in sums])
    return np.mean([np.median(wordings, axis=0) for wordings in by_task.values()], axis=0)
