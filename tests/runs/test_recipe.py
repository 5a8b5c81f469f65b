import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.shapes import meta_backbone
from shoulders.errors import ContextFull, UnknownName, UsageError
from shoulders.runs.build import new_scaffold
from shoulders.runs.cost import Sizes, cost, meta_scaffold
from shoulders.runs.memory import Planned
from shoulders.runs.ranking_recipes import KINDS as RANKING_KINDS
from shoulders.runs.ranking_recipes import ranking_recipe_from_json
from shoulders.runs.recipe import Recipe, read_recipe, recipe_from_json, with_overrides
from shoulders.runs.registry import recipe_named, recipes
from shoulders.scaffolds.base import KINDS, Bare, BareConfig
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptConfig
from shoulders.scaffolds.soft_prompt import SoftPrompt, SoftPromptConfig
from shoulders.store.files import flatten


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_recipe_survives_json(name, tmp_path):
    recipe = recipe_named(name)
    assert recipe.about
    assert recipe_from_json(recipe.as_json()) == recipe
    from shoulders.store.files import write_json

    write_json(tmp_path / "recipe.json", recipe.as_json())
    assert read_recipe(tmp_path / "recipe.json") == recipe


EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def recorded_recipes(content: Any) -> Iterator[dict[str, Any]]:
    """Every recipe within recorded JSON."""
    if isinstance(content, dict):
        if "training" in content and "suite" in content:
            yield content
        else:
            yield from (recipe for value in content.values() for recipe in recorded_recipes(value))
    elif isinstance(content, list):
        yield from (recipe for value in content for recipe in recorded_recipes(value))


def test_every_recorded_recipe_of_the_experiments_is_one_of_today():
    """Read by today's reader, it is written again as it is recorded: no value is renamed, dropped or another.

    Values that recipes did not have then are the defaults.
    """
    found = 0
    for path in sorted(EXPERIMENTS.rglob("*.json")):
        for recipe in recorded_recipes(json.loads(path.read_text(encoding="utf-8"))):
            found += 1
            read = ranking_recipe_from_json if recipe.get("kind") in RANKING_KINDS else recipe_from_json
            written = flatten(read(recipe).as_json())
            assert {key: written.get(key, "gone") for key in flatten(recipe)} == flatten(recipe), path
    assert found >= 112


def test_every_value_can_be_overridden():
    """Each leaf of the record, set to its own value by text, as the command line does."""
    recipe = recipe_named("paper_idpt")
    flat = {}

    def walk(content, prefix=""):
        for key, value in content.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = ",".join(map(str, value)) if isinstance(value, list) else str(value)

    walk(recipe.as_json())
    assert len(flat) > 40
    assert with_overrides(Recipe(name="other"), [f"{key}={value}" for key, value in flat.items()]) == recipe


def test_values_are_read_as_their_type():
    recipe = with_overrides(
        recipe_named("bundled_input_prompt"),
        [
            "training.steps=7",
            "scaffold.placement=suffix",
            "suite.tasks=a, b",
            "training.betas=0.8,0.9",
            "scaffold.base=no",
        ],
    )
    assert recipe.training.steps == 7
    assert recipe.scaffold.placement.value == "suffix"
    assert recipe.suite.tasks == ("a", "b")
    assert recipe.training.betas == (0.8, 0.9)
    assert recipe.scaffold.base is False


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("training.step=7", UnknownName, "did you mean 'training.steps'"),
        ("scafold.length=7", UnknownName, "did you mean 'scaffold.length'"),
        ("training.steps", UsageError, "is not key=value"),
        ("training.steps=three", UsageError, "^training.steps takes a whole number, got 'three'$"),
        ("training.steps=1.5", UsageError, "^training.steps takes a whole number, got '1.5'$"),
        ("training.learning_rate=fast", UsageError, "^training.learning_rate takes a number, got 'fast'$"),
        ("backbone.input_end=perhaps", UsageError, "^backbone.input_end takes yes or no, got 'perhaps'$"),
        ("training.positions_at_once=many", UsageError, "takes a whole number or 'auto', got 'many'$"),
        ("training.betas=0.9,high", UsageError, "^training.betas takes a number in place 2, got 'high'$"),
        ("scaffold.placement=middle", UnknownName, "known: infix, prefix, suffix"),
        ("scaffold.placement=sufix", UnknownName, "did you mean 'suffix'"),
        ("scaffold.kind=soft_promt", UnknownName, "did you mean 'soft_prompt'"),
        ("scaffold.init=vocab", UnknownName, "did you mean 'vocabulary'"),
        ("scaffold.init=text", UsageError, "needs scaffold.init_text"),
        ("training.learning_rate=0", UsageError, "must be above 0"),
    ],
)
def test_what_does_not_fit_is_named_with_the_nearest(override, error, message):
    with pytest.raises(error, match=message):
        with_overrides(recipe_named("bundled_soft_prompt"), [override])


