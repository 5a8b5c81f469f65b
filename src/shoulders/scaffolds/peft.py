"""PEFT's methods around a frozen model (LoRA, prefix tuning) and its format for soft prompts. Needs PEFT."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self, final

import torch
from safetensors import SafetensorError

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import Memory, PassMemory, windows
from shoulders.backbone.sources import locate
from shoulders.errors import CorruptFile, SourceNotFound, UsageError, first_line
from shoulders.records import Placement, ScaffoldInput
from shoulders.scaffolds.base import NO_DATA, Scaffold, ScaffoldConfig, TrainingData
from shoulders.scaffolds.program import Pass, Program
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.store.files import atomic_folder, read_json, read_tensors, write_json, write_tensors

ALL_LINEAR = "all-linear"
LORA, PREFIX, FULL = "lora", "prefix_tuning", "full"  # kinds of rivals; full fine-tuning has no adapter


def peft_library() -> Any:
    """Return the module `peft`.

    Raises:
        SourceNotFound: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise SourceNotFound("LoRA and prefix tuning are PEFT's: pip install 'shoulders[rivals]'") from None
    return peft


def add_lora(lm: FrozenLM, rank: int, alpha: float, targets: tuple[str, ...]) -> Any:
    """Put adapters into the linear layers of a model, which changes it; return PEFT's model around it.

    The adapters start at zero (B = 0), in fp32 whatever the type of the model. Source: Hu et al. 2022, section 4.1.

    Args:
        lm: the frozen model.
        rank: r, the rank of the updates.
        alpha: their scale is alpha / rank.
        targets: names of layers; `ALL_LINEAR` for all but the output head (Dettmers et al. 2023, section 4).

    Raises:
        UsageError: the model has no such layers.
    """
    peft = peft_library()
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,
        target_modules=ALL_LINEAR if targets == (ALL_LINEAR,) else list(targets),
        fan_in_fan_out=lm.transposed,
    )
    try:
        adapted = peft.get_peft_model(lm.model, config)
    except ValueError as error:
        raise UsageError(f"rival.targets={','.join(targets)} does not fit {lm.name!r}: {first_line(error)}") from error
    config.base_model_name_or_path = _source(lm)
    return adapted


def _source(lm: FrozenLM) -> str:
    """Return the name by which PEFT and transformers find the model: an absolute path or a hub id."""
    found = locate(lm.name) if lm.name else ""
    return str(Path(found).resolve()) if found and Path(found).exists() else found


def add_prefix(lm: FrozenLM, length: int) -> Any:
    """Return PEFT's model with a prefix of `length` positions; the frozen model is not changed.

    Raises:
        UsageError: PEFT cannot put a prefix before this model, or the model has sliding windows.
    """
    if any(windows(lm.config)):
        # Shorter texts of a batch have their padding between the prefix and themselves.
        raise UsageError(
            f"{lm.name!r} has layers with a sliding window, and padding would push the prefix out of it: train a soft "
            "prompt, or name another model"
        )
    peft = peft_library()
    config = peft.PrefixTuningConfig(task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=length)
    try:
        adapted = peft.get_peft_model(lm.model, config)
        with torch.no_grad():
            memory = PassMemory(adapted.get_prompt(1))
            memory.seen = length
            lm.states(lm.embed(torch.zeros(1, 1, dtype=torch.long, device=lm.device)), memory=memory)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UsageError(f"PEFT has no prefix tuning for {lm.name!r}: {first_line(error)}") from error
    config.base_model_name_or_path = _source(lm)
    return adapted


