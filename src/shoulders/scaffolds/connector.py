"""The Connector: a few trained blocks between two passes through the frozen model."""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.blocks import copy_layers, new_blocks
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import PassMemory


@final
class Connector(nn.Module):
    """Takes the final states of one pass to the input vectors of the next, causally.

    Its blocks are of the backbone's family and shape. They are kept in fp32 and multiplied in the backbone's type.

    Args:
        lm: the backbone, whose blocks it is like; not a child.
        layers: number of blocks; with 0 the trained final norm alone.
        norm: the length that its vectors start with: that of what they stand for.
        residual: add to what would stand there without it, times a gate that starts at 0, instead of replacing it.
            Not in the paper: training then starts exactly at the model without a Connector.
        copied: blocks start as copies of the backbone's last ones instead of random. Not in the paper.

    Source: the paper, section 4.2 and figure 5c.
    """

    def __init__(self, lm: FrozenLM, layers: int, *, norm: float, residual: bool = False, copied: bool = False) -> None:
        super().__init__()
        self.blocks = new_blocks(lm, layers)
        if copied:
            copy_layers(lm, self.blocks, range(lm.config.num_hidden_layers - layers, lm.config.num_hidden_layers))
        # The blocks end in a norm, with entries of variance 1. As in ID-PT the constant stands outside the weights.
        self.scale = norm / lm.width**0.5
        self.register_parameter("gate", None)
        if residual:
            self.gate = nn.Parameter(torch.zeros(()))

    def placed(self, moved: Float[Tensor, "B T D"], instead_of: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the vectors for the next pass.

        Args:
            moved: what the blocks made of the final states of the pass before.
            instead_of: what would stand there without a Connector.
        """
        moved = moved * self.scale
        return moved if self.gate is None else instead_of + self.gate.to(moved.dtype) * moved

    def weights(self, dtype: torch.dtype, memory: PassMemory | None) -> Mapping[str, Tensor] | None:
        """Return the blocks' weights in the type they are multiplied in; a decode carries them in its memory.

        None where they have that type already.
        """
        if memory is not None and memory.weights is not None:
            return memory.weights
        if all(weight.dtype == dtype for weight in self.blocks.parameters()):
            return None
        weights = {name: weight.to(dtype) for name, weight in self.blocks.named_parameters()}
        if memory is not None:
            memory.weights = weights
        return weights
