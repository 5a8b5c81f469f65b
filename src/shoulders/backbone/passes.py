"""Passes of vectors through a stack of decoder layers, and a check that a model suits them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from shoulders.backbone.caches import (
    Beside,
    BesideLayer,
    JoinedCache,
    PassMemory,
    Unkept,
    is_plain,
    pad_left,
    with_written,
)
from shoulders.backbone.checkpointing import checkpointed, recomputes, streamed
from shoulders.backbone.edits import Edits, arranged, edited
from shoulders.errors import SourceNotFound, UsageError, first_line
from shoulders.records import KeysValues

if TYPE_CHECKING:
    pass


def _run_beside(
    stack: nn.Module,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | None,
    memory: PassMemory,
    beside: Beside,
) -> Float[Tensor, "B T D"]:
    """Return the final hidden states of a stack that attends to an earlier run's positions up to each of its own."""
    earlier, past = beside.memory.cache, memory.cache_for(stack.config)  # type: ignore[arg-type] (a Hugging Face model's)
    assert earlier is not None
    rows, new = embeds.shape[:2]
    memory.extend(rows, new, mask, embeds.device)
    both = DynamicCache()
    layers: list[Any] = [
        BesideLayer(own, other) for own, other in zip(past.layers, earlier.layers[beside.first :], strict=False)
    ]
    both.layers = layers
    read = _mask_of(memory, embeds)
    known = _mask_of(beside.memory, embeds)
    places = torch.arange(memory.seen - new, memory.seen, device=embeds.device)[:, None]
    seen = torch.cat([_up_to(places, one) for one in (known, read)], dim=-1)
    if getattr(stack.config, "_attn_implementation", "") == "eager":  # which adds its mask to the scores
        seen = torch.zeros(seen.shape, dtype=embeds.dtype, device=embeds.device).masked_fill_(
            ~seen, torch.finfo(embeds.dtype).min
        )
    arguments: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": seen, "past_key_values": both}
    if takes_positions(type(stack)):
        arguments["position_ids"] = (read.cumsum(1) - 1).clamp(min=0)[:, -new:]
    with checkpointed(stack, both):
        return stack(**arguments, use_cache=True).last_hidden_state