def test_unknown_recipes_get_a_suggestion():
    with pytest.raises(UnknownName, match="did you mean 'paper_idpt'"):
        recipe_named("paper_idpr")


def test_choices_become_scaffolds(lm, tiny_encoder):
    for init, text in (("vocabulary", ""), ("normal", ""), ("text", "a planet"), ("labels", "good|bad")):
        scaffold = new_scaffold(SoftPromptConfig(length=6, init=init, init_text=text), lm, seed=1)
        assert isinstance(scaffold, SoftPrompt)
        assert scaffold.length == 6
    assert isinstance(new_scaffold(BareConfig(), lm, 0), Bare)
    choice = InputPromptConfig(length=5, encoder=tiny_encoder("bert").name, encoder_length=3, head_width=8)
    made = new_scaffold(choice, lm, 0)
    assert isinstance(made, InputPrompt)
    assert made.encoder.fingerprint() == tiny_encoder("bert").fingerprint()
    assert new_scaffold(replace(choice, encoder="self"), lm, 0).encoder is lm


def test_a_prompt_longer_than_the_context_is_refused(lm):
    with pytest.raises(ContextFull, match=r"needs 202 positions, .* 128: lower scaffold\.length"):
        new_scaffold(SoftPromptConfig(length=200), lm, 0)


def test_the_papers_claims_come_out_of_the_plan():
    """0.3% more parameters; about 1% more work for an answer than a plain prompt of the same length (section 2.1)."""
    found = cost(recipe_named("paper_idpt"), input_length=1000, output_length=16)
    assert sum(found.trained.values()) / found.backbone == pytest.approx(0.003, abs=0.0005)
    assert 0.005 < found.answer / found.answer_prompt - 1 < 0.02
    prompt = cost(recipe_named("paper_prompt_tuning"), input_length=1000, output_length=16)
    assert sum(prompt.trained.values()) == pytest.approx(1.6e6, rel=0.05)
    assert prompt.answer == prompt.answer_prompt


def test_the_papers_recipes_have_the_papers_constants():
    """Literals from the paper, sections 2.1, 2.2 and 4.1."""
    prompt, idpt = recipe_named("paper_prompt_tuning"), recipe_named("paper_idpt")
    for recipe in (prompt, idpt):
        assert recipe.training.batch_size == 32
        assert recipe.training.eps == 1e-6
        assert recipe.training.warmup == 0.005
        assert recipe.training.decay == "none"
        assert (recipe.suite.lengths.input, recipe.suite.lengths.target) == (1024, 256)
        assert recipe.suite.cap == 500_000
        assert recipe.test.longest == 256
        assert recipe.scaffold.length == 400
    assert (prompt.training.betas, prompt.training.weight_decay) == ((0.9, 0.999), 0.0)
    assert prompt.training.learning_rate in {3e-2, 1e-1, 3e-1, 5e-1}
    assert (idpt.training.betas, idpt.training.weight_decay) == ((0.9, 0.95), 0.1)
    assert idpt.training.learning_rate in {5e-5, 7.5e-5, 1.5e-4}
    assert (idpt.scaffold.encoder, idpt.scaffold.layers) == ("google-t5/t5-base", 2)
    assert idpt.scaffold.encoder_length * 768 == pytest.approx(330_000, rel=0.01)
    assert idpt.scaffold.base is False


def test_planned_work_is_that_of_the_arithmetic(folders, tiny_lm):
    """Matrix products of the tiny Llama, counted by hand, for a prompt-tuning step."""
    lm = tiny_lm("llama")
    recipe = with_overrides(
        recipe_named("bundled_soft_prompt"), [f"backbone.name={lm.name}", "scaffold.length=4", "training.batch_size=2"]
    )
    found = cost(recipe, input_length=10, output_length=3)
    positions = 4 + 10 + 3 - 1
    linear = sum(w.numel() for n, w in lm.model.named_parameters() if w.dim() == 2 and "embed" not in n)
    attention = 2 * lm.config.num_hidden_layers * positions * positions * 32
    forward = 2 * linear * positions + 2 * attention + 2 * 3 * 32 * 400
    # Backward to the input costs one product where forward costs one, and two in attention; the logits take one.
    backward = 2 * linear * positions + 4 * attention + 2 * 3 * 32 * 400
    assert found.step == pytest.approx(2 * (forward + backward), rel=0.02)
    assert Planned.of(recipe).weights == pytest.approx(2 * sum(w.numel() for w in lm.model.parameters()), rel=0.01)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["soft_prompt", "input_prompt"])
