"""Sweeps: a share of every candidate's steps, the choice, and the rest of the best one's."""

import json

import pytest
import torch

from commands import fitting, run
from shoulders.cli import train as cli_train
from shoulders.errors import TrainingDiverged, UnknownName, UsageError
from shoulders.paper.recipes import GRIDS
from shoulders.paper.rivals import new_rival
from shoulders.runs import sweep as sweeping
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.runs.sweep import SweepPlan, parse_grid
from shoulders.store.files import flatten, read_json
from shoulders.training.log import read_log
from shoulders.training.plan import RivalChoice
from small_values import save_suite, small_values

GRID = ["--grid", "scaffold.length=2,4", "--grid", "training.learning_rate=0.001,0.05", "--fraction", 0.4]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_suite(tmp_path_factory.mktemp("suite"), {"sums": "Sums"})


@pytest.fixture
def values(lm, suite):
    return small_values(lm.name, suite)


def swept(folder):
    return read_json(folder / "sweep.json")


def scores(folder):
    return {one["name"]: one["score"] for one in swept(folder)["candidates"]}


def files(folder):
    """What a run ends with, byte by byte; the times in its log apart."""
    kept = sorted(path for part in ("best", "checkpoints") for path in (folder / part).rglob("*") if path.is_file())
    last = max(path.parent.name for path in kept if path.parent.name.startswith("step-"))
    kept = [path for path in kept if path.parent.name in ("best", last)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def losses(folder):
    return [(line["number"], line["loss"], line["rate"]) for line in read_log(folder)]


@pytest.mark.parametrize(("decay", "recipe"), [("linear", "bundled_soft_prompt"), ("none", "bundled_input_prompt")])
def test_the_best_candidate_goes_on_as_if_never_interrupted(values, tiny_encoder, tmp_path, decay, recipe):
    own = [*values, f"training.decay={decay}", f"scaffold.encoder={tiny_encoder('bert').name}"]
    own = fitting(recipe, [*own, "scaffold.encoder_length=3", "scaffold.head_width=8"])
    printed = run("sweep", recipe, *own, *GRID, "--out", tmp_path / "sweep")
    content, found = swept(tmp_path / "sweep"), scores(tmp_path / "sweep")
    assert (content["until"], list(found)) == (3, ["01", "02", "03", "04"])
    chosen = content["chosen"]
    assert found[chosen] == max(found.values())
    assert chosen == min(name for name, score in found.items() if score == found[chosen])
    for name, candidate in zip(found, content["candidates"], strict=True):
        steps = losses(tmp_path / "sweep" / name)
        assert len(steps) == (8 if name == chosen else 3)
        rows = read_log(tmp_path / "sweep" / name)[:3]
        assert candidate["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
        assert rows[-1]["score"] == candidate["score"]
        assert (tmp_path / "sweep" / name / "results.json").exists() == (name == chosen)
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert f"**{found[chosen]:.2f}**" in table
    assert table.count("\n| 0") == 4
    assert table.splitlines()[0] in printed

    best = content["candidates"][int(chosen) - 1]["values"]
    run("train", recipe, *own, *[f"{key}={value}" for key, value in best.items()], "--out", tmp_path / "whole")
    assert losses(tmp_path / "sweep" / chosen) == losses(tmp_path / "whole")
    assert files(tmp_path / "sweep" / chosen) == files(tmp_path / "whole")
    results, whole = (read_json(path / "results.json") for path in (tmp_path / "sweep" / chosen, tmp_path / "whole"))
    assert [row["measured"] for row in results["wordings"]] == [row["measured"] for row in whole["wordings"]]
    assert results["recipe"] == whole["recipe"]


def test_a_killed_sweep_goes_on_and_repeats_nothing(values, tmp_path, monkeypatch):
    command = ["sweep", "bundled_soft_prompt", *values, *GRID, "--out", tmp_path / "sweep"]
    begun, real = [], cli_train._train_until

    def killed(recipe, lm, folder, **rest):
        begun.append(folder.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real(recipe, lm, folder, **rest)

    monkeypatch.setattr(cli_train, "_train_until", killed)
    with pytest.raises((KeyboardInterrupt, AssertionError)):  # as click gives it
        run(*command)
    before = scores(tmp_path / "sweep")
    assert [score is not None for score in before.values()] == [True, True, False, False]
    assert swept(tmp_path / "sweep")["chosen"] is None
    with pytest.raises(UsageError, match="2 of 4 candidates done: go on with --resume"):
        run(*command)
    with pytest.raises(UsageError, match="another recipe or grid"):
        run(*command, "--resume", "training.steps=9")
    with pytest.raises(UsageError, match="another recipe or grid"):
        run(*command[:-6], "--fraction", 0.4, *command[-2:], "--resume")
    assert begun == ["01", "02", "03"]
    run(*command, "--resume")
    assert begun == ["01", "02", "03", "03", "04"]
    after = scores(tmp_path / "sweep")
    assert {name: after[name] for name in ("01", "02")} == {name: before[name] for name in ("01", "02")}
    run(*command, "--resume")  # the rest of the best one's run is done, too
    assert len(begun) == 5
    monkeypatch.undo()
    run(*command[:-1], tmp_path / "whole")
    assert scores(tmp_path / "whole") == after


def test_a_candidate_that_fails_is_noted_and_the_others_go_on(values, tmp_path, monkeypatch):
    real = cli_train._train_until

    def failing(recipe, lm, folder, **rest):
        if recipe.scaffold.length == 3:
            raise torch.OutOfMemoryError("CUDA out of memory | tried 20 GiB\nand more")
        if recipe.scaffold.length == 5:
            raise TrainingDiverged(step=2, what="loss", value=float("nan"), kept="no checkpoint had been saved yet")
        return real(recipe, lm, folder, **rest)

    monkeypatch.setattr(cli_train, "_train_until", failing)
    command = ["sweep", "bundled_soft_prompt", *values, "--fraction", 0.25, "--out", tmp_path / "sweep"]
    run(*command, "--grid", "scaffold.length=3,4,5,1000")
    content = swept(tmp_path / "sweep")
    assert content["chosen"] == "02"
    failures = [one["failure"] for one in content["candidates"]]
    assert failures[0] == "CUDA out of memory | tried 20 GiB"
    assert failures[1] == ""
    assert failures[2].startswith("the loss is nan at step 2")
    assert "the model has room for 128" in failures[3]
    assert [len(line.replace("\\|", "").split("|")) for line in content_rows(tmp_path / "sweep")] == [6] * 4
    with pytest.raises(UsageError, match=r"no candidate came to step 2; the first: .* the model has room for 128"):
        run(*command[:-1], tmp_path / "other", "--grid", "scaffold.length=1000,2000")


def content_rows(folder):
    return [line for line in (folder / "sweep.md").read_text().splitlines() if line.startswith("| 0")]


def test_what_is_wrong_with_the_program_stops_a_sweep(values, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(cli_train, "_train_until", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run("sweep", "bundled_soft_prompt", *values, *GRID, "--out", tmp_path / "sweep")


def test_a_full_memory_is_the_candidate_s_own(values):
    assert sweeping._of_the_candidate(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")
    )
    assert sweeping._of_the_candidate(MemoryError())
    assert not sweeping._of_the_candidate(RuntimeError("shapes"))


def test_rates_of_a_rival_are_swept(values, tmp_path):
    grid = ["--grid", "rival.learning_rate=1e-4,1e-2", "--fraction", 0.25]
    run("sweep", "bundled_soft_prompt", *values, "--rival", "lora", *grid, "--out", tmp_path / "sweep")
    content = swept(tmp_path / "sweep")
    results = read_json(tmp_path / "sweep" / content["chosen"] / "results.json")
    assert results["rival"]["kind"] == "lora"
    assert results["recipe"]["rival"]["learning_rate"] in (1e-4, 1e-2)
    assert results["cost"]["steps"] == 8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--grid", "scaffold.length"], UsageError, "is not key=value,value"),
        (["--grid", "scaffold.length="], UsageError, "is not key=value,value"),
        (["--grid", "scaffold.length=1,2", "--grid", "scaffold.length=3"], UsageError, "names scaffold.length twice"),
        (["--grid", "scaffold.lenght=1,2"], UnknownName, r"did you mean 'scaffold\.length'"),
        (["--grid", "scaffold.length=1,two"], UsageError, "scaffold.length takes a whole number, got 'two'"),
        (["--grid", "scaffold.length=0,1"], UsageError, "nothing to train"),
        (["--grid", "training.learning_rate=1e-2,0.01"], UsageError, "training.learning_rate=0.01 twice"),
        (["--grid", "training.steps=10,20"], UsageError, "training.steps cannot be chosen by development score"),
        (["--grid", "suite.tasks=a,b"], UsageError, "suite.tasks cannot be chosen"),
        (["--grid", "scaffold.length=1,2", "--fraction", "0"], UsageError, "--fraction is 0"),
        (["--grid", "scaffold.length=1,2", "--fraction", "1.5"], UsageError, "--fraction is 1.5"),
        (["--rival", "full"], UsageError, "the paper has no grid for full"),
    ],
)
def test_what_is_no_grid_is_refused_before_anything_is_loaded(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        run("sweep", "bundled_soft_prompt", "backbone.name=nowhere", *arguments, "--out", tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_the_paper_s_grids_hold_the_values_of_its_recipes():
    """Section 2.2: 4 lengths by 3 rates; the recipes' own values are among them."""
    for name in ("paper_idpt", "paper_prompt_tuning", "paper_recursion"):
        recipe = recipe_named(name)
        plan = SweepPlan(recipe, GRIDS[recipe.scaffold.kind])
        assert plan.until == recipe.training.steps // 10
        assert recipe in [one.recipe for one in plan.candidates()]
    assert len(SweepPlan(recipe_named("paper_idpt"), GRIDS["input_prompt"]).candidates()) == 12


def test_a_grid_is_each_value_with_each():
    plan = SweepPlan(
        recipe_named("bundled_soft_prompt"), parse_grid(["scaffold.length=1, 2", "training.seed=0,1"]), 0.5
    )
    found = [flatten(one.recipe.as_json()) for one in plan.candidates()]
    assert [(one["scaffold.length"], one["training.seed"]) for one in found] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert plan.until == 55
    few = with_overrides(plan.recipe, ["training.steps=3"])
    assert SweepPlan(few, plan.grid, 0.01).until == 1
    assert json.dumps(sweeping.SweepState(plan, plan.candidates()).as_json())


def test_what_does_nothing_to_a_rival_is_no_choice():
    base = with_overrides(recipe_named("bundled_soft_prompt"), ["rival.kind=lora"])
    with pytest.raises(UsageError, match=r"training\.learning_rate has no effect on a rival"):
        SweepPlan(base, {"training.learning_rate": ("1e-4", "1e-3")})
    assert len(SweepPlan(base, {"rival.learning_rate": ("1e-4", "1e-3")}).candidates()) == 2
    fused = with_overrides(recipe_named("reader"), ["rival.kind=fid"])
    with pytest.raises(UsageError, match="cannot be chosen here"):
        SweepPlan(fused, {"rival.learning_rate": ("1e-4", "1e-3")})


def test_fid_is_no_rival_of_a_causal_model(lm):
    with pytest.raises(UsageError, match="fid trains no causal model"):
        new_rival(RivalChoice("fid"), lm, 0, 0)
