"""Thresholds from confidences and scores."""

import math
from itertools import pairwise, product

import numpy as np
import pytest

from shoulders.answering.calibration import average_passes, best_within_budget, curve, stopping_stages, threshold_for
from shoulders.errors import UsageError

PASSES = [1, 2, 4]


def development(stages=2, examples=40, seed=0):
    """Confidences, and what each stage scores on each example: sure answers of a cheap stage are right."""
    generator = np.random.default_rng(seed)
    confidences = generator.normal(size=(stages, examples))
    right = (confidences + np.arange(stages)[:, None] > 0.5).astype(float)
    return confidences, right


def mean_of(right):
    def score(stage_of):
        return float(np.mean([right[stage][number] for number, stage in enumerate(stage_of)]))

    return score


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("budget", [1.0, 1.01, 1.35, 1.5, 2.0, 2.9, 3.0, 50.0])
def test_the_average_is_within_the_budget_and_is_what_the_thresholds_cost(stages, budget):
    confidences, right = development(stages)
    found = best_within_budget(confidences, PASSES[:stages], budget, mean_of(right))
    spent = [
        next(
            (sum(PASSES[: stage + 1]) for stage, t in enumerate(found.thresholds) if confidences[stage][n] >= t),
            sum(PASSES[:stages]),
        )
        for n in range(confidences.shape[1])
    ]
    assert found.passes == pytest.approx(np.mean(spent))
    assert found.passes <= budget


@pytest.mark.parametrize("budget", [1.0, 1.2, 1.5, 2.35, 3.0])
def test_two_stages_get_the_best_threshold_there_is(budget):
    """Compared with every threshold that tells any two examples apart."""
    confidences, right = development()
    score = mean_of(right)
    best = max(
        score(stages)
        for threshold in [-math.inf, *confidences[0], math.inf]
        if average_passes(stages := stopping_stages(confidences, [threshold]), PASSES[:2]) <= budget + 1e-9
    )
    assert best_within_budget(confidences, PASSES[:2], budget, score).score == best


def test_three_stages_are_searched_together():
    confidences, right = development(3, examples=10)
    score = mean_of(right)
    tried = [[-math.inf, *row, math.inf] for row in confidences[:2]]
    found = {t: stopping_stages(confidences, t) for t in product(*tried)}
    best = max(score(stages) for stages in found.values() if average_passes(stages, PASSES) <= 2.5)
    assert best_within_budget(confidences, PASSES, 2.5, score).score == best


def test_a_budget_is_spent_to_the_last_example_where_it_helps():
    """The exact share goes on, not the next lower percentile."""
    confidences = np.stack([np.arange(1000.0), np.zeros(1000)])
    found = best_within_budget(confidences, [1, 2], 1.014, lambda stage_of: float(sum(stage_of)))
    assert found.passes == pytest.approx(1.014)
    assert found.score == 7


def test_what_does_not_help_is_not_spent():
    confidences, _ = development()
    assert best_within_budget(confidences, [1, 2], 3.0, lambda _: 1.0).passes == 1.0
    assert best_within_budget(confidences, [1, 2], 3.0, lambda stage_of: -float(sum(stage_of))).thresholds == (
        -math.inf,
    )


def test_many_stages_are_not_searched_for_ever():
    confidences, right = development(5)
    calls = []

    def score(stage_of):
        calls.append(stage_of)
        return mean_of(right)(stage_of)

    best_within_budget(confidences, [1, 2, 3, 4, 5], 6.0, score)
    assert len(calls) <= 2000


def test_equal_confidences_stay_together():
    same = np.array([1.0, 1.0, 1.0, 2.0])
    assert threshold_for(same, 0.5) == -math.inf
    assert threshold_for(same, 0.75) == 1.5
    assert threshold_for(same, 1.0) == math.inf


@pytest.mark.parametrize("stages", [2, 3])
def test_the_curve_goes_from_the_first_stage_alone_to_all_of_them(stages):
    confidences, right = development(stages)
    score = mean_of(right)
    points = curve(confidences, PASSES[:stages], score)
    assert (points[0].passes, points[0].score) == (1.0, score([0] * 40))
    assert (points[-1].passes, points[-1].score) == (sum(PASSES[:stages]), score([stages - 1] * 40))
    assert all(one.passes < other.passes for one, other in pairwise(points))
    for point in points:
        assert point.score == score(stopping_stages(confidences, point.thresholds))


@pytest.mark.parametrize("budget", [0.5, 0.999, -1.0, math.nan, math.inf])
def test_budgets_that_cannot_be_met_name_what_can(budget):
    confidences, right = development()
    with pytest.raises(UsageError, match=r"it is 1\.00 where every input stops at the first stage, and 3\.00 where"):
        best_within_budget(confidences, [1, 2], budget, mean_of(right))
