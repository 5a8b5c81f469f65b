"""`shoulders report` and its kinds, from trained runs to files."""

import json

import pytest

from commands import fitting, run
from shoulders.errors import UsageError
from tiny import NUMBERS, TEXTS, save_numbers


@pytest.fixture
def values(lm, tmp_path):
    """Questions whose answers are generated and scored by exact match."""
    suite = save_numbers(tmp_path / "suite" / "numbers", range(20), range(20, 26), range(26, 32))
    (suite / "templates.yaml").write_text(NUMBERS.replace("[Squad]", "[Accuracy]"))
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "training.batch_size=4",
        "suite.without_templates=numbers/choose", "scaffold.length=3", "scaffold.inner.length=3",
        "scaffold.recursion.layers=1", "training.steps=4", "training.evaluate_every=2", "development.limit=3",
        "development.longest=3", "test.limit=4", "test.longest=3",
    ]  # fmt: skip


def test_recursion_is_reported_from_runs_and_samples(values, tmp_path, monkeypatch):
    for recipe, name in (("bundled_soft_prompt", "prompt"), ("bundled_recursion", "twice")):
        run("train", recipe, *fitting(recipe, values), "--out", tmp_path / name)
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


def test_a_suite_is_reported_from_runs_of_several_seeds_and_what_they_forgot(values, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(" ".join(TEXTS * 20))
    for seed in (0, 1):
        run(
            "train",
            "bundled_soft_prompt",
            *fitting("bundled_soft_prompt", values),
            f"training.seed={seed}",
            "--out",
            tmp_path / f"s{seed}",
        )
    run(
        "train",
        "bundled_soft_prompt",
        *fitting("bundled_soft_prompt", values),
        "--rival",
        "full",
        "--out",
        tmp_path / "full",
    )
    run(
        "evaluate",
        "bare",
        *fitting("bundled_soft_prompt", values),
        "--recipe",
        "bundled_soft_prompt",
        "--out",
        tmp_path / "bare.json",
    )
    short = ["--text", tmp_path / "text.txt", "text.sequences=2", "text.length=16"]
    for name in ("s0", "full"):
        run("forget", tmp_path / name, *short, "--out", tmp_path / f"{name}-forgot.json")
    monkeypatch.chdir(tmp_path)
    printed = run(
        "report", "suite", "bare.json", "s0", "s1", "full", "s0-forgot.json", "full-forgot.json", "--out", "r"
    )
    assert "is ahead with" in printed
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"suite.md", "suite.json", "suite.png", "dev.png"}
    methods = json.loads((tmp_path / "r" / "suite.json").read_text())["tables"][0]["methods"]
    assert [row["method"] for row in methods] == ["bare LM", "prompt tuning", "full fine-tuning"]
    assert [row["runs"] for row in methods] == [["bare"], ["s0", "s1"], ["full"]]
    assert [row["unchanged"] for row in methods] == [None, True, False]
    assert methods[1]["perplexity_ratio"]["text.txt"]["off"] == 1.0
    assert methods[1]["perplexity_ratio"]["text.txt"]["on"] != 1.0
    assert methods[2]["perplexity_ratio"]["text.txt"]["off"] is None
    assert methods[1]["seconds"] > 0
    assert [row["seen"] for row in methods] == [None, 16, 16]


def test_generated_prompts_are_reported(lm, tiny_encoder, tmp_path, monkeypatch):
    suite = tmp_path / "suite"
    for name in ("numbers", "sums"):
        save_numbers(suite / name, range(20), range(20, 26), range(26, 32))
    own = [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "training.batch_size=4",
        f"scaffold.encoder={tiny_encoder('bert').name}", "scaffold.encoder_length=3", "scaffold.head_width=8",
        "scaffold.length=3", "training.steps=4", "development.limit=2", "development.longest=3", "test.limit=2",
        "test.longest=3", "training.learning_rate=0.01",
    ]  # fmt: skip
    run("train", "bundled_input_prompt", *own, "--out", tmp_path / "idpt")
    run("train", "bundled_soft_prompt", *fitting("bundled_soft_prompt", own), "--out", tmp_path / "soft")
    run(
        "train",
        "bundled_soft_prompt",
        *fitting("bundled_soft_prompt", own),
        "--rival",
        "full",
        "--out",
        tmp_path / "full",
    )
    monkeypatch.chdir(tmp_path)
    printed = run("report", "prompts", "idpt", "development.limit=3", "--out", "r")
    assert "idpt: 12 prompts for 2 data sets." in printed
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"prompts.md", "prompts.json", "prompts.png"}
    kept = json.loads((tmp_path / "r" / "prompts.json").read_text())
    assert [kept["distances"][kind]["pairs"] for kind in sorted(kept["distances"])] == [36, 12, 12]
    assert kept["scaffold"]["kind"] == "input_prompt"
    assert kept["recipe"]["development"]["limit"] == 3
    run("report", "prompts", "idpt", "development.limit=3", "--out", "s")
    again = json.loads((tmp_path / "s" / "prompts.json").read_text())
    assert again["prompts"] == kept["prompts"]
    run("report", "prompts", "idpt", "suite.tasks=sums", "development.limit=0", "--out", "t")
    assert len(json.loads((tmp_path / "t" / "prompts.json").read_text())["prompts"]) == 12  # 6 records, 10 at most
    refused = {
        "soft": "kind soft_prompt generates no prompts",
        "full": "full generates no prompts",
        "bare": "bare generates no prompts",
        "development.limit=3": "name the scaffold",
    }
    for name, said in refused.items():
        with pytest.raises(UsageError, match=said):
            run("report", "prompts", name, "--out", "u")
    with pytest.raises(UsageError, match="name the scaffold"):
        run("report", "prompts")
    assert not (tmp_path / "u").exists()
