"""Low-rank updates and factors: PEFT's numbers, weights for each input, and what does not fit."""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import encode, question_batch
from shoulders.errors import CorruptFile, UnknownName, UsageError
from shoulders.records import Placement, ScaffoldInput
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.input_prompt import InputPromptShape
from shoulders.scaffolds.low_rank import GatedLowRank, GatedScales, LowRank, Scales
from shoulders.scaffolds.peft import from_peft, to_peft
from toys import moved

SHAPE = InputPromptShape(length=4, encoder_length=3, head_width=8)
FAMILIES = ["llama", "gpt2", "opt", "gemma2", "bloom", "qwen3", "falcon"]


def own_model(lm):
    return AutoModelForCausalLM.from_pretrained(lm.name).eval()


def logits_of_both(lm, scaffold, adapted):
    ids = torch.tensor([lm.ids("What is the capital of France?")])
    with torch.no_grad():
        ours = lm.logits(scaffold.states(lm, ScaffoldInput(lm.embed(ids), None, (0,))))
        return ours, adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def check_both_ways(lm, adapted, tmp_path):
    """Their adapter here, and ours there."""
    moved(adapted_weights(adapted))
    adapted.save_pretrained(tmp_path / "theirs")
    before = lm.checksum()
    scaffold = from_peft(tmp_path / "theirs", lm)
    ours, theirs = logits_of_both(lm, scaffold, adapted)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    bare = lm.logits(lm.states(lm.embed(torch.tensor([lm.ids("What is the capital of France?")]))))
    assert not torch.allclose(ours, bare, atol=1e-2)
    to_peft(scaffold, lm, tmp_path / "ours")
    loaded = PeftModel.from_pretrained(own_model(lm), tmp_path / "ours").eval()
    ours, theirs = logits_of_both(lm, scaffold, loaded)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert lm.checksum() == before
    return scaffold


def adapted_weights(adapted):
    """The adapter's weights as one module."""
    return torch.nn.ParameterList(weight for weight in adapted.parameters() if weight.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_of_peft_has_the_same_logits_here_and_there(tiny_lm, tmp_path, family):
    lm = tiny_lm(family)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules="all-linear", fan_in_fan_out=lm.transposed
    )
    scaffold = check_both_ways(lm, get_peft_model(own_model(lm), config).eval(), tmp_path)
    assert (scaffold.rank, scaffold.scale) == (3, 5 / 3)
    assert scaffold.targets == LowRank.new(LowRank.Config(), lm).targets


def test_some_layers_of_some_blocks_and_the_scale_of_high_ranks(lm, tmp_path):
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"],
        layers_to_transform=[0, 2], lora_dropout=0.1,
    )  # fmt: skip
    scaffold = check_both_ways(lm, get_peft_model(own_model(lm), config).eval(), tmp_path)
    assert scaffold.scale == 3.0
    assert len(scaffold.targets) == 4


@pytest.mark.parametrize(
    ("family", "targets", "inputs"),
    [("llama", ["k_proj", "v_proj", "down_proj"], ["down_proj"]), ("gpt2", ["c_attn", "mlp.c_proj"], ["mlp.c_proj"])],
)
def test_factors_of_peft_have_the_same_logits_here_and_there(tiny_lm, tmp_path, family, targets, inputs):
    lm = tiny_lm(family)
    config = IA3Config(
        task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=inputs, fan_in_fan_out=lm.transposed
    )
    scaffold = check_both_ways(lm, get_peft_model(own_model(lm), config).eval(), tmp_path)
    assert isinstance(scaffold, Scales)


