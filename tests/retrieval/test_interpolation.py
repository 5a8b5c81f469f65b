"""The re-ranker's scores with the retriever's."""

import pytest

from shoulders.retrieval.scoring import interpolated


def test_both_count_on_one_scale():
    scores, found = [3.0, 1.0, 2.0], [100.0, 300.0, 200.0]
    assert interpolated(scores, found, 1.0) == pytest.approx([0.0, 0.0, 0.0])
    high = interpolated(scores, found, 0.5)
    assert high == pytest.approx(interpolated([10 * one - 7 for one in scores], [one / 9 for one in found], 0.5))
    assert high[0] > high[2] > high[1]
    assert high[0] == pytest.approx(0.5 * 1.5**0.5)


def test_no_weight_leaves_the_scores_as_they_are():
    assert interpolated([3.5, -1.0], [1.0, 9.0], 0.0) == [3.5, -1.0]


def test_equal_scores_say_nothing():
    assert interpolated([2.0, 2.0], [1.0, 3.0], 1.0) == [-1.0, 1.0]
    assert interpolated([0.1 + 0.2, 0.3, 0.3], [0.7] * 3, 0.5) == pytest.approx(
        interpolated([0.1 + 0.2, 0.3, 0.3], [0.0] * 3, 0.5)
    )
    assert interpolated([5.0], [1.0], 1.0) == [0.0]
    assert interpolated([], [], 1.0) == []
