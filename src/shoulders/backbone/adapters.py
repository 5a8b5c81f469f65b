"""Adapters of PEFT: LoRA inside a copy of the backbone, a prefix before a text in every layer. Needs PEFT."""

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import PassMemory
from shoulders.backbone.sources import locate
from shoulders.errors import CorruptFile, SourceNotFound, UsageError, first_line

CONFIG = "adapter_config.json"  # PEFT's own names
ALL_LINEAR = "all-linear"
LORA, PREFIX, FULL = "lora", "prefix_tuning", "full"  # kinds of rivals; those of all weights need no adapter


def peft_library() -> Any:
    """PEFT, or how to get it.

    Raises:
        SourceNotFound: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise SourceNotFound("LoRA and prefix tuning are PEFT's: pip install 'shoulders[rivals]'") from None
    return peft


def add_lora(lm: FrozenLM, rank: int, alpha: float, targets: tuple[str, ...]) -> Any:
    """Put adapters into the linear layers of a model, which changes it; returns PEFT's model around it.

    They start as nothing (B = 0), in fp32 whatever the type of the model. Source: Hu et al. 2022, section 4.1.

    Args:
        targets: names of layers; `ALL_LINEAR` for all but the output matrix (Dettmers et al. 2023, section 4).

    Raises:
        UsageError: the model has no such layers.
    """
    peft = peft_library()
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,
        target_modules=ALL_LINEAR if targets == (ALL_LINEAR,) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in lm.model.modules()),
    )
    try:
        adapted = peft.get_peft_model(lm.model, config)
    except ValueError as error:
        raise UsageError(f"rival.targets={','.join(targets)} does not fit {lm.name!r}: {first_line(error)}") from error
    config.base_model_name_or_path = _named(lm)
    return adapted


def _named(lm: FrozenLM) -> str:
    """What PEFT and transformers find the model by: packages are ours, and a relative path would not stay true."""
    found = locate(lm.name)
    return str(Path(found).resolve()) if Path(found).exists() else found


def add_prefix(lm: FrozenLM, length: int) -> Any:
    """PEFT's model with a prefix of so many positions; the model itself is not changed.

    Raises:
        UsageError: PEFT cannot put a prefix before this model, or some of its layers would lose sight of it.
    """
    if any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=lm.config).layers):
        # Shorter texts of a batch are padded between the prefix and themselves.
        raise UsageError(f"{lm.name!r} has layers that see a window of the text, and padding would push the prefix out")
    peft = peft_library()
    config = peft.PrefixTuningConfig(task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=length)
    try:
        adapted = peft.get_peft_model(lm.model, config)
        with torch.no_grad():
            found = PassMemory(adapted.get_prompt(1))
            found.seen = length
            lm.states(lm.embed(torch.zeros(1, 1, dtype=torch.long, device=lm.device)), memory=found)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UsageError(f"PEFT has no prefix tuning for {lm.name!r}: {first_line(error)}") from error
    config.base_model_name_or_path = _named(lm)
    return adapted


def read_adapter(lm: FrozenLM, folder: Path) -> Any:
    """PEFT's model with the adapter it saved in a folder; LoRA changes the model.

    Raises:
        CorruptFile: they cannot be read, or are not those of this model.
    """
    peft = peft_library()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # they are refused below
            adapted = peft.PeftModel.from_pretrained(lm.model, str(folder))
        saved, wanted = peft.utils.load_peft_weights(str(folder), "cpu"), peft.get_peft_model_state_dict(adapted)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError, UnpicklingError) as error:
        raise CorruptFile(f"{folder} holds no adapter for {lm.name!r}: {first_line(error)}") from error
    if wrong := sorted(set(saved) ^ set(wanted)):
        raise CorruptFile(
            f"{folder} holds no whole adapter for {lm.name!r}: {wrong[0]} is "
            f"{'not its own' if wrong[0] in saved else 'missing'}, of {len(wrong)} tensors that do not fit"
        )
    return adapted
