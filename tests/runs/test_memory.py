"""Planned memory against that of real steps, what fits a device, and the micro-batch that is chosen by it."""

import re
from dataclasses import replace

import pytest
import torch

from shoulders.backbone.checkpointing import checkpointing
from shoulders.engine.batches import Lengths
from shoulders.errors import UnknownName, UsageError
from shoulders.runs import memory
from shoulders.runs.build import load_backbone, new_scaffold
from shoulders.runs.cost import Sizes
from shoulders.runs.memory import Planned, positions_at_once
from shoulders.runs.recipe import Recipe, SuiteChoice, with_overrides

LENGTHS = (60, 8)
PROMPT = ["scaffold.length=6"]
CONFIGURATIONS = {
    "prompt": PROMPT,
    "bf16": [*PROMPT, "backbone.dtype=bfloat16"],
    "suffix": [*PROMPT, "scaffold.placement=suffix"],
    "checkpointed": [*PROMPT, "training.checkpointing=true"],
    "nf4": [*PROMPT, "backbone.quantize=nf4"],
    "int8, checkpointed": [*PROMPT, "backbone.quantize=int8", "training.checkpointing=true"],
    "recursion": ["scaffold.kind=recursion", "scaffold.recursion.layers=1"],
}


def recipe(lm, *values):
    return with_overrides(Recipe("planned"), [f"backbone.name={lm.name}", "backbone.device=cpu", *values])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("values", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_the_planned_peak_is_that_of_a_real_step(tiny_lm, family, values):
    """Both by what is alive at the same time; of whole processes `make giants` records it."""
    chosen = recipe(tiny_lm(family), "backbone.dtype=float32", *values)
    planned = Planned.of(chosen).memory(4, *LENGTHS)
    lm = load_backbone(chosen.backbone)
    scaffold = new_scaffold(chosen.scaffold, lm, seed=0)
    sizes = Sizes(lm, scaffold, *LENGTHS, 4)
    weights = [*lm.model.parameters(), *lm.model.buffers(), *scaffold.parameters(), *scaffold.buffers()]
    with checkpointing(chosen.training.checkpointing), memory._Alive(weights) as alive:
        memory._step(sizes)
    assert planned.step == pytest.approx(alive.peak, rel=0.1)
    held = sum(tensor.nbytes for tensor in lm.model.state_dict().values())
    held -= lm.model.get_input_embeddings().weight.nbytes  # both families tie it: it is there twice
    assert planned.weights == pytest.approx(held, rel=0.05)


def test_memory_is_followed_as_it_is_made_and_freed():
    known = torch.ones(100)
    with memory._Alive([known]) as alive:
        one = known + 1
        two = one * 2
        view = two[:10]
        del one
        assert alive.now == 400
        del two
        assert alive.now == 400
        del view
    assert (alive.now, alive.peak) == (0, 800)


def test_what_fits_a_device_fits(lm):
    planned = Planned.of(recipe(lm, *PROMPT))
    room = planned.memory(7, *LENGTHS).peak + 10
    rows = planned.most_rows(room, *LENGTHS)
    assert rows in (7, 8)
    assert planned.memory(rows, *LENGTHS).peak <= room * 1.05
    assert planned.most_rows(planned.weights, *LENGTHS) == 0


@pytest.mark.parametrize(
    ("values", "less"),
    [
        (["backbone.quantize=nf4"], 0.35),
        (["backbone.quantize=int8"], 0.6),
        (["backbone.device_map=disk"], 0.15),
        (["backbone.offload=there"], 0.15),
    ],
)
def test_weights_by_how_they_are_kept(values, less):
    whole, kept = (
        Planned.of(with_overrides(Recipe("large"), ["backbone.name=shape:7b", *PROMPT, *some])) for some in ([], values)
    )
    assert kept.weights < less * whole.weights


def test_shards_share_the_layers():
    large = with_overrides(Recipe("large"), ["backbone.name=shape:7b", *PROMPT])
    assert Planned.of(large, 4).weights < 0.35 * Planned.of(large).weights


def test_an_unknown_scheme_is_refused(lm):
    with pytest.raises(UnknownName, match="did you mean 'nf4'"):
        Planned.of(recipe(lm, "backbone.quantize=nf3"))


def test_the_plan_says_it(shoulders, lm):
    arguments = ["plan", "bundled_soft_prompt", f"backbone.name={lm.name}", "scaffold.length=4", "--card", 80,
                 "--input-length", 20, "backbone.quantize=nf4", "training.checkpointing=true"]  # fmt: skip
    code, printed, _ = shoulders(*arguments)
    assert code == 0
    said = " ".join(printed.split())
    assert "layers as nf4, layers computed again in the backward pass" in said
    assert int(re.search(r"largest micro-batch on 80 GB ([\d,]+)", said)[1].replace(",", "")) > 1000


def test_the_largest_micro_batch_that_fits_is_chosen(lm, monkeypatch):
    values = ["training.batch_size=64", "training.positions_at_once=auto"]
    chosen = replace(recipe(lm, *PROMPT, *values), suite=SuiteChoice(lengths=Lengths(40, 8)))
    room = Planned.of(chosen).memory(5, 40, 8).step
    monkeypatch.setattr(memory, "free_bytes", lambda _: room / memory.ON_CPU * 1.02)
    with pytest.warns(
        UserWarning, match="positions_at_once=auto: 270, a micro-batch of 5 .examples of 40 and 8 tokens"
    ):
        assert positions_at_once(chosen, lm) == 270
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    with pytest.raises(UsageError, match="positions_at_once=auto: not one fits"):
        positions_at_once(chosen, lm)
    assert positions_at_once(recipe(lm, "training.positions_at_once=512"), lm) == 512


def test_free_memory_is_known():
    assert memory.free_bytes(torch.device("cpu")) > 1e8
