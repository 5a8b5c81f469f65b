"""Attention over short sequences on a CPU, registered with transformers under the name `shoulders`.

PyTorch's fused kernel is made for long sequences. On a CPU, with the query heads that share a key head stacked as rows
of one product, there is something faster in three cases:

- Short sequences, as in multi-task suites. The backward pass of the fused kernel takes a third of a prompt-tuning step
  (SmolLM2-135M, bf16, 8 x 148 positions: 24 ms a layer, here 7 ms).
- The one new position in a step of a decode: the fused kernel itself, over the stacked heads (bf16, one core, 8 rows:
  0.16 ms a layer for 100 keys and 0.75 for 600; by transformers' way 0.78 and 4.9).
- The few positions of a prompt and an answer after a long text (4 x 26 queries over 538 keys, forward and backward on
  one core: fp32 18 ms a layer, here 11; bf16 18, here 6; equal at 128 queries in fp32).

Everything else goes to transformers' own kernel for `sdpa`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "shoulders"
LONGEST = 384  # largest number of keys for which this is faster than the fused kernel
FEW = 128  # number of queries up to which it is faster for more keys, with at most LONGEST ** 2 scores
_BIASES = WeakTensorKeyDictionary()  # by mask, which all layers of a forward share


def attention(
    module: nn.Module,
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B G N d"],
    value: Float[Tensor, "B G N d"],
    attention_mask: Bool[Tensor, "B 1 T N"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: object,
) -> tuple[Float[Tensor, "B T H d"], None]:
    """Return causal attention, called as transformers does (H query heads over G key heads, N keys)."""
    plain = all(rest.get(name) is None for name in ("softcap", "s_aux", "position_bias", "head_mask", "cache"))
    small = query.device.type in ("cpu", "meta") and _small(query.shape[2], key.shape[2])
    if not (plain and small and dropout == 0.0):
        kernel = AttentionInterface()["sdpa"]
        return kernel(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest)
    products = _single if query.shape[2] == 1 else _grouped
    return products(query, key, value, attention_mask, scaling or 1 / math.sqrt(query.shape[-1])), None


def _small(queries: int, keys: int) -> bool:
    """Return whether these products are faster than the fused kernel."""
    return keys <= LONGEST or queries == 1 or (queries <= FEW and queries * keys <= LONGEST**2)


def _single(
    query: Float[Tensor, "B H 1 d"],
    key: Float[Tensor, "B G N d"],
    value: Float[Tensor, "B G N d"],
    mask: Bool[Tensor, "B 1 1 N"] | None,
    scaling: float,
) -> Float[Tensor, "B 1 H d"]:
    """Return the attention of the last position alone, by the fused kernel; without a mask it attends to every key."""
    rows, heads, _, width = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, width)
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(rows, 1, heads, width)


def _grouped(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B G N d"],
    value: Float[Tensor, "B G N d"],
    mask: Bool[Tensor, "B 1 T N"] | None,
    scaling: float,
) -> Float[Tensor, "B T H d"]:
    """Return the attention of several positions."""
    rows, heads, length, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    bias = _bias(mask, rows, groups, heads // groups, length, keys, query)
    attend = _Attend.apply if torch.is_grad_enabled() else _attended  # the former costs calls of its own
    mixed = attend(
        query.reshape(rows * groups, heads // groups * length, width),
        key.reshape(rows * groups, keys, width),
        value.reshape(rows * groups, keys, width),
        bias,
        scaling,
    )
    return mixed.view(rows, heads, length, width).transpose(1, 2).contiguous()


class _Attend(torch.autograd.Function):
    """Softmax attention that computes its scores again in the backward pass: nothing quadratic in length is kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value, bias)
        ctx.scaling = scaling
        return _attended(query, key, value, bias, scaling)

    @staticmethod
    @once_differentiable
    # The decorator hides the argument names that the base class declares.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (mixed,) = gradients
        query, key, value, bias = ctx.saved_tensors
        shares = _probabilities(query, key, bias, ctx.scaling)
        of_shares = torch.bmm(mixed, value.transpose(1, 2))
        scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype)  # noqa: SLF001
        return (
            torch.bmm(scores, key).mul_(ctx.scaling),
            torch.bmm(scores.transpose(1, 2), query).mul_(ctx.scaling),
            torch.bmm(shares.transpose(1, 2), mixed),
            None,
            None,
        )


def _attended(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
    return torch.bmm(_probabilities(query, key, bias, scaling), value)


def _probabilities(query: Tensor, key: Tensor, bias: Tensor, scaling: float) -> Tensor:
    return torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scaling).softmax(-1)


def _bias(
    mask: Bool[Tensor, "B 1 T N"] | None, rows: int, groups: int, repeats: int, length: int, keys: int, like: Tensor
) -> Tensor:
    """Return what is added to the scores: 0 where a position may attend, else the type's minimum (finite, no NaN)."""
    lowest = torch.finfo(like.dtype).min
    if mask is None:
        bias = torch.full((length, keys), lowest, dtype=like.dtype, device=like.device).triu(1 + keys - length)
        return bias.repeat(repeats, 1)
    known = _BIASES.get(mask)  # that of the layer before
    if known is None or known[0] != (repeats, groups, like.dtype):
        bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, lowest)
        bias = bias.expand(rows, groups, length, keys).repeat(1, 1, repeats, 1).view(rows * groups, -1, keys)
        known = _BIASES[mask] = ((repeats, groups, like.dtype), bias)
    return known[1]


def suits(model: PreTrainedModel) -> bool:
    """Return whether the family accepts other attention functions and needs nothing that fused kernels lack."""
    capped = getattr(model.config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    # transformers' own flag for this; families without it would add the boolean mask to the scores as numbers.
    return bool(model._supports_attention_backend) and not capped  # noqa: SLF001


def register() -> str:
    """Register the implementation with transformers; return the name to load a model with."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
    return NAME
