"""A broken line in a file: what a run says, what it keeps, and how it goes on."""

import json

import pytest

from tiny import save_numbers


@pytest.fixture
def suite(tmp_path):
    """40 numbers to train on; the line of the 38th is cut off."""
    folder = save_numbers(tmp_path / "suite" / "numbers", range(40), range(40, 44), range(44, 50))
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[37] = lines[37][:4]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def train(lm, suite, tmp_path):
    """Arguments of a training that goes through all examples once and more."""
    values = [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "training.steps=24",
        "training.batch_size=4", "scaffold.length=4", "development.limit=2", "test.longest=4", "development.longest=4",
        "training.evaluate_every=0", "training.save_every=0", "suite.cap=36",
    ]  # fmt: skip
    return lambda out, *more: ["train", "bundled_soft_prompt", *values, "--out", tmp_path / out, *more]


def test_a_run_stops_and_goes_on_without_the_line(shoulders, refused, train, tmp_path):
    error = refused(*train("stopped"))
    assert "train.jsonl, line 38: " in error
    assert "suite.skip_bad_rows=true" in error
    assert list((tmp_path / "stopped" / "checkpoints").glob("step-*"))  # what was trained until then is kept
    code, printed, error = shoulders(*train("stopped", "--resume", "--skip-bad-rows"))
    assert (code, error) == (0, "")
    assert shoulders(*train("whole", "--skip-bad-rows"))[0] == 0
    counts, logs = [], []
    for name in ("stopped", "whole"):
        counts.append(json.loads((tmp_path / name / "results.json").read_text())["trained_on"])
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        logs.append([(line["number"], line["loss"]) for line in lines])
    assert logs[0] == logs[1]
    assert counts[0] == counts[1]
    of_numbers = counts[0]["numbers"]
    assert of_numbers["capped"] == 44
    assert of_numbers["bad row"] >= 1
    assert of_numbers["read"] == 96 + of_numbers["bad row"]
    told = " ".join(printed.split())
    assert f"examples left out: 44 capped, {of_numbers['bad row']} bad row" in told
    assert f"numbers 44 {of_numbers['read']} {of_numbers['bad row']}" in told


def test_another_recipe_is_not_gone_on_with(refused, train):
    refused(*train("stopped"))
    assert "holds a run of another recipe" in refused(*train("stopped", "--resume", "training.seed=3"))


def test_broken_lines_that_are_measured(shoulders, refused, lm, suite):
    (suite / "test.jsonl").write_text('{"n": 1}\n{"n"\n')
    asked = ["evaluate", "bare", "--recipe", "bundled_soft_prompt", f"backbone.name={lm.name}", "test.longest=4"]
    asked += ["backbone.dtype=float32", f"suite.source={suite}", "test.limit=0"]
    assert "test.jsonl, line 2: " in refused(*asked)
    code, printed, error = shoulders(*asked, "--skip-bad-rows")
    assert (code, error) == (0, "")
    assert "left out of numbers/choose: 1 broken lines; the first: " in printed
