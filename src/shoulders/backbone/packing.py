"""Weights in the order in which a CPU multiplies them, for a process that runs a model and trains nothing around it."""

from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any, Self, cast, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shoulders.backbone.passes import first_embeddings

TYPES = (torch.float32, torch.bfloat16)


@final
class Product:
    """The weights of layers that read the same vectors one after the other, multiplied at once, in oneDNN's own order.

    Given rows of weights, oneDNN copies them into that order in every product. In a step of a decode of few rows that
    takes nearly as long as the product itself (SmolLM2-135M in bf16, one core: 1 row 27 ms, packed 16; 8 rows 32 and
    19; 32 rows 57 and 44). Each product costs some time of its own, too, whatever its size: queries, keys and values
    as one, and the two layers that a block of the network begins with, take 6.0 ms of 8.6 (two cores, 1 row) and 10.2
    of 13.0 (20 rows). The results are the same up to rounding.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        weights = torch.cat([layer.weight.detach() for layer in layers])
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weights, None)  # noqa: SLF001
        self._bias = torch.cat(biases) if biases else None
        self._sizes = [layer.out_features for layer in layers]
        self._made: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def __deepcopy__(self, _: dict[int, object]) -> Self:
        """Return itself: its weights are never written to."""
        return self

    def weight(self, number: int) -> Tensor:
        """Return a copy of a layer's weight as rows."""
        return self._packed.to_dense().split(self._sizes)[number]

    def part(self, number: int, vectors: Tensor) -> Tensor:
        """Return what the layer of this number gives; the others' results are kept until the last one asks."""
        made = self._made
        if made is None or made[0] is not vectors:
            whole = torch.ops.mkldnn._linear_pointwise(vectors, self._packed, self._bias, "none", [], "")  # noqa: SLF001
            made = vectors, whole.split(self._sizes, -1)
        self._made = made if number < len(self._sizes) - 1 else None
        return made[1][number]


@final
class PackedLinear(nn.Linear):
    """A linear layer without gradients, whose weights are part of a `Product`; its own `weight` is empty.

    Its state dictionary has the weight.
    """

    product: Product
    number: int

    @classmethod
    def make_of(cls, layers: Sequence[nn.Linear]) -> None:
        """Pack the weights of layers that read the same vectors; they keep their places and their hooks."""
        product = Product(layers)
        for number, layer in enumerate(layers):
            layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
            layer.__class__ = cls
            packed = cast(Self, layer)
            packed.product, packed.number = product, number

    def forward(self, input: Tensor) -> Tensor:
        """Return the product."""
        return self.product.part(self.number, input)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.product.weight(self.number)


def pack(model: PreTrainedModel) -> None:
    """Pack the linear layers that run as such, where oneDNN can; the others stay as they are.

    A layer that does not run on a short text is left out: its model may read `weight` itself.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for layers in _used(model):
        with suppress(RuntimeError):  # a number type that this processor cannot multiply
            PackedLinear.make_of(layers)


@torch.no_grad()
def _used(model: PreTrainedModel) -> list[list[nn.Linear]]:
    """Return the plain linear layers on a CPU that a short text runs through; those that read the same are together."""
    groups: dict[Hashable, list[nn.Linear]] = {}
    read: dict[Any, Tensor] = {}  # by layer; kept, so that no later tensor has the same identity
    first: dict[Hashable, Tensor] = {}  # what the first layer of a group read, as it was
    plain = [layer for layer in model.modules() if type(layer) is nn.Linear and _packable(layer)]

    def seen(layer: nn.Linear, given: tuple[Tensor, ...]) -> None:
        if given and layer not in read:
            read[layer] = given[0]
            key: Hashable = (id(given[0]), layer.weight.dtype, layer.bias is None)
            if not torch.equal(first.setdefault(key, given[0].clone()), given[0]):
                key = layer  # the model has changed them in place since
            groups.setdefault(key, []).append(layer)

    hooks = [layer.register_forward_pre_hook(seen) for layer in plain]
    model(inputs_embeds=first_embeddings(model, 3), use_cache=False)
    for hook in hooks:
        hook.remove()
    return list(groups.values())


def _packable(layer: nn.Linear) -> bool:
    moved = "forward" in vars(layer)  # by accelerate, which brings weights in
    return not moved and layer.weight.device.type == "cpu" and layer.weight.dtype in TYPES
