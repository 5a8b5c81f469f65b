"""Recursion from the command line: pretrained on text, trained on tasks from there, asked."""

import json

import pytest

from commands import fitting, run
from shoulders.errors import CorruptFile, UsageError


@pytest.fixture
def values(lm):
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", "scaffold.recursion.layers=1", "training.batch_size=2",
        "training.steps=4", "training.save_every=2",
    ]  # fmt: skip


def test_a_connector_is_pretrained_then_trained_on_tasks_then_asked(values, tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(4):
        (tmp_path / "text" / f"{number}.txt").write_text(f"Text {number}: the cat sat on the mat.")
    pretrained = tmp_path / "pretrained"
    told = run(
        "train", "text_recursion", *values, f"text.source={tmp_path / 'text'}", "text.length=16",
        "training.evaluate_every=2", "--out", pretrained,
    )  # fmt: skip
    measured = json.loads((pretrained / "results.json").read_text())
    assert f"perplexity {measured['perplexity']:.2f} on {measured['tokens']} held-out tokens" in " ".join(told.split())
    assert measured["scaffold"]["kind"] == "recursion"
    told = run("report", "text", pretrained, "--out", tmp_path / "report")
    assert f"perplexity {measured['perplexity']:.2f}" in " ".join(told.split())
    page = (tmp_path / "report" / "text.md").read_text()
    assert f"| 128 | {measured['perplexity']:.2f} |" in page  # four steps of two sequences of 16 tokens
    assert (tmp_path / "report" / "perplexity.png").stat().st_size > 5000
    with pytest.raises(CorruptFile, match="holds no perplexity"):
        run("report", "text", tmp_path / "report" / "text.json", "--out", tmp_path / "no")
    trained = tmp_path / "trained"
    on_tasks = [
        "suite.tasks=kind_of", "scaffold.kind=recursion", f"scaffold.start={pretrained / 'best'}",
        "development.limit=2", "test.limit=2",
    ]  # fmt: skip
    run("train", "bundled_soft_prompt", *values, *on_tasks, "--out", trained)
    config = json.loads((trained / "best" / "config.json").read_text())
    assert config["recipe"]["scaffold"]["start"] == str(pretrained / "best")
    assert run("ask", trained, "Name a planet.", "--longest", 3).strip()
    with pytest.raises(UsageError, match="has shape"):
        run("train", "bundled_soft_prompt", *values, *on_tasks, "scaffold.recursion.passes=3", "--out", tmp_path / "no")


def test_textual_recursion_samples_trains_is_measured_and_asks(values, tmp_path):
    """p1 is trained, sampled from, p2 trained on what it said; the same questions are never sampled twice."""
    for part, numbers in (("train", range(8)), ("dev", range(8, 11)), ("test", range(11, 14))):
        rows = [{"question": f"What comes after {n}?", "answers": [str(n + 1)]} for n in numbers]
        (tmp_path / f"numbers.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [
        *fitting("closed_book", values), f"suite.source=qa:{tmp_path}/numbers", "scaffold.length=3",
        "training.evaluate_every=2", "development.longest=3", "test.longest=3",
    ]  # fmt: skip
    run("train", "closed_book", *own, "--out", tmp_path / "p1")
    store = f"evidence.store={tmp_path}/answers.sqlite"
    sampling = ["evidence.longest=3", store]
    told = run(
        "sample",
        tmp_path / "p1",
        *sampling,
        "--samples",
        "4,1",
        "--out",
        tmp_path / "samples.json",
        "--majority",
        tmp_path / "majority.json",
    )
    assert "recall at 1:" in told
    kept = json.loads((tmp_path / "samples.json").read_text())
    assert kept["kind"] == "samples"
    assert set(kept["recall"]) == {"1", "4"}
    assert [len(row["first"]) for row in kept["wordings"]] == [3]
    two = [*own, *sampling, f"evidence.scaffold={tmp_path / 'p1'}", "evidence.count=4"]
    run("train", "textual_recursion", *two, "--out", tmp_path / "p2")
    result = json.loads((tmp_path / "p2" / "results.json").read_text())
    assert result["recipe"]["evidence"]["count"] == 4
    fingerprint = json.loads((tmp_path / "p1" / "results.json").read_text())["scaffold"]["fingerprint"]
    assert result["evidence"] == {"kind": "candidates", "scaffolds": {str(tmp_path / "p1"): fingerprint}}
    assert result["examples_hash"] == kept["examples_hash"]
    again = run("evaluate", tmp_path / "p2", "--out", tmp_path / "again.json")
    assert "question" in again or "numbers" in again
    told = run("ask", tmp_path / "p2", "What comes after 4?", "--longest", 3, "--passes", 2)
    assert "2 passes" in told
    as_trained = run("ask", tmp_path / "p2", "Question: What comes after 4?\nAnswer:", "--longest", 3, "--passes", 2)
    assert as_trained == told  # a scaffold trained on files of questions is asked in their wording
    run("calibrate", tmp_path / "p1", tmp_path / "p2", "--budget", 2, "--out", tmp_path / "auto")
    stages = json.loads((tmp_path / "auto" / "adaptive.json").read_text())["stages"]
    assert [(stage["passes"], bool(stage["evidence"])) for stage in stages] == [(1, False), (2, True)]
    assert "pass" in run("ask", tmp_path / "auto", "What comes after 4?", "--longest", 3)
    run("evaluate", tmp_path / "auto", "--out", tmp_path / "auto.json")
    measured = [tmp_path / name for name in ("p1", "p2", "auto.json", "samples.json", "majority.json")]
    run("report", "recursion", *measured, "--out", tmp_path / "r")
    page = (tmp_path / "r" / "recursion.md").read_text()
    assert "Adaptive (budget 2)" in page
    assert (tmp_path / "r" / "passes.png").exists()
    assert "Textual-recursive (n=4)" in page
    assert "Majority of 4 samples" in page
    assert f"| 4 | {kept['recall']['4']:.1f} |" in page
    same = json.loads((tmp_path / "again.json").read_text())
    assert same["wordings"][0]["measured"] == result["wordings"][0]["measured"]


def test_recursions_are_planned_without_weights(values):
    for recipe in ("bundled_recursion", "lm_connector_lm"):  # with a prompt, and with none
        told = run("plan", recipe, *values, "--input-length", 20, "--output-length", 4)
        assert "connectors" in told
