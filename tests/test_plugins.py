"""Scaffolds, evidence, metrics and recipes of another package, known by its entry points alone (plugin_package)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from commands import run
from shoulders.errors import UnknownName, UsageError
from shoulders.evaluation.metrics import METRICS
from shoulders.evidence.base import SOURCES
from shoulders.paper.reader_report import method_of
from shoulders.runs.build import new_scaffold
from shoulders.runs.cost import cost
from shoulders.runs.recipe import recipe_from_json, with_overrides
from shoulders.runs.registry import RECIPES, recipe_named, recipes
from shoulders.runs.run import train, train_until
from shoulders.scaffolds.base import KINDS, Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptConfig
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from small_values import small_values
from tiny import NUMBERS, save_numbers

PACKAGE = Path(__file__).parent / "plugin_package"
SHIFT = ["scaffold.kind=toy_shift", "scaffold.spread=0.2"]


@pytest.fixture
def installed(monkeypatch):
    """The package on the path, as if pip had put it there."""
    monkeypatch.syspath_prepend(str(PACKAGE))
    for registry in (KINDS, SOURCES, METRICS, RECIPES):
        monkeypatch.setattr(registry, "_known", dict(registry._known))


@pytest.fixture
def values(lm, tmp_path):
    """Questions that are scored by the metric of the package where no choice is given."""
    suite = save_numbers(tmp_path / "suite" / "numbers", range(20), range(20, 26), range(26, 32))
    (suite / "templates.yaml").write_text(NUMBERS.replace("[Squad]", "[toy_first_letter, Trivia QA]"))
    small = [value for value in small_values(lm.name, suite) if not value.startswith("scaffold.")]
    return [*small, "test.wordings=0", "training.steps=4", "training.learning_rate=0.01"]


def fresh(code: str, *path: Path) -> str:
    """What Python prints in a process of its own, where nothing is imported yet."""
    source = Path(__file__).parents[1] / "src"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (source, *path)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_scaffold_of_another_package_from_training_to_asking(installed, values, lm, tmp_path, monkeypatch):
    command = ["bundled_soft_prompt", *values, *SHIFT]
    printed = run("plan", *command, "--input-length", 20, "--output-length", 4)
    assert "shifted embeddings around" in printed
    assert re.search(r"trained: vector +32\b", printed)
    assert "32 trained parameters" in run("train", "bundled_soft_prompt", *values, *SHIFT, "--out", tmp_path / "shift")
    run("train", "bundled_soft_prompt", *values, "scaffold.length=3", "--out", tmp_path / "soft")

    recipe = with_overrides(recipe_named("bundled_soft_prompt"), [*values, *SHIFT])
    train_until(recipe, lm, tmp_path / "paused", 2)
    run("train", *command, "--out", tmp_path / "paused", "--resume")
    assert losses(tmp_path / "paused") == losses(tmp_path / "shift")

    best = tmp_path / "shift" / "best"
    measured = json.loads((tmp_path / "shift" / "results.json").read_text())
    assert (measured["scaffold"]["kind"], measured["trained"]) == ("toy_shift", 32)
    assert measured["recipe"]["scaffold"] == {"kind": "toy_shift", "start": "", "spread": 0.2}
    assert recipe_from_json(measured["recipe"]) == recipe
    assert [row["metric"] for row in measured["wordings"]] == ["accuracy", "toy_first_letter"]
    assert set(measured["wordings"][1]["scores"]) == {"toy_first_letter", "triviaqa_exact_match", "triviaqa_f1"}
    run("evaluate", tmp_path / "shift", "--out", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["wordings"] == measured["wordings"]

    monkeypatch.chdir(tmp_path)
    run("report", "shift", "soft", "--out", "plain")
    run("report", "suite", "shift", "soft", "--out", "suite_report")
    assert "shifted embeddings" in (tmp_path / "suite_report" / "suite.md").read_text()
    run("report", "recursion", "shift", "soft", "--out", "passes")
    assert "shifted embeddings" in (tmp_path / "passes" / "recursion.md").read_text()

    assert method_of(measured) == "frozen LM, shifted embeddings"
    with pytest.raises(UsageError, match=r"no grid for toy_shift: name one, --grid training\.learning_rate="):
        run("sweep", *command, "--out", tmp_path / "sweep")

    assert "A toy shift for" in (best / "README.md").read_text()
    loaded = Scaffold.load(best, lm)
    assert (loaded.kind, loaded.origin.recipe["scaffold"]["spread"]) == ("toy_shift", 0.2)
    with pytest.raises(UsageError, match="PEFT's format holds no scaffold of kind toy_shift"):
        run("convert", best, tmp_path / "peft")
    asked = "from shoulders.cli.main import main; import sys; sys.argv = {}; main()"
    words = ["shoulders", "ask", str(tmp_path / "shift"), "Is 3 even or odd?", "--choices", "even|odd"]
    assert fresh(asked.format(words), PACKAGE).strip() in {"even", "odd"}


def test_a_scaffold_of_another_package_stands_in_every_pass_of_a_recursion(installed, values, lm, tmp_path):
    inner = ["scaffold.kind=recursion", "scaffold.inner=toy_shift", "scaffold.inner.spread=0.3"]
    recipe = with_overrides(recipe_named("bundled_soft_prompt"), [*values, *inner, "scaffold.recursion.layers=1"])
    assert cost(recipe, 20, 4).trained["inner"] == 32
    train(recipe, lm, tmp_path / "run")
    moved = Scaffold.load(tmp_path / "run" / "best", lm)
    assert isinstance(moved, Recursion)
    assert not torch.equal(moved.inner.vector, new_scaffold(recipe.scaffold, lm, 0).inner.vector)


def test_evidence_of_another_package_is_trained_measured_and_asked_with(installed, values, tmp_path):
    told = ["evidence.kind=toy_almanac", "evidence.sentence=Two is even."]
    folder = tmp_path / "told"
    run("train", "bundled_soft_prompt", *values, *told, "scaffold.length=3", "--out", folder)
    measured = json.loads((folder / "results.json").read_text())
    assert measured["evidence"] == {"kind": "toy_almanac", "fingerprint": "Two is even."}
    assert measured["recipe"]["evidence"] == {"kind": "toy_almanac", "sentence": "Two is even."}
    run("evaluate", folder, "--out", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["wordings"] == measured["wordings"]
    run("report", folder, "--out", tmp_path / "report")
    assert "Two is even." in (told_of := run("ask", folder, "Is 2 even or odd?", "--choices", "even|odd"))
    assert told_of.split()[-1] in {"even", "odd"}
    run("sample", folder, "--samples", "1,2", "evidence.sentence=Three is odd.", "--out", tmp_path / "samples.json")
    assert json.loads((tmp_path / "samples.json").read_text())["evidence"]["fingerprint"] == "Three is odd."


@pytest.mark.parametrize(
    ("override", "error", "said"),
    [
        ("scaffold.kind=toy_broken", UsageError, "toy_broken' of the package toy-plugin .* cannot be imported"),
        ("scaffold.kind=toy_wrong", UsageError, "toy_wrong' of the package toy-plugin .* is not a subclass of"),
        ("evidence.kind=toy_broken", UsageError, "of the package toy-plugin .*a_package_that_is_not_installed"),
        ("scaffold.kind=toy_shit", UnknownName, "did you mean 'toy_shift'"),
        ("scaffold.spread=-1", UsageError, "scaffold.spread is -1.0: it cannot be negative"),
        ("scaffold.length=3", UnknownName, "it has scaffold.kind, scaffold.spread, scaffold.start"),
        ("evidence.kind=toy_almanak", UnknownName, "did you mean 'toy_almanac'"),
        ("evidence.index=x", UnknownName, "it has evidence.kind, evidence.sentence"),
        ("evidence.sentence=", UsageError, "evidence.sentence is empty"),
    ],
)
def test_what_is_wrong_with_a_package_is_said_in_one_line(installed, override, error, said):
    recipe = with_overrides(recipe_named("bundled_soft_prompt"), [*SHIFT, "evidence.kind=toy_almanac"])
    with pytest.raises(error, match=said) as found:
        with_overrides(recipe, [override])
    assert len(str(found.value).splitlines()) == 1


def test_a_metric_whose_name_is_not_that_of_its_entry_point_is_refused(installed):
    with pytest.raises(UsageError, match=r"toy_other' of the package toy-plugin .* 'toy_first_letter'"):
        METRICS["toy_other"]


def test_a_recipe_of_another_package_is_listed_and_taken_by_name(installed, tmp_path):
    assert "toy_quick" in run("recipes")
    assert "scaffold.spread=0.2" in run("recipes", "toy_quick")
    recipe = recipe_named("toy_quick")
    assert (recipe.scaffold.kind, recipe.training.steps) == ("toy_shift", 7)
    assert recipe_from_json(recipe.as_json()) == recipe
    assert list(recipes())[-1] == "toy_quick"
    with pytest.raises(UnknownName, match="did you mean 'toy_quick'"):
        recipe_named("toy_quik")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("almanac:SOURCE", "is no function that returns a shoulders"),
        ("quick:toy_quick", "returns a recipe of another name, 'toy_quick'"),
    ],
)
def test_what_is_no_recipe_is_refused(installed, tmp_path, monkeypatch, function, said):
    other = tmp_path / "second_toy-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: second-toy\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(f"[shoulders.recipes]\ntoy_slow = toy_plugin.{function}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=f"the recipe 'toy_slow' of the package second-toy .* {said}"):
        recipe_named("toy_slow")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scaffolds", r"cannot be imported \(SystemExit: 3\)"),
        ("evidence", r"cannot be used \(RuntimeError: no Config\)"),
        ("recipes", r"cannot be used \(RuntimeError: called\)"),
    ],
)
def test_a_package_that_raises_while_it_is_looked_at_is_named(name, said, tmp_path, monkeypatch):
    other = tmp_path / "odd_toy-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-toy\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(f"[shoulders.{name}]\ntoy_odd = odd_toy_{name}:ODD\n")
    (tmp_path / "odd_toy_scaffolds.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "odd_toy_evidence.py").write_text(
        "class Odd:\n    def __getattr__(self, name):\n        raise RuntimeError(f'no {name}')\n\n\nODD = Odd()\n"
    )
    (tmp_path / "odd_toy_recipes.py").write_text("def ODD():\n    raise RuntimeError('called')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = {"scaffolds": KINDS, "evidence": SOURCES, "recipes": RECIPES}[name]
    with pytest.raises(UsageError, match=f"'toy_odd' of the package odd-toy .* {said}: update that package"):
        registry["toy_odd"]


def test_two_packages_of_one_name_are_refused(installed, tmp_path, monkeypatch):
    other = tmp_path / "second_toy-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: second-toy\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[shoulders.scaffolds]\ntoy_shift = nowhere:Shift\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    KINDS._known.pop("toy_shift", None)
    with pytest.raises(UsageError, match="the package second-toy and the package toy-plugin: uninstall all but one"):
        KINDS["toy_shift"]


def test_what_is_not_installed_is_an_unknown_name(lm):
    assert "toy_shift" not in KINDS.names()
    with pytest.raises(UnknownName, match=r"there is no scaffold\.kind 'toy_shift'"):
        with_overrides(recipe_named("bundled_soft_prompt"), SHIFT)


def test_a_model_card_s_own_lines_load_any_scaffold(lm, tmp_path):
    """In a process that has imported nothing but what the card says."""
    made = Recursion(lm, RecursionShape(layers=1), SoftPrompt(from_vocabulary(lm)(2)))
    made.made_for(lm).save_pretrained(tmp_path / "twice")
    card = (tmp_path / "twice" / "README.md").read_text()
    code = (
        re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1).replace("THIS_REPOSITORY", str(tmp_path / "twice"))
    )
    opened = f"answerer = shoulders.open({str(tmp_path / 'twice')!r})\nprint(answerer.scaffold.inner.kind)"
    assert fresh(f"{code}\n{opened}").splitlines()[-1] == "soft_prompt"


def test_an_input_prompt_starts_at_one_scale_from_python_and_from_recipes(lm, tiny_encoder):
    """That of the model's token embeddings."""
    encoder = tiny_encoder("bert")
    config = InputPromptConfig(length=4, encoder=encoder.name, encoder_length=3, head_width=8)
    lengths = []
    for make in (lambda: InputPrompt(encoder, lm, config.shape), lambda: new_scaffold(config, lm, seed=0)):
        torch.manual_seed(0)
        prompt = make().prompt(encoder.source_tokens(["The cat sat."], 3))
        lengths.append(torch.linalg.vector_norm(prompt, dim=-1).mean().item())
    embeddings = lm.embed(torch.arange(lm.vocabulary)[None])[0]
    assert lengths[0] == pytest.approx(lengths[1])
    assert lengths[0] == pytest.approx(torch.linalg.vector_norm(embeddings, dim=-1).mean().item(), rel=0.2)
