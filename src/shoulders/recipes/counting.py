"""Counting what PyTorch does: operations, and bytes kept for the backward pass; on the meta device at any scale."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


def counted(run: Callable[[], None]) -> int:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@contextmanager
def kept_bytes(weights: Sequence[Tensor]) -> Iterator[Callable[[], int]]:
    """Bytes of the tensors that autograd keeps for the backward pass, each storage once, the weights' left out."""
    known = {weight.untyped_storage()._cdata for weight in weights}  # noqa: SLF001 (a storage's identity)
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:  # noqa: SLF001
            kept[storage._cdata] = storage  # noqa: SLF001 (held, so that its identity is not given away)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), _AsOnDevices():
        yield lambda: sum(storage.nbytes() for storage in kept.values())


class _AsOnDevices(TorchFunctionMode):
    """A step on the meta device keeps what it keeps on real ones.

    PyTorch attends there by its plain kernel, which keeps the attention matrices: at 1,000 tokens most of all there is.
    And transformers needs a cache there (`passes.read`), whose first extension copies keys and values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].is_meta and any(one.requires_grad for one in args[:3]):
            return _Fused.apply(*args[:3], args[3] if len(args) > 3 else kwargs.get("attn_mask"))
        if func is torch.cat and len(args[0]) == 2 and args[0][0].is_meta and not args[0][0].numel():
            return args[0][1]
        return func(*args, **kwargs)


class _Fused(torch.autograd.Function):
    """Shapes, operations and kept tensors of fused attention: inputs, output, and one number a row of the softmax.

    The operations are those of plain attention: the second computation of the scores, by which a fused kernel saves its
    memory, is no part of the method's work.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rows, heads, length = query.shape[:-1]
        scores = query @ _repeated(key, heads).transpose(-2, -1)
        mixed = scores @ _repeated(value, heads)
        # Kernels write the heads of a position side by side, so that putting them together later is no copy.
        mixed = mixed.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, mask, mixed, query.new_empty(rows, heads, length, dtype=torch.float32))
        return mixed

    @staticmethod
    @once_differentiable
    # The decorator hides the argument names that the base class declares.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (mixed,) = gradients
        query, key, value, *_ = ctx.saved_tensors
        heads = query.shape[1]
        shares = query.new_empty(*query.shape[:-1], key.shape[-2])
        for_query, for_key, for_value = ctx.needs_input_grad[:3]
        if for_query or for_key:
            _ = mixed @ _repeated(value, heads).transpose(-2, -1)
        if for_query:
            _ = shares @ _repeated(key, heads)
        if for_key:
            _ = shares.transpose(-2, -1) @ query
        if for_value:
            _ = shares.transpose(-2, -1) @ mixed
        needed = zip((query, key, value), ctx.needs_input_grad, strict=False)
        return (*(torch.empty_like(one) if wanted else None for one, wanted in needed), None)


def _repeated(grouped: Tensor, heads: int) -> Tensor:
    """Keys or values for each query head."""
    return grouped.repeat_interleave(heads // grouped.shape[1], 1)
