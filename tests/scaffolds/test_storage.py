import json
import resource
import signal
import textwrap

import pytest
import torch

from processes import process
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import encode, question_batch
from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound, UnknownName, UsageError, WrongBackbone
from shoulders.records import Placement
from shoulders.scaffolds.base import KINDS, Bare, Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from toys import layered

SMALL = InputPromptShape(length=5, encoder_length=3, head_width=8, base=True)


@pytest.fixture
def prompt(lm) -> SoftPrompt:
    return SoftPrompt(from_vocabulary(lm)(5), Placement.SUFFIX).made_for(lm, {"name": "r"}, {"average": 1.0})


@torch.no_grad()
def test_saved_and_loaded_is_unsaved(lm, tiny_encoder, questions, tmp_path):
    """Bit for bit, for every kind."""
    made = [
        Bare(),
        SoftPrompt(from_vocabulary(lm)(5), Placement.SUFFIX),
        InputPrompt(tiny_encoder("t5"), lm, SMALL, norm=2.0, start=from_vocabulary(lm)(5)),
        InputPrompt(lm, lm, InputPromptShape(length=4, encoder_length=2, head_width=8), norm=0.5),
        Recursion(lm, RecursionShape(passes=3, after=True, residual=True), SoftPrompt(from_vocabulary(lm)(5))),
        DeepPrompt.new(DeepPrompt.Config(length=3, trained_layers=(0, 2), sinks=1), lm),
        *layered(lm, tiny_encoder).values(),
    ]
    assert {one.kind for one in made} == set(KINDS.built_in)
    for number, scaffold in enumerate(made):
        for weight in scaffold.parameters():
            weight.add_(torch.randn_like(weight))
        folder = tmp_path / str(number)
        scaffold.eval().made_for(lm, {"name": "recipe"}, {"average": 12.5}).save_pretrained(folder)
        again = Scaffold.load(folder, lm)
        given = question_batch([encode(question, lm) for question in questions], lm, scaffold)
        assert torch.equal(again.states(lm, given), scaffold.states(lm, given))
        assert again.origin == scaffold.origin
        assert not any(path.suffix in {".bin", ".pt", ".pkl"} for path in folder.iterdir())
        assert Scaffold.from_pretrained(folder, lm=lm).kind == scaffold.kind


def test_the_folder_says_what_it_is(lm, prompt, tmp_path):
    prompt.save_pretrained(tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert config["backbone"] == {"name": lm.name, "fingerprint": lm.fingerprint(), "width": lm.width}
    assert config["recipe"] == {"name": "r"}
    assert config["scores"] == {"average": 1.0}
    assert set(config["versions"]) == {"shoulders", "torch", "transformers"}
    assert lm.fingerprint() in (tmp_path / "s" / "README.md").read_text()


def test_another_backbone_is_refused(lm, tiny_lm, prompt, tmp_path):
    prompt.save_pretrained(tmp_path / "s")
    with pytest.raises(WrongBackbone, match=r"fingerprint .* has other weights \(fingerprint"):
        Scaffold.load(tmp_path / "s", tiny_lm("qwen2"))
    with pytest.raises(WrongBackbone, match=r"of width 32; .* has width 24"):
        Scaffold.load(tmp_path / "s", tiny_lm("opt"))


def test_the_same_weights_in_another_type_are_the_same_backbone(tiny_lm, prompt, tmp_path):
    prompt.save_pretrained(tmp_path / "s")
    assert Scaffold.load(tmp_path / "s", tiny_lm("llama", "bfloat16")).length == 5


def test_another_encoder_is_refused(lm, tiny_encoder, tmp_path):
    encoder = tiny_encoder("bert")
    InputPrompt(encoder, lm, SMALL).made_for(lm).save_pretrained(tmp_path / "s")
    config = tmp_path / "s" / "config.json"
    config.write_text(config.read_text().replace(encoder.name, tiny_encoder("roberta").name))
    with pytest.raises(WrongBackbone, match=r"encoder .* other weights"):
        Scaffold.load(tmp_path / "s", lm)


def test_a_scaffold_without_a_backbone_is_not_saved(lm, tmp_path):
    with pytest.raises(UsageError, match=r"call scaffold\.around\(lm\) first"):
        SoftPrompt(from_vocabulary(lm)(2)).save_pretrained(tmp_path / "s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing", "other shape"])
