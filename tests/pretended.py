"""Devices that are pretended: tensors with real values in memory that say they are elsewhere.

As with CUDA, what meets in one operation has to be on one device. Free are numbers without a dimension, indices in
memory, and copies from one device to the other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from accelerate import dispatch_model
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from shoulders.backbone.encoder import FrozenEncoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import layers_of
from shoulders.backbone.placing import placement

DEVICE, SECOND = torch.device("lazy:0"), torch.device("lazy:1")  # a type that PyTorch knows, and builds without
CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = (aten.copy_.default,)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
# Beside all pointwise operations these take numbers of the other device.
NUMBERS = (aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill_.Tensor, aten.index_fill.int_Tensor)


class Elsewhere(torch.Tensor):
    """A tensor whose `value` is in memory, and whose device is `place`, a pretended one."""

    value: torch.Tensor
    place: torch.device
    storages: dict[int, torch.UntypedStorage] = {}  # of values, by the address of ours, which holds nothing

    @staticmethod
    def __new__(cls, value: torch.Tensor, place: torch.device) -> "Elsewhere":
        with torch.inference_mode(False):  # views of usual tensors are usual ones in inference, too
            made = torch.Tensor._make_wrapper_subclass(
                cls, value.size(), strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
                dispatch_device=True,
            )  # fmt: skip
        made.value, made.place = value, place
        cls.storages[made.untyped_storage()._cdata] = value.untyped_storage()
        return made

    def tolist(self) -> list:
        return self.value.tolist()

    def __repr__(self, **_: object) -> str:
        return f"Elsewhere({self.value})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Traits(NamedTuple):
    """What an operation is: made of others, changing an argument or a view of one, elementwise."""

    composite: bool
    aliases: bool
    mutable: bool
    pointwise: bool


@cache
def _traits(operation: Any) -> _Traits:
    return _Traits(
        torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd"),
        any(one.alias_info is not None for one in (*operation._schema.arguments, *operation._schema.returns)),
        operation._schema.is_mutable,
        torch.Tag.pointwise in operation.tags or operation in NUMBERS,
    )


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if operation is torch.ops.prim.device.default:
        return args[0].place
    traits = _traits(operation)
    if traits.composite:
        with _Pretending():  # in inference such operations arrive whole
            return operation.decompose(*args, **kwargs)
    if operation is aten.set_.source_Storage and isinstance(args[0], Elsewhere):
        args = (args[0], Elsewhere.storages[args[1]._cdata])
    named = kwargs.get("device")
    tensors = [*_tensors((args, kwargs))]
    place = _place(operation, args, tensors) if named is None else _whole(named)
    inner_args, inner_kwargs = args, kwargs
    if any(isinstance(one, Elsewhere) for one in tensors):
        inner_args, inner_kwargs = _mapped((args, kwargs), Elsewhere, lambda one: one.value)
    found = operation(*inner_args, **({**inner_kwargs, "device": CPU} if named is not None else inner_kwargs))
    if place.type != DEVICE.type:
        return found
    found = _mapped(found, torch.Tensor, lambda one: Elsewhere(one, place))
    if traits.aliases and inner_args is not args:
        return return_and_correct_aliasing(operation, args, kwargs, found)
    return found


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, tuple | list | dict):
        for one in values.values() if isinstance(values, dict) else values:
            yield from _tensors(one)


def _mapped(values: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Nested values with those of a kind changed (PyTorch's own function is far slower)."""
    if isinstance(values, kind):
        return change(values)
    if isinstance(values, dict):
        return {name: _mapped(one, kind, change) for name, one in values.items()}
    return type(values)([_mapped(one, kind, change) for one in values]) if isinstance(values, tuple | list) else values


def _place(operation: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> torch.device:
    """The device of an operation's result; an error if its tensors are on two."""
    if operation in COPIES:
        return args[0].device
    bound = tensors
    if operation in INDEXED and isinstance(args[0], Elsewhere):
        bound = [args[0], *(one for one in args[2:3] if one.dim())]
    elif _traits(operation).pointwise:
        changed = args[0] if _traits(operation).mutable else None
        bound = [one for one in tensors if one is changed or one.dim() or isinstance(one, Elsewhere)]
    places = {one.place if isinstance(one, Elsewhere) else CPU for one in bound}
    if len(places) > 1:
        shapes = ", ".join(f"{tuple(one.shape)} on {one.device}" for one in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {operation} got {shapes}")
    return places.pop() if places else CPU


def _whole(name: str | torch.device) -> torch.device:
    """The device of a name, with its number."""
    found = torch.device(name)
    return DEVICE if found == torch.device(DEVICE.type) else found


@contextmanager
def pretended() -> Iterator[torch.device]:
    """A pretended device for the block; it is known to this thread alone."""
    known = torch.is_autocast_enabled
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # tensors of lists reach the mode
    try:
        with (
            _Pretending(),
            mock.patch(f"torch.{DEVICE.type}", SimpleNamespace(), create=True),  # its module, which checkpoints ask for
            mock.patch("torch.is_autocast_enabled", lambda *kind: kind != (DEVICE.type,) and known(*kind)),
        ):
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(before)
        Elsewhere.storages.clear()


def placed(lm: FrozenLM) -> FrozenLM:
    """The same model on the pretended device."""
    return FrozenLM(deepcopy(lm.model).to(DEVICE), lm.tokenizer, lm.name)


def placed_encoder(encoder: FrozenEncoder) -> FrozenEncoder:
    """The same encoder on the pretended device."""
    return FrozenEncoder(deepcopy(encoder.model).to(DEVICE), encoder.tokenizer, encoder.name)


def spread(lm: FrozenLM) -> FrozenLM:
    """The same model with all layers but the first on the second of two pretended devices."""
    layers = layers_of(lm.model, lm.config)
    path = next(name for name, module in lm.model.named_modules() if module is layers)
    given = {f"{path}.{number}": str(SECOND) for number in range(1, len(layers))}
    places = placement(lm.name, lm.name, given, "", DEVICE)["device_map"]
    return FrozenLM(dispatch_model(deepcopy(lm.model), places), lm.tokenizer, lm.name)
