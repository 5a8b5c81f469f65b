"""Placing a model's weights: a map of its modules to devices, to memory and to disk, or shards for several processes.

What lies on disk, or in memory beside an accelerator, is streamed in layer by layer (accelerate's hooks).
"""

import ctypes
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from shoulders.backbone.checkpointing import streamed
from shoulders.backbone.passes import layers_of
from shoulders.errors import SaveFailed, UnknownName, UsageError, first_line
from shoulders.store.files import hub_errors

AUTO, DISK, CPU = "auto", "disk", "cpu"
OPTION = "backbone.device_map"
EXAMPLE = '{"model.layers": "disk"}'

TENSOR, FSDP = "tensor", "fsdp"
PARALLEL = (TENSOR, FSDP)

M_MMAP_THRESHOLD, APART = -3, 1 << 16  # of glibc's `mallopt`: larger pieces of memory are taken and given back alone

COMPLETE = "complete"  # in a folder of offloaded weights: a file that is there once all of them are

DeviceMap = Mapping[str, str | int]


def placement(name: str, folder: str, device_map: str | DeviceMap, offload: str, main: torch.device) -> dict[str, Any]:
    """Return the settings of `from_pretrained` for a map of modules to devices; none for a model on one device.

    Args:
        device_map: "auto" (accelerators first, then memory, then disk), "disk" (all layers there), or devices by module
            ("cuda:0", "cpu", "disk"), as a mapping or in JSON; modules that are not named are on the main device.
        offload: folder for weights on disk that are not as in the checkpoint; with it alone, the map is "auto".
        main: the main device.

    Raises:
        UsageError: it is no map, or names a device that is not there.
        UnknownName: it names a module that the model does not have.
        SaveFailed: the folder cannot be written.
    """
    if not device_map and not offload:
        return {}
    found: dict[str, Any] = {"offload_folder": str(Path(offload).expanduser())} if offload else {}
    if device_map in ("", AUTO):
        return {**found, "device_map": AUTO}
    with hub_errors(name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    given = {_path_of_layers(model): DISK} if device_map == DISK else _read(device_map)
    for key, device in given.items():
        _check(model, key, device)
    places = dict(_complete(model, "", given, str(main)))
    for one, other in model.all_tied_weights_keys.items():  # a weight that two modules share is in one place
        places.update({_module(one): device for key, device in places.items() if key == _module(other)})
    return {**found, "device_map": places}


def _module(weight: str) -> str:
    return weight.rpartition(".")[0]


@contextmanager
def offloading(offload: str) -> Iterator[None]:
    """Make the folder of offloaded weights, which are written meanwhile, whatever lies there; warn if that is a part.

    Raises:
        SaveFailed: the folder cannot be written.
    """
    if not offload:
        yield
        return
    folder = Path(offload).expanduser()
    complete = folder / COMPLETE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("*.safetensors")) and not complete.exists():
            warnings.warn(f"backbone.offload={folder} was only written in part, and is written again", stacklevel=3)
        complete.unlink(missing_ok=True)
    except OSError as error:
        raise SaveFailed(f"backbone.offload={folder} cannot be written ({error}): name another folder") from error
    yield
    complete.touch()


def _read(device_map: str | DeviceMap) -> dict[str, str | int]:
    """Return devices by module."""
    if not isinstance(device_map, str):
        return dict(device_map)
    try:
        found = json.loads(device_map)
    except ValueError as error:
        raise UsageError(
            f"{OPTION}={device_map!r} is neither auto, disk nor JSON ({error}): e.g. {OPTION}='{EXAMPLE}'"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, str | int) for value in found.values()):
        raise UsageError(f"{OPTION}={device_map!r} does not name a device for each module: e.g. {OPTION}='{EXAMPLE}'")
    return found


