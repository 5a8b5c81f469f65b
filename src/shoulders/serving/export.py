"""What a vLLM server without this library needs to serve a trained model: a folder with a README."""

import shutil
from pathlib import Path

import torch

from shoulders.answering.models import ModelInfo, RivalInfo, model_info
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UsageError
from shoulders.scaffolds.low_rank import LowRank
from shoulders.scaffolds.peft import CONFIG, LORA, WEIGHTS, source_of, write_adapter
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.serving import vllm_ask
from shoulders.store.files import atomic_folder, read_json, write_json, write_tensors

DESCRIPTION, VECTORS, TOKENIZER = "vllm.json", "vectors.safetensors", "tokenizer.json"

PROMPT = """# A soft prompt of {length} vectors for `{backbone}`

    vllm serve {backbone} --enable-prompt-embeds
    pip install openai safetensors tokenizers torch
    python ask.py "What is the capital of France?"

`ask.py` sends the token embeddings of a question with the prompt in its place ({placement}); `{vectors}` holds both.
The answer is what `shoulders ask` gives, greedily and without penalties, which vLLM counts wrongly for embedded text.

**Only for clients that you trust.** vLLM opens what they send as a PyTorch file, and one request with a NaN spoils the
answers to all later ones. `shoulders serve --engine vllm` takes text and keeps the vectors on the server.
"""

ADAPTER = """# LoRA adapter for `{backbone}`

    vllm serve {backbone} --enable-lora --max-lora-rank {rank} --lora-modules {name}={folder}

Then ask the model `{name}`. A question is worded `{wording}`.
"""


def export_for_vllm(name: str, target: Path, backbone: str | None = None) -> None:
    """Write a folder with what vLLM needs to serve a soft prompt or a LoRA adapter.

    Args:
        name: folder of a run, scaffold or rival, or hub name.
        target: the folder, new or written by an earlier export.
        backbone: name of the frozen model, if not the one recorded with the scaffold.

    Raises:
        UsageError: vLLM alone cannot serve such a model.
        SourceNotFound, HubUnreachable, CorruptFile, WrongBackbone: it cannot be loaded.
        SaveFailed: the folder cannot be written.
    """
    info = model_info(name)
    if info.rival:
        _export_adapter(info, info.rival, backbone or info.backbone, target)
        return
    lm = FrozenLM.load(backbone or info.backbone)
    scaffold = info.load(lm).scaffold
    if isinstance(scaffold, LowRank):
        with atomic_folder(target, DESCRIPTION) as scratch:
            write_adapter(scaffold, lm, scratch)
            _write_about_adapter(info, lm.name, scratch, target)
        return
    if not isinstance(scaffold, SoftPrompt):
        raise UsageError(
            f"vLLM alone serves soft prompts and low-rank updates, and {name} is a scaffold of kind {scaffold.kind!r}: "
            f"serve it with shoulders serve {name} (--engine vllm, if that has it)"
        )
    _export_prompt(info, scaffold, lm, target)


@torch.no_grad()
def _export_prompt(info: ModelInfo, scaffold: SoftPrompt, lm: FrozenLM, target: Path) -> None:
    described = {"backbone": source_of(lm.name), "wording": info.spec.wording, "placement": scaffold.placement.value}
    table = lm.embed(torch.arange(lm.vocabulary, device=lm.device))
    with atomic_folder(target, DESCRIPTION) as scratch:
        lm.tokenizer.save_pretrained(scratch)
        for path in [*scratch.iterdir()]:
            if path.name != TOKENIZER:
                path.unlink()
        if not (scratch / TOKENIZER).exists():
            raise UsageError(f"the tokenizer of {lm.name!r} has no fast form ({TOKENIZER}), which the export needs")
        write_json(scratch / DESCRIPTION, {**described, "length": scaffold.length, "end": lm.tokenizer.eos_token_id})
        write_tensors(scratch / VECTORS, {"prompt": scaffold.prompt.data, "embeddings": table})
        shutil.copyfile(vllm_ask.__file__, scratch / "ask.py")
        about = {"length": scaffold.length, "placement": scaffold.placement.value, "vectors": VECTORS}
        (scratch / "README.md").write_text(PROMPT.format(backbone=source_of(lm.name), **about), encoding="utf-8")


def _export_adapter(info: ModelInfo, rival: RivalInfo, backbone: str, target: Path) -> None:
    if rival.kind != LORA:
        raise UsageError(
            f"vLLM alone serves soft prompts and low-rank updates, {info.name} was trained by {rival.kind!r}: serve "
            f"it with shoulders serve {info.name}"
        )
    with atomic_folder(target, DESCRIPTION) as scratch:
        for file in (CONFIG, WEIGHTS):
            shutil.copyfile(rival.folder / file, scratch / file)
        _write_about_adapter(info, backbone, scratch, target)


def _write_about_adapter(info: ModelInfo, backbone: str, scratch: Path, target: Path) -> None:
    """Write the description of an adapter and how it is served beside its files."""
    about = {"backbone": source_of(backbone), "wording": info.spec.wording}
    write_json(scratch / DESCRIPTION, about)
    named = {"rank": read_json(scratch / CONFIG)["r"], "name": target.name, "folder": target}
    (scratch / "README.md").write_text(ADAPTER.format(**about, **named), encoding="utf-8")
