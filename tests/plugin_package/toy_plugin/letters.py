"""A metric."""

from shoulders.evaluation.metrics import Metric

FIRST_LETTER = Metric(
    "toy_first_letter",
    lambda found, golds: (float(any(found[:1] == gold[:1] for gold in golds)),),
    lambda sums, count: 100 * sums[0] / count,
)