@pytest.mark.filterwarnings("ignore")  # of the library, on each call
def test_updates_of_quantised_layers_are_those_of_peft(lm, tmp_path):
    """Hooks add to what a layer of 8 bits computes, and gradients reach the updates."""
    pytest.importorskip("bitsandbytes")

    def quantised():
        config = BitsAndBytesConfig(load_in_8bit=True)
        return AutoModelForCausalLM.from_pretrained(lm.name, quantization_config=config, device_map={"": "cpu"})

    small = FrozenLM(quantised(), lm.tokenizer, lm.name)
    updates = moved(LowRank.new(LowRank.Config(rank=2), small))
    to_peft(updates, small, tmp_path / "ours")
    same = FrozenLM(quantised(), lm.tokenizer, lm.name).model  # its layers of 8 bits do not round what they read
    ours, theirs = logits_of_both(small, updates, PeftModel.from_pretrained(same, tmp_path / "ours").train())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    given = ScaffoldInput(small.embed(torch.tensor([[5, 6, 7]])), None, (0,))
    updates.states(small, given).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in updates.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", [GatedLowRank, GatedScales])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_starts_exactly_at_the_shared_edits(kind, dtype, tiny_lm, tiny_encoder, questions):
    lm = tiny_lm("llama", dtype)
    base = moved(kind.shared.new(kind.shared.Config(), lm))
    gated = kind(tiny_encoder("bert"), lm, SHAPE, base)
    given = question_batch([encode(one, lm) for one in questions], lm, gated)
    assert torch.equal(gated.states(lm, given), base.states(lm, given))
    moved(gated.project, by=1.0)
    assert not torch.allclose(gated.states(lm, given), base.states(lm, given), atol=1e-3)
    new = kind(tiny_encoder("bert"), lm, SHAPE, kind.shared.new(kind.shared.Config(), lm))
    assert parts(new.started_from(base, "runs/shared").base) == parts(base)


def parts(module):
    """The weights of a module."""
    return {name: weight.tolist() for name, weight in module.state_dict().items()}


def test_a_gate_of_factors_weights_a_whole_vector(lm):
    """One number for each vector and row."""
    base = moved(Scales.new(Scales.Config(), lm))
    places = [("after", name) for name in base.names["outputs"]] + [("before", name) for name in base.names["inputs"]]
    assert base.components == (len(places), 1) == (9, 1)
    gates = torch.rand(2, 9, 1)
    shared, weighted = base.edits(torch.float32).layers, base.edits(torch.float32, gates).layers
    for (side, name), gate in zip(places, gates.unbind(1), strict=True):
        torch.testing.assert_close(getattr(weighted[name], side), gate * getattr(shared[name], side))


@torch.no_grad()
def test_updates_and_factors_start_as_the_model(any_lm, questions):
    for scaffold in (
        LowRank.new(LowRank.Config(), any_lm),
        Scales(any_lm, [], LowRank.new(LowRank.Config(), any_lm).targets),
    ):
        given = question_batch([encode(one, any_lm) for one in questions], any_lm, scaffold)
        torch.testing.assert_close(scaffold.states(any_lm, given), any_lm.states(given.embeds, given.mask))


@torch.no_grad()
def test_a_suffix_leaves_the_text_before_its_last_token_alone(lm, questions):
    updates = moved(LowRank.new(LowRank.Config(rank=2, placement=Placement.SUFFIX), lm))
    given = question_batch([encode(questions[0], lm)], lm, updates)
    found = updates.states(lm, given)
    assert torch.equal(found[:, :-1], lm.states(given.embeds[:, :-1]))
    assert not torch.allclose(found[:, -1], lm.states(given.embeds)[:, -1], atol=1e-2)


@torch.no_grad()
def test_hooks_without_edits_change_no_bit(tiny_lm, questions):
    """Before the first edit, after it, and in a copy of the model."""
    lm = tiny_lm("qwen2").copied()
    ids = torch.tensor([lm.ids(questions[0].text)])
    before = lm.states(lm.embed(ids))
    updates = moved(LowRank.new(LowRank.Config(rank=2), lm))
    edited = updates.states(lm, ScaffoldInput(lm.embed(ids), None, (0,)))
    assert not torch.allclose(edited, before, atol=1e-2)
    copy = lm.copied()
    for model in (lm, copy):
        assert torch.equal(model.states(model.embed(ids)), before)
        assert torch.equal(updates.states(model, ScaffoldInput(model.embed(ids), None, (0,))), edited)


@torch.no_grad()
def test_a_step_of_a_decode_multiplies_with_the_newest_weights(tiny_lm, questions):
    """In bf16 the cast of the weights is kept between steps, and no longer."""
    lm = tiny_lm("llama", "bfloat16")
    updates = moved(LowRank.new(LowRank.Config(rank=2), lm))
    given = ScaffoldInput(lm.embed(torch.tensor([lm.ids(questions[0].text)])), None, (0,))
    first = updates.states(lm, given)
    assert torch.equal(updates.states(lm, given), first)
    moved(updates, by=0.5)
    changed = updates.states(lm, given)
    assert not torch.equal(changed, first)
    updates.load_state_dict(LowRank.new(LowRank.Config(rank=2), lm).state_dict())
    assert torch.equal(updates.states(lm, given), lm.states(given.embeds))


