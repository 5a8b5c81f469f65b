"""Activation checkpointing: the same losses and gradients, less kept for the backward pass."""

from dataclasses import replace

import pytest
import torch

from shoulders.backbone.caches import Memory
from shoulders.backbone.checkpointing import checkpointing
from shoulders.engine.batches import encode, training_batch
from shoulders.errors import UsageError
from shoulders.records import Placement
from shoulders.runs.cost import saved_bytes
from shoulders.runs.ranking_recipes import reranker
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.low_rank import LowRank
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import scaffold_loss
from toys import PLAN, moved, source

TARGETS = ["Paris", "the planet Mars", "good", "four"]
EVIDENCE = ["France is in Europe. ", "", "", "Numbers are added. "]


def scaffolds(lm, tiny_encoder):
    shape = InputPromptShape(length=5, encoder_length=3, head_width=8)
    for placement in Placement:
        yield SoftPrompt(from_vocabulary(lm)(4), placement)
    yield InputPrompt(tiny_encoder("bert"), lm, shape)
    yield InputPrompt(tiny_encoder("t5"), lm, shape, placement=Placement.SUFFIX)
    yield InputPrompt(lm, lm, shape)
    yield Recursion(lm, RecursionShape(layers=1, before=True, after=True))
    yield Recursion(lm, RecursionShape(passes=3, layers=2, shared=True), SoftPrompt(from_vocabulary(lm)(3)))
    if lm.config.model_type in ("llama", "gpt2"):
        yield moved(Recursion(lm, RecursionShape(rank=4, keys_values=True, into=1), SoftPrompt(from_vocabulary(lm)(3))))


def measured(lm, scaffold, questions, on):
    """The loss, all gradients, and the bytes kept for the backward pass."""
    asked = [replace(one, evidence=evidence) for one, evidence in zip(questions, EVIDENCE, strict=True)]
    rows = [encode(question, lm, target) for question, target in zip(asked, TARGETS, strict=True)]
    weights = [*lm.model.parameters(), *lm.model.buffers(), *scaffold.parameters(), *scaffold.buffers()]
    loss_of = scaffold_loss(lm, scaffold)
    with checkpointing(on), saved_bytes(weights) as kept:
        loss = loss_of(scaffold, rows)
        size = kept()
    gradients = torch.autograd.grad(loss, list(scaffold.parameters()))
    return loss.item(), gradients, size


def check_same(lm, scaffold, questions):
    loss, gradients, kept = measured(lm, scaffold, questions, on=False)
    again, others, less = measured(lm, scaffold, questions, on=True)
    assert again == loss
    torch.testing.assert_close(others, gradients, rtol=1e-5, atol=1e-7)
    assert less < 0.75 * kept


def test_losses_and_gradients_are_the_same(any_lm, tiny_encoder, questions):
    for scaffold in scaffolds(any_lm, tiny_encoder):
        check_same(any_lm, scaffold, questions)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "bloom"])
def test_so_are_those_of_keys_and_values_in_every_layer(tiny_lm, questions, family):
    """transformers' own switch would drop them."""
    for placement in Placement:
        check_same(
            tiny_lm(family), DeepPrompt.from_vocabulary(tiny_lm(family), length=3, placement=placement), questions
        )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_so_are_those_of_edited_layers(tiny_lm, questions, family):
    """The second run of a layer is edited like the first."""
    updates = LowRank.new(LowRank.Config(rank=2), tiny_lm(family))
    torch.nn.init.normal_(updates.up, std=0.1)
    check_same(tiny_lm(family), updates, questions)


def test_a_layer_that_is_computed_again_extends_no_memory(any_lm, questions):
    prompt, memory = SoftPrompt(from_vocabulary(any_lm)(4)), Memory()
    batch = training_batch([encode(questions[0], any_lm, "Paris")], any_lm, prompt)
    with checkpointing():
        loss = any_lm.loss(prompt.states(any_lm, batch.given, memory), batch.labels)
    lengths = [layer.keys.shape[-2] for layer in memory.single.cache.layers]
    loss.backward()
    assert [layer.keys.shape[-2] for layer in memory.single.cache.layers] == lengths
    assert not any("forward" in vars(layer) for layer in any_lm.model.modules())


def test_linear_attention_trains_too(tiny_lm, questions):
    lm = tiny_lm("qwen3_5")
    check_same(lm, SoftPrompt(from_vocabulary(lm)(4)), questions)


def test_a_run_is_the_same(lm):
    found = []
    for on in (False, True):
        prompt, losses = SoftPrompt(from_vocabulary(lm)(4)), []
        plan = replace(PLAN, steps=3, checkpointing=on)
        hooks = Hooks(on_step=lambda step, losses=losses: losses.append(step.loss))
        fit(prompt, scaffold_loss(lm, prompt), source(lm, prompt, plan), plan, hooks=hooks)
        found.append((losses, prompt.prompt.detach()))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])


def test_it_is_for_frozen_models():
    with pytest.raises(UsageError, match="are for frozen models, and a reranker trains all"):
        replace(reranker(), training=replace(reranker().training, checkpointing=True))
