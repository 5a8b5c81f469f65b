"""PEFT's LoRA around a model, as a rival (needs PEFT), and its formats for scaffolds (which do not)."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from shoulders.backbone.edits import layer_sizes, linear_layers
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.errors import CorruptFile, SourceNotFound, UsageError, first_line
from shoulders.records import KeysValues, Placement
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt, check_deep, read
from shoulders.scaffolds.low_rank import ALL_LINEAR, LowRank, Scales
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.store.files import atomic_folder, read_json, read_tensors, write_json, write_tensors

LORA, PREFIX, FULL = "lora", "prefix_tuning", "full"  # kinds of rivals; full fine-tuning has no adapter


def peft_library() -> Any:
    """Return the module `peft`.

    Raises:
        SourceNotFound: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise SourceNotFound("LoRA as a rival is PEFT's: pip install 'shoulders[rivals]'") from None
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


CONFIG, WEIGHTS, KEY = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
PICKLE = "adapter_model.bin"  # the file of older versions instead of WEIGHTS
Written = tuple[dict[str, Any], dict[str, Tensor]]  # configuration and weights of an adapter


def to_peft(scaffold: Scaffold, lm: FrozenLM, folder: Path) -> None:
    """Write a prompt, a deep prompt, low-rank updates or factors as an adapter that `PeftModel.from_pretrained` loads.

    Raises:
        UsageError: it is another scaffold, or not a prefix: PEFT has no other.
    """
    with atomic_folder(folder, CONFIG) as scratch:
        write_adapter(scaffold, lm, scratch)


def write_adapter(scaffold: Scaffold, lm: FrozenLM, folder: Path) -> None:
    """Write the files of `to_peft` into an empty folder."""
    if type(scaffold) not in _WRITERS:
        known = ", ".join(kind.kind for kind in _WRITERS)
        raise UsageError(f"PEFT's format holds no scaffold of kind {scaffold.kind}: only {known}")
    if scaffold.placement is not Placement.PREFIX:
        raise UsageError(f"in PEFT's format the placement must be prefix, this one's is {scaffold.placement.value}")
    config, weights = _WRITERS[type(scaffold)](scaffold, lm)
    common = {"task_type": "CAUSAL_LM", "base_model_name_or_path": lm.name, "inference_mode": True}
    write_json(folder / CONFIG, {**common, **config})
    write_tensors(folder / WEIGHTS, {name: weight.detach().clone() for name, weight in weights.items()})


def _write_soft_prompt(prompt: SoftPrompt, lm: FrozenLM) -> Written:
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": prompt.length,
        "token_dim": lm.width,
        "num_transformer_submodules": 1,
        "num_layers": lm.config.num_hidden_layers,
        "num_attention_heads": lm.config.num_attention_heads,
        "prompt_tuning_init": "RANDOM",
    }
    return config, {KEY: prompt.prompt}


def _write_deep_prompt(prompt: DeepPrompt, lm: FrozenLM) -> Written:
    columns = [one() for pair in zip(prompt.keys, prompt.values, strict=True) for one in pair]
    if len({one.shape for one in columns}) > 1:
        raise UsageError(
            f"the layers of {lm.name!r} keep keys and values of different sizes, and PEFT's format one size"
        )
    heads, length, width = columns[0].shape
    config: dict[str, Any] = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "token_dim": heads * width,
        "num_transformer_submodules": 1,
        "num_layers": len(prompt.keys),
        "num_attention_heads": heads,
    }
    if prompt.sinks:
        config |= {"peft_type": "CARTRIDGE", "num_frozen_tokens": prompt.sinks}
    return config, {KEY: torch.stack(columns).permute(2, 0, 1, 3).reshape(length, -1)}