def _check(model: nn.Module, key: str, device: str | int) -> None:
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    if key not in known:
        raise UnknownName(f"module ({OPTION}) called", key, known)
    if device not in (CPU, DISK):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for the device
            raise UsageError(
                f"{OPTION} puts {key!r} on {device!r}, which cannot be used here ({first_line(error)}): name cpu, disk "
                "or a device of this machine"
            ) from error


def _path_of_layers(model: PreTrainedModel) -> str:
    """Return the name of the module that holds all layers."""
    layers = layers_of(model, model.config.get_text_config(decoder=True))
    return next(name for name, module in model.named_modules() if module is layers)


def _complete(module: nn.Module, path: str, given: DeviceMap, inherited: str | int) -> Iterator[tuple[str, str | int]]:
    """Yield a device for every part of a module: its own, or that of what it is a part of."""
    own = given.get(path, inherited)
    if not any(key != path and key.startswith(f"{path}." if path else "") for key in given):
        yield path, own
        return
    for name, _ in module.named_parameters(recurse=False):
        yield (f"{path}.{name}" if path else name), own
    for name, child in module.named_children():
        yield from _complete(child, f"{path}.{name}" if path else name, given, own)


def give_back_freed(model: PreTrainedModel) -> None:
    """Make this process give back the memory of tensors once they are freed, if a model's layers are streamed in.

    Between what is kept for the backward pass glibc would otherwise keep what each layer freed. Other allocators have
    no such setting.
    """
    if sys.platform == "linux" and streamed(model) and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, APART)


def entrance(model: PreTrainedModel) -> torch.device:
    """Return the device that a model takes its inputs on: that of its input embeddings, wherever other layers are."""
    placed: DeviceMap = getattr(model, "hf_device_map", None) or {}
    if len(set(placed.values())) < 2 and not (placed and streamed(model)):  # looking at every weight takes long
        return model.device
    embeddings = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is embeddings)
    found = placed[max((key for key in placed if f"{path}.".startswith(f"{key}." if key else "")), key=len)]
    if found in (CPU, DISK):
        found = next((device for device in placed.values() if device not in (CPU, DISK)), CPU)
    return torch.device(found)


def shape_only(model: PreTrainedModel) -> bool:
    """Return whether a model has no values."""
    return model.device.type == "meta" and not streamed(model)


def check_parallel(parallel: str, others: Mapping[str, object]) -> None:
    """Check that several processes can share a model's weights.

    Args:
        parallel: "tensor", "fsdp", or empty.
        others: values that exclude it, by name.

    Raises:
        UnknownName: there is no such way.
        UsageError: this is one process, or weights are also placed or quantised.
    """
    if not parallel:
        return
    if parallel not in PARALLEL:
        raise UnknownName("way to share weights (backbone.parallel) called", parallel, PARALLEL)
    if wrong := next((name for name, value in others.items() if value), ""):
        raise UsageError(
            f"backbone.parallel={parallel} shares weights among processes, and backbone.{wrong}={others[wrong]} keeps "
            "them in another way: leave one of the two empty"
        )
    if PartialState().num_processes < 2:
        raise UsageError(
            f"backbone.parallel={parallel} shares weights among processes, and this is one alone: torchrun "
            "--nproc_per_node 2 -m shoulders ..., or accelerate launch --multi_gpu --num_processes 2 (with --cpu it "
            "starts only one), or leave it empty"
        )


def tensor_parallel() -> dict[str, Any]:
    """Return the settings of `from_pretrained` for a model of which every process computes a part of each layer."""
    return {"distributed_config": DistributedConfig(tp_size=PartialState().num_processes)}


def shard_layers(model: PreTrainedModel, main: torch.device) -> PreTrainedModel:
    """Share the weights of the layers among all processes (FSDP2), which gather a layer when it runs.

    Embeddings, norms and the output layer stay whole: they are used outside of the model's own forward.
    """
    mesh = init_device_mesh(main.type, (PartialState().num_processes,))
    for layer in layers_of(model, model.config.get_text_config(decoder=True)):
        # Each is a root of its own, which would stay whole after its forward.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    whole: Any = model
    return whole.to(main)
