"""Training over texts whose keys and values are kept on disk: the same training, without reading them again."""

import json
from dataclasses import replace

import pytest
import torch

from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import encode, training_batch
from shoulders.engine.precomputed import Contexts
from shoulders.errors import SaveFailed, UsageError
from shoulders.records import Placement, Question
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.runs.run import train
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import scaffold_loss
from shoulders.training.plan import TrainPlan
from toys import source

AFTER = [Placement.INFIX, Placement.SUFFIX]
EPOCH = 5  # steps of 8 over the 40 examples
PLAN = TrainPlan(steps=2 * EPOCH, batch_size=8, learning_rate=0.01, positions_at_once=256)
PASSAGES = ["France is in Europe. ", "", "A planet is round, and a star shines by itself. ", "France is in Europe. "]
TARGETS = ["Paris", "the Earth", "good", "four, I think"]


@pytest.fixture
def reads(monkeypatch):
    """The lengths of texts that are read through the model for their keys and values."""
    counted, keys_values = [], FrozenLM.keys_values

    def counting(lm, ids):
        counted.extend([ids.shape[1]] * ids.shape[0])
        return keys_values(lm, ids)

    monkeypatch.setattr(FrozenLM, "keys_values", counting)
    return counted


def rows_of(lm, questions):
    asked = [Question(q.text, evidence=passage) for q, passage in zip(questions, PASSAGES, strict=True)]
    return [encode(question, lm, target) for question, target in zip(asked, TARGETS, strict=True)]


def trained(lm, scaffold, store=None, plan=PLAN, folder=None):
    losses = []
    hooks = Hooks(on_step=lambda step: losses.append(step.loss))
    fit(
        scaffold,
        scaffold_loss(lm, scaffold, contexts=store),
        source(lm, scaffold, plan),
        plan,
        folder=folder,
        hooks=hooks,
    )
    return losses


def input_prompt(lm, encoder, placement=Placement.SUFFIX):
    torch.manual_seed(3)
    return InputPrompt(encoder, lm, InputPromptShape(4, 3, head_width=8), placement=placement)


@pytest.mark.parametrize("placement", AFTER)
@pytest.mark.parametrize("stored", [True, False])
def test_losses_and_gradients_are_those_of_reading_the_text_with_the_prompt(
    any_lm, questions, tmp_path, placement, stored
):
    prompt, rows = SoftPrompt(from_vocabulary(any_lm)(4), placement), rows_of(any_lm, questions)
    batch = training_batch(rows, any_lm, prompt)
    plain = any_lm.nll(prompt.states(any_lm, batch.given), batch.labels).sum()
    loss_of = scaffold_loss(any_lm, prompt, contexts=Contexts(any_lm, tmp_path) if stored else None)
    for part in (rows, rows[::-1]):
        loss = loss_of(prompt, part)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-4)
        (mine,) = torch.autograd.grad(loss, prompt.parameters())
        (wanted,) = torch.autograd.grad(plain, prompt.parameters(), retain_graph=True)
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-5)


