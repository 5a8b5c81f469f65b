"""Training over first-pass states kept on disk: the losses of training without them, at the price of one pass."""

import json
from dataclasses import replace

import pytest
import torch

from commands import run
from processes import COMMAND, in_two
from shoulders.backbone.caches import Memory
from shoulders.engine.precomputed import StateStore
from shoulders.errors import SaveFailed, UsageError
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.runs.run import train
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import TextSource, language_loss, scaffold_loss
from shoulders.training.plan import TrainPlan
from shoulders.training.stream import PackedText
from toys import source

EPOCH = 5  # steps of 8 over the 40 examples
PLAN = TrainPlan(steps=2 * EPOCH, batch_size=8, learning_rate=3e-3, positions_at_once=256)
SHAPES = [
    RecursionShape(),
    RecursionShape(layers=1, residual=True),
    RecursionShape(passes=3, layers=1, shared=True),
    RecursionShape(passes=1, layers=1, after=True),
    RecursionShape(rank=4, keys_values=True),
]


@pytest.fixture
def passes(monkeypatch):
    """Counts passes of whole sequences through the model, by whether a gradient may go through them."""
    from shoulders.backbone.frozen import FrozenLM

    counted, states = [], FrozenLM.states

    def counting(self, embeds, mask=None, memory=None, edits=None, part=None):
        rest = mask, memory, edits, part
        counted.append(embeds.requires_grad or edits is not None)
        return states(self, embeds, *rest)

    monkeypatch.setattr(FrozenLM, "states", counting)
    return counted


def losses_of(lm, shape, loss_of, steps, groups=True):
    torch.manual_seed(3)
    scaffold, losses = Recursion(lm, shape), []
    hooks = Hooks(on_step=lambda step: losses.append(step.loss))
    rates = scaffold.learning_rates(3e-3) if groups else None
    fit(scaffold, loss_of(scaffold), steps(scaffold), PLAN, groups=rates, hooks=hooks)
    return losses


@pytest.mark.parametrize("shape", SHAPES)
def test_training_on_tasks_is_the_same_and_reads_the_text_once(lm, tmp_path, shape, passes):
    def steps(scaffold):
        return source(lm, scaffold, PLAN)

    plain = losses_of(lm, shape, lambda scaffold: scaffold_loss(lm, scaffold), steps)
    without, store = len(passes), StateStore(tmp_path, lm)
    stored = losses_of(lm, shape, lambda scaffold: scaffold_loss(lm, scaffold, store), steps)
    assert stored == pytest.approx(plain, rel=1e-5)
    assert store.computed == 40
    passes.clear()
    again = StateStore(tmp_path, lm)
    assert losses_of(lm, shape, lambda scaffold: scaffold_loss(lm, scaffold, again), steps) == pytest.approx(plain)
    assert again.computed == 0
    assert passes.count(False) == (1 if shape.after or shape.keys_values else 0)  # what norms start from, not a batch
    assert passes.count(True) == without * (shape.passes - 1) // shape.passes


def test_the_second_epoch_computes_no_first_pass(lm, tmp_path):
    store, computed = StateStore(tmp_path, lm), []
    torch.manual_seed(3)
    scaffold = Recursion(lm, RecursionShape(layers=1))
    hooks = Hooks(on_step=lambda _: computed.append(store.computed))
    fit(scaffold, scaffold_loss(lm, scaffold, store), source(lm, scaffold, PLAN), PLAN, hooks=hooks)
    assert computed[:EPOCH] == [8, 16, 24, 32, 40]
    assert computed[EPOCH:] == [40] * EPOCH


def test_pretraining_on_text_is_the_same(lm, tmp_path):
    documents = [f"{'The cat sat on the mat. ' * 3}Number {n}." for n in range(9)]

    def steps(_):
        return TextSource(PackedText(documents, lm, 16, PLAN.seed), PLAN.batch_size, PLAN.positions_at_once, 0)

    shape, store = RecursionShape(layers=1), StateStore(tmp_path, lm)
    plain = losses_of(lm, shape, lambda scaffold: language_loss(lm, scaffold), steps)
    stored = losses_of(lm, shape, lambda scaffold: language_loss(lm, scaffold, store), steps)
    assert stored == pytest.approx(plain, rel=1e-5)
    assert 0 < store.computed <= 80


