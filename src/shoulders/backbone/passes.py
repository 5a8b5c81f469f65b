"""Passes of a decoder stack over vectors, with or without a memory: the frozen model's, and a Connector's blocks.

`read` runs one batch. `read_together` runs several at once: batches of different lengths, with memories of different
lengths, share one forward of the stack, and each row gets what it would get alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call

from shoulders.backbone.memory import JoinedCache, PassMemory, pad_left, plain


@dataclass(frozen=True, slots=True)
class StackInput:
    """What one pass of a stack reads.

    Attributes:
        embeds: the input vectors, in the type of the stack's weights.
        mask: False at padding; None when padding stands at the end of rows only.
        memory: keys and values of what came before; is extended by these positions.
    """

    embeds: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    memory: PassMemory | None = None


def read(
    stack: nn.Module,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | None = None,
    memory: PassMemory | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "B T D"]:
    """Return the final hidden states of a stack; gradients go through to `embeds`.

    Args:
        stack: a Hugging Face model without its vocabulary head.
        embeds, mask, memory: see `StackInput`.
        weights: in the place of the stack's own, by name.
    """
    past = None
    if memory is not None:
        past = memory.cache_for(stack.config)  # type: ignore[arg-type] (a Hugging Face model's)
        memory.extend(embeds.shape[0], embeds.shape[1], mask, embeds.device)
        mask = memory.mask
    return _run(stack, embeds, mask, past, weights)


def read_together(
    stack: nn.Module, parts: Sequence[StackInput], weights: Mapping[str, Tensor] | None = None
) -> list[Float[Tensor, "B T D"]]:
    """Return the final hidden states of several inputs, from one forward of the stack where its layers allow it.

    Rows are aligned at the right, behind padding. Stacks that carry a state which they change in place (linear
    attention) read one input after the other.
    """
    config = stack.config
    if len(parts) == 1 or not plain(config):  # type: ignore[arg-type]
        return [read(stack, part.embeds, part.mask, part.memory, weights) for part in parts]
    memories = [part.memory or PassMemory() for part in parts]
    rows, new = zip(*(part.embeds.shape[:2] for part in parts), strict=True)
    seen, longest = [memory.seen for memory in memories], max(new)
    caches = [memory.cache_for(config) for memory in memories]  # type: ignore[arg-type]
    for part, memory in zip(parts, memories, strict=True):
        memory.extend(part.embeds.shape[0], part.embeds.shape[1], part.mask, part.embeds.device)
    width = max(seen) + longest
    masks = [_mask_of(memory, part.embeds) for memory, part in zip(memories, parts, strict=True)]
    mask = torch.cat([pad_left(one, width, 1) for one in masks])
    embeds = torch.cat([pad_left(part.embeds, longest, 1) for part in parts])
    past = JoinedCache(caches, rows, seen, new)
    states = _run(stack, embeds, None if bool(mask.all()) else mask, past, weights)
    return [one[:, -length:] for one, length in zip(states.split(list(rows)), new, strict=True)]


def _mask_of(memory: PassMemory, embeds: Tensor) -> Bool[Tensor, "B N"]:
    if memory.mask is not None:
        return memory.mask
    return torch.ones(embeds.shape[0], memory.seen, dtype=torch.bool, device=embeds.device)


def _run(
    stack: nn.Module,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B N"] | None,
    past: object | None,
    weights: Mapping[str, Tensor] | None,
) -> Float[Tensor, "B T D"]:
    # Without a cache transformers looks for packed sequences in the values, which meta tensors do not have.
    arguments: dict[str, object] = {"inputs_embeds": embeds, "use_cache": past is not None or embeds.is_meta}
    if past is not None:
        arguments["past_key_values"] = past
    if mask is not None:
        arguments["attention_mask"] = mask.long()
        if _takes_positions(type(stack)):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            arguments["position_ids"] = positions[:, -embeds.shape[1] :]
    if weights is not None:
        return functional_call(stack, dict(weights), kwargs=arguments).last_hidden_state
    return stack(**arguments).last_hidden_state


@cache
def _takes_positions(family: type[nn.Module]) -> bool:
    return "position_ids" in signature(family.forward).parameters
