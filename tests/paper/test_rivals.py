"""What moves in a rival, what does not, and that it starts as the model itself."""

from dataclasses import replace

import pytest
import torch

from shoulders.errors import UnknownName, UsageError
from shoulders.paper.rivals import new_rival
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import scaffold_loss
from shoulders.training.plan import RivalChoice
from toys import PLAN, source

LORA, PREFIX, FULL = (RivalChoice(kind, learning_rate=0.01) for kind in ("lora", "prefix_tuning", "full"))


def states(lm):
    ids = torch.tensor([lm.ids("What is the capital of France?")])
    with torch.no_grad():
        return lm.states(lm.embed(ids))


def trained(rival, folder=None, steps=4, hooks=None):
    """The rival after some steps on the toy task, and its losses."""
    losses = []
    plan = replace(PLAN, steps=steps, save_every=2)
    inner = scaffold_loss(rival.lm, rival.scaffold)

    def loss(module, rows):
        rival.refresh()
        return inner(module, rows)

    hooks = hooks or Hooks(on_step=lambda step: losses.append(step.loss))
    fit(rival.trained, loss, source(rival.lm, rival.scaffold, plan), plan, folder=folder, hooks=hooks)
    rival.refresh()
    return losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("choice", [LORA, FULL], ids=lambda choice: choice.kind)
def test_a_rival_starts_as_the_model_and_leaves_it_as_it_was(tiny_lm, choice, dtype):
    lm = tiny_lm("llama", dtype)
    before, said = lm.checksum(), states(lm)
    rival = new_rival(choice, lm, 0, 0)
    assert torch.equal(states(rival.lm), said)
    trained(rival)
    assert not torch.equal(states(rival.lm), said)
    assert lm.checksum() == before
    assert not any(weight.requires_grad for weight in lm.model.parameters())
    assert torch.equal(states(lm), said)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "bloom"])
def test_lora_moves_its_adapters_and_nothing_else(tiny_lm, family):
    rival = new_rival(LORA, tiny_lm(family), 0, 0)
    before = {name: weight.clone() for name, weight in rival.lm.model.named_parameters()}
    trained(rival)
    moved = {name for name, weight in rival.lm.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if ".lora_" in name}
    assert sum(before[name].numel() for name in moved) == sum(weight.numel() for weight in rival.trained.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen2"])
def test_full_fine_tuning_moves_every_weight(tiny_lm, family, dtype):
    rival = new_rival(FULL, tiny_lm(family, dtype), 0, 0)
    before = {name: weight.clone() for name, weight in rival.lm.model.named_parameters()}
    trained(rival)
    still = {name for name, weight in rival.lm.model.named_parameters() if torch.equal(weight, before[name])}
    assert still == set()
    assert sum(weight.numel() for weight in before.values()) == sum(
        weight.numel() for weight in rival.trained.parameters()
    )


def test_steps_too_small_for_bf16_are_not_lost(tiny_lm):
    """A weight in bf16 has 8 bits: an update of a thousandth of it would be rounded away every time."""
    rival = new_rival(FULL, tiny_lm("llama", "bfloat16"), 0, 0)
    weight, master = rival.lm.model.get_input_embeddings().weight, next(iter(rival.trained.parameters()))
    start = weight.clone()
    for _ in range(20):
        with torch.no_grad():
            master.mul_(1.0005)
        rival.refresh()
    grown = start.abs() > 0
    assert (weight[grown].abs() > start[grown].abs()).float().mean() > 0.9


@pytest.mark.parametrize("choice", [LORA, FULL], ids=lambda choice: choice.kind)
def test_gradients_in_bf16_are_those_of_fp32_but_for_rounding(tiny_lm, choice):
    gradients = []
    for dtype in ("float32", "bfloat16"):
        rival = new_rival(choice, tiny_lm("llama", dtype), 0, 0)
        rows = source(rival.lm, rival.scaffold).step().parts
        for part in rows:  # several micro-batches add up
            scaffold_loss(rival.lm, rival.scaffold)(rival.trained, part).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in rival.trained.parameters()]))
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("choice", [LORA, PREFIX, FULL], ids=lambda choice: choice.kind)
def test_resumed_is_uninterrupted(tiny_lm, tmp_path, choice, dtype):
    lm = tiny_lm("llama", dtype)
    whole, stopped, resumed = (new_rival(choice, lm, 3, 0) for _ in range(3))
    losses = trained(whole, tmp_path / "whole")

    def stop(step):
        if step.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(stopped, tmp_path / "stopped", hooks=Hooks(on_step=stop))
    assert trained(resumed, tmp_path / "stopped") == losses[2:]
    assert resumed.lm.checksum() == whole.lm.checksum()
    assert all(map(torch.equal, resumed.trained.state_dict().values(), whole.trained.state_dict().values()))


def test_prefix_tuning_leaves_the_model_as_it_is(lm):
    before = lm.checksum()
    rival = new_rival(PREFIX, lm, 3, 0)
    start = {name: weight.clone() for name, weight in rival.trained.named_parameters()}
    trained(rival)
    assert lm.checksum() == rival.lm.checksum() == before
    assert {name.split(".")[0] for name in start} == {"keys", "values"}
    assert all((weight != start[name]).any() for name, weight in rival.trained.named_parameters())


def test_prefix_tuning_needs_a_length(lm):
    with pytest.raises(UsageError, match="as many positions"):
        new_rival(PREFIX, lm, 0, 0)


def test_the_room_of_the_prompt_is_left_free(lm):
    assert new_rival(LORA, lm, 20, 0).scaffold.length == 20


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"kind": "lorra"}, UnknownName, "did you mean 'lora'"),
        ({"kind": "lora", "rank": 0}, UsageError, "rival.rank is 0"),
        ({"kind": "lora", "alpha": float("nan")}, UsageError, "rival.alpha is nan"),
        ({"kind": "lora", "targets": ()}, UsageError, "all-linear takes all"),
        ({"kind": "full", "learning_rate": -1.0}, UsageError, "rival.learning_rate is -1"),
        ({"kind": "full", "warmup": 2.0}, UsageError, "rival.warmup is 2"),
        ({"kind": "full", "weight_decay": -0.1}, UsageError, "rival.weight_decay is -0.1"),
        ({"kind": "full", "decay": "cosine"}, UnknownName, "rival.decay"),
        ({"rank": 8}, UsageError, "--rival lora"),
    ],
)
def test_bad_values_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        RivalChoice(**values)


def test_layers_that_the_model_lacks_are_refused(lm):
    with pytest.raises(UsageError, match=r"rival\.targets=nowhere does not fit"):
        new_rival(replace(LORA, targets=("nowhere",)), lm, 0, 0)
