"""The scripts that wait for a GPU, run on this CPU: the check of a machine, and the recorded comparisons."""

import json
import sys
from pathlib import Path

import pytest
import torch
from experiments import sweep
from scripts import gpu_check

from tiny import save_lm

GRID = Path(__file__).parents[1] / "experiments" / "018-gpu" / "grid.json"
HERE = gpu_check.Setting.on("cpu")


def check(monkeypatch, *arguments):
    """The exit code of the script."""
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    return gpu_check.main()


@pytest.mark.slow
def test_checks_run_on_a_cpu_and_their_figures_are_written(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    assert check(monkeypatch, "--device", "cpu", "--only", "sdpa", "planned", "--out", str(out)) == 0
    content = json.loads(out.read_text())
    assert {name: one["state"] for name, one in content["checks"].items()} == {"sdpa": "ok", "planned": "skipped"}
    assert content["figures"]["train_gated_low_rank_positions_per_s"] > 0
    assert {"commit", "machine", "device"} <= content.keys()
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert content["figures"][last[0]] == pytest.approx(float(last[1]), rel=1e-3)


def test_a_failure_does_not_end_the_others_and_is_in_the_exit_code(tmp_path, monkeypatch):
    found = {"one": {"state": "failed", "reason": "broken", "seconds": 1.0}, "two": {"state": "ok", "seconds": 1.0}}
    names = list(gpu_check.CHECKS)[:2]
    given = dict(zip(names, found.values(), strict=True))
    monkeypatch.setattr(gpu_check, "_apart", lambda name, _device, _seconds: given[name])
    out = tmp_path / "found.json"
    assert check(monkeypatch, "--only", *names, "--out", str(out)) == 1
    assert json.loads(out.read_text())["checks"] == given
    assert check(monkeypatch, "--only", names[1], "--out", str(out)) == 0


def test_a_check_that_breaks_is_a_line_and_one_without_time_is_late(monkeypatch):
    monkeypatch.setitem(gpu_check.CHECKS, "sdpa", lambda _: gpu_check.demand("the gap", 2.0, 1.0) and {})
    outcome = gpu_check._outcome("sdpa", HERE)
    assert outcome["state"] == "failed"
    assert outcome["reason"] == "AssertionError: the gap is 2, 1 at most is expected"
    assert gpu_check._apart("sdpa", "cpu", 0.0)["state"] == "late"


def test_a_gap_is_found():
    """The invariants hold, and other weights on the other device are seen."""
    lm, beside = (gpu_check.small_lm(gpu_check.FAMILIES["llama"], "cpu") for _ in range(2))
    name, scaffold = list(gpu_check.scaffolds(lm))[1]
    assert max(gpu_check._gaps(lm, beside, scaffold).values()) < 1e-4, name
    with torch.no_grad():
        beside.model.get_input_embeddings().weight.mul_(1.1)
    assert gpu_check._gaps(lm, beside, scaffold)["other_device"] > gpu_check.EXACT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["invariants", "quantized", "peft", "scheduling"])
@pytest.mark.filterwarnings("ignore")  # of the libraries that are compared with
def test_other_checks_pass_on_a_cpu(name):
    assert all(value >= 0 for value in gpu_check.CHECKS[name](HERE).values())


@pytest.mark.slow
def test_the_grid_runs_at_a_tiny_size_stops_and_goes_on(tmp_path, monkeypatch, capsys):
    """Its rows, but for those with an encoder, around a tiny model on the bundled suite."""
    grid = json.loads(GRID.read_text())
    save_lm("llama", tmp_path / "lm")
    grid["common"] = [
        *(value for value in grid["common"] if not value.startswith(("suite.source", "suite.tasks", "suite.original"))),
        f"backbone.name={tmp_path / 'lm'}", "backbone.dtype=float32", "suite.tasks=city_country,kind_of",
        "suite.lengths.input=60", "suite.lengths.target=8", "training.batch_size=4", "training.save_every=1",
        "training.positions_at_once=400", "development.limit=2", "development.longest=4", "test.limit=2",
        "test.longest=4",
    ]  # fmt: skip
    grid["rows"] = [{**row, "steps": [2]} if "steps" in row else row for row in grid["rows"]]
    grid["rows"] = [row for row in grid["rows"] if row["name"] in ("bare", "lora", "prompt-tuning", "low-rank", "deep")]
    place = tmp_path / "018-gpu" / "grid.json"
    place.parent.mkdir()
    place.write_text(json.dumps(grid))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep", str(place), "--minutes", "0.0001"])
    sweep.main()
    assert "another call goes on" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sweep", str(place)])
    sweep.main()
    results = sorted(path.stem for path in (place.parent / "results").glob("*.json"))
    assert results == ["bare-s0", "deep-2-s0", "lora-2-s0", "low-rank-2-s0", "prompt-tuning-2-s0"]
    assert "| low-rank-2 | 1 | 8 |" in (place.parent / "summary.md").read_text()
    capsys.readouterr()
    sweep.main()
    assert "..." not in capsys.readouterr().out