def test_planned_memory_is_what_a_step_keeps(family, kind, tiny_lm, tiny_encoder):
    """Attention matrices would be most of it at this length; real steps by the fused kernel do not keep them."""
    lm = FrozenLM.load(tiny_lm(family).name, dtype="float32", device="cpu", attention_kernel="sdpa")
    encoder = tiny_encoder("bert").name
    own = {"encoder": encoder, "encoder_length": 8, "head_width": 8} if kind == "input_prompt" else {}
    choice = KINDS[kind].Config(length=16, **own)
    meta = meta_backbone(lm.name, torch.float32)
    _, kept = Sizes(lm, Bare(), 100, 10).step(new_scaffold(choice, lm, seed=0))
    _, planned = Sizes(meta, Bare(), 100, 10).step(meta_scaffold(choice, meta))
    assert planned == pytest.approx(kept, rel=0.15)
    eager = meta_backbone(lm.name, torch.float32, "eager")
    assert Sizes(eager, Bare(), 100, 10).step(meta_scaffold(choice, eager))[1] > 1.5 * planned


def test_a_plan_reads_with_the_encoder_what_its_tokenizer_leaves(lm, tiny_encoder, tmp_path):
    folder = Path(shutil.copytree(tiny_encoder("t5").name, tmp_path / "t5"))
    overrides = [f"backbone.name={lm.name}", f"scaffold.encoder={folder}", "scaffold.encoder_length=4"]
    overrides += ["scaffold.length=8", "scaffold.head_width=8"]
    recipe = with_overrides(recipe_named("bundled_input_prompt"), overrides)
    whole = cost(recipe, input_length=80, output_length=3)
    short = cost(recipe, input_length=20, output_length=3)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 20}))
    cut = cost(recipe, input_length=80, output_length=3)
    assert cut.answer - cut.answer_prompt == short.answer - short.answer_prompt < whole.answer - whole.answer_prompt


def test_a_plan_counts_what_contexts_take_on_disk(tiny_lm, tmp_path):
    """Layers x 2 x heads of keys x their width x bytes for every token; a window takes no more than itself."""
    for family, dtype, wanted in (
        ("llama", "bfloat16", 3 * 2 * 2 * 8 * 2 * 60),
        ("mistral", "float32", 3 * 2 * 2 * 8 * 4 * 15),
    ):
        values = [f"backbone.name={tiny_lm(family).name}", f"backbone.dtype={dtype}", "scaffold.length=4"]
        kept = [f"training.contexts={tmp_path}", "scaffold.placement=suffix"]
        recipe = with_overrides(recipe_named("bundled_soft_prompt"), [*values, *kept])
        assert cost(recipe, 60, 4).context_bytes == wanted
        assert cost(with_overrides(recipe, ["training.contexts="]), 60, 4).context_bytes == 0
        with pytest.raises(UsageError, match=r"leave training\.contexts empty"):
            cost(with_overrides(recipe, ["scaffold.placement=prefix"]), 60, 4)


def test_a_plan_that_does_not_fit_is_refused():
    with pytest.raises(ContextFull, match="needs 2416 positions, the model has room for 2048"):
        cost(recipe_named("paper_idpt"), input_length=2000, output_length=16)


def test_what_only_measures_is_a_recipe_but_is_not_trained():
    for override, said in (("scaffold.kind=bare", "evaluate bare"), ("scaffold.length=0", "at least one vector")):
        recipe = with_overrides(recipe_named("bundled_soft_prompt"), [override])
        with pytest.raises(UsageError, match=said):
            recipe.check_trainable()
    recipe_named("bundled_input_prompt").check_trainable()


def test_a_list_with_commas_in_its_parts_is_json():
    asked = with_overrides(recipe_named("cartridge"), ['study.prompts=["Ask, briefly.", "Ask."]'])
    assert asked.study.prompts == ("Ask, briefly.", "Ask.")
    assert with_overrides(asked, ["study.prompts=Ask., Tell."]).study.prompts == ("Ask.", "Tell.")
    with pytest.raises(UsageError, match="is no JSON list"):
        with_overrides(asked, ["study.prompts=[Ask"])


def test_folders_of_prompts_are_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("whole", "a", "b"):
        (tmp_path / name).mkdir()
    found = with_overrides(recipe_named("textual_recursion"), ["evidence.scaffold=whole", "evidence.across=a,b"])
    assert found.evidence.scaffold == str(tmp_path / "whole")
    assert found.evidence.across == (f"{tmp_path}/a", f"{tmp_path}/b")
