"""Rivals of a scaffold from the command line: trained on the same examples, measured, loaded again, compared."""

import json

import pytest
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from commands import run
from shoulders.errors import CorruptFile, SourceNotFound, UnknownName, UsageError, WrongBackbone
from shoulders.evidence.candidates import FirstPass
from shoulders.evidence.packing import Packer
from shoulders.paper.rivals import new_rival
from shoulders.records import Passage
from shoulders.runs.build import new_scaffold
from shoulders.runs.jobs import job_of, tasks_of
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from tiny import TEXTS, save_numbers

KINDS = ["lora", "prefix_tuning", "full"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_numbers(tmp_path_factory.mktemp("suite") / "numbers", range(40), range(40, 50), range(50, 62))


@pytest.fixture
def values(lm, suite):
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "training.steps=4",
        "training.batch_size=4", "training.save_every=2", "training.evaluate_every=2", "scaffold.length=4",
        "development.limit=4", "test.limit=6", "test.wordings=0", "test.longest=4", "development.longest=4",
    ]  # fmt: skip


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(TEXTS * 20))
    return tmp_path / "text.txt"


def read(path):
    return json.loads(path.read_text())


def measured(content):
    return [row["measured"] for row in content["wordings"]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rival_is_trained_measured_and_loaded_again(values, lm, tmp_path, kind, dtype):
    own = [*values, f"backbone.dtype={dtype}", "rival.learning_rate=0.01"]
    printed = run("train", "bundled_soft_prompt", *own, "--rival", kind, "--out", tmp_path / "run")
    assert "best development score" in " ".join(printed.split())
    results = read(tmp_path / "run" / "results.json")
    assert results["rival"]["kind"] == results["scaffold"]["kind"] == kind
    assert results["rival"]["learning_rate"] == 0.01
    assert set(results["rival"]["versions"]) == ({"peft"} if kind == "lora" else set())
    assert results["backbone"]["fingerprint"] == lm.fingerprint() != results["scaffold"]["fingerprint"]
    assert results["recipe"]["rival"]["rank"] == 16
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["number"] for line in log] == [1, 2, 3, 4]
    assert results["cost"]["steps"] == 4
    assert results["cost"]["seconds"] == pytest.approx(sum(line["seconds"] for line in log))
    assert results["cost"]["peak_bytes"] > 1e6
    assert results["trained"] == sum(
        weight.numel() for weight in load_file(
            tmp_path / "run" / "checkpoints" / "step-00000004" / "weights.safetensors"
        ).values()
    )  # fmt: skip
    run("evaluate", tmp_path / "run", "--out", tmp_path / "again.json")
    again = read(tmp_path / "again.json")
    assert measured(again) == measured(results)
    assert again["scaffold"] == {**results["scaffold"], "name": str(tmp_path / "run" / "best")}
    assert again["rival"] == results["rival"]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_best_rival_is_a_backbone_by_name(values, tmp_path, kind):
    own = [*values, "rival.learning_rate=0.01"]
    run("train", "bundled_soft_prompt", *own, "--rival", kind, "--out", tmp_path / "run")
    best = tmp_path / "run" / "best"
    named = [*values, f"backbone.name={best}"]
    run("evaluate", "bare", *named, "--recipe", "bundled_soft_prompt", "--out", tmp_path / "bare.json")
    assert measured(read(tmp_path / "bare.json")) == measured(read(tmp_path / "run" / "results.json"))
    asked = ["What comes after 7?", "--longest", 4]
    assert run("ask", tmp_path / "run", *asked) == run("ask", "bare", *asked, "--backbone", best)
    run("train", "bundled_soft_prompt", *named, "--out", tmp_path / "prompt")  # a prompt around the tuned model
    (AutoPeftModelForCausalLM if kind == "lora" else AutoModelForCausalLM).from_pretrained(str(best))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rival_sees_the_examples_of_the_prompt(values, lm, kind):
    """Also where evidence is packed into what the prompt leaves of the context."""

    class Packing:
        passes, fingerprint = 1, "packing"

        def __init__(self, prompt):
            self.packer = Packer.for_context(lm, prompt, 5, 1000)

        def find(self, questions, fold=""):
            return [[Passage("is it " * 12, 0.0)] * 3 for _ in questions]

        def write(self, question, passages):
            return self.packer.pack(question, passages).question

    recipe = with_overrides(recipe_named("bundled_soft_prompt"), [*values, "scaffold.length=40", f"rival.kind={kind}"])
    tasks = tasks_of(recipe)
    seen = []
    scaffold = new_scaffold(recipe.scaffold, lm, 0, tasks)
    rival = new_rival(recipe.rival, lm, recipe.scaffold.taken, 0)
    for model, stands in ((lm, scaffold), (rival.lm, rival.scaffold)):
        source = job_of(recipe, model, stands, tasks, lambda done, total: None, Packing(stands.length)).source
        steps = [source.step() for _ in range(12)]
        seen.append(
            ([[row.ids for row in part] for step in steps for part in step.parts], source.position, source.counts)
        )
        assert "is it" in steps[0].parts[0][0].question.evidence
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("scaffold", "taken"),
    [
        (["scaffold.kind=bare"], 0),
        (["scaffold.kind=soft_prompt", "scaffold.length=4"], 4),
        (["scaffold.kind=recursion"], 0),
        (["scaffold.kind=recursion", "scaffold.inner=soft_prompt", "scaffold.inner.length=4"], 4),
    ],
)
def test_the_room_of_a_prompt_is_known_without_it(lm, scaffold, taken):
    choice = with_overrides(recipe_named("bundled_soft_prompt"), scaffold).scaffold
    assert choice.taken == new_scaffold(choice, lm, 0).length == taken