def _write_low_rank(updates: LowRank, lm: FrozenLM) -> Written:
    config = {
        "peft_type": "LORA",
        "r": updates.rank,
        "lora_alpha": updates.scale * updates.rank,
        "target_modules": [_full_name(name, lm) for name in updates.targets],
        "fan_in_fan_out": lm.transposed,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    weights: dict[str, Tensor] = {}
    for name, (down, up) in updates.matrices().items():
        begin = f"{IN_PEFT}{_full_name(name, lm)}"
        weights |= {f"{begin}{LORA_A}": down, f"{begin}{LORA_B}": up}
    return config, weights


def _write_scales(scales: Scales, lm: FrozenLM) -> Written:
    edits = scales.edits(torch.float32).layers
    inputs = {_full_name(name, lm): edit.before[None] for name, edit in edits.items() if edit.before is not None}
    outputs = {_full_name(name, lm): edit.after[:, None] for name, edit in edits.items() if edit.after is not None}
    if both := [name for name in inputs if name in outputs]:
        raise UsageError(f"PEFT's format holds factors of the input or of the output of {both[0]}, not of both")
    config = {
        "peft_type": "IA3",
        "target_modules": [*inputs, *outputs],
        "feedforward_modules": [*inputs],
        "fan_in_fan_out": lm.transposed,
    }
    return config, {f"{IN_PEFT}{name}{IA3_FACTORS}": factors for name, factors in {**inputs, **outputs}.items()}


def from_peft(folder: Path, lm: FrozenLM) -> Scaffold:
    """Read a PEFT adapter as the scaffold that gives the same logits.

    Raises:
        SourceNotFound: there is no adapter in the folder.
        UsageError: the adapter is for another method, task or model, or is a pickle.
        CorruptFile: its files are broken, or hold something else.
    """
    if not (folder / CONFIG).exists():
        raise SourceNotFound(f"there is no PEFT adapter in {folder}: {CONFIG} is missing")
    config = read_json(folder / CONFIG)
    method = str(config.get("peft_type"))
    if method not in _READERS:
        raise _refused(folder, "peft_type", method, ", ".join(_READERS))
    for key, wanted in (("task_type", "CAUSAL_LM"), ("num_transformer_submodules", 1)):
        if config.get(key) not in (wanted, None):
            raise _refused(folder, key, config[key], wanted)
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise UsageError(
            f"{folder / PICKLE} is a pickle, which can run any code and is not opened: load the adapter with a newer "
            f"PEFT and save it again, which writes {WEIGHTS}"
        )
    return _READERS[method](folder, config, read_tensors(folder / WEIGHTS), lm).around(lm)


def _refused(folder: Path, key: str, found: object, wanted: object) -> UsageError:
    return UsageError(f"{folder} holds a PEFT adapter of {key.replace('_', ' ')} {found}, not {wanted}")


def _table(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], width: int | None) -> Tensor:
    """Return the only tensor of a prompt, a row for each position, of the sizes that its configuration says."""
    if list(weights) != [KEY]:
        raise CorruptFile(f"{folder / WEIGHTS} holds {', '.join(sorted(weights)) or 'nothing'}, not {KEY} alone")
    wanted, shape = (config.get("num_virtual_tokens"), width), tuple(weights[KEY].shape)
    if len(shape) != 2 or any(said not in (None, size) for said, size in zip(wanted, shape, strict=True)):
        raise CorruptFile(
            f"{folder / WEIGHTS} holds {KEY} of shape {shape}, {CONFIG} says {wanted[0]} virtual tokens of width "
            f"{wanted[1]}: save the adapter again"
        )
    return weights[KEY]


def _read_soft_prompt(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], lm: FrozenLM) -> Scaffold:
    vectors = _table(folder, config, weights, config.get("token_dim"))
    if vectors.shape[1] != lm.width:
        raise UsageError(
            f"its vectors have width {vectors.shape[1]}, and {lm.name!r} needs {lm.width}: name the adapter's own "
            "model (--backbone)"
        )
    return SoftPrompt(vectors)


def _read_deep_prompt(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], lm: FrozenLM) -> Scaffold:
    numbers = _table(folder, config, weights, None)
    check_deep(lm, len(numbers))
    known = [one.shape for pair in read(lm, [0]).layers for one in pair]
    sizes = [shape[1] * shape[3] for shape in known]
    if numbers.shape[1] != sum(sizes):
        raise UsageError(
            f"its keys and values are {numbers.shape[1]} numbers for each position, and {lm.name!r} needs {sum(sizes)} "
            f"({len(known) // 2} layers of {sizes[0]}): name the adapter's own model (--backbone)"
        )
    parts = [
        part.unflatten(-1, (shape[1], -1)).transpose(0, 1)[None].to(lm.device)
        for part, shape in zip(numbers.split(sizes, dim=-1), known, strict=True)
    ]
    start = KeysValues(tuple(zip(parts[::2], parts[1::2], strict=True)))
    return DeepPrompt(start, lm, sinks=config.get("num_frozen_tokens") or 0)


IN_PEFT, LORA_A, LORA_B, IA3_FACTORS = "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".ia3_l"  # in names
# Values of a LoRA configuration that change what it computes; those that we compute alike.
PLAIN_LORA: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # others change the model's own weights
}


