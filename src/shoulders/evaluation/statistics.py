"""Bootstrap confidence intervals of scores, over the examples that they were measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoulders.evaluation.metrics import Metric

RESAMPLES = 1000
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of each example of a wording, by its deciding metric."""

    task: str
    wording: str
    metric: Metric
    rows: Sequence[Sequence[float]]  # shape: examples x numbers of the metric


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
    """An average score with its bootstrap resamples.

    Attributes:
        value: of the measured examples.
        resampled: of each resample; averages over the same examples share their resamples.
    """

    value: float
    resampled: np.ndarray

    @property
    def interval(self) -> Interval:
        """Score with its interval."""
        return _interval(self.value, self.resampled)

    def over(self, other: "Average") -> Interval:
        """Return the difference to another average on the same examples, with its interval (paired bootstrap)."""
        return _interval(self.value - other.value, self.resampled - other.resampled)


def average(runs: Sequence[Sequence[Measured]], seed: int = 0) -> Average:
    """Return the average over tasks, and over several runs of one method, such as its seeds.

    Examples are resampled within each task, the same for all its wordings and all runs. The interval does not include
    the variance between runs.
    """
    value = float(np.mean([_average(measured) for measured in runs]))
    return Average(value, np.mean([_resampled(measured, seed) for measured in runs], axis=0))


def average_interval(measured: Sequence[Measured], seed: int = 0) -> Interval:
    """Return the average over tasks with its interval; examples are resampled within each task."""
    return average([measured], seed).interval


def difference_interval(measured: Sequence[Measured], other: Sequence[Measured], seed: int = 0) -> Interval:
    """Return the difference of two averages on the same examples, with its interval (paired bootstrap).

    Raises:
        ValueError: the averages were not measured on the same examples.
    """
    if [(row.task, row.wording, len(row.rows)) for row in measured] != [
        (row.task, row.wording, len(row.rows)) for row in other
    ]:
        raise ValueError("a paired difference needs both scaffolds measured on the same examples")
    return average([measured], seed).over(average([other], seed))


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _average(measured: Sequence[Measured]) -> float:
    return float(_over_tasks(measured, [np.ones((1, len(row.rows))) for row in measured])[0])


def _resampled(measured: Sequence[Measured], seed: int) -> np.ndarray:
    """Return the average of each resample; the same seed and sizes draw the same examples.

    All wordings of a task measure the same examples, so that one draw serves them all: another wording is no further
    evidence.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[tuple[str, int], np.ndarray] = {}
    for row in measured:
        n = len(row.rows)
        if (row.task, n) not in drawn:
            drawn[row.task, n] = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return _over_tasks(measured, [drawn[row.task, len(row.rows)] for row in measured])


def _over_tasks(measured: Sequence[Measured], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over tasks of the median over wordings, for each row of weights on the examples."""
    by_task: dict[str, list[list[float]]] = {}
    for row, weight in zip(measured, weights, strict=True):
        sums = weight @ np.asarray(row.rows, dtype=float)
        by_task.setdefault(row.task, []).append([row.metric.total(list(values), len(row.rows)) for values in sums])
    return np.mean([np.median(wordings, axis=0) for wordings in by_task.values()], axis=0)