def test_an_input_dependent_prompt_trains_over_stored_texts(lm, tiny_encoder, questions, tmp_path):
    for placement in AFTER:
        prompt, rows = input_prompt(lm, tiny_encoder("t5"), placement), rows_of(lm, questions)
        batch = training_batch(rows, lm, prompt)
        plain = lm.nll(prompt.states(lm, batch.given), batch.labels).sum()
        stored = scaffold_loss(lm, prompt, contexts=Contexts(lm, tmp_path))(prompt, rows)
        assert stored.item() == pytest.approx(plain.item(), rel=1e-4)
        wanted = torch.autograd.grad(plain, list(prompt.parameters()))
        for mine, theirs in zip(torch.autograd.grad(stored, list(prompt.parameters())), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_states_of_a_text_that_was_not_read_are_zeros_up_to_the_slot(lm, questions):
    """And from there on those of the text that is read, the one before the slot being the last prompt vector's."""
    prompt, rows = SoftPrompt(from_vocabulary(lm)(4), Placement.SUFFIX), rows_of(lm, questions)
    given = training_batch(rows, lm, prompt).given
    slot = given.slot[0]
    known = replace(given, before=Contexts(lm).read([row.ids for row in rows]))
    with torch.no_grad():
        found, whole = prompt.states(lm, known), prompt.states(lm, given)
    assert found.shape == whole.shape
    assert not found[:, : slot - 1].any()
    torch.testing.assert_close(found[:, slot - 1 :], whole[:, slot - 1 :], rtol=1e-4, atol=1e-4)
    assert known.continued(given.embeds).before is None


def test_the_second_epoch_and_other_scaffolds_read_no_text(lm, tiny_encoder, tmp_path, reads):
    plain = trained(lm, SoftPrompt(from_vocabulary(lm)(4), Placement.SUFFIX))
    store, scaffold = Contexts(lm, tmp_path), SoftPrompt(from_vocabulary(lm)(4), Placement.SUFFIX)
    reads.clear()
    assert trained(lm, scaffold, store, replace(PLAN, steps=EPOCH)) == pytest.approx(plain[:EPOCH], rel=1e-4)
    assert (store.computed, len(reads)) == (40, 40)
    again = Contexts(lm, tmp_path)
    scaffold = SoftPrompt(from_vocabulary(lm)(4), Placement.SUFFIX)
    reads.clear()
    assert trained(lm, scaffold, again) == pytest.approx(plain, rel=1e-4)
    trained(lm, input_prompt(lm, tiny_encoder("t5")), again)
    assert (again.computed, again.damaged, reads) == (0, 0, [])


def test_a_run_that_goes_on_reads_the_store(lm, tmp_path, reads):
    def prompt():
        return SoftPrompt(from_vocabulary(lm)(4), Placement.SUFFIX)

    whole = trained(lm, prompt(), Contexts(lm, tmp_path / "other"))
    trained(lm, prompt(), Contexts(lm, tmp_path / "store"), replace(PLAN, steps=EPOCH + 1), tmp_path / "run")
    store = Contexts(lm, tmp_path / "store")
    reads.clear()
    assert trained(lm, prompt(), store, PLAN, tmp_path / "run") == pytest.approx(whole[EPOCH + 1 :], rel=1e-4)
    assert (store.computed, reads) == (0, [])


def test_a_text_of_several_questions_is_read_once(lm, tmp_path, reads):
    """An infix reads the evidence alone: many questions over one passage share it, also in one batch."""
    asked = [Question(text, evidence=PASSAGES[2]) for text in ("What is round?", "What shines?", "Is it a planet?")]
    rows = [encode(question, lm, "yes") for question in asked]
    prompt = SoftPrompt(from_vocabulary(lm)(4), Placement.INFIX)
    for store in (Contexts(lm, tmp_path), None):
        loss_of = scaffold_loss(lm, prompt, contexts=store)
        reads.clear()
        loss_of(prompt, rows)
        assert reads == [rows[0].question_at]


def test_a_scaffold_with_nothing_to_keep_is_refused(lm, tiny_encoder, tmp_path):
    prompt = SoftPrompt(from_vocabulary(lm)(2), Placement.SUFFIX)
    refused = {
        "soft_prompt with scaffold.placement=prefix": SoftPrompt(from_vocabulary(lm)(2)),
        "input_prompt with scaffold.placement=prefix": input_prompt(lm, tiny_encoder("t5"), Placement.PREFIX),
        "bare": Bare(),
        "recursion with scaffold.placement=suffix": Recursion(lm, RecursionShape(), prompt),
    }
    for said, scaffold in refused.items():
        with pytest.raises(UsageError, match=rf"scaffold\.kind={said}.* leave training\.contexts empty"):
            scaffold_loss(lm, scaffold, contexts=Contexts(lm, tmp_path))


@pytest.fixture
def recipe(lm, tmp_path):
    values = [
        f"backbone.name={lm.name}", "backbone.dtype=float32", "scaffold.length=4", "scaffold.placement=suffix",
        "suite.tasks=kind_of", "training.steps=3", "training.batch_size=4", "development.limit=2",
        f"training.contexts={tmp_path / 'store'}",
    ]  # fmt: skip
    return with_overrides(recipe_named("bundled_soft_prompt"), values)


def logged(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_recipe_names_the_folder(lm, recipe, tmp_path, reads):
    train(recipe, lm, tmp_path / "stored")
    assert reads
    reads.clear()
    train(recipe, lm, tmp_path / "again")
    assert set(reads) <= {1}  # the token by which the shapes are found
    train(with_overrides(recipe, ["training.contexts="]), lm, tmp_path / "plain")
    for name in ("stored", "again"):
        assert logged(tmp_path / name) == pytest.approx(logged(tmp_path / "plain"), rel=1e-4)


def test_a_recipe_that_cannot_store_is_refused_before_it_starts(lm, tiny_lm, recipe, tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "text.jsonl").write_text('{"text": "The cat sat."}\n' * 9)
    refused = [
        (lm, "scaffold.placement=prefix", UsageError, "leave training.contexts empty"),
        (lm, f"text.source={tmp_path / 'text.jsonl'}", UsageError, "the prompt comes first"),
        (lm, f"training.contexts={tmp_path / 'file'}", SaveFailed, r"file.*name another place \(training.contexts\)"),
        (tiny_lm("qwen3_5"), "training.steps=1", UsageError, "qwen3_5.*keep more of a text than keys and values"),
    ]
    for backbone, value, error, said in refused:
        with pytest.raises(error, match=said):
            train(with_overrides(recipe, [value]), backbone, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "store").exists()