@torch.no_grad()
def test_a_decode_and_a_later_pass_do_not_use_states_of_the_first(lm):
    """They belong to the text's own vectors and to them alone."""
    scaffold = Recursion(lm, RecursionShape(layers=1))
    embeds = lm.embed(torch.tensor([[5, 6, 7, 8]]))
    from shoulders.records import ScaffoldInput

    given = ScaffoldInput(embeds, None, (0,))
    wrong = replace(given, first=torch.full_like(embeds, 7.0))
    right = scaffold.states(lm, given)
    assert not torch.allclose(scaffold.states(lm, wrong), right)
    torch.testing.assert_close(scaffold.states(lm, wrong, Memory()), right, rtol=1e-4, atol=1e-4)
    for other in (
        Recursion(lm, RecursionShape(layers=1, before=True)),
        Recursion(lm, RecursionShape(layers=1), SoftPrompt(from_vocabulary(lm)(2))),
    ):
        assert torch.equal(other.states(lm, wrong), other.states(lm, given))
    assert wrong.continued(embeds).first is None


def test_a_scaffold_that_trains_before_the_first_pass_ends_is_refused(lm, tmp_path):
    prompt, store = SoftPrompt(from_vocabulary(lm)(2)), StateStore(tmp_path, lm)
    refused = {
        r"scaffold\.kind=soft_prompt": prompt,
        r"scaffold\.kind=bare": Bare(),
        r"scaffold\.inner=soft_prompt": Recursion(lm, RecursionShape(), prompt),
        r"scaffold\.recursion\.before=true": Recursion(lm, RecursionShape(before=True)),
    }
    for said, scaffold in refused.items():
        for loss in (scaffold_loss, language_loss):
            with pytest.raises(UsageError, match=f"{said} trains before .*: leave training.first_pass empty"):
                loss(lm, scaffold, store)


@pytest.fixture
def recipe(lm, tmp_path):
    values = [
        f"backbone.name={lm.name}", "backbone.dtype=float32", "scaffold.kind=recursion", "scaffold.inner=bare",
        "scaffold.recursion.layers=1", "suite.tasks=kind_of", "training.steps=3", "training.batch_size=4",
        "development.limit=2", f"training.first_pass={tmp_path / 'store'}",
    ]  # fmt: skip
    return with_overrides(recipe_named("bundled_soft_prompt"), values)


def logged(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["tasks", "text"])
def test_a_recipe_names_the_folder(lm, recipe, tmp_path, kind):
    if kind == "text":
        (tmp_path / "text.jsonl").write_text(
            "".join(json.dumps({"text": f"The cat sat {n}."}) + "\n" for n in range(9))
        )
        recipe = with_overrides(recipe, [f"text.source={tmp_path / 'text.jsonl'}", "text.length=12"])
    train(recipe, lm, tmp_path / "stored")
    kept = {path: path.read_bytes() for path in (tmp_path / "store").glob("*/states.bin")}
    assert sum(map(len, kept.values())) > 0
    train(recipe, lm, tmp_path / "again")
    assert {path: path.read_bytes() for path in kept} == kept
    train(with_overrides(recipe, ["training.first_pass="]), lm, tmp_path / "plain")
    assert logged(tmp_path / "stored") == pytest.approx(logged(tmp_path / "plain"), rel=1e-5)
    assert logged(tmp_path / "again") == pytest.approx(logged(tmp_path / "plain"), rel=1e-5)


def test_a_recipe_that_cannot_store_is_refused_before_it_starts(lm, recipe, tmp_path):
    (tmp_path / "file").write_text("kept")
    refused = {
        "scaffold.inner=soft_prompt": (UsageError, "scaffold.inner=soft_prompt trains before"),
        "scaffold.kind=soft_prompt": (UsageError, "scaffold.kind=soft_prompt trains before"),
        f"training.first_pass={tmp_path / 'file'}": (SaveFailed, r"file.*name another place \(training.first_pass\)"),
    }
    for value, (error, said) in refused.items():
        with pytest.raises(error, match=said):
            train(with_overrides(recipe, [value]), lm, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_store_what_one_does(lm, recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.as_json()))
    for name in ("one", "two"):
        values = [f"training.first_pass={tmp_path / f'store-{name}'}", "test.limit=2", "--out", tmp_path / name]
        command = ["train", tmp_path / "recipe.json", *values]
        run(*command) if name == "one" else in_two(COMMAND, *command)
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=1e-4)
    sizes = [next((tmp_path / f"store-{name}").glob("*/states.bin")).stat().st_size for name in ("one", "two")]
    assert sizes[0] == sizes[1] > 0
