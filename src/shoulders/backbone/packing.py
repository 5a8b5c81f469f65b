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

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.bias = layer.bias
        self.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)  # noqa: SLF001

    def forward(self, input: Tensor) -> Tensor:
        """Return the product."""
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")  # noqa: SLF001


def pack(model: PreTrainedModel) -> None:
    """Pack the linear layers that run as such, where oneDNN can; the others stay as they are.

    A layer that does not run on a short text is left out: its model may read `weight` itself.
    """
    if not torch.backends.mkldnn.is_available():
        return
    used = _used(model)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer in used:
                with suppress(RuntimeError):  # a number type that this processor cannot multiply
                    setattr(parent, name, PackedLinear(layer))


@torch.no_grad()
def _used(model: PreTrainedModel) -> set[Any]:
    """Return the plain linear layers on a CPU that a short text runs through."""
    used: set[Any] = set()
    plain = [layer for layer in model.modules() if type(layer) is nn.Linear and _packable(layer)]
    hooks = [layer.register_forward_hook(lambda layer, *_: used.add(layer)) for layer in plain]
    model(inputs_embeds=first_embeddings(model, 3), use_cache=False)
    for hook in hooks:
        hook.remove()
    return used


def _packable(layer: nn.Linear) -> bool:
    edited = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)  # noqa: SLF001 (accelerate's)
    return not edited and layer.weight.device.type == "cpu" and layer.weight.dtype in TYPES
