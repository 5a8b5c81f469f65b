"""LoRA adapters of PEFT inside a copy of the backbone: put there, saved, found again. Needs PEFT."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.pytorch_utils import Conv1D

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.errors import CorruptFile, SourceNotFound, UsageError, first_line

CONFIG = "adapter_config.json"  # PEFT's own names
ALL_LINEAR = "all-linear"


def peft_library() -> Any:
    """PEFT, or how to get it.

    Raises:
        SourceNotFound: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise SourceNotFound("LoRA and prefix tuning are PEFT's: pip install peft") from None
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


def read_lora(lm: FrozenLM, folder: Path) -> None:
    """Put the adapters that PEFT saved in a folder into a model, which changes it.

    Raises:
        CorruptFile: they cannot be read, or are not those of this model.
    """
    try:
        peft_library().PeftModel.from_pretrained(lm.model, str(folder))
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise CorruptFile(f"{folder} holds no adapter for {lm.name!r}: {first_line(error)}") from error
