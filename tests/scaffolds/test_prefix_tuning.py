"""Prefix tuning: PEFT's own numbers, in training, decoding and beside padding."""

import pytest
import torch

from shoulders.backbone.passes import Memory
from shoulders.backbone.shapes import meta_backbone
from shoulders.engine.batches import encode, question_batch
from shoulders.engine.inference import Answering, answer
from shoulders.errors import CorruptFile, UsageError
from shoulders.records import ScaffoldInput
from shoulders.runs.build import new_scaffold
from shoulders.runs.cost import meta_scaffold, parts
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.peft import PrefixTuning, add_prefix, read_adapter

SUPPORTED = ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "opt"]


def logits(lm, prefix, ids):
    with torch.no_grad():
        return lm.logits(prefix.states(lm, ScaffoldInput(lm.embed(ids), None, (0,) * len(ids))))


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_logits_are_those_of_peft(tiny_lm, family, questions):
    lm = tiny_lm(family)
    adapted = add_prefix(lm, 5)
    ids = torch.tensor([lm.ids(question.text)[:4] for question in questions])
    with torch.no_grad():
        theirs = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits(lm, PrefixTuning(adapted), ids), theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", SUPPORTED)
def test_read_step_by_step_is_read_at_once_and_padding_makes_no_difference(tiny_lm, family, questions):
    lm = tiny_lm(family)
    prefix = PrefixTuning(add_prefix(lm, 5))
    batch = question_batch([encode(question, lm) for question in questions], lm, prefix)
    for number, question in enumerate(questions):
        ids = torch.tensor([lm.ids(question.text)])
        alone = prefix.states(lm, ScaffoldInput(lm.embed(ids), None, (0,)))
        memory = Memory()
        given = ScaffoldInput(lm.embed(ids[:, :2]), None, (0,))
        parts = [prefix.states(lm, given, memory)]
        parts += [prefix.states(lm, given.continued(lm.embed(one[:, None])), memory) for one in ids[:, 2:].T]
        torch.testing.assert_close(torch.cat(parts, dim=1), alone, rtol=1e-3, atol=1e-3)
        together = prefix.states(lm, batch)[number, -ids.shape[1] :]
        torch.testing.assert_close(together, alone[0], rtol=1e-3, atol=1e-3)


def test_answers_depend_on_the_prefix_and_not_on_the_neighbours(lm, questions):
    prefix = PrefixTuning(add_prefix(lm, 5))
    told = answer(questions, lm, prefix, Answering(6))
    assert told == [answer([question], lm, prefix, Answering(6))[0] for question in questions]
    assert told != answer(questions, lm, PrefixTuning(add_prefix(lm, 5)), Answering(6))


def test_what_peft_saved_is_read_again(lm, tmp_path):
    prefix = PrefixTuning(add_prefix(lm, 5))
    prefix.write(str(tmp_path / "prefix"))
    again = PrefixTuning(read_adapter(lm, tmp_path / "prefix"))
    ids = torch.tensor([lm.ids("Name a planet.")])
    assert torch.equal(logits(lm, again, ids), logits(lm, prefix, ids))
    (tmp_path / "prefix" / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(CorruptFile, match="holds no adapter"):
        read_adapter(lm, tmp_path / "prefix")


def test_a_model_that_peft_cannot_prefix_is_refused(tiny_lm):
    with pytest.raises(UsageError, match="no prefix tuning for"):
        add_prefix(tiny_lm("qwen3_5"), 5)
    with pytest.raises(UsageError, match="layers with a sliding window"):
        add_prefix(tiny_lm("mistral"), 5)


@torch.no_grad()
@pytest.mark.parametrize(
    "values",
    [
        ["scaffold.kind=prefix_tuning", "scaffold.length=3"],
        ["scaffold.kind=recursion", "scaffold.inner=prefix_tuning", "scaffold.inner.length=3"],
    ],
)
def test_a_recipe_makes_one_and_plans_it_also_under_a_recursion(lm, values):
    config = with_overrides(recipe_named("bundled_soft_prompt"), values).scaffold
    made = new_scaffold(config, lm, seed=0)
    assert made.length == config.taken == 3
    planned = parts(meta_scaffold(config, meta_backbone(lm.name, lm.dtype)))
    assert planned == parts(made)
    embeds, memory = lm.embed(torch.tensor([[5, 6, 7, 8]])), Memory()
    given = ScaffoldInput(embeds[:, :3], None, (0,))
    steps = [made.states(lm, given, memory), made.states(lm, given.continued(embeds[:, 3:]), memory)]
    whole = made.states(lm, ScaffoldInput(embeds, None, (0,)))
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_prefix_of_no_positions_is_refused():
    with pytest.raises(UsageError, match=r"scaffold\.length must be at least 1, got 0"):
        with_overrides(recipe_named("bundled_soft_prompt"), ["scaffold.kind=prefix_tuning", "scaffold.length=0"])
