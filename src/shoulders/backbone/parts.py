"""Neighbouring layers of a frozen stack as a stack of their own: it shares the weights and keeps its own memory."""

from collections.abc import Mapping
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from shoulders.backbone.checkpointing import streamed
from shoulders.backbone.passes import ROUNDING, first_embeddings, layers_of, relative_gap, run_stack, takes_positions
from shoulders.errors import UsageError


@dataclass(slots=True)
class _Crossing:
    """The vectors that go into a part's first layer, if it is not the stack's, and those that its last layer gives."""

    entering: Tensor | None
    leaving: Tensor | None = None


_CROSSING: ContextVar[_Crossing] = ContextVar("vectors of the part that runs")


@final
class Part(nn.Module):
    """The layers `begin` to `end` - 1 of a frozen stack, for `run_stack` and banks like any other stack.

    A part from the first layer reads input vectors, one to the last ends in the stack's final norm; between two layers
    the vectors are the stack's own hidden states. Masks and positions are made by the stack's own code.

    Args:
        stack: a Hugging Face model without its vocabulary head.
        config: of the stack.
        begin, end: the first layer, and the one after the last.
    """

    def __init__(self, stack: nn.Module, config: PreTrainedConfig, begin: int, end: int) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        self.begin, self.end, self.to_end = begin, end, end == depth
        self.stack: Any = _sharing_weights(stack)
        self.config: Any = self.stack.config.get_text_config(decoder=True)
        layers = layers_of(self.stack, self.config)
        path = next(name for name, module in self.stack.named_modules() if module is layers)
        kept = nn.ModuleList(layers[begin:end])
        self.stack.set_submodule(path, kept)
        slice_config(self.config, begin, end)
        for number, layer in enumerate(kept):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = number  # type: ignore[assignment] (the place of its keys in a cache)
        self._outer: int = self.stack.get_input_embeddings().weight.shape[-1]
        self.width_in: int = config.hidden_size if begin else self._outer
        if begin:
            kept[0].register_forward_pre_hook(_enter)
        if not self.to_end:
            kept[-1].register_forward_hook(_leave)

    def forward(
        self, inputs_embeds: Float[Tensor, "B T E"], position_ids: Tensor | None = None, **rest: Any
    ) -> BaseModelOutputWithPast:
        """Return the vectors that the last layer gives, as `last_hidden_state`."""
        if position_ids is not None and takes_positions(type(self.stack)):
            rest["position_ids"] = position_ids
        crossing = _Crossing(inputs_embeds if self.begin else None)
        # The stack makes masks and positions for its input; its first layer here reads other vectors.
        if self.begin and self.width_in != self._outer:
            inputs_embeds = inputs_embeds.new_zeros(*inputs_embeds.shape[:2], self._outer)
        kept = _CROSSING.set(crossing)
        try:
            found = self.stack(inputs_embeds=inputs_embeds, **rest)
        finally:
            _CROSSING.reset(kept)
        return found if self.to_end else BaseModelOutputWithPast(last_hidden_state=crossing.leaving)  # type: ignore[arg-type]


def part_of(model: PreTrainedModel, begin: int, end: int) -> Part:
    """Return some layers of a model, checked to give with those before and after them what the model gives.

    Raises:
        UsageError: the model cannot be run in parts.
    """
    if streamed(model):
        raise UsageError(
            "layers cannot run again while weights are streamed in: leave backbone.device_map and backbone.offload "
            "empty, or scaffold.recursion.into and out_of at 0"
        )
    config = model.config.get_text_config(decoder=True)
    part = Part(model.base_model, config, begin, end).eval()
    if model.device.type != "meta":
        _check(model, part)
    return part


@torch.no_grad()
def _check(model: PreTrainedModel, part: Part) -> None:
    """Raise `UsageError` unless the part gives, between the layers before and after it, what the model gives."""
    stack, config = model.base_model, model.config.get_text_config(decoder=True)
    vectors = first_embeddings(model, 5)
    whole = run_stack(stack, vectors)
    if part.begin:
        vectors = run_stack(Part(stack, config, 0, part.begin), vectors)
    vectors = run_stack(part, vectors)
    if not part.to_end:
        vectors = run_stack(Part(stack, config, part.end, config.num_hidden_layers), vectors)
    gap = relative_gap(vectors, whole)
    if not gap <= ROUNDING[model.dtype]:
        raise UsageError(
            f"{type(model).__name__} gives other states when its layers run in parts (they differ by {gap:.1%}): leave "
            "scaffold.recursion.into and out_of at 0, and repeat empty"
        )


def slice_config(config: PreTrainedConfig, begin: int, end: int) -> None:
    """Make a configuration that of some layers: lists with an entry for each layer keep those of these layers."""
    depth = config.num_hidden_layers
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth:  # kinds of attention, windows
            setattr(config, name, value[begin:end])
    config.num_hidden_layers = end - begin


def _sharing_weights(stack: nn.Module) -> nn.Module:
    """Return a copy of a stack's modules around the same weights and buffers."""
    same: Mapping[int, Any] = {id(one): one for one in (*stack.parameters(), *stack.buffers())}
    return deepcopy(stack, dict(same))


def _enter(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
    """Give the first layer of a part its vectors."""
    return (_CROSSING.get().entering, *inputs[1:])


def _leave(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    """Keep what the last layer of a part gives."""
    _CROSSING.get().leaving = output[0] if isinstance(output, tuple) else output