@pytest.fixture
def adapter(lm, tmp_path):
    """LoRA of one layer as PEFT keeps it."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["layers.0.self_attn.q_proj"])
    get_peft_model(own_model(lm), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"use_dora": True}, "of use dora True, not False"),
        ({"bias": "all"}, "of bias all, not none"),
        ({"modules_to_save": ["lm_head"]}, r"of modules to save \['lm_head'\], not None"),
        ({"rank_pattern": {"q_proj": 4}}, "of rank pattern"),
        ({"init_lora_weights": "pissa"}, "of init lora weights pissa, not True"),
        ({"trainable_token_indices": [3]}, "of trainable token indices"),
    ],
)
def test_an_adapter_that_computes_something_else_is_refused(lm, adapter, values, said):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **values}))
    with pytest.raises(UsageError, match=said):
        from_peft(adapter, lm)


def test_an_adapter_for_other_layers_or_sizes_is_refused(lm, tiny_lm, adapter):
    with pytest.raises(UsageError, match=r"changes .*q_proj.*, which is no linear layer of .*gpt2"):
        from_peft(adapter, tiny_lm("gpt2"))
    narrow = lm.copied()
    narrow.model.base_model.layers[0].self_attn.q_proj = torch.nn.Linear(24, 32)
    said = r"q_proj.lora_A.weight of the adapter .* has shape \(2, 32\), and .* needs \(2, 24\)"
    with pytest.raises(UsageError, match=said):
        from_peft(adapter, narrow)
    weights = load_file(adapter / "adapter_model.safetensors")
    first, second = sorted(weights)
    for tensors, error, said in (
        ({first: weights[first]}, CorruptFile, "holds only one matrix of layers.0.self_attn.q_proj"),
        ({}, CorruptFile, "holds only one matrix of every layer, or none"),
        (weights | {"base_model.model.lm_head.weight": torch.ones(2)}, UsageError, "changes lm_head"),
        (
            {first: weights[first][:1], second: weights[second]},
            UsageError,
            r"has shape \(1, 32\), and .* needs \(2, 32\)",
        ),
    ):
        save_file(tensors, adapter / "adapter_model.safetensors")
        with pytest.raises(error, match=said):
            from_peft(adapter, lm)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["scaffold.rank=0"], "scaffold.rank must be at least 1"),
        (["scaffold.alpha=nan"], "scaffold.alpha must be above 0, got nan"),
        (["scaffold.targets="], "all-linear takes all"),
        (["scaffold.placement=infix"], "scaffold.placement=infix does not suit low_rank"),
        (["scaffold.kind=gated_low_rank", "scaffold.rank=0"], "scaffold.rank must be at least 1"),
        *(
            ([f"scaffold.kind={kind}", *values], said)
            for kind in ("gated_low_rank", "gated_scales")
            for values, said in (
                (["scaffold.queries=0"], "scaffold.queries must be at least 1, got 0: 8 is usual"),
                (["scaffold.layers=-1"], "scaffold.layers must be at least 0, got -1"),
                (["scaffold.placement=infix"], f"scaffold.placement=infix does not suit {kind}"),
            )
        ),
        (
            ["scaffold.kind=gated_scales", "scaffold.outputs=", "scaffold.inputs="],
            "scaffold.outputs and scaffold.inputs are empty",
        ),
    ],
)
def test_bad_values_are_refused(values, said):
    with pytest.raises(UsageError, match=said):
        with_overrides(recipe_named("bundled_soft_prompt"), ["scaffold.kind=low_rank", *values])


def test_layers_that_are_not_there_are_refused(lm):
    with pytest.raises(
        UnknownName, match=r"linear layer of .* \(scaffold.targets\) called 'q_porj': did you mean 'q_proj'"
    ):
        LowRank.new(LowRank.Config(targets=("q_porj",)), lm)
    with pytest.raises(UnknownName, match=r"\(scaffold.outputs\) called 'k_proj'"):
        Scales.new(Scales.Config(), moved_family(lm))
    for made in (
        lambda: LowRank(lm, ["q_proj"], 2, 1.0),
        lambda: Scales(lm, ["q_proj"], []),
        lambda: Scales(lm, [], ["q_proj"]),
    ):
        with pytest.raises(UnknownName, match=r"linear layer of .* called 'q_proj'"):
            made()


def moved_family(lm):
    """The same model, whose attention has other names."""
    copy = lm.copied()
    for block in copy.model.base_model.layers:
        block.self_attn.key = block.self_attn.k_proj
        del block.self_attn.k_proj
    return copy
