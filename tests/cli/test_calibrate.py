"""Passes by difficulty from the command line: calibrated, measured, reported, asked; and what is refused."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from shoulders.answering import open as open_model
from shoulders.cli.main import app
from shoulders.evaluation.results import read_result
from shoulders.records import Question
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import save_numbers


@pytest.fixture
def runs(lm, tmp_path, monkeypatch):
    """A folder with the best scaffolds of three runs, of 3, 2 and 1 passes; the current one."""
    suite = save_numbers(tmp_path / "suite" / "numbers", range(20), range(40, 60), range(60, 80))
    values = [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "test.limit=8",
        "development.limit=10", "development.wordings=0", "test.wordings=0", "development.longest=4", "test.longest=4",
    ]  # fmt: skip
    recipe = with_overrides(recipe_named("bundled_soft_prompt"), values).as_json()
    scaffolds = {
        "thrice": Recursion(lm, RecursionShape(passes=3, layers=1)),
        "twice": Recursion(lm, RecursionShape(layers=1)),
        "soft": SoftPrompt(from_vocabulary(lm)(3)),
    }
    for name, scaffold in scaffolds.items():
        scaffold.made_for(lm, recipe).save_pretrained(tmp_path / "runs" / name / "best")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def worked(shoulders, monkeypatch):
    """Runs the command line, which must work; gives output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[str, str]:
        code, out, error = shoulders(*arguments)
        assert code == 0, error
        return out, error

    return run


@pytest.mark.parametrize("rule", ["probability", "margin"])
def test_calibrated_measured_reported_and_asked(runs, worked, lm, rule):
    """Runs are named dearest first: they are put in order of cost."""
    told, _ = worked("calibrate", "thrice", "soft", "twice", "--budget", 2.5, "--rule", rule, "--out", "auto")
    content = json.loads((runs / "auto" / "adaptive.json").read_text())
    assert [stage["name"] for stage in content["stages"]] == ["../soft/best", "../twice/best", "../thrice/best"]
    assert content["chosen"]["passes"] <= 2.5
    assert (content["curve"][0]["passes"], content["curve"][-1]["passes"]) == (1.0, 6.0)
    assert {"commit", "versions", "machine", "time"} <= set(content)
    assert f"{content['chosen']['passes']:.2f} passes an answer on average (budget 2.50)" in told
    assert re.search(rf"{content['chosen']['passes']:.2f} +{content['chosen']['score']:.1f} +chosen", told)
    assert "stops at soft/best (1 pass) with a " in told

    told, _ = worked("evaluate", "auto", "test.limit=6", "--out", "auto/results.json")
    result = read_result(runs / "auto")
    passes = result.content["passes"]
    assert (passes["budget"], passes["rule"], passes["curve_split"]) == (2.5, rule, "test")
    assert f"{passes['average']:.2f} passes an answer on average" in told
    assert result.content["examples"] == 12
    assert result.content["scaffold"]["kind"] == "adaptive"
    worked("evaluate", "soft", "test.limit=6", "--out", "soft/results.json")
    assert passes["curve"][0] == {"passes": 1.0, "score": read_result(runs / "soft").content["average"]}
    worked("report", "soft", "auto", "--out", "report")
    assert set(json.loads((runs / "report" / "scores.json").read_text())) == {"soft", "auto"}

    asked = Question("What comes after 3?")
    found = open_model(str(runs / "auto"), lm=lm, longest=4).ask(asked)
    answered, note = worked("ask", "auto", asked.text, "--longest", 4)
    assert answered == found.text + "\n"
    assert note == {1: "1 pass\n", 3: "3 passes\n", 6: "6 passes\n"}[found.passes]


