"""One pass of a decoder stack over vectors, with or without a memory: the frozen model's, and a Connector's blocks."""

from collections.abc import Mapping
from functools import cache
from inspect import signature

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call

from shoulders.backbone.memory import PassMemory


def read(
    stack: nn.Module,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | None = None,
    memory: PassMemory | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "B T D"]:
    """Final hidden states of the stack; gradients go through to `embeds`.

    Args:
        stack: a Hugging Face model without its vocabulary head.
        embeds: the input vectors, in the type of the weights.
        mask: False at padding; None when padding stands at the end of rows only.
        memory: keys and values of what came before; is extended by these positions.
        weights: in the place of the stack's own, by name.
    """
    # Without a cache transformers looks for packed sequences in the values, which meta tensors do not have.
    cached = memory is not None or embeds.is_meta
    arguments: dict[str, object] = {"inputs_embeds": embeds, "use_cache": cached}
    if memory is not None:
        memory.extend(embeds.shape[0], embeds.shape[1], mask, embeds.device)
        arguments["past_key_values"] = memory.cache
        mask = memory.mask
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
