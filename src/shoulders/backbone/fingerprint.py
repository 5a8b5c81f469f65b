"""Two hashes over a model's weights: one identifies the model, one proves that no bit of it has changed."""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.integrations.accelerate import load_offloaded_parameter

PACKED = (".weight", ".SCB")  # beginnings of the names of what a quantised layer keeps in place of its weight


def identity(model: nn.Module, replaced: Mapping[str, str] | None = None) -> str:
    """Return a hash over the saved weights that is the same on every device, in fp32 and in bf16.

    Floating-point weights are rounded to bf16 first. A model loaded in fp16 has the same hash only if it was saved in
    bf16 or fp16: an fp32 weight that is rounded twice may differ from one that is rounded once.

    Args:
        replaced: the lines (`line`) of weights that have been quantised since they were read, by name.
    """
    replaced = replaced or {}
    owners = {owner(name) for name in replaced}
    held = {name: tensor for name, tensor in model.state_dict().items() if owner(name) not in owners}
    return _digest([*_lines(held, lambda name: line(name, _held(model, name, held[name]))), *replaced.values()])


def line(name: str, tensor: Tensor) -> str:
    """Return what the identity of a model takes in of one of its weights."""
    return _line(name, tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor)


def checksum(model: nn.Module) -> str:
    """Return a hash over every bit of every weight and buffer, those that describe quantised weights among them."""
    described = {name: part for name, part in model.state_dict().items() if _describes(name)}
    held = {**described, **dict(model.named_parameters()), **dict(model.named_buffers())}
    for alias in getattr(model, "all_tied_weights_keys", ()):  # a shared weight that is streamed in is there twice
        held.pop(alias, None)
    return _digest(_lines(held, lambda name: _line(name, _held(model, name, held[name]))))


def of_files(files: list[Path]) -> str:
    """Return a hash over the tensors in safetensors files, as they are saved."""

    def read(name: str) -> str:
        with safe_open(places[name], framework="pt") as opened:
            return _line(name, opened.get_tensor(name))

    places: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            places.update(dict.fromkeys(opened.keys(), file))
    return _digest(_lines(places, read))


def owner(name: str) -> str:
    """Return the name of the layer whose weight, or part of a quantised weight, has this name; else the name itself."""
    for part in PACKED:
        name = name.split(part)[0]
    return name


def _describes(name: str) -> bool:
    """Return whether a saved tensor is a part of a quantised weight that is no parameter, such as its scales."""
    return f"{PACKED[0]}." in name or name.endswith(PACKED[1])


def _held(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of a model, read from where it was offloaded to, or gathered from all processes."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return load_offloaded_parameter(model, name) if tensor.is_meta else tensor  # type: ignore[arg-type]


def _lines(names: Mapping[str, object], read: Callable[[str], str]) -> list[str]:
    """Return the line of each name; few at a time, so that not all tensors are held."""
    if any(isinstance(tensor, DTensor) for tensor in names.values()):
        return [read(name) for name in names]  # in all processes in the same order
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets other threads run meanwhile
        return list(pool.map(read, names))


def _line(name: str, tensor: Tensor) -> str:
    if is_traceable_wrapper_subclass(tensor):  # a quantised weight that is made of several tensors
        parts, _ = tensor.__tensor_flatten__()
        return "\n".join(_line(f"{name}.{part}", getattr(tensor, part)) for part in sorted(parts))
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{name} {tuple(tensor.shape)} {hashlib.sha256(raw.data).hexdigest()}"


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