def test_the_passes_of_an_answer_are_chosen(runs, worked, refused, lm):
    worked("calibrate", "soft", "thrice", "--budget", 1, "--out", "auto")
    question = Question("Name a planet.")
    for passes, name, said in ((1, "soft", "1 pass"), (2, "soft", "1 pass"), (3, "thrice", "3 passes")):
        scaffold = Scaffold.load(runs / name / "best", lm)
        answered, note = worked("ask", "auto", question.text, "--passes", passes, "--longest", 4)
        alone, silent = worked("ask", name, question.text, "--longest", 4)
        assert (answered, note, silent) == (alone, f"{said}\n", "")
        assert worked("ask", name, question.text, "--passes", scaffold.passes, "--longest", 4)[1] == f"{said}\n"
    assert worked("ask", "auto", "Is 3 even?", "--choices", "yes|no", "--passes", "auto")[1] == "1 pass\n"
    assert "--passes auto needs thresholds, and soft/best is one scaffold: calibrate several first" in refused(
        "ask", "soft", "hi", "--passes", "auto"
    )
    assert "--passes 2: thrice/best answers with 3 passes, always" in refused("ask", "thrice", "hi", "--passes", 2)
    for wrong in ("0", "-1", "many", "1.5"):
        assert "is not a number of passes: --passes auto, or 1, 2, ..." in refused(
            "ask", "auto", "hi", "--passes", wrong
        )


def test_the_smallest_budget_is_the_first_stage_and_the_bare_model_can_be_it(runs, worked):
    worked("calibrate", "bare", "twice", "--budget", 1, "--out", "auto", "development.limit=5")
    kept = json.loads((runs / "auto" / "adaptive.json").read_text())
    assert kept["chosen"]["thresholds"] == ["-inf"]
    assert kept["recipe"]["development"]["limit"] == 5
    worked("evaluate", "auto", "--out", "auto.json")
    worked("evaluate", "bare", "--recipe", _recipe(runs, kept), "--out", "bare.json")
    auto, bare = (json.loads((runs / name).read_text()) for name in ("auto.json", "bare.json"))
    assert [row["samples"] for row in auto["wordings"]] == [row["samples"] for row in bare["wordings"]]
    assert auto["tasks"] == bare["tasks"]
    assert auto["passes"]["average"] == 1.0
    assert auto["passes"]["stages"] == [{"passes": 1, "share": 1.0}, {"passes": 2, "share": 0.0}]


def _recipe(runs, kept):
    (runs / "recipe.json").write_text(json.dumps(kept["recipe"]))
    return "recipe.json"


def test_bad_calibrations(runs, refused, tiny_lm):
    """Nothing is written."""
    out = ["--out", "auto"]
    assert "it is 1.00 where every input stops" in refused("calibrate", "soft", "twice", "--budget", 0.5, *out)
    assert "an average of nan passes" in refused("calibrate", "soft", "twice", "--budget", "nan", *out)
    assert "did you mean 'margin'" in refused("calibrate", "soft", "twice", "--budget", 2, "--rule", "margins", *out)
    assert "over 1 stage: name at least 2 runs" in refused("calibrate", "soft", "--budget", 2, *out)
    assert "'soft/best' is named twice" in refused("calibrate", "soft", "./soft", "--budget", 2, *out)
    assert "there is no scaffold" in refused("calibrate", "soft", "./nothing", "--budget", 2, *out)
    assert "did you mean 'development.limit'" in refused(
        "calibrate", "soft", "twice", "developmint.limit=3", "--budget", 2, *out
    )
    assert "contains other files" in refused("calibrate", "soft", "twice", "--budget", 2, "--out", ".")
    other = tiny_lm("gpt2")
    SoftPrompt(from_vocabulary(other)(3)).made_for(other).save_pretrained(runs / "other")
    assert "holds no recipe: name one with --recipe" in refused("calibrate", "bare", "other", "--budget", 2, *out)
    assert "stages share one frozen model" in refused("calibrate", "soft", "other", "--budget", 2, *out)
    assert not (runs / "auto").exists()


def test_a_run_that_was_trained_again_is_refused(runs, worked, refused, lm):
    worked("calibrate", "soft", "twice", "--budget", 2, "--out", "auto")
    scaffold = Scaffold.load(runs / "soft" / "best", lm)
    with torch.no_grad():
        next(iter(scaffold.parameters()))[0] += 1
    scaffold.save_pretrained(runs / "soft" / "best")
    for command in (["ask", "auto", "hi"], ["evaluate", "auto"]):
        assert "calibrate again (shoulders calibrate)" in refused(*command)


def test_help_teaches(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = " ".join(CliRunner().invoke(app, ["calibrate", "--help"]).output.split())
    assert all(part in told for part in ("RUN RUN...", "[KEY=VALUE]", "--budget", "--rule", "--recipe", "development"))
    assert "--passes" in CliRunner().invoke(app, ["ask", "--help"]).output