def read_adapter(lm: FrozenLM, folder: Path) -> Any:
    """Return PEFT's model with the adapter saved in a folder; LoRA changes the frozen model.

    Raises:
        CorruptFile: the adapter cannot be read, or is not for this model.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTuningConfig(ScaffoldConfig):
    """Values of a prefix in every layer in a recipe.

    Attributes:
        length: number of positions of the prefix.
    """

    kind: str = field(default="prefix_tuning", init=False)
    length: int = 20

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UsageError(f"scaffold.length must be at least 1, got {self.length}: 20 is usual")

    @property
    def taken(self) -> int:
        """Number of positions of the prefix."""
        return self.length


@final
class PrefixTuning(Scaffold, kind="prefix_tuning"):
    """Trained keys and values in every layer, before the text. Source: Li and Liang 2021, without their MLP.

    Args:
        adapted: PEFT's model around the backbone (`add_prefix`, `read_adapter`); not a child.
    """

    label = "prefix tuning"
    Config = PrefixTuningConfig
    usual_rate = 1e-2  # without an MLP: of the order that Liu et al. 2022 (P-Tuning v2) use

    def __init__(self, adapted: Any) -> None:
        super().__init__()
        self.prefix = adapted.prompt_encoder[adapted.active_adapter]
        self.write = adapted.save_pretrained  # in PEFT's own format
        self._keys_and_values = adapted.get_prompt

    @property
    def length(self) -> int:
        """Number of positions of the prefix."""
        return self.prefix.embedding.num_embeddings

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for one pass over the text, with the prefix in every layer's keys and values."""
        one = PassMemory() if memory is None else memory.single
        if not one.seen:
            one.cache, one.seen = self._keys_and_values(given.embeds.shape[0]), self.length
        return (yield Pass(given.embeds, given.mask, one))

    def description(self) -> dict[str, Any]:
        """Return the length."""
        return {"length": self.length}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return a new prefix of the same length."""
        return cls(add_prefix(lm, description["length"]))

    @classmethod
    def new(cls, config: PrefixTuningConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:  # noqa: ARG003
        """Return a prefix that starts as PEFT starts it."""
        return cls(add_prefix(lm, config.length)).around(lm)


CONFIG, WEIGHTS, KEY = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
PICKLE = "adapter_model.bin"  # the file of older versions instead of WEIGHTS
READABLE = (  # adapters that can be read: a field of CONFIG, its meaning, and its values
    ("peft_type", "PROMPT_TUNING", ("PROMPT_TUNING",)),
    ("task_type", "CAUSAL_LM", ("CAUSAL_LM", None)),
    ("num_transformer_submodules", "1", (1, None)),
)


def to_peft(prompt: Scaffold, lm: FrozenLM, folder: Path) -> None:
    """Write a soft prompt as an adapter that `PeftModel.from_pretrained` loads.

    Raises:
        UsageError: it is not a soft prompt, or not a prefix: PEFT has no other.
    """
    if not isinstance(prompt, SoftPrompt):
        raise UsageError(f"a scaffold of kind {prompt.kind} is not a soft prompt, and PEFT's format holds nothing else")
    if prompt.placement is not Placement.PREFIX:
        raise UsageError(f"a prompt in PEFT's format must be a prefix, this one is a {prompt.placement.value}")
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
    with atomic_folder(folder, CONFIG) as scratch:
        write_json(scratch / CONFIG, config)
        write_tensors(scratch / WEIGHTS, {KEY: prompt.prompt.detach()})


def from_peft(folder: Path) -> SoftPrompt:
    """Read the prompt of a PEFT prompt-tuning adapter.

    Raises:
        SourceNotFound: there is no adapter in the folder.
        UsageError: the adapter is for another method or task, or is a pickle.
        CorruptFile: its files are broken, or hold anything but the prompt.
    """
    if not (folder / CONFIG).exists():
        raise SourceNotFound(f"there is no PEFT adapter in {folder}: {CONFIG} is missing")
    config = read_json(folder / CONFIG)
    for key, wanted, known in READABLE:
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
    """Read the name of the model that an adapter was trained around.

    Raises:
        UsageError: it has none; PEFT writes null for a model that was not loaded by a name.
    """
    found = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise UsageError(f"the adapter in {folder} does not name its base model: name it with --backbone")
    return found
