"""`shoulders report` and its kinds, from trained runs to files."""

import json

import pytest

from commands import run
from shoulders.errors import UsageError
from tiny import NUMBERS, save_numbers


@pytest.fixture
def values(lm, tmp_path):
    """Questions whose answers are generated and scored by exact match."""
    suite = save_numbers(tmp_path / "suite" / "numbers", range(20), range(20, 26), range(26, 32))
    (suite / "templates.yaml").write_text(NUMBERS.replace("[Squad]", "[Trivia QA]"))
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "training.batch_size=4",
        "suite.without_templates=numbers/choose", "scaffold.length=3", "scaffold.recursion.layers=1",
        "training.steps=4", "training.evaluate_every=2", "development.limit=3", "development.longest=3",
        "test.limit=4", "test.longest=3",
    ]  # fmt: skip


def test_recursion_is_reported_from_runs_and_samples(values, tmp_path, monkeypatch):
    for recipe, name in (("bundled_soft_prompt", "prompt"), ("bundled_recursion", "twice")):
        run("train", recipe, *values, "--out", tmp_path / name)
    run("evaluate", tmp_path / "prompt", "test.split=validation", "--out", tmp_path / "dev.json")
    content = json.loads((tmp_path / "prompt" / "results.json").read_text())
    samples = {
        "kind": "samples", "recipe": content["recipe"], "examples": 4, "examples_hash": content["examples_hash"],
        "split": "test", "recall": {"1": 25.0, "8": 50.0},
        "wordings": [{"task": "numbers", "wording": "count", "first": [0, -1, 3, -1]}],
    }  # fmt: skip
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    monkeypatch.chdir(tmp_path)
    printed = run("report", "recursion", "prompt", "twice", "dev.json", "samples.json", "--out", "r")
    assert "is ahead with" in printed
    assert "2 of 4 questions (50.0%) have no right answer" in " ".join(printed.split())
    assert "report: r/recursion.md" in printed
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"recursion.md", "recursion.json", "dev.png"}
    kept = json.loads((tmp_path / "r" / "recursion.json").read_text())
    assert [table["split"] for table in kept["tables"]] == ["test", "validation"]
    assert [row["run"] for row in kept["tables"][0]["rows"]] == ["prompt", "twice"]
    assert [row["method"]["passes"] for row in kept["tables"][0]["rows"]] == [1, 2]
    assert [row["seen"] for row in kept["tables"][0]["rows"]] == [16, 16]
    assert {row["development"]["step"] for row in kept["tables"][0]["rows"]} <= {2, 4}
    assert kept["runs"]["twice"]["recipe"]["scaffold"]["kind"] == "recursion"
    assert set(kept["beyond"][0]["scores"]) == {"prompt", "twice"}
    assert set(kept["beyond"][0]["left_out"]) == {"dev"}

    (tmp_path / "twice").rename(tmp_path / "recursion")  # a run of that name is a run
    run("report", "recursion", "prompt", "--out", "s")
    assert set(json.loads((tmp_path / "s" / "scores.json").read_text())) == {"recursion", "prompt"}


def test_a_report_of_no_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="at least one measured run"):
        run("report", "recursion")
    with pytest.raises(UsageError, match="no results at recursive: measure a run first"):
        run("report", "recursive", "prompt")
