"""Connectors between passes: blocks of the backbone's shape, and low-rank networks."""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.caches import PassMemory
from shoulders.backbone.edits import LayerEdit, LayerEdits, in_type
from shoulders.backbone.frozen import FrozenLM, copy_layers, new_blocks


@final
class Connector(nn.Module):
    """Turns the final states of one pass into the input vectors of the next, causally.

    Its blocks have the backbone's family and shape. They are kept in fp32 and multiply in the backbone's type.

    Args:
        lm: the backbone; not a child.
        layers: number of blocks; with 0 the trained final norm alone.
        norm: length of its vectors at the start: that of the vectors they replace.
        residual: add its vectors, times a gate that starts at 0, to those that would be there without it. Not in the
            paper: training then starts exactly at the model without a Connector.
        copied: start the blocks as copies of the backbone's last ones instead of at random. Not in the paper.

    Source: the paper, section 4.2 and figure 5c.
    """

    def __init__(self, lm: FrozenLM, layers: int, *, norm: float, residual: bool = False, copied: bool = False) -> None:
        super().__init__()
        self.blocks = new_blocks(lm, layers)
        if copied:
            copy_layers(lm, self.blocks, range(lm.config.num_hidden_layers - layers, lm.config.num_hidden_layers))
        # The blocks end in a norm: entries have variance 1. As in ID-PT, the scale is a constant outside the weights.
        self.scale = norm / lm.width**0.5
        self.register_parameter("gate", None)
        if residual:
            self.gate = nn.Parameter(torch.zeros(()))

    def placed(self, output: Float[Tensor, "B T D"], instead_of: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the vectors for the next pass.

        Args:
            output: output of the blocks for the final states of the pass before.
            instead_of: the vectors that would be there without a Connector.
        """
        output = output * self.scale
        return output if self.gate is None else instead_of + self.gate.to(output.dtype) * output

    def weights(self, dtype: torch.dtype, memory: PassMemory | None) -> Mapping[str, Tensor] | None:
        """Return the blocks' weights in the type of the multiplication; None if they have that type already.

        A decode keeps them in its memory.
        """
        if memory is not None and memory.weights is not None:
            return memory.weights
        if all(weight.dtype == dtype for weight in self.blocks.parameters()):
            return None
        weights = {name: weight.to(dtype) for name, weight in self.blocks.named_parameters()}
        if memory is not None:
            memory.weights = weights
        return weights


@final
class LowRankConnector(nn.Module):
    """A low-rank network on each position by itself, whose vectors are added to those that are there without it.

    They are zeros at the start, so that training starts exactly at the model without it. Not in the paper.

    Args:
        width_in, width_out: sizes of the states that it reads, and of the vectors that it adds to.
        rank: size of its hidden layer.
        norm: mean length of the vectors that it adds to.
    """

    def __init__(self, width_in: int, width_out: int, rank: int, *, norm: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, width_in) / width_in**0.5)
        self.up = nn.Parameter(torch.zeros(width_out, rank))
        self.scale = norm / width_out**0.5

    def forward(self, states: Float[Tensor, "B T E"], instead_of: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return `instead_of` with what it adds, given the states."""
        return instead_of + self.scale * F.linear(_hidden(self.down, states), in_type(self.up, states.dtype))


@final
class KeyValueConnector(nn.Module):
    """A low-rank network that adds to the keys and values of the next pass, at each position by itself.

    It is a deep prompt that the pass before writes: one hidden layer reads its states, and each layer of the next pass
    has an output of its own. These are zeros at the start. Not in the paper.

    Args:
        width: size of the states that it reads.
        rank: size of the hidden layer.
        sizes: number of outputs of each linear layer that writes keys or values, by its name in the stack.
        scales: mean length of an entry of what each of them gives.
    """

    def __init__(self, width: int, rank: int, sizes: Mapping[str, int], scales: Mapping[str, float]) -> None:
        super().__init__()
        self.sizes, self.scales = dict(sizes), dict(scales)
        self.down = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(sum(sizes.values()), rank))

    def vectors(self, states: Float[Tensor, "B T E"]) -> Float[Tensor, "B T r"]:
        """Return the hidden layer of each position."""
        return _hidden(self.down, states)

    def layers(self, dtype: torch.dtype, prefix: str = "") -> LayerEdits:
        """Return the edits of layers, by their names after a prefix, that add what is written from these vectors."""
        ups = in_type(self.up, dtype).split([*self.sizes.values()])
        pairs = zip(self.sizes, ups, strict=True)
        return {f"{prefix}{name}": LayerEdit(up=up, scale=self.scales[name]) for name, up in pairs}


def _hidden(down: Float[Tensor, "r E"], states: Float[Tensor, "B T E"]) -> Float[Tensor, "B T r"]:
    return F.silu(F.linear(F.rms_norm(states, states.shape[-1:]), in_type(down, states.dtype)))
