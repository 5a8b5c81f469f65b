"""Backbones that are spread over devices, memory and disk: the same results, layer by layer, and what is refused."""

import json

import pytest
import torch

import shoulders
from shoulders import Answering, FrozenLM, Question, Recursion, RecursionShape, SoftPrompt
from shoulders.backbone.caches import PassMemory
from shoulders.backbone.checkpointing import streamed
from shoulders.backbone.passes import layers_of
from shoulders.backbone.placing import entrance
from shoulders.engine.batches import encode, training_batch
from shoulders.engine.inference import answer
from shoulders.errors import SaveFailed, SourceNotFound, UnknownName, UsageError
from shoulders.runs.cost import saved_bytes
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.low_rank import LowRank

PAIRS = [("Capital of France?", "Paris"), ("Capital of Italy?", "Rome"), ("Two plus two is", "four")]
MAPS = {
    "every layer": "disk",
    "one layer and the embeddings": json.dumps({"model.layers.1": "disk", "model.embed_tokens": "disk"}),
    "parts of a layer": {"model.layers.0.mlp": "disk", "model.layers.2": "cpu"},
    "whatever fits": "auto",
}


def loaded(lm, device_map="", **how):
    return FrozenLM.load(lm.name, dtype="float32", device="cpu", device_map=device_map, **how)


def scaffolds(lm, tiny_encoder):
    tiny_encoder("t5")  # made from a seed of its own
    torch.manual_seed(0)
    shape = InputPromptShape(length=3, encoder_length=2, layers=1, head_width=8)
    yield SoftPrompt.from_vocabulary(lm, length=3)
    yield SoftPrompt.from_vocabulary(lm, length=3, placement="suffix")
    yield InputPrompt(lm, lm, shape)
    yield InputPrompt(tiny_encoder("t5"), lm, shape)
    yield Recursion(lm, RecursionShape(layers=1))
    yield DeepPrompt.from_vocabulary(lm, length=3)
    yield LowRank.new(LowRank.Config(rank=2), lm)


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_losses_trained_weights_and_answers_are_those_of_the_model_in_one_place(lm, tiny_encoder, device_map):
    placed = loaded(lm, device_map)
    assert (placed.device, placed.fingerprint(), placed.checksum()) == (lm.device, lm.fingerprint(), lm.checksum())
    both = [list(scaffolds(model, tiny_encoder)) for model in (lm, placed)]  # each from its own seed
    for one, other in zip(*both, strict=True):
        runs = [
            shoulders.train(scaffold, model, PAIRS, steps=2, batch_size=3, progress=False)
            for scaffold, model in ((one, lm), (other, placed))
        ]
        assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-6)
        for weight, same in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(weight, same, rtol=1e-5, atol=1e-6)
        asked = [Question("Capital of Italy?"), Question("Two plus two is")]
        found = [
            answer(asked, model, run.scaffold, Answering(longest=4))
            for run, model in zip(runs, (lm, placed), strict=True)
        ]
        assert found[0] == found[1]
    assert placed.checksum() == lm.checksum()


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2", "opt", "mixtral"])
def test_families_are_streamed_from_disk(tiny_lm, tmp_path, family):
    """Mixtral's checkpoint has its experts apart: they are written into the folder as the model has them."""
    lm = tiny_lm(family)
    placed = loaded(lm, "disk", offload=str(tmp_path / "there"))
    assert streamed(placed.model)
    one, other = (SoftPrompt.from_vocabulary(model, length=3) for model in (lm, placed))
    runs = [
        shoulders.train(scaffold, model, PAIRS, steps=2, batch_size=3, progress=False)
        for scaffold, model in ((one, lm), (other, placed))
    ]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-6)
    assert placed.fingerprint() == lm.fingerprint()


def test_no_layer_is_held_for_the_backward_pass(lm):
    placed = loaded(lm, "disk")
    prompt = SoftPrompt.from_vocabulary(placed, length=3)
    batch = training_batch([encode(Question("Capital of France?"), placed, "Paris")], placed, prompt)
    kept_weights = [*placed.model.parameters(), *placed.model.buffers(), prompt.prompt]
    with saved_bytes([one for one in kept_weights if not one.is_meta]) as kept:
        loss = placed.loss(prompt.states(placed, batch.given), batch.labels)
        layers = sum(weight.nbytes for weight in layers_of(lm.model, lm.config).parameters())
        assert kept() < layers / 2
    loss.backward()
    assert all(weight.is_meta for weight in layers_of(placed.model, placed.config).parameters())


def test_a_half_written_folder_is_written_again_with_a_word(tiny_lm, tmp_path, monkeypatch):
    lm, folder = tiny_lm("mixtral"), tmp_path / "there"

    def stopped(*_, **__):
        (folder / "model.layers.0.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shoulders.backbone.frozen.load_whole", stopped)
        with pytest.raises(KeyboardInterrupt):
            loaded(lm, "disk", offload=str(folder))
    with pytest.warns(UserWarning, match=r"backbone.offload=.*there was only written in part, and is written again"):
        loaded(lm, "disk", offload=str(folder))
    written = sorted(folder.glob("*mlp*.safetensors"))
    written[0].write_bytes(written[0].read_bytes()[:40])
    written[-1].unlink()
    assert loaded(lm, "disk", offload=str(folder)).checksum() == lm.checksum()


def test_bad_places_are_refused_in_one_line(lm, tiny_lm, tmp_path):
    with pytest.raises(UsageError, match=r"puts 'model.layers.1' on 'cuda:7', which cannot be used here"):
        loaded(lm, '{"model.layers.1": "cuda:7"}')
    with pytest.raises(UnknownName, match=r"no module \(backbone.device_map\) called 'model.layer': did you mean"):
        loaded(lm, {"model.layer": "disk"})
    with pytest.raises(UsageError, match="is neither auto, disk nor JSON"):
        loaded(lm, "{model.layers: disk}")
    with pytest.raises(UsageError, match="does not name a device for each module"):
        loaded(lm, '["disk"]')
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed, match=r"backbone.offload=.*file.* cannot be written"):
        loaded(lm, "disk", offload=str(tmp_path / "file"))
    with pytest.raises(SourceNotFound, match="offload_folder"):
        loaded(tiny_lm("mixtral"), "disk")
    with pytest.raises(
        UsageError, match=r"keeps all weights on accelerators or all in memory, and backbone.device_map"
    ):
        loaded(lm, "disk", quantize="nf4")
    streaming = loaded(lm, "disk")
    with pytest.raises(UsageError, match="cannot be copied from weights that are streamed in"):
        Recursion(streaming, RecursionShape(layers=1, copied=True))


def test_a_folder_alone_places_what_does_not_fit(lm, tmp_path):
    placed = loaded(lm, offload=str(tmp_path / "there"))
    assert placed.fingerprint() == lm.fingerprint()
    assert entrance(placed.model) == torch.device("cpu")


def test_keys_and_values_follow_each_layer_to_its_device(lm):
    """A second device is not here: the one without values stands for it."""
    known = lm.keys_values(torch.ones(1, 3, dtype=torch.long))
    cache = PassMemory.holding(known, 3, None).cache_for(lm.config)
    new = known.layers[1][0][:, :, :1].to("meta")
    keys, values = cache.update(new, new, 1)
    assert (keys.is_meta, values.is_meta, keys.shape[-2]) == (True, True, 4)
    assert not cache.layers[0].keys.is_meta
