"""Distillation: the frozen model with evidence teaches a scaffold without it; its answers are kept on disk."""

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from shoulders.data.mixture import Mixture, describe_counts
from shoulders.engine.batches import Lengths, training_batch
from shoulders.errors import DataError, UsageError
from shoulders.records import IGNORE, Question
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.store.cache import RowCache
from shoulders.training.distillation import Teacher, TeacherChoice, mixed_losses
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import ExampleSource, scaffold_loss
from shoulders.training.stream import Stream
from toys import PLAN, Fact, toy_task

FACT = "Numbers that two divides are even, and all others are odd. "


def teacher_of(lm, folder, evidence=None, scaffold=None, **values):
    return Teacher(lm, scaffold or Bare(), evidence or Fact(FACT), TeacherChoice(**values), folder)


def stream_of(lm, teacher, **settings):
    mixture = Mixture([toy_task()], split="train", seed=0)
    return Stream(mixture, lm, **{"lengths": Lengths(), "prompt_length": 4, "teacher": teacher, **settings})


def prompt_of(lm):
    torch.manual_seed(1)
    return SoftPrompt(from_vocabulary(lm)(4))


def trained(lm, teacher, plan=PLAN):
    prompt, losses = prompt_of(lm), []
    source = ExampleSource(stream_of(lm, teacher), plan.batch_size, plan.positions_at_once, 4, plan.average)
    loss = scaffold_loss(lm, prompt, teacher=teacher, average=plan.average)
    fit(prompt, loss, source, plan, hooks=Hooks(on_step=lambda step: losses.append(step.loss)))
    return losses, prompt


def logits_with_evidence(lm, row):
    """What the model itself says at the positions of a row's answer, after the evidence."""
    ids = torch.tensor([[*lm.ids(FACT + row.question.text), *row.target[:-1]]])
    with torch.no_grad():
        return lm.model(ids).logits[0, -len(row.target) :].float()


def test_the_teacher_is_the_frozen_model_with_the_evidence(any_lm, tmp_path):
    """And at equal weights of all tokens the loss is the divergence from it, written out."""
    teacher, prompt = teacher_of(any_lm, tmp_path, top=10_000), prompt_of(any_lm)
    rows = stream_of(any_lm, teacher).take(3)
    batch = training_batch(rows, any_lm, prompt)
    with torch.no_grad():
        states = prompt.states(any_lm, batch.given)
        student = any_lm.logits(states).float().log_softmax(-1)
        found = teacher.losses(states, batch.labels, rows)
    for number, row in enumerate(rows):
        wanted = logits_with_evidence(any_lm, row).log_softmax(-1)
        mine = student[number][batch.labels[number] != IGNORE]
        divergence = F.kl_div(mine, wanted, log_target=True, reduction="sum")
        assert found[number].item() == pytest.approx(divergence.item(), rel=1e-2, abs=1e-4)


def test_few_kept_tokens_bound_the_divergence_from_below():
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 50), torch.randn(5, 50).log_softmax(-1)
    labels = torch.zeros(5, dtype=torch.long)
    whole = F.kl_div(logits.log_softmax(-1), teacher, log_target=True, reduction="none").sum(1)
    before = torch.zeros(5)
    for top in (1, 5, 25, 50):
        kept = teacher.topk(top)
        found = mixed_losses(1.0, logits, labels, kept.indices, kept.values)
        assert (found >= before - 1e-5).all()
        assert (found <= whole + 1e-5).all()
        before = found
    torch.testing.assert_close(before, whole, rtol=1e-4, atol=1e-4)
    itself = logits.log_softmax(-1).topk(5)
    torch.testing.assert_close(mixed_losses(1.0, logits, labels, itself.indices, itself.values), torch.zeros(5))
    half = mixed_losses(0.5, logits, labels, kept.indices, kept.values)
    torch.testing.assert_close(half, 0.5 * whole + 0.5 * F.cross_entropy(logits, labels, reduction="none"))


def test_a_prompt_comes_closer_to_the_teacher(lm, tmp_path):
    losses, _ = trained(lm, teacher_of(lm, tmp_path), replace(PLAN, steps=40, learning_rate=0.1))
    assert 0 < sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("average", ["tokens", "examples"])