def test_broken_weights_are_named(lm, prompt, tmp_path, damage):
    folder = tmp_path / "s"
    prompt.save_pretrained(folder)
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "garbage":
        weights.write_bytes(b"\x80\x04 this was a pickle")
    elif damage == "missing":
        weights.unlink()
    else:
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"length": 5', '"length": 6'))
    with pytest.raises(CorruptFile, match=str(folder)):
        Scaffold.load(folder, lm)


def test_broken_or_newer_configurations_are_named(lm, prompt, tmp_path):
    folder = tmp_path / "s"
    prompt.save_pretrained(folder)
    config = folder / "config.json"
    whole = config.read_text()
    for text, error in (
        (whole[:-20], CorruptFile),
        (whole.replace('"format": 2', '"format": 99'), CorruptFile),
        (whole.replace('"backbone"', '"back"'), CorruptFile),
        (whole.replace("soft_prompt", "hard_prompt"), UnknownName),
    ):
        config.write_text(text)
        with pytest.raises(error):
            Scaffold.load(folder, lm)


def test_the_hubs_arguments_reach_the_hub(lm, monkeypatch, tmp_path, prompt):
    prompt.save_pretrained(tmp_path / "s")
    asked = {}
    monkeypatch.setattr(
        "shoulders.scaffolds.storage.snapshot_download", lambda _, **how: asked.update(how) or tmp_path / "s"
    )
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **_: str(tmp_path / "s" / "config.json"))
    how = {"token": "t", "cache_dir": tmp_path, "local_files_only": True, "force_download": True, "revision": "v1"}
    SoftPrompt.from_pretrained("me/prompt", lm=lm, **how)
    assert {name: asked[name] for name in how} == how


def test_from_pretrained_needs_the_model_and_gives_its_own_kind(lm, prompt, tmp_path):
    prompt.save_pretrained(tmp_path / "s")
    with pytest.raises(UsageError, match=r"needs its frozen model: SoftPrompt\.from_pretrained\(.*, lm=lm\)"):
        SoftPrompt.from_pretrained(tmp_path / "s")
    with pytest.raises(UsageError, match="kind 'soft_prompt', not 'input_prompt'"):
        InputPrompt.from_pretrained(tmp_path / "s", lm=lm)
    assert isinstance(Scaffold.from_pretrained(tmp_path / "s", lm=lm), SoftPrompt)


def test_nothing_there(lm, tmp_path):
    with pytest.raises(SourceNotFound, match="no scaffold"):
        Scaffold.load(tmp_path, lm)
    with pytest.raises(SourceNotFound, match="no scaffold folder"):
        Scaffold.load(tmp_path / "nowhere", lm)


def test_other_peoples_files_are_not_replaced(prompt, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SaveFailed, match="contains other files"):
        prompt.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_keeps_the_old_scaffold(lm, prompt, tmp_path):
    folder = tmp_path / "s"
    prompt.save_pretrained(folder)
    larger = SoftPrompt(torch.ones(2000, lm.width)).made_for(lm)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing on is an error, not the end
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(SaveFailed, match="is as it was before"):
            larger.save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert Scaffold.load(folder, lm).length == 5
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("moment", ["atomic_folder", "rename"])
def test_a_process_killed_while_saving_keeps_the_old_scaffold(lm, prompt, tmp_path, moment):
    """Killed before anything is in place, and between the two renames."""
    folder = tmp_path / "s"
    prompt.save_pretrained(folder)
    code = """
        import os, signal, torch
        import shoulders.store.files as files
        from shoulders import FrozenLM, SoftPrompt
        model, folder, moment = arguments
        lm = FrozenLM.load(model, dtype="float32", device="cpu")
        larger = SoftPrompt(torch.ones(9, lm.width)).made_for(lm)
        calls = 0
        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        rename = os.rename
        def second(old, new):
            global calls
            calls += 1
            die() if calls == 2 else rename(old, new)
        if moment == "rename":
            files.os.rename = second
        else:
            files.write_json = die
            import shoulders.scaffolds.storage as storage
            storage.write_json = die
        larger.save_pretrained(folder)
    """
    with process(textwrap.dedent(code), lm.name, folder, moment) as (running, _):
        running.join()
        assert running.exitcode == -signal.SIGKILL
    assert Scaffold.load(folder, FrozenLM.load(lm.name, dtype="float32", device="cpu")).length == 5
