"""Soft prompts to and from PEFT's prompt-tuning folders (adapter_config.json + adapter_model.safetensors)."""

from pathlib import Path

from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import CorruptFile, SourceNotFound, UsageError
from shoulders.files import read_json, read_tensors, whole_folder, write_json, write_tensors
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.scaffolds.weaving import Placement

CONFIG, WEIGHTS, KEY = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"


def to_peft(prompt: Scaffold, lm: FrozenLM, folder: Path) -> None:
    """Write a prompt as an adapter that `PeftModel.from_pretrained` loads.

    Raises:
        UsageError: it is no soft prompt, or its placement is not the prefix, the only one PEFT has.
    """
    if not isinstance(prompt, SoftPrompt):
        raise UsageError(f"a scaffold of kind {prompt.kind} is no soft prompt, and PEFT's prompt tuning knows no other")
    if prompt.placement is not Placement.PREFIX:
        raise UsageError(f"PEFT places prompts before the text only; this one is a {prompt.placement.value}")
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.name,
        "num_virtual_tokens": prompt.length,
        "token_dim": lm.width,
        "num_transformer_submodules": 1,
        "num_layers": lm.config.num_hidden_layers,
        "num_attention_heads": lm.config.num_attention_heads,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    with whole_folder(folder, CONFIG) as scratch:
        write_json(scratch / CONFIG, config)
        write_tensors(scratch / WEIGHTS, {KEY: prompt.prompt.detach()})


def from_peft(folder: Path) -> SoftPrompt:
    """The prompt of a PEFT prompt-tuning adapter.

    Raises:
        SourceNotFound: there is no adapter in the folder.
        UsageError: the adapter is of another method.
        CorruptFile: its files are broken.
    """
    if not (folder / CONFIG).exists():
        raise SourceNotFound(f"there is no PEFT adapter in {folder}: {CONFIG} is missing")
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "PROMPT_TUNING":
        raise UsageError(f"{folder} holds a PEFT adapter of type {config.get('peft_type')}, not PROMPT_TUNING")
    weights = read_tensors(folder / WEIGHTS)
    if KEY not in weights:
        raise CorruptFile(f"{folder / WEIGHTS} has no tensor {KEY!r}")
    return SoftPrompt(weights[KEY])
