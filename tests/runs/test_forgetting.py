"""What is forgotten with a method on, and off again; and that a new task's scaffold leaves the others alone."""

import hashlib
from dataclasses import replace

import pytest
import torch

from commands import run
from shoulders.answering.models import LoadedModel, rival_info
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import text_batch
from shoulders.engine.inference import Answering, answered
from shoulders.errors import UnknownName, UsageError
from shoulders.evaluation.perplexity import perplexity
from shoulders.paper.rivals import load_rival, train_rival
from shoulders.runs.build import load_tasks
from shoulders.runs.forgetting import forgetting, untrained_tasks
from shoulders.runs.jobs import measure
from shoulders.runs.recipe import SuiteChoice, with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.runs.run import train
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.store.files import read_json
from shoulders.training.stream import PackedText
from small_values import CLUSTERS, small_values
from tiny import TEXTS


@pytest.fixture
def values(lm, suite):
    return [*small_values(lm.name, suite), "suite.tasks=adding"]


@pytest.mark.parametrize("kind", ["", "prefix_tuning", "lora", "full"])
def test_scores_on_other_tasks_before_and_after(values, suite, tmp_path, kind):
    own = ["rival.learning_rate=0.05", "--rival", kind] if kind else []
    run("train", "bundled_soft_prompt", *values, *own, "--out", tmp_path / "run")
    few = ["test.limit=5", "test.wordings=0"]
    printed = run("forget", tmp_path / "run", "--tasks", suite, *few, "--out", tmp_path / "forget.json")
    assert "left out, because the run was trained on them: adding" in printed
    found = read_json(tmp_path / "forget.json")
    tasks = found["tasks"]
    assert set(tasks["before"]["tasks"]) == set(tasks["on"]["tasks"]) == {"counting", "parity"}
    assert tasks["before"]["examples"] == tasks["on"]["examples"] == 20
    gap = tasks["differences"]["on"]
    assert gap["value"] == pytest.approx(tasks["on"]["average"] - tasks["before"]["average"])
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert tasks["answers_changed"]["on"] > 0
    assert found["unchanged"] == (found["checksums"][0] == found["checksums"][1]) == (kind != "full")
    if kind == "full":
        assert tasks["off"] is tasks["differences"]["off"] is tasks["answers_changed"]["off"] is None
        assert "it cannot be taken off" in " ".join(printed.split())
    else:
        assert tasks["off"] == tasks["before"]
        assert set(tasks["differences"]["off"].values()) == {0}
        assert tasks["answers_changed"]["off"] == 0
        assert "average off less before: +0.0 (no bit of the model has moved)" in " ".join(printed.split())
    assert {"before", "ratios"} & set(found) == set()
    assert found["text"] is None


def test_text_and_tasks_stand_in_one_result(values, suite, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(TEXTS * 20))
    run("train", "bundled_soft_prompt", *values, "--out", tmp_path / "run")
    few = ["text.length=32", "text.sequences=4", "suite.tasks=parity", "test.limit=2"]
    parts = ["--text", tmp_path / "text.txt", "--tasks", suite]
    run("forget", tmp_path / "run", *parts, *few, "--out", tmp_path / "both.json")
    found = read_json(tmp_path / "both.json")
    assert found["before"] == found["off"]
    assert found["ratios"] == {"on": found["on"]["perplexity"] / found["before"]["perplexity"], "off": 1.0}
    assert set(found["tasks"]["before"]["tasks"]) == {"parity"}
    assert found["recipe"]["suite"]["tasks"] == ["parity"]


def test_a_prompt_written_from_the_text_is_measured_on_the_half_that_it_does_not_read(lm, tiny_encoder):
    """And so is the backbone: each sequence's first half is given to both."""
    shape = InputPromptShape(length=3, encoder_length=2, head_width=8)
    packed = PackedText([" ".join(TEXTS * 3)], lm, 24, seed=0)
    sequences = [packed.take() for _ in range(3)]
    for encoder in (tiny_encoder("bert"), lm):
        prompt = InputPrompt(encoder, lm, shape, norm=1.0)
        found = forgetting(lm, LoadedModel(lm, prompt), sequences=sequences)
        assert found.given == 12
        assert found.text.before.tokens == found.text.on.tokens == 3 * 12
        assert found.text.before == found.text.off == perplexity(lm, Bare(), sequences, 12)
        assert found.text.on.nats != found.text.before.nats
        changed = [[*ids[:12], *reversed(ids[12:])] for ids in sequences]
        again = [encoder.source_tokens([lm.text(ids[:12]) for ids in some], 2).ids for some in (sequences, changed)]
        assert torch.equal(*again)
        one, two = (prompt_of_text(lm, prompt, some[:1]) for some in (sequences, changed))
        assert torch.equal(one, two)


def prompt_of_text(lm, prompt, sequences):
    """The states of the given half, which the prompt stands before."""
    batch = text_batch(torch.tensor(sequences), lm)
    source = prompt.encoder.source_tokens([lm.text(sequences[0][:12])], prompt.source_room)
    with torch.no_grad():
        return prompt.states(lm, replace(batch.given, source=source))[:, :12]


