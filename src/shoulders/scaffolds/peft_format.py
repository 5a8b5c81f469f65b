"""Soft prompts to and from PEFT's prompt-tuning folders (adapter_config.json + adapter_model.safetensors)."""

from pathlib import Path

from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import CorruptFile, SourceNotFound, UsageError
from shoulders.files import read_json, read_tensors, whole_folder, write_json, write_tensors
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.scaffolds.weaving import Placement

CONFIG, WEIGHTS, KEY = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
PICKLE = "adapter_model.bin"  # what older versions wrote in place of WEIGHTS
KINDS = (  # of the adapters that are read: a field of CONFIG, what it is to be, and what that is written as
    ("peft_type", "PROMPT_TUNING", ("PROMPT_TUNING",)),
    ("task_type", "CAUSAL_LM", ("CAUSAL_LM", None)),
    ("num_transformer_submodules", "1", (1, None)),
)


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
    """Read the prompt of a PEFT prompt-tuning adapter.

    Raises:
        SourceNotFound: there is no adapter in the folder.
        UsageError: the adapter is of another method, for another task, or a pickle.
        CorruptFile: its files are broken, or hold anything else than the prompt.
    """
    if not (folder / CONFIG).exists():
        raise SourceNotFound(f"there is no PEFT adapter in {folder}: {CONFIG} is missing")
    config = read_json(folder / CONFIG)
    for key, wanted, known in KINDS:
        if config.get(key) not in known:
            raise UsageError(
                f"{folder} holds a PEFT adapter of {key.replace('_', ' ')} {config.get(key)}, not {wanted}"
            )
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise UsageError(
            f"{folder / PICKLE} is a pickle, which can run any code and is not opened: load the adapter with a newer "
            f"PEFT and save it again, which writes {WEIGHTS}"
        )
    weights = read_tensors(folder / WEIGHTS)
    wanted, found = (config.get("num_virtual_tokens"), config.get("token_dim")), list(weights)
    if found != [KEY]:
        raise CorruptFile(f"{folder / WEIGHTS} holds {', '.join(sorted(found)) or 'nothing'}, not {KEY} alone")
    shape = tuple(weights[KEY].shape)
    if len(shape) != 2 or any(said not in (None, size) for said, size in zip(wanted, shape, strict=True)):
        raise CorruptFile(
            f"{folder / WEIGHTS} holds {KEY} of shape {shape}, {CONFIG} says {wanted[0]} virtual tokens of width "
            f"{wanted[1]}: save the adapter again"
        )
    return SoftPrompt(weights[KEY])


def base_of(folder: Path) -> str:
    """Read which model an adapter was trained around.

    Raises:
        UsageError: it does not say; PEFT writes null for a model that was not loaded by a name.
    """
    found = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise UsageError(f"the adapter in {folder} does not name its base model: name it with --backbone")
    return found
