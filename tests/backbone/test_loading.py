"""A checkpoint is loaded whole, or refused by the tensors that are missing, misshapen or too many."""

import importlib.util
import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from rankers import save, sizes
from shoulders.backbone.encoder import FrozenEncoder
from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.errors import CorruptFile, SourceNotFound, UsageError
from shoulders.retrieval.cross_encoder import CrossEncoder
from shoulders.retrieval.text_encoder import TextEncoder
from tiny import GROUPED, save_encoder, save_encoder_decoder, save_lm, tokenizer

WEIGHTS = "model.safetensors"
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loaded(kind, folder):
    """The fingerprint of what a loader makes of a folder."""
    made = kind.load(str(folder), dtype="float32", device="cpu")
    return made.fingerprint if kind is CrossEncoder else made.fingerprint()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole checkpoint for each loader: its folder and its fingerprint."""
    place = tmp_path_factory.mktemp("whole")
    save_lm("llama", place / "lm")
    save_encoder("roberta", place / "encoder")
    save_encoder("bert", place / "tower")
    save_encoder_decoder("t5", place / "encoder_decoder")
    save(BertForSequenceClassification(BertConfig(**sizes(num_labels=1))), place / "cross_encoder")
    kinds = {
        "lm": FrozenLM, "encoder": FrozenEncoder, "tower": TextEncoder, "encoder_decoder": FrozenEncoderDecoder,
        "cross_encoder": CrossEncoder,
    }  # fmt: skip
    return {name: (kind, place / name, loaded(kind, place / name)) for name, kind in kinds.items()}


def changed(folder, target, tensors):
    shutil.copytree(folder, target, dirs_exist_ok=True)
    save_file(tensors, target / WEIGHTS, {"format": "pt"})
    return target


LOADERS = pytest.mark.parametrize("name", ["lm", "encoder", "tower", "encoder_decoder", "cross_encoder"])


@LOADERS
@few
@given(data=st.data())
def test_any_part_of_a_checkpoint_is_the_whole_model_or_refused_by_a_name(whole, tmp_path, name, data):
    kind, folder, wanted = whole[name]
    tensors = load_file(folder / WEIGHTS)
    dropped = data.draw(st.sets(st.sampled_from(sorted(tensors)), min_size=1, max_size=3))
    part = changed(folder, tmp_path / "part", {key: value for key, value in tensors.items() if key not in dropped})
    if kind in (FrozenEncoder, TextEncoder) and all("pooler" in key for key in dropped):  # nothing reads it
        assert loaded(kind, part) == (wanted if kind is TextEncoder else loaded(kind, part))
        return
    with pytest.raises(CorruptFile) as refused:
        loaded(kind, part)
    names = {"shared.weight": "embed_tokens.weight"}  # tied weights are missing under several names
    assert any(names.get(key, key.removeprefix("bert.")) in str(refused.value) for key in dropped)


@LOADERS
@few
@given(data=st.data())
def test_any_tensor_of_another_shape_name_or_number_is_refused(whole, tmp_path, name, data):
    kind, folder, _ = whole[name]
    tensors = load_file(folder / WEIGHTS)
    key = data.draw(st.sampled_from(sorted(key for key in tensors if "pooler" not in key)))
    how = data.draw(st.sampled_from(["shape", "prefix", "beside"]))
    if how == "shape":
        tensors[key] = torch.zeros(tensors[key].shape[0] + 1, *tensors[key].shape[1:])
    elif how == "prefix":
        tensors = {f"_orig_mod.{one}": value for one, value in tensors.items()}
    else:
        tensors[f"{key}.more"] = torch.zeros(3)
    with pytest.raises(CorruptFile, match=r"has another shape|missing|no place in it") as refused:
        loaded(kind, changed(folder, tmp_path / "other", tensors))
    assert len(str(refused.value).splitlines()) == 1
    assert how != "shape" or str(tuple(tensors[key].shape)) in str(refused.value)


def test_what_the_checkpoint_of_a_classifier_lacks_for_a_language_model(tmp_path):
    config = LlamaConfig(**GROUPED, tie_word_embeddings=False)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CorruptFile, match=r"lm_head\.weight is missing; score\.weight has no place in it"):
        FrozenLM.load(str(tmp_path))


def test_tied_weights_are_there_once_and_old_masks_may_be_there(whole, tmp_path):
    kind, folder, wanted = whole["lm"]
    tensors = load_file(folder / WEIGHTS)
    assert "lm_head.weight" not in tensors
    tensors["model.layers.0.attention.masked_bias"] = torch.zeros(1)
    assert loaded(kind, changed(folder, tmp_path / "old", tensors)) == wanted


def test_an_encoder_is_read_beside_its_head_but_not_with_more_layers(tmp_path):
    model = BertForMaskedLM(BertConfig(**sizes()))
    save(model, tmp_path / "masked")
    found = FrozenEncoder.load(str(tmp_path / "masked"), dtype="float32", device="cpu")
    kept = found.model.state_dict()["embeddings.word_embeddings.weight"]
    assert torch.equal(kept, model.bert.embeddings.word_embeddings.weight)
    assert found.fingerprint() == loaded(FrozenEncoder, tmp_path / "masked")
    assert loaded(TextEncoder, tmp_path / "masked")
    config = json.loads((tmp_path / "masked" / "config.json").read_text())
    (tmp_path / "masked" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    for kind in (FrozenEncoder, TextEncoder):
        with pytest.raises(CorruptFile, match=r"16 tensors have no place in it \(bert\.encoder\.layer\.1\."):
            loaded(kind, tmp_path / "masked")


@pytest.mark.parametrize("config", ["[]", "null", '{"model_type": 3}', '{"model_type": "llama", "hidden_size": "x"}',
                                    '{"model_type": "llama", "num_attention_heads": 0}', "{", "\x00"])  # fmt: skip
@LOADERS
def test_a_broken_configuration_is_one_line(whole, tmp_path, name, config):
    kind, folder, _ = whole[name]
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text(config)
    with pytest.raises(UsageError, match="broken") as refused:
        loaded(kind, tmp_path / "broken")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("method", "library", "how"),
    [
        ("bitsandbytes", "bitsandbytes", {"load_in_4bit": True}),
        ("gptq", "gptqmodel", {"bits": 4, "group_size": 128}),
        ("awq", "gptqmodel", {"bits": 4, "group_size": 128, "version": "gemm"}),
    ],
)
def test_a_quantiser_that_is_not_installed_is_named(whole, tmp_path, method, library, how):
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    shutil.copytree(whole["lm"][1], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **how}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceNotFound, match=rf"(?i){method}"):
        FrozenLM.load(str(tmp_path / "model"))


def save_gguf(path, tensors, split=None):
    """A GGUF file of a tiny Llama, or a part of one: its number and how many there are."""
    gguf = pytest.importorskip("gguf")
    reads = tokenizer()
    words = sorted(reads.get_vocab(), key=reads.get_vocab().get)
    merges = json.loads(reads.backend_tokenizer.to_str())["model"]["merges"]
    file = gguf.GGUFWriter(path, "llama")
    if split is None or split[0] == 0:
        file.add_name("tiny")
        file.add_context_length(128)
        file.add_embedding_length(32)
        file.add_block_count(2)
        file.add_feed_forward_length(48)
        file.add_head_count(4)
        file.add_head_count_kv(4)
        file.add_layer_norm_rms_eps(1e-5)
        file.add_vocab_size(len(words))
        file.add_tokenizer_model("gpt2")
        file.add_token_list(words)
        file.add_token_types([3] * 3 + [1] * (len(words) - 3))
        file.add_token_merges([" ".join(pair) for pair in merges])
        file.add_bos_token_id(1)
        file.add_eos_token_id(2)
    if split:
        file.add_uint16("split.no", split[0])
        file.add_uint16("split.count", split[1])
        file.add_int32("split.tensors.count", 20)
    for name, tensor in tensors.items():
        file.add_tensor(name, tensor.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@pytest.fixture
def of_gguf(tmp_path, monkeypatch):
    """The tensors of a tiny Llama by their names in GGUF files; conversions go into a cache of their own."""
    monkeypatch.setenv("SHOULDERS_CACHE", str(tmp_path / "cache"))
    vocabulary = len(tokenizer().get_vocab())
    shapes = {
        "attn_norm": (32,), "attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32),
        "ffn_norm": (32,), "ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48),
    }  # fmt: skip
    blocks = {f"blk.{block}.{name}.weight": shape for block in range(2) for name, shape in shapes.items()}
    every = {"token_embd.weight": (vocabulary, 32), "output_norm.weight": (32,), **blocks}
    return {name: torch.randn(shape) for name, shape in every.items()}


def test_a_split_gguf_is_the_whole_one_and_a_missing_part_is_named(tmp_path, of_gguf):
    save_gguf(tmp_path / "whole.gguf", of_gguf)
    whole = FrozenLM.load(str(tmp_path / "whole.gguf"), dtype="float32", device="cpu")
    names, parts = list(of_gguf), [tmp_path / f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, some in enumerate((names[:1], names[1:12], names[12:])):
        save_gguf(parts[number], {name: of_gguf[name] for name in some}, (number, 3))
    split = FrozenLM.load(str(parts[1]), dtype="float32", device="cpu")
    assert split.fingerprint() == whole.fingerprint()
    assert split.ids("Name a planet.") == whole.ids("Name a planet.")
    assert locate(str(parts[0])) == locate(str(parts[2]))
    os.rename(parts[1], tmp_path / "elsewhere.gguf")
    with pytest.raises(SourceNotFound, match=r"m-00003-of-00003\.gguf is one of the 3 parts .* m-00002-of-00003\.gguf"):
        locate(str(parts[2]))
    shutil.copy(parts[0], parts[1])
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CorruptFile, match=r"token_embd\.weight"):
        locate(str(parts[0]))
    with pytest.raises(UsageError, match="elsewhere"):
        locate(str(tmp_path / "elsewhere.gguf"))


def test_a_gguf_without_some_of_its_tensors_is_refused_by_name(tmp_path, of_gguf):
    del of_gguf["blk.1.ffn_up.weight"]
    save_gguf(tmp_path / "part.gguf", of_gguf)
    with pytest.raises(CorruptFile, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        locate(str(tmp_path / "part.gguf"))


def test_a_head_that_is_not_tied_has_to_be_there(tmp_path):
    LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=False)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(CorruptFile, match=r"of a LlamaForCausalLM: lm_head\.weight is missing"):
        FrozenLM.load(str(tmp_path))
