"""Weights in the order in which a CPU multiplies them, for a process that runs a model and trains nothing around it."""

from contextlib import suppress
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shoulders.backbone.passes import first_embeddings

TYPES = (torch.float32, torch.bfloat16)


@final
class PackedLinear(nn.Linear):
    """A linear layer without gradients, with weights in oneDNN's own order; its `weight` is empty.

    Given rows of weights, oneDNN copies them into that order in every product. In a step of a decode of few rows that
    takes nearly as long as the product itself (SmolLM2-135M in bf16, one core: 1 row 27 ms, packed 16; 8 rows 32 and
    19; 32 rows 57 and 44; the results are the same bit for bit).
    """

    packed: Tensor

    @classmethod
    def make_of(cls, layer: nn.Linear) -> None:
        """Pack the weights of a layer, which keeps its place and its hooks."""
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)  # noqa: SLF001
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        layer.packed = packed
        layer.__class__ = cls

    def forward(self, input: Tensor) -> Tensor:
        """Return the product."""
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")  # noqa: SLF001


def pack(model: PreTrainedModel) -> None:
    """Pack the linear layers that run as such, where oneDNN can; the others stay as they are.

    A layer that does not run on a short text is left out: its model may read `weight` itself.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for layer in _used(model):
        with suppress(RuntimeError):  # a number type that this processor cannot multiply
            PackedLinear.make_of(layer)


@torch.no_grad()
def _used(model: PreTrainedModel) -> set[nn.Linear]:
    """Return the plain linear layers on a CPU that a short text runs through."""
    used: set[Any] = set()
    plain = [layer for layer in model.modules() if type(layer) is nn.Linear and _packable(layer)]
    hooks = [layer.register_forward_hook(lambda layer, *_: used.add(layer)) for layer in plain]
    model(inputs_embeds=first_embeddings(model, 3), use_cache=False)
    for hook in hooks:
        hook.remove()
    return used


def _packable(layer: nn.Linear) -> bool:
    moved = "forward" in vars(layer)  # by accelerate, which brings weights in
    return not moved and layer.weight.device.type == "cpu" and layer.weight.dtype in TYPES
