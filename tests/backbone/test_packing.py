import weakref
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import nn

from mixed import one, several
from shoulders.backbone.packing import PackedLinear
from shoulders.engine.decode import likeliest
from shoulders.engine.requests import Request
from shoulders.engine.scheduler import Scheduler
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from tiny import TEXTS
from toys import in_parts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt2"])
def test_packed_weights_give_the_same_logits_and_fingerprint(tiny_lm, family, dtype):
    plain = tiny_lm(family, dtype)
    packed = plain.copied().settled()
    layers = [layer for layer in packed.model.modules() if isinstance(layer, nn.Linear)]
    assert layers
    assert all(isinstance(layer, PackedLinear) and not layer.weight.numel() for layer in layers)
    assert packed.fingerprint() == plain.fingerprint()
    ids = torch.tensor([plain.ids(TEXTS[0])])
    with torch.no_grad():
        wanted, found = (lm.logits(lm.states(lm.embed(ids))) for lm in (plain, packed))
    near = 1e-5 if dtype == "float32" else 0.03
    torch.testing.assert_close(found, wanted, rtol=near, atol=near * wanted.abs().max().item())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_that_read_the_same_vectors_are_one_product(tiny_lm, dtype):
    plain = tiny_lm("llama", dtype)
    names = [f"layers.0.self_attn.{name}_proj" for name in "qkv"]
    theirs, packed = (
        [lm.model.base_model.get_submodule(name) for name in names] for lm in (plain, plain.copied().settled())
    )
    assert len({layer.product for layer in packed}) == 1
    vectors = torch.randn(2, 5, plain.width).to(plain.dtype)
    other = vectors + 1
    for order in permutations(range(3)):  # whichever asks first, and whatever was asked before
        for given in (vectors, other):
            for number in order:
                near = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.02, "atol": 0.02}
                torch.testing.assert_close(packed[number](given), theirs[number](given), **near)


def test_a_product_keeps_nothing_of_a_text_that_has_been_read(lm):
    packed = lm.copied().settled()
    alive = []
    layers = [layer for layer in packed.model.modules() if isinstance(layer, PackedLinear)]
    hooks = [
        layer.register_forward_hook(lambda _, given, made: alive.extend(map(weakref.ref, (*given, made))))
        for layer in layers
    ]
    with torch.no_grad():
        packed.states(packed.embed(torch.tensor([packed.ids(TEXTS[0])])))
    for hook in hooks:
        hook.remove()
    assert alive
    assert not any(one() is not None for one in alive)


def test_a_layer_that_does_not_run_as_such_stays_as_it_is(lm):
    model = lm.copied()
    model.model.base_model.aside = nn.Linear(4, 4)
    model.settled()
    assert [layer for layer in model.model.modules() if type(layer) is nn.Linear] == [model.model.base_model.aside]


def test_the_state_of_packed_layers_is_that_of_the_layers(lm):
    packed = lm.copied().settled()
    theirs, ours = (one_.model.state_dict() for one_ in (lm, packed))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_layers_whose_vectors_change_between_them_stay_apart(lm):
    model = lm.copied()
    attention = model.model.base_model.layers[0].self_attn
    attention.q_proj.register_forward_hook(lambda _, given, made: (given[0].mul_(2), made)[1])
    ids = torch.tensor([lm.ids(TEXTS[0])])
    with torch.no_grad():
        wanted = model.states(model.embed(ids))
        found = model.settled().states(model.embed(ids))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert attention.q_proj.product is not attention.k_proj.product


def test_scaffolds_of_all_kinds_run_over_packed_weights(lm, tiny_encoder, tmp_path):
    """As in a server: loaded around them, too."""
    packed = lm.copied().settled()
    copied = Recursion(lm, RecursionShape(layers=1, copied=True))
    asked, tickets, run = [], [], Scheduler(packed)
    for number, scaffold in enumerate([*several(lm, tiny_encoder), *in_parts(lm), copied]):
        asked.append(Request(scaffold=scaffold, given=one(lm, scaffold, TEXTS[0]), longest=8))
        scaffold.made_for(lm).save_pretrained(tmp_path / str(number))
        tickets.append(run.submit(replace(asked[-1], scaffold=Scaffold.load(tmp_path / str(number), packed))))
    while run.step():
        pass
    wanted = [likeliest(lm, request.scaffold, request.given, longest=8)[0].ids for request in asked]
    assert [ticket.result(0).branches[0].ids for ticket in tickets] == wanted