def _read_low_rank(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], lm: FrozenLM) -> Scaffold:
    for key, known in PLAIN_LORA.items():
        if config.get(key) not in known:
            raise _refused(folder, key, config[key], known[0])
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise CorruptFile(f"{folder / CONFIG} says r={rank} and lora_alpha={alpha}: it is no configuration of LoRA")
    found: dict[str, dict[str, Tensor]] = {}
    for key, weight in weights.items():
        name, end = _layer_of(folder, key, (LORA_A, LORA_B), lm)
        inputs, outputs = layer_sizes(linear_layers(lm.model.base_model)[name])
        wanted = (rank, inputs) if end == LORA_A else (outputs, rank)
        if tuple(weight.shape) != wanted:
            raise _another_size(folder, key, weight, wanted, lm)
        found.setdefault(name, {})[end] = weight
    if missing := [name for name, both in found.items() if len(both) < 2] or (not found and ["every layer"]):
        raise CorruptFile(f"{folder / WEIGHTS} holds only one matrix of {missing[0]}, or none: save the adapter again")
    targets = [name for name in linear_layers(lm.model.base_model) if name in found]
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    updates = LowRank(lm, targets, rank, scale)
    with torch.no_grad():
        updates.down.copy_(torch.cat([found[name][LORA_A].flatten() for name in targets]))
        updates.up.copy_(torch.cat([found[name][LORA_B].flatten() for name in targets]))
    return updates


def _read_scales(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], lm: FrozenLM) -> Scaffold:
    if config.get("modules_to_save"):
        raise _refused(folder, "modules_to_save", config["modules_to_save"], None)
    layers = linear_layers(lm.model.base_model)
    after: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    for key, weight in weights.items():
        name, _ = _layer_of(folder, key, (IA3_FACTORS,), lm)
        inputs, outputs = layer_sizes(layers[name])
        of_input = weight.shape[0] == 1
        wanted = (1, inputs) if of_input else (outputs, 1)
        if tuple(weight.shape) != wanted:
            raise _another_size(folder, key, weight, wanted, lm)
        (before if of_input else after)[name] = weight.flatten()
    scales = Scales(lm, [*after], [*before])
    with torch.no_grad():
        for factors, found in ((scales.outputs, after), (scales.inputs, before)):
            factors.copy_(torch.cat([*found.values(), factors.new_empty(0)]))
    return scales


def _layer_of(folder: Path, key: str, ends: Sequence[str], lm: FrozenLM) -> tuple[str, str]:
    """Return the name of the linear layer that a tensor of an adapter belongs to, and the end of the tensor's name.

    Raises:
        UsageError: it belongs to another part of the model, or to a layer that is not there.
    """
    end = next((end for end in ends if key.endswith(end)), "")
    name, body = key.removeprefix(IN_PEFT).removesuffix(end), _body(lm)
    inner = name.removeprefix(body)
    if not end or not name.startswith(body) or inner not in linear_layers(lm.model.base_model):
        raise UsageError(
            f"the adapter in {folder} changes {name}, which is no linear layer of {lm.name!r} below its output head: "
            "name the adapter's own model (--backbone), or train the adapter on linear layers alone"
        )
    return inner, end


def _another_size(folder: Path, key: str, weight: Tensor, wanted: tuple[int, ...], lm: FrozenLM) -> UsageError:
    return UsageError(
        f"{key} of the adapter in {folder} has shape {tuple(weight.shape)}, and {lm.name!r} needs {wanted}: name the "
        "adapter's own model (--backbone)"
    )


def _full_name(name: str, lm: FrozenLM) -> str:
    """Return the name of a layer of the body in the whole model."""
    return f"{_body(lm)}{name}"


def _body(lm: FrozenLM) -> str:
    """Return the beginning of the names of all that is below the output head."""
    body = lm.model.base_model
    return next(f"{name}." if name else "" for name, one in lm.model.named_modules() if one is body)


_WRITERS: Mapping[type[Scaffold], Callable[[Any, FrozenLM], Written]] = {
    SoftPrompt: _write_soft_prompt,
    DeepPrompt: _write_deep_prompt,
    LowRank: _write_low_rank,
    Scales: _write_scales,
}
_READERS: Mapping[str, Callable[..., Scaffold]] = {
    "PROMPT_TUNING": _read_soft_prompt,
    "PREFIX_TUNING": _read_deep_prompt,
    "CARTRIDGE": _read_deep_prompt,
    "LORA": _read_low_rank,
    "IA3": _read_scales,
}


def base_of(folder: Path) -> str:
    """Read the name of the model that an adapter was trained around.

    Raises:
        UsageError: it has none; PEFT writes null for a model that was not loaded by a name.
    """
    found = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise UsageError(f"the adapter in {folder} does not name its base model: name it with --backbone")
    return found
