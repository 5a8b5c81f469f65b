"""Data that is odd or broken, as the measuring meets it."""

import json

import pytest

from shoulders.data.readers import folder_task
from shoulders.data.tasks import RenderedTask, SkipPolicy
from shoulders.errors import BadRow, ContextFull
from shoulders.evaluation.protocol import EvaluationPlan, evaluate
from shoulders.evaluation.results import scores_as_json
from shoulders.scaffolds.base import Bare
from tiny import NUMBERS

PLAN = EvaluationPlan(split="test", longest=4)


def choosing(*choices):
    rows = [
        {"inputs_pretokenized": f"{n}?", "targets_pretokenized": some[0], "answer_choices": list(some)}
        for n, some in enumerate(choices)
    ]
    return RenderedTask("a", "Toys", {"w": {"test": rows}})


def test_every_example_is_ranked_among_its_own_choices(lm):
    """However many the others have."""
    choices = [("yes", "no"), ("red", "green", "blue", "white"), ("one",), ("up", "down", "left")]
    together = evaluate([choosing(*choices)], lm, Bare(), PLAN).wordings[0].predictions
    for some, found in zip(choices, together, strict=True):
        assert found.text in some
        alone = evaluate([choosing(*[some] * (1 + choices.index(some)))], lm, Bare(), PLAN).wordings[0].predictions[-1]
        assert found.text == alone.text


def test_an_answer_longer_than_the_context_is_refused_with_both_numbers(lm):
    with pytest.raises(ContextFull, match=r"needs \d+ positions, the model has room for 128"):
        evaluate([choosing(("so " * 200, "no"))], lm, Bare(), PLAN)


def test_broken_lines_stop_or_are_left_out_and_named(lm, tmp_path):
    (tmp_path / "templates.yaml").write_text(NUMBERS)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(4)) + '{"n":\n{"n": 5}\n')
    task = folder_task(tmp_path)
    with pytest.raises(BadRow, match=r"test\.jsonl, line 5: .*suite.skip_bad_rows=true"):
        evaluate([task], lm, Bare(), PLAN, skip=SkipPolicy(failing=True))
    scores = evaluate([task], lm, Bare(), PLAN, skip=SkipPolicy(bad_rows=True))
    assert {len(one.predictions) for one in scores.wordings} == {5}
    for kept in scores_as_json(scores)["skipped"].values():
        assert (kept["count"], kept["bad_rows"]) == (1, 1)
        assert "test.jsonl, line 5" in kept["reason"]
