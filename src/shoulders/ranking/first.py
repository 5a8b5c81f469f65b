"""The last layer of an encoder for the one state that is used: a score is read from the first position."""

from copy import deepcopy
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

KNOWN = {"BertLayer", "RobertaLayer", "XLMRobertaLayer", "ElectraLayer"}  # built alike
Model = TypeVar("Model", bound=PreTrainedModel)


def for_scoring(model: Model, dtype: torch.dtype) -> Model:
    """A copy of an encoder, or of a classifier on one, that computes the first position's final state only.

    Of the last layer keys and values are needed for all positions, queries and everything after for one: the score is
    the same, and a layer's worth of matrix products is saved but for a sixth. Families that are built otherwise
    compute all states.

    Args:
        dtype: of the copy's weights.
    """
    copy = deepcopy(model)
    copy.to(dtype=dtype).eval().requires_grad_(False)
    layers: Any = getattr(getattr(copy.base_model, "encoder", None), "layer", None)
    if layers and type(layers[-1]).__name__ in KNOWN:
        copy.set_attn_implementation("sdpa")  # whose mask is a matrix
        layers[-1] = _FirstPosition(layers[-1])
    return copy


@final
class _FirstPosition(nn.Module):
    """A BERT layer whose output is that of the first position alone."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden: Float[Tensor, "B S E"], mask: Tensor | None = None, *_rest: Any, **_named: Any
    ) -> Float[Tensor, "B 1 E"]:
        attention = self.layer.attention.self
        rows, positions, _ = hidden.shape
        heads = (rows, positions, attention.num_attention_heads, attention.attention_head_size)
        first = hidden[:, :1]
        query = attention.query(first).view(rows, 1, *heads[2:]).transpose(1, 2)
        key = attention.key(hidden).view(heads).transpose(1, 2)
        value = attention.value(hidden).view(heads).transpose(1, 2)
        seen = None if mask is None else mask[:, :, :1]
        read = nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=attention.scaling)
        attended = self.layer.attention.output(read.transpose(1, 2).reshape(rows, 1, -1), first)
        return self.layer.feed_forward_chunk(attended)