@pytest.mark.parametrize("kind", KINDS)
def test_a_rival_run_is_resumed_only_by_its_own_recipe(values, tmp_path, kind):
    command = ["train", "bundled_soft_prompt", *values, "--out", tmp_path / "run", "--rival", kind]
    run(*command)
    before = read(tmp_path / "run" / "results.json")
    with pytest.raises(UsageError, match="holds a run at step 4"):
        run(*command)
    with pytest.raises(UsageError, match="another recipe"):
        run(*command, "--resume", "rival.learning_rate=0.5")
    with pytest.raises(UsageError, match="another recipe"):
        run(*command[:-2], "--resume")  # that of the prompt
    run(*command, "--resume")
    assert measured(read(tmp_path / "run" / "results.json")) == measured(before)


def test_rivals_and_scaffolds_stand_in_one_report(values, tmp_path):
    folders = [tmp_path / name for name in ("prompt", *KINDS)]
    run("train", "bundled_soft_prompt", *values, "--out", folders[0])
    for folder in folders[1:]:
        run("train", "bundled_soft_prompt", *values, "--rival", folder.name, "--out", folder)
    run("report", *folders, "--out", tmp_path / "report")
    compared = read(tmp_path / "report" / "scores.json")
    assert set(compared) == {"prompt", *KINDS}
    assert len({content["examples_hash"] for content in compared.values()}) == 1
    assert "lora" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_rivals_forget_and_scaffolds_do_not(values, tmp_path, text, kind):
    own = [*values, "rival.learning_rate=0.02"]
    run("train", "bundled_soft_prompt", *values, "--out", tmp_path / "prompt")
    run("train", "bundled_soft_prompt", *own, "--rival", kind, "--out", tmp_path / "rival")
    few = ["--text", text, "text.length=32", "text.sequences=4", "--out"]
    told = run("forget", tmp_path / "prompt", *few, tmp_path / "prompt.json")
    assert "no bit of the model has moved" in " ".join(told.split())
    run("forget", tmp_path / "rival", *few, tmp_path / "rival.json")
    prompt, rival = read(tmp_path / "prompt.json"), read(tmp_path / "rival.json")
    assert prompt["before"] == prompt["after"] == rival["before"]
    assert prompt["checksums"][0] == prompt["checksums"][1] == rival["checksums"][0]
    assert (prompt["ratio"], prompt["unchanged"]) == (1.0, True)
    assert rival["ratio"] == rival["after"]["perplexity"] / rival["before"]["perplexity"]
    same = [rival["unchanged"], rival["ratio"] == 1.0, rival["checksums"][0] == rival["checksums"][1]]
    assert same == [kind == "prefix_tuning"] * 3
    assert (rival["attached"] is None) == (kind != "prefix_tuning")
    assert prompt["attached"]["perplexity"] != prompt["before"]["perplexity"]
    assert rival["rival"]["kind"] == kind


def test_a_rival_is_trained_on_text(values, tmp_path, text):
    own = ["text.length=32", f"text.source={text}", f"text.validation={text}", "text.sequences=4"]
    own += [value for value in values if not value.startswith(("suite", "scaffold"))]
    run("train", "text_recursion", *own, "rival.learning_rate=0.01", "--rival", "lora", "--out", tmp_path / "run")
    run("evaluate", tmp_path / "run", "--out", tmp_path / "again.json")
    results, again = read(tmp_path / "run" / "results.json"), read(tmp_path / "again.json")
    assert again["perplexity"] == results["perplexity"]
    run("report", "text", tmp_path / "run", "--out", tmp_path / "report")


def test_what_does_not_fit_is_refused(values, tiny_lm, tmp_path, monkeypatch):
    command = ["train", "bundled_soft_prompt", *values, "--out", tmp_path / "run"]
    with pytest.raises(UnknownName, match="rival"):
        run(*command, "--rival", "qlora")
    with pytest.raises(UsageError, match="rival values need a rival"):
        run(*command, "rival.rank=8")
    with monkeypatch.context() as patched:
        patched.delattr("shoulders.cli.train.weights_of")  # refused before anything is loaded
        for value in ("training.contexts", "training.first_pass"):
            with pytest.raises(UsageError, match=rf"which a rival \(lora\) cannot use: leave it empty \({value}=\)"):
                run(*command, f"{value}={tmp_path}/kept", "--rival", "lora")
    assert not (tmp_path / "run").exists()
    run(*command, "--rival", "lora")
    with pytest.raises(WrongBackbone):
        run("evaluate", tmp_path / "run", f"backbone.name={tiny_lm('qwen2').name}")
    with pytest.raises(UsageError, match=r"holds a rival \(lora\), and answers are sampled from the frozen model"):
        run("sample", tmp_path / "run")
    weights = tmp_path / "run" / "best" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CorruptFile, match="holds no adapter"):
        run("evaluate", tmp_path / "run")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(SourceNotFound, match=r"shoulders\[rivals\]"):
        run("train", "bundled_soft_prompt", *values, "--out", tmp_path / "other", "--rival", "lora")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_candidates_of_a_rival_are_the_frozen_model_s(values, lm, tmp_path, monkeypatch, kind):
    sampled = []
    first_pass = FirstPass.samples
    monkeypatch.setattr(
        FirstPass, "samples", lambda self, *given: sampled.append(self.lm.fingerprint()) or first_pass(self, *given)
    )
    own = [*values, "rival.learning_rate=0.1", "evidence.kind=candidates", "evidence.scaffold=bare"]
    run("train", "bundled_soft_prompt", *own, "evidence.count=2", "--rival", kind, "--out", tmp_path / "run")
    run("evaluate", tmp_path / "run")
    assert set(sampled) == {lm.fingerprint()}
