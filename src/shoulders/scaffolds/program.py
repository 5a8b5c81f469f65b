"""What a scaffold asks for, and the driver that runs one scaffold over one batch.

A scaffold never calls the frozen model. Its `program` is a generator: it yields requests and is sent their results, so
that whoever drives it decides what shares a forward pass. `direct` drives one program, with gradients (training,
evaluation, notebooks). `shoulders.engine.together` drives programs of different scaffolds in one batch.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shoulders.backbone.encoder import Encoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import PassMemory, StackInput, read_together

if TYPE_CHECKING:
    from shoulders.scaffolds.recursion import Connector


@dataclass(frozen=True, slots=True)
class Pass:
    """Vectors through the frozen model; the result is its final hidden states.

    Attributes:
        embeds: the input vectors.
        mask: False at padding; None when padding stands at the end of rows only.
        memory: keys and values of what came before, extended by these positions; None where nothing is continued.
        constant: columns at the beginning that nothing trained stands in: they need no gradient.
    """

    embeds: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    memory: PassMemory | None = None
    constant: int = 0


@dataclass(frozen=True, slots=True)
class Encode:
    """Vectors through a frozen encoder; the result is its final hidden states. Padding stands at the end."""

    encoder: Encoder
    embeds: Float[Tensor, "B S E"]
    mask: Bool[Tensor, "B S"] | None = None


@dataclass(frozen=True, slots=True)
class Blocks:
    """Vectors through the trained blocks of a Connector; the result is the vectors for the next pass.

    Attributes:
        connector: whose blocks.
        states: final states of the pass before.
        instead_of: what would stand there without a Connector.
        mask, memory: as in `Pass`.
    """

    connector: "Connector"
    states: Float[Tensor, "B T D"]
    instead_of: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    memory: PassMemory | None = None


Request = Pass | Encode | Blocks
Program = Generator[Request, Tensor, Float[Tensor, "B T D"]]


def direct(program: Program, lm: FrozenLM) -> Float[Tensor, "B T D"]:
    """Run one program over its batch and return its states; gradients go through."""
    try:
        request = next(program)
        while True:
            request = program.send(fulfil([request], lm)[0])
    except StopIteration as end:
        return end.value


def fulfil(requests: Sequence[Request], lm: FrozenLM) -> list[Tensor]:
    """Return the result of each request, in order; those of one kind through one model share a forward."""
    groups: dict[tuple[type, int], list[int]] = {}
    for number, request in enumerate(requests):
        shared = getattr(request, "encoder", None) or getattr(request, "connector", None)
        groups.setdefault((type(request), id(shared)), []).append(number)
    results: dict[int, Tensor] = {}
    for (kind, _), numbers in groups.items():
        some: list[Any] = [requests[number] for number in numbers]
        results.update(zip(numbers, _RUN[kind](some, lm), strict=True))
    return [results[number] for number in range(len(requests))]


def _passes(requests: Sequence[Pass], lm: FrozenLM) -> list[Tensor]:
    if len(requests) > 1:
        return lm.states_together([StackInput(one.embeds, one.mask, one.memory) for one in requests])
    one = requests[0]
    if not (one.constant and torch.is_grad_enabled()) or lm.recurrent:
        return [lm.states(one.embeds, one.mask, one.memory)]
    # The beginning is read once, without gradients or stored activations: these start at the first trained vector,
    # which attends to the keys and values of what came before.
    memory, split = one.memory or PassMemory(), one.constant
    masks = (None, None) if one.mask is None else (one.mask[:, :split], one.mask[:, split:])
    with torch.no_grad():
        before = lm.states(one.embeds[:, :split].detach(), masks[0], memory)
    return [torch.cat([before, lm.states(one.embeds[:, split:], masks[1], memory)], dim=1)]


def _encoded(requests: Sequence[Encode], lm: FrozenLM) -> list[Tensor]:  # noqa: ARG001
    encoder = requests[0].encoder
    if len(requests) == 1:
        return [encoder.states(requests[0].embeds, requests[0].mask)]
    longest = max(one.embeds.shape[1] for one in requests)
    embeds = torch.cat([_padded(one.embeds, longest) for one in requests])
    masks = [one.embeds.new_ones(one.embeds.shape[:2]).bool() if one.mask is None else one.mask for one in requests]
    states = encoder.states(embeds, torch.cat([_padded(mask, longest) for mask in masks]))
    parts = states.split([one.embeds.shape[0] for one in requests])
    return [part[:, : one.embeds.shape[1]] for part, one in zip(parts, requests, strict=True)]


def _connected(requests: Sequence[Blocks], lm: FrozenLM) -> list[Tensor]:  # noqa: ARG001
    connector = requests[0].connector
    parts = [StackInput(one.states, one.mask, one.memory) for one in requests]
    weights = connector.weights(requests[0].states.dtype, requests[0].memory)
    moved = read_together(connector.blocks, parts, weights)
    return [connector.placed(vectors, one.instead_of) for vectors, one in zip(moved, requests, strict=True)]


_RUN: Mapping[type, Any] = {Pass: _passes, Encode: _encoded, Blocks: _connected}


def _padded(rows: Tensor, length: int) -> Tensor:
    """Return rows with zeros (False) after them, so that they have `length` columns."""
    if rows.shape[1] == length:
        return rows
    return torch.cat([rows, rows.new_zeros(rows.shape[0], length - rows.shape[1], *rows.shape[2:])], dim=1)