def _up_to(places: Int[Tensor, "T 1"], mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B 1 T N"]:
    """Return which columns positions may attend to: those up to their own that are no padding."""
    return (torch.arange(mask.shape[1], device=mask.device) <= places) & mask[:, None, None]


@dataclass(frozen=True, slots=True)
class StackInput:
    """Input of one forward of a stack.

    Attributes:
        embeds: input vectors, in the type of the stack's weights.
        mask: False at padding; None if there is padding at the end of rows only.
        memory: keys and values of the positions before these; it is extended by these positions.
        edits: edits of the model for these rows, beside those that the memory keeps.
        beside: an earlier run that the stack attends to, too.
    """

    embeds: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    memory: PassMemory | None = None
    edits: Edits | None = None
    beside: Beside | None = None


def run_stack(
    stack: nn.Module,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | None = None,
    memory: PassMemory | None = None,
    weights: Mapping[str, Tensor] | None = None,
    edits: Edits | None = None,
) -> Float[Tensor, "B T D"]:
    """Return the final hidden states of a stack; gradients go through to `embeds`.

    Args:
        stack: a Hugging Face model without its vocabulary head.
        embeds, mask, memory, edits: see `StackInput`.
        weights: weights by name that are used instead of the stack's own.
    """
    past, layers, vectors = None, {} if edits is None else edits.layers, None if edits is None else edits.vectors
    if memory is None and edits is not None and edits.prompt is not None:
        memory = PassMemory()
    if memory is not None:
        past = _begun(memory, stack, embeds.shape[0], edits)
        memory.extend(embeds.shape[0], embeds.shape[1], mask, embeds.device)
        mask, past, layers = memory.mask, with_written(past, edits), memory.layers
    with edited(stack, arranged([(embeds.shape[0], layers)], embeds.shape[1]), vectors):
        return forward(stack, embeds, mask, past, weights)


def _begun(memory: PassMemory, stack: nn.Module, rows: int, edits: Edits | None) -> Cache:
    """Return the cache of a memory, to which the edits of a pass have been added."""
    config: Any = stack.config  # a Hugging Face model's
    if edits is not None:
        memory.begin(edits, config, rows)
    return memory.cache_for(config)


def run_stack_together(
    stack: nn.Module, parts: Sequence[StackInput], weights: Mapping[str, Tensor] | None = None
) -> list[Float[Tensor, "B T D"]]:
    """Return the final hidden states of several inputs, from one forward of the stack where its layers allow it.

    Rows are aligned at the right, with padding before them. Stacks with layers that keep more than keys and values
    (linear attention) run on one input after the other.
    """
    memories = [part.memory or PassMemory() for part in parts]
    alone = len(parts) == 1 or any(part.beside for part in parts)
    caches = [] if alone else [memory.cache_for(stack.config) for memory in memories]  # type: ignore[arg-type]
    if alone or not all(map(is_plain, caches)):
        return [_alone(stack, part, weights) for part in parts]
    rows, new = zip(*(part.embeds.shape[:2] for part in parts), strict=True)
    caches = [
        _begun(memory, stack, count, part.edits) for memory, count, part in zip(memories, rows, parts, strict=True)
    ]
    seen, longest = [memory.seen for memory in memories], max(new)
    for part, memory in zip(parts, memories, strict=True):
        memory.extend(part.embeds.shape[0], part.embeds.shape[1], part.mask, part.embeds.device)
    width = max(seen) + longest
    masks = [_mask_of(memory, part.embeds) for memory, part in zip(memories, parts, strict=True)]
    mask = torch.cat([pad_left(one, width, 1) for one in masks])
    embeds = torch.cat([pad_left(part.embeds, longest, 1) for part in parts])
    written = [with_written(cache, part.edits) for cache, part in zip(caches, parts, strict=True)]
    past = JoinedCache(written, rows, seen, new)
    layers = arranged([(count, memory.layers) for count, memory in zip(rows, memories, strict=True)], longest)
    with edited(stack, layers, vectors_of(parts, longest)):
        states = forward(stack, embeds, None if bool(mask.all()) else mask, past, weights)
    return [one[:, -length:] for one, length in zip(states.split(list(rows)), new, strict=True)]


def vectors_of(parts: Sequence[StackInput], columns: int) -> Float[Tensor, "B T N"] | None:
    """Return the vectors that edits read (`Edits.vectors`) for all rows, aligned at the right, with zeros elsewhere."""
    given = [None if part.edits is None else part.edits.vectors for part in parts]
    width = max((one.shape[-1] for one in given if one is not None), default=0)
    if not width:
        return None
    return torch.cat(
        [
            part.embeds.new_zeros(part.embeds.shape[0], columns, width)
            if one is None
            else F.pad(one, (0, width - one.shape[-1], columns - one.shape[1], 0))
            for part, one in zip(parts, given, strict=True)
        ]
    )


def _alone(stack: nn.Module, part: StackInput, weights: Mapping[str, Tensor] | None) -> Float[Tensor, "B T D"]:
    if part.beside is not None:
        return _run_beside(stack, part.embeds, part.mask, part.memory or PassMemory(), part.beside)
    return run_stack(stack, part.embeds, part.mask, part.memory, weights, part.edits)


def _mask_of(memory: PassMemory, embeds: Tensor) -> Bool[Tensor, "B N"]:
    """Return the mask of all columns of a memory."""
    if memory.mask is not None:
        return memory.mask
    return torch.ones(embeds.shape[0], memory.seen, dtype=torch.bool, device=embeds.device)


def forward(
    stack: nn.Module,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B N"] | None,
    past: object | None,
    weights: Mapping[str, Tensor] | None,
) -> Float[Tensor, "B T D"]:
    """Return the final hidden states of a stack, over a cache that transformers' layers can use."""
    if past is None and embeds.is_meta:
        past = Unkept(config=stack.config)  # type: ignore[arg-type] (a Hugging Face model's)
    arguments: dict[str, object] = {"inputs_embeds": embeds, "use_cache": past is not None}
    if past is not None:
        arguments["past_key_values"] = past
    if mask is not None:
        arguments["attention_mask"] = mask.long()
        if takes_positions(type(stack)):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            arguments["position_ids"] = positions[:, -embeds.shape[1] :]
    if weights is None:
        with checkpointed(stack, past):
            return stack(**arguments).last_hidden_state
    if past is None and recomputes(stack):  # trained blocks with weights of their own: the whole stack at once
        return checkpoint(_blocks, stack, weights, arguments, use_reentrant=False, preserve_rng_state=False)
    return _blocks(stack, weights, arguments)


def _blocks(stack: nn.Module, weights: Mapping[str, Tensor], arguments: Mapping[str, object]) -> Tensor:
    return functional_call(stack, dict(weights), kwargs=dict(arguments)).last_hidden_state


@cache
def takes_positions(family: type[nn.Module]) -> bool:
    """Return whether a stack of this class can be given positions."""
    return "position_ids" in signature(family.forward).parameters


def keys_values(stack: nn.Module, embeds: Float[Tensor, "B T D"]) -> KeysValues:
    """Return the keys and values of texts in every layer, all positions; padding stands at the end.

    Layers with a sliding window have all positions, too: the last columns of a batch are not the last positions of
    every text.
    """
    cache = _FillOnce(len(DynamicCache(config=stack.config).layers))  # type: ignore[arg-type] (a Hugging Face model's)
    with suppress(_Filled):
        run_stack(stack, embeds, memory=PassMemory(cache))
    return KeysValues(tuple((layer.keys, layer.values) for layer in cache.layers))  # type: ignore[attr-defined]


def layers_of(stack: nn.Module, config: PreTrainedConfig) -> nn.ModuleList:
    """Return the list of a stack's layers.

    Raises:
        UsageError: it does not keep them in one list.
    """
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise UsageError(f"{type(stack).__name__} does not keep its {config.num_hidden_layers} blocks in one list")


class _Filled(Exception):
    """Raised when the last layer's keys and values are known: its output is not needed."""


class _FillOnce(DynamicCache):
    """A cache that ends the forward once it is filled."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = [DynamicLayer() for _ in range(layers)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add a layer's keys and values; raise `_Filled` after those of the last layer."""
        filled = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == len(self.layers) - 1:
            raise _Filled
        return filled


ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # of states, relative


@torch.no_grad()
def check_serves(model: PreTrainedModel) -> None:
    """Check that a model's states of a text are the same in one forward, in several, and with padding before it.

    State-space models, bidirectional models and decoders that need an encoder load as causal models and would answer
    wrongly without any error.

    Raises:
        SourceNotFound: they are not, or the model does not run on vectors.
    """
    stack = model.base_model
    if stack.device.type == "meta" and not streamed(stack):
        return
    with _unfit(model):
        embeds = first_embeddings(model, 5)
        whole = run_stack(stack, embeds)
        memory = PassMemory()
        parts = [run_stack(stack, part, memory=memory) for part in embeds.split([3, 1, 1], dim=1)]
        mask = torch.tensor([[False, False, True, True, True, True, True]], device=embeds.device)
        padded = run_stack(stack, torch.cat([embeds[:, :2], embeds], dim=1), mask)[:, 2:]
    _check_same(model, "read in parts", torch.cat(parts, dim=1), whole)
    _check_same(model, "padded on the left", padded, whole)


def first_embeddings(model: PreTrainedModel, count: int) -> Float[Tensor, "1 T D"]:
    """Return the embeddings of some tokens, to try a model on."""
    embeddings: Any = model.get_input_embeddings()
    ids = torch.tensor([[1, 0, 2, 3, 1][:count]], device=None if streamed(embeddings) else embeddings.weight.device)
    return embeddings(ids).to(model.dtype)


@contextmanager
def _unfit(model: PreTrainedModel) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        raise SourceNotFound(
            f"{type(model).__name__} does not run on vectors with a mask and a cache of keys and values, so it cannot "
            f"serve as backbone ({first_line(error)})"
        ) from error


def relative_gap(found: Tensor, wanted: Tensor) -> float:
    """Return the distance of two tensors, relative to the length of the second."""
    return (torch.linalg.vector_norm(found.float() - wanted.float()) / torch.linalg.vector_norm(wanted.float())).item()


def _check_same(model: PreTrainedModel, how: str, found: Float[Tensor, "B T D"], whole: Float[Tensor, "B T D"]) -> None:
    gap = relative_gap(found, whole)
    if not gap <= ROUNDING[model.dtype]:
        raise SourceNotFound(
            f"{type(model).__name__} gives other states when a text is {how} (they differ by {gap:.1%}): it cannot "
            "serve as backbone; it takes a decoder with causal attention"
        )
