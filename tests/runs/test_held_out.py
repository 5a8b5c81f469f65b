"""Unseen tasks (some clusters trained, the others tested), a single task, and an input prompt over a task's prompt."""

import pytest
import torch

from commands import run
from shoulders.data.tasks import class_labels
from shoulders.engine.batches import encode, question_batch
from shoulders.errors import UnknownName, UsageError
from shoulders.evaluation import protocol
from shoulders.runs import jobs
from shoulders.runs.build import new_scaffold
from shoulders.runs.jobs import job_of, split_tasks
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.runs.run import train
from shoulders.scaffolds.base import Scaffold
from shoulders.store.files import read_json
from shoulders.training.plan import RIVALS
from small_values import CLUSTERS, small_values


@pytest.fixture
def values(lm, suite):
    return small_values(lm.name, suite)


def recipe_with(values, *more, name="bundled_soft_prompt"):
    return with_overrides(recipe_named(name), [*values, *more])


@pytest.mark.parametrize(
    ("held", "trained", "tested"),
    [
        ("", ["adding", "counting", "parity"], ["adding", "counting", "parity"]),
        ("parity", ["adding", "counting"], ["parity"]),
        ("Sums", ["parity"], ["adding", "counting"]),
        ("Classes,adding", ["counting"], ["adding", "parity"]),
    ],
)
def test_tasks_are_trained_or_tested(values, held, trained, tested):
    parts = split_tasks(recipe_with(values, f"suite.held_out={held}"))
    assert [task.name for task in parts.trained] == trained
    assert [task.name for task in parts.tested] == tested


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        (["suite.held_out=paritty"], UnknownName, r"suite\.held_out\) called 'paritty': did you mean 'parity'"),
        (["suite.held_out=parity", "suite.tasks=adding"], UnknownName, "known: Sums, adding"),
        (
            ["suite.held_out=parity", "suite.without_templates=parity/chose"],
            UnknownName,
            "did you mean 'parity/choose'",
        ),
        (["suite.held_out=Sums,Classes"], UsageError, "leaves no task to train on"),
    ],
)
def test_what_cannot_be_held_out_is_refused(values, tmp_path, override, error, message):
    with pytest.raises(error, match=message):
        run("train", "bundled_soft_prompt", *values, *override, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wordings_of_both_kinds_of_tasks_are_left_out(values, lm, tmp_path):
    own = [*values, "suite.held_out=parity", "suite.without_templates=parity/count,adding/choose,counting/choose"]
    run("train", "bundled_soft_prompt", *own, "test.wordings=0", "--out", tmp_path / "run")
    found = [(row["task"], row["wording"]) for row in read_json(tmp_path / "run" / "results.json")["wordings"]]
    assert found == [("parity", "choose")]
    recipe = recipe_with(own)
    parts = split_tasks(recipe)
    source = job_of(recipe, lm, new_scaffold(recipe.scaffold, lm, 0), parts.trained, lambda _done, _all: None).source
    assert {row.question.text.split()[0] for _ in range(5) for part in source.step().parts for row in part} == {"After"}


@pytest.mark.parametrize("rival", ["", *(name for name in RIVALS if name != "fid")])  # it is no language model
def test_held_out_tasks_are_measured_and_nothing_else(values, tmp_path, monkeypatch, rival):
    scored, evaluate = [], protocol.evaluate

    def noted(tasks, lm, scaffold, plan, **rest):
        scored.append((plan.split, {task.name for task in tasks}))
        return evaluate(tasks, lm, scaffold, plan, **rest)

    monkeypatch.setattr(jobs, "evaluate", noted)
    own = [*values, "suite.held_out=Sums", *(["--rival", rival] if rival else [])]
    run("train", "bundled_soft_prompt", *own, "--out", tmp_path / "run")
    assert scored == [("validation", {"parity"}), ("test", {"adding", "counting"})]
    results = read_json(tmp_path / "run" / "results.json")
    assert set(results["tasks"]) == {"adding", "counting"}
    assert results["recipe"]["suite"]["held_out"] == ["Sums"]
    assert results["trained"] > 0
    assert {"seconds", "peak_bytes", "steps", "positions"} == set(results["cost"])
    run("evaluate", tmp_path / "run", "--out", tmp_path / "again.json")
    assert read_json(tmp_path / "again.json")["tasks"] == results["tasks"]
    run("evaluate", tmp_path / "run", "suite.held_out=", "--out", tmp_path / "all.json")
    assert set(read_json(tmp_path / "all.json")["tasks"]) == set(CLUSTERS)


def test_no_held_out_example_or_label_is_seen_in_training(values, lm):
    recipe = recipe_with(values, "suite.held_out=Classes", "scaffold.init=labels")
    parts = split_tasks(recipe)
    assert class_labels(parts.trained) == ["adding even", "adding odd", "counting even", "counting odd"]
    scaffold = new_scaffold(recipe.scaffold, lm, 0, parts.trained)
    seen = job_of(recipe, lm, scaffold, parts.trained, lambda _done, _all: None).source
    numbers = {row.question.text for _ in range(60) for part in seen.step().parts for row in part}
    assert any("103" in text for text in numbers)
    assert not any(f"{number}" in text for number in range(200, 240) for text in numbers)


def test_labels_of_held_out_tasks_start_no_prompt(values, lm, tmp_path):
    """The labels of the trained tasks, and nothing of the others, stand in the prompt before the first step."""
    own = [*values, "scaffold.init=labels", "scaffold.length=2", "training.steps=1", "training.learning_rate=1e-9"]
    recipe = recipe_with(own, "suite.held_out=Sums")
    scaffold, _ = train(recipe, lm, tmp_path / "run")
    parts = split_tasks(recipe)
    wanted = new_scaffold(recipe.scaffold, lm, 0, parts.trained).prompt
    assert torch.allclose(scaffold.prompt, wanted, atol=1e-6)
    assert not torch.allclose(scaffold.prompt, new_scaffold(recipe.scaffold, lm, 0, parts.tested).prompt, atol=1e-3)


@pytest.mark.parametrize("encoder", ["bert", "self"])
def test_an_input_prompt_is_trained_on_a_single_task(values, tiny_encoder, tmp_path, encoder):
    name = encoder if encoder == "self" else tiny_encoder(encoder).name
    own = [*values, f"scaffold.encoder={name}", "scaffold.encoder_length=3", "scaffold.head_width=8"]
    run("train", "bundled_input_prompt", *own, "suite.tasks=parity", "--out", tmp_path / "run")
    results = read_json(tmp_path / "run" / "results.json")
    assert set(results["tasks"]) == {"parity"}
    assert (results["scaffold"]["encoder"]["fingerprint"] == results["backbone"]["fingerprint"]) == (encoder == "self")
    run("evaluate", tmp_path / "run", "--out", tmp_path / "again.json")
    again = read_json(tmp_path / "again.json")
    assert [row["measured"] for row in again["wordings"]] == [row["measured"] for row in results["wordings"]]


@pytest.fixture
def composed(values, lm, tiny_encoder, tmp_path):
    """A task's trained prompt, and values of an input prompt over it."""
    soft, _ = train(recipe_with(values, "suite.tasks=parity"), lm, tmp_path / "soft")
    own = [*values, f"scaffold.encoder={tiny_encoder('bert').name}", "scaffold.encoder_length=3"]
    return soft, [*own, "scaffold.head_width=8", f"scaffold.start={tmp_path / 'soft'}", "suite.tasks=parity"]


def test_an_input_prompt_starts_exactly_as_the_task_s_prompt_under_it(composed, lm, questions):
    soft, values = composed
    recipe = recipe_with(values, name="bundled_input_prompt")
    over = new_scaffold(recipe.scaffold, lm, 0)
    rows = [encode(question, lm) for question in questions]
    with torch.no_grad():
        said, wanted = (one.states(lm, question_batch(rows, lm, one)) for one in (over, soft))
    assert torch.equal(said, wanted)
    assert torch.equal(over.base, soft.prompt)


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_the_prompt_under_an_input_prompt_is_frozen_or_trained(composed, lm, tmp_path, rate):
    soft, values = composed
    recipe = recipe_with(values, f"training.base_learning_rate={rate}", name="bundled_input_prompt")
    started = new_scaffold(recipe.scaffold, lm, 0)
    over, _ = train(recipe, lm, tmp_path / "over")
    assert torch.equal(over.base, soft.prompt) == (rate == 0)
    moved = {name for name, weight in over.named_parameters() if not torch.equal(weight, started.get_parameter(name))}
    assert set(dict(over.named_parameters())) - moved == ({"base"} if rate == 0 else set())
    assert torch.equal(Scaffold.load(tmp_path / "over" / "best", lm).base, over.base)


def test_a_prompt_of_other_sizes_is_no_base(composed, lm):
    _, values = composed
    for own, message in (
        ("scaffold.length=5", "is a prefix of 4 vectors, the recipe asks for a prefix of 5"),
        ("scaffold.placement=suffix", "is a prefix of 4 vectors, the recipe asks for a suffix of 4"),
        ("scaffold.base=no", "has kind soft_prompt, the recipe asks for input_prompt"),
    ):
        with pytest.raises(UsageError, match=message):
            new_scaffold(recipe_with(values, own, name="bundled_input_prompt").scaffold, lm, 0)