def test_what_is_kept_is_computed_once_and_trains_alike(lm, tmp_path, average):
    """In any division into micro-batches, too: an epoch reads each of the 40 examples once."""
    plan = replace(PLAN, steps=10, average=average)
    teacher = teacher_of(lm, tmp_path)
    losses, _ = trained(lm, teacher, plan)
    assert teacher.computed == 40
    again = teacher_of(lm, tmp_path)
    kept, _ = trained(lm, again, replace(plan, positions_at_once=64))
    assert kept == pytest.approx(losses, rel=1e-4)
    assert again.computed == 0
    other = teacher_of(lm, tmp_path, evidence=Fact("Nothing is known. "))
    changed, _ = trained(lm, other, plan)
    assert other.computed == 40
    assert changed != pytest.approx(losses, rel=1e-3)


def test_an_interrupted_teacher_goes_on(lm, tmp_path, monkeypatch):
    """A batch that was read is on disk before the next one is."""
    append, calls = RowCache.append, []

    def stopping(cache, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(cache, rows)

    monkeypatch.setattr("shoulders.training.distillation.POSITIONS_AT_ONCE", 64)
    monkeypatch.setattr(RowCache, "append", stopping)
    teacher = teacher_of(lm, tmp_path)
    rows = [row.taught for row in stream_of(lm, teacher).take(8)]
    with pytest.raises(KeyboardInterrupt):
        teacher.distributions(rows)
    again = teacher_of(lm, tmp_path)
    whole = again.distributions(rows)
    assert 0 < calls[0] < 8
    assert again.computed == 8 - calls[0]
    fresh = teacher_of(lm, tmp_path / "other").distributions(rows)
    assert torch.equal(whole.ids, fresh.ids)
    assert torch.equal(whole.log_probs, fresh.log_probs)


def test_a_scaffold_can_stand_around_the_teacher(lm, tmp_path):
    """Its distributions are kept apart from those of the bare model."""
    suffix = SoftPrompt(from_vocabulary(lm)(3), "suffix")
    bare, under = teacher_of(lm, tmp_path), teacher_of(lm, tmp_path, scaffold=suffix)
    rows = [row.taught for row in stream_of(lm, bare).take(4)]
    with torch.no_grad():
        batch = training_batch(rows, lm, suffix)
        states = suffix.states(lm, batch.given)[batch.labels != IGNORE]
        wanted = lm.logits(states).log_softmax(-1).topk(64).values
    torch.testing.assert_close(under.distributions(rows).log_probs, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(bare.distributions(rows).log_probs, wanted, atol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody deletes what the other kept
        assert teacher_of(lm, tmp_path).distributions(rows).log_probs.shape == wanted.shape


def test_evidence_that_does_not_fit_leaves_the_example_out(lm, tmp_path):
    """It is counted; where none fits, one line says so."""

    class Sometimes(Fact):
        def write(self, question, passages):
            return question if "really really" in question.text else super().write(question, passages)

    stream = stream_of(lm, teacher_of(lm, tmp_path, evidence=Sometimes(FACT)))
    rows = stream.take(8)
    assert not any("really really" in row.question.text for row in rows)
    assert all(row.taught.question.evidence == FACT and not row.question.evidence for row in rows)
    assert "without evidence that fits the teacher" in describe_counts(stream.counts)
    long = stream_of(lm, teacher_of(lm, tmp_path, evidence=Fact(FACT * 20)))
    with pytest.raises(DataError, match=r"no example can be taught \(\d+ too long for the teacher\): raise teacher"):
        long.take(1)


def test_a_recipe_names_a_teacher(lm, tmp_path):
    own = ["teacher.evidence.kind=retrieved", "teacher.evidence.index=x", "teacher.weight=0.5", "teacher.top=8"]
    recipe = with_overrides(recipe_named("closed_book"), own)
    assert (recipe.teacher.evidence.kind, recipe.teacher.weight, recipe.teacher.top) == ("retrieved", 0.5, 8)
    assert not recipe.evidence.kind
    with pytest.raises(UsageError, match=r"teacher\.weight is 0\.0: it is a share of the loss"):
        with_overrides(recipe, ["teacher.weight=0"])
    with pytest.raises(UsageError, match=r"teacher\.top is 0: it must be at least 1"):
        with_overrides(recipe, ["teacher.top=0"])
    rival = with_overrides(recipe, ["rival.kind=lora"])
    with pytest.raises(UsageError, match="teaches a scaffold around the frozen model, which a rival"):
        rival.check_trainable()


def test_the_question_of_a_teacher_has_its_own_evidence_alone(lm, tmp_path):
    own = stream_of(lm, teacher_of(lm, tmp_path), evidence=Fact("It is asked. "))
    row = own.take(1)[0]
    assert row.question == replace(row.taught.question, evidence="It is asked. ")
    assert row.taught.question == Question(row.question.text, evidence=FACT, query=row.question.query)
    assert row.taught.target == row.target
