"""Orders of passages: what is measured of them, and the retriever's weight that does best."""

import json

import pytest

from shoulders.corpus.index import Hit
from shoulders.evaluation.ranking import Asked, ranking


def asked(place, scores):
    """A question with as many passages as scores, the answer in the one of that place."""
    hits = [Hit(n, "", "gold" if n == place else "other", score) for n, score in enumerate(scores)]
    return Asked("q", ("gold",), hits)


QUESTIONS = [asked(0, [9.0, 5.0, 1.0, 0.0]), asked(3, [9.0, 5.0, 4.0, 0.0])]
SCORES = [[0.8, 0.9, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]]  # nearly right, and wholly


def test_the_found_order_and_the_new_one():
    measured = ranking(QUESTIONS, lambda *_: SCORES)
    assert measured.found.reciprocal_rank == pytest.approx(100 * (1 + 1 / 4) / 2)
    assert measured.ordered.reciprocal_rank == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert (measured.found.recall[1], measured.ordered.recall[1]) == (50, 50)
    told = measured.as_json()
    assert told["found_recall"]["1"] == told["recall"]["1"] == 50
    assert "best_retriever_weight" not in told


def test_the_weight_that_does_best_is_told_with_all_others():
    measured = ranking(QUESTIONS, lambda *_: SCORES, (10.0, 0.5, 0.3, 0.0))
    assert measured.interpolated[0.0] == measured.ordered
    assert measured.interpolated[10.0] == measured.found
    assert measured.interpolated[0.5].reciprocal_rank == measured.interpolated[0.3].reciprocal_rank == 100
    assert measured.best_weight == 0.3  # of equal ones the smallest
    told = json.loads(json.dumps(measured.as_json()))
    assert told["best_retriever_weight"] == 0.3
    assert told["retriever_weights"]["0.5"]["recall"]["1"] == 100