def test_what_cannot_be_measured_is_refused(values, suite, tmp_path):
    run("train", "bundled_soft_prompt", *values, "--out", tmp_path / "run")
    with pytest.raises(UsageError, match=r"nothing to measure: name held-out text \(--text\), a suite \(--tasks\)"):
        run("forget", tmp_path / "run")
    with pytest.raises(UsageError, match="has only tasks that the run was trained on"):
        run("forget", tmp_path / "run", "--tasks", suite, "suite.tasks=adding")
    with pytest.raises(UnknownName, match="did you mean 'parity'"):
        run("forget", tmp_path / "run", "--tasks", suite, "suite.tasks=paritty")


@pytest.mark.parametrize(
    ("trained", "left"),
    [
        (["suite.source=SUITE", "suite.tasks=adding,parity"], ["counting"]),
        (["suite.source=elsewhere", "suite.tasks=adding"], ["counting", "parity"]),
        (["suite.source=elsewhere"], ["adding", "counting", "parity"]),
        (["suite.source=SUITE", "suite.held_out=Sums"], ["adding", "counting"]),
        (["suite.source=SUITE", "suite.tasks=adding,parity", "suite.held_out=parity"], ["counting", "parity"]),
        (["suite.source=SUITE", "text.source=books"], ["adding", "counting", "parity"]),
    ],
)
def test_tasks_outside_the_suite_are_those_that_were_not_trained_on(suite, trained, left):
    recipe = with_overrides(recipe_named("bundled_soft_prompt"), [one.replace("SUITE", str(suite)) for one in trained])
    found, inside = untrained_tasks(load_tasks(SuiteChoice(source=str(suite))), str(suite), recipe)
    assert [task.name for task in found] == left
    assert sorted([*left, *inside]) == sorted(CLUSTERS)


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def said(lm, scaffold, questions):
    """Answers with their probabilities, bit by bit."""
    answers = answered(questions, lm, scaffold, Answering(longest=6))
    return [(one.text, one.log_probability) for one in answers]


def scores_of(recipe, lm, scaffold):
    return [(row.task, row.wording, row.scores) for row in measure(recipe, lm, scaffold, recipe.test).wordings]


def test_a_new_task_leaves_every_other_task_s_scaffold_bit_identical(values, lm, questions, tmp_path):
    """A is trained and kept, then B on another task around the same backbone: nothing of A moves, in file or answer."""
    first = with_overrides(recipe_named("bundled_soft_prompt"), values)
    second = with_overrides(first, ["suite.tasks=parity"])
    one, _ = train(first, lm, tmp_path / "adding")
    kept, checksum = hashes(tmp_path / "adding"), lm.checksum()
    answers, scores = said(lm, one, questions), scores_of(first, lm, one)
    train(second, lm, tmp_path / "parity")
    assert hashes(tmp_path / "adding") == kept
    assert lm.checksum() == checksum
    for model in (lm, FrozenLM.load(lm.name, dtype="float32", device="cpu")):  # also as loaded anew
        again = Scaffold.load(tmp_path / "adding" / "best", model)
        assert said(model, again, questions) == said(model, one, questions) == answers
        assert scores_of(first, model, again) == scores
    assert not torch.equal(Scaffold.load(tmp_path / "parity" / "best", lm).prompt, one.prompt)


def test_full_fine_tuning_on_a_new_task_changes_the_answers_to_the_others(values, lm, questions, tmp_path):
    """The contrast: one model, fine-tuned on A and then on B, does not answer A as it did."""
    rate = ["rival.kind=full", "rival.learning_rate=0.01"]
    first = with_overrides(recipe_named("bundled_soft_prompt"), [*values, *rate])
    train_rival(first, lm, tmp_path / "adding")
    tuned = load_rival(rival_info(tmp_path / "adding" / "best"), first, lm)
    before = said(tuned.lm, Bare(), questions)
    second = with_overrides(first, [f"backbone.name={tmp_path / 'adding' / 'best'}", "suite.tasks=parity"])
    train_rival(second, tuned.lm, tmp_path / "parity")
    assert said(tuned.lm, Bare(), questions) == before  # a copy was trained
    extended = load_rival(rival_info(tmp_path / "parity" / "best"), second, tuned.lm)
    assert extended.lm.checksum() != tuned.lm.checksum()
    assert said(extended.lm, Bare(), questions) != before


@pytest.mark.parametrize("spelled", ["{}/", "{}/../{name}", "./{name}"])
def test_tasks_that_were_trained_on_are_known_however_their_folder_is_spelled(suite, spelled, monkeypatch):
    monkeypatch.chdir(suite.parent)
    source = spelled.format(suite, name=suite.name)
    recipe = with_overrides(recipe_named("bundled_soft_prompt"), [f"suite.source={suite}"])
    with pytest.raises(UsageError, match="only tasks that the run was trained on"):
        untrained_tasks(load_tasks(SuiteChoice(source=source)), source, recipe)
