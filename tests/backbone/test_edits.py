"""Edits of layers: what hooks leave alone, layers of other kinds, and rows that share a product."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shoulders.backbone.caches import PassMemory
from shoulders.backbone.edits import Edits, LayerEdit, arranged, edited, linear_layers
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import StackInput
from shoulders.errors import UsageError

NAME = "layers.1.mlp.down_proj"


def update(rank=2, sizes=(48, 32), **rest):
    return LayerEdit(torch.randn(rank, sizes[0]) / 4, torch.randn(sizes[1], rank) / 4, **rest)


class Rounded(nn.Linear):
    """A layer that multiplies by other numbers than its weights, as quantised ones do."""

    def forward(self, input):
        return nn.functional.linear(input, (self.weight * 4).round() / 4, self.bias)


@torch.no_grad()
def test_an_edit_is_what_the_changed_weights_compute(tiny_lm):
    lm = tiny_lm("llama").copied()
    embeds, edit = torch.randn(2, 5, 32), update(scale=0.5)
    found = lm.states(embeds, edits=Edits(layers={NAME: edit}))
    layer = lm.model.base_model.get_submodule(NAME)
    layer.weight += 0.5 * edit.up @ edit.down
    torch.testing.assert_close(found, lm.states(embeds), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_layer_of_another_kind_keeps_its_own_product(tiny_lm):
    """Hooks add to what the layer itself computes, whatever its weights are."""
    lm = FrozenLM.load(tiny_lm("llama").name, dtype="float32", device="cpu")  # one that nothing has edited yet
    block = lm.model.base_model.layers[1].mlp
    rounded = Rounded(48, 32, bias=False)
    rounded.weight = block.down_proj.weight
    block.down_proj = rounded
    embeds, edit = torch.randn(1, 5, 32), update()
    assert NAME in linear_layers(lm.model.base_model)
    found = lm.states(embeds, edits=Edits(layers={NAME: edit}))
    rounded.weight.copy_((rounded.weight * 4).round() / 4 + edit.up @ edit.down)
    rounded.forward = lambda input: nn.functional.linear(input, rounded.weight)
    torch.testing.assert_close(found, lm.states(embeds), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_neighbours_with_the_same_weights_share_a_product(tiny_lm, family):
    lm = tiny_lm(family)
    name, layer = next(iter(linear_layers(lm.model.base_model).items()))
    sizes = layer.weight.shape if family == "gpt2" else layer.weight.shape[::-1]
    shared = update(sizes=sizes)
    gated = [LayerEdit(shared.down, shared.up, gate=torch.rand(rows, 2)) for rows in (1, 2)]
    edits = [shared, None, shared, shared, *gated, update(sizes=sizes)]
    rows = [1, 1, 2, 1, 1, 2, 1]
    parts = [
        StackInput(torch.randn(count, 4, lm.width), edits=edit and Edits(layers={name: edit}))
        for edit, count in zip(edits, rows, strict=True)
    ]
    products = []

    def counted(self, read, *rest):
        products.append(len(read))
        return own(self, read, *rest)

    own = LayerEdit.output
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerEdit, "output", counted)
        together = lm.states_together(parts)
    assert products == [1, 3, 3, 1]
    for found, part in zip(together, parts, strict=True):
        torch.testing.assert_close(found, lm.states(part.embeds, edits=part.edits), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_step_with_many_updates_is_one_product_of_the_newest_weights(lm):
    """Weights of each row, gates and scales of some; what cannot be stacked stays apart."""
    updates = [update(), update(scale=0.5), update(gate=torch.rand(2, 2)), update(rank=3), update(), update()]
    rows = [1, 2, 2, 1, 3, 1]
    embeds = [torch.randn(count, 1, lm.width) for count in rows]

    def check(several, wanted):
        edits = [Edits(layers={NAME: one}) for one in several]
        parts = [StackInput(one, edits=edit) for one, edit in zip(embeds, edits, strict=False)]
        products = []

        def counted(self, read, *rest):
            products.append(len(read))
            return own(self, read, *rest)

        own = LayerEdit.output
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LayerEdit, "output", counted)
            found = lm.states_together(parts)
        assert products == wanted
        for one, part in zip(found, parts, strict=True):
            torch.testing.assert_close(one, lm.states(part.embeds, edits=part.edits), rtol=1e-4, atol=1e-4)

    check(updates[:3], [5])
    check(updates[:3], [5])
    updates[1].up.mul_(-1)
    check(updates[:3], [5])
    check(updates, [1, 2, 2, 1, 3, 1])  # of several ranks
    check([updates[0], updates[1], LayerEdit(after=torch.rand(32))], [3, 2])


@torch.no_grad()
def test_rows_of_a_memory_keep_their_edits(lm):
    """Rows that are dropped or doubled take what is written for them along."""
    embeds, step = torch.randn(3, 5, 32), torch.randn(3, 1, 32)
    edit = update(gate=torch.rand(3, 2))
    memory = PassMemory()
    lm.states(embeds, memory=memory, edits=Edits(layers={NAME: edit}))
    whole = lm.states(torch.cat([embeds, step], dim=1), edits=Edits(layers={NAME: edit}))[:, -1:]
    kept = torch.tensor([2, 0, 2])
    memory.select(kept)
    torch.testing.assert_close(lm.states(step[kept], memory=memory), whole[kept], rtol=1e-4, atol=1e-4)


def test_gradients_go_through_a_forward_that_is_computed_again(lm):
    embeds, found = torch.randn(2, 5, 32), []
    down, up = nn.Parameter(torch.randn(2, 48)), nn.Parameter(torch.randn(32, 2))

    def states(embeds):
        return lm.states(embeds, edits=Edits(layers={NAME: LayerEdit(down, up)}))

    for run in (states, lambda embeds: checkpoint(states, embeds, use_reentrant=False)):
        found.append(torch.autograd.grad(run(embeds).square().sum(), [down, up]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_edits_end_with_their_forward_even_if_it_fails(lm):
    embeds = torch.randn(1, 4, 32)
    before = lm.states(embeds)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size"):
        lm.states(embeds, edits=Edits(layers={NAME: update(sizes=(7, 32))}))
    assert torch.equal(lm.states(embeds), before)


def test_a_layer_that_reads_no_rows_is_refused():
    """Some families put several versions of all rows into one batch."""

    class Versions(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, rows):
            return self.mix(torch.stack([rows, rows]))

    model = Versions()
    with (
        pytest.raises(UsageError, match=r"layer mix reads vectors of shape \(2, 3, 5, 4\) for 3 rows.*leave it out"),
        edited(model, arranged([(3, {"mix": update(sizes=(4, 4))})], 5)),
    ):
        model(torch.randn(3, 5, 4))
