"""The requests of a scaffold's program, and the driver that runs one program over one batch.

A scaffold never calls the frozen model. Its `program` is a generator that yields requests and is sent their results, so
that the driver decides which requests share a forward. `direct` drives one program, with gradients (training,
evaluation, notebooks). `shoulders.engine.together` drives programs of different scaffolds in one batch.
"""

from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shoulders.backbone.caches import Beside, PassMemory
from shoulders.backbone.edits import Edits
from shoulders.backbone.encoder import Encoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.parts import Part
from shoulders.backbone.passes import StackInput, run_stack_together
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.scaffolds.connectors import Connector


@dataclass(frozen=True, slots=True)
class Pass:
    """Request for one pass through the frozen model; the result is its final hidden states.

    Attributes:
        embeds: input vectors.
        mask: False at padding; None if there is padding at the end of rows only.
        memory: keys and values of the positions before these; it is extended by these positions. None if nothing is
            continued.
        constant: number of first columns without trained vectors: they need no gradient.
        edits: edits of the model for these rows. Those of layers hold for all passes that continue the memory.
        part: the layers that run (`FrozenLM.part`), from their input to their output; None for all.
        beside: an earlier run through these layers that they attend to, too.
    """

    embeds: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    memory: PassMemory | None = None
    constant: int = 0
    edits: Edits | None = None
    part: Part | None = None
    beside: Beside | None = None

    @property
    def group(self) -> Hashable:
        """Key of the requests that share its forward."""
        return id(self.part), _single(self.embeds)


@dataclass(frozen=True, slots=True)
class Encode:
    """Request for a forward of a frozen encoder; the result is its final hidden states. Padding stands at the end."""

    encoder: Encoder
    embeds: Float[Tensor, "B S E"]
    mask: Bool[Tensor, "B S"] | None = None

    @property
    def group(self) -> Hashable:
        """Key of the requests that share its forward."""
        return id(self.encoder)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Request for a forward of a Connector's trained blocks; the result is the input vectors of the next pass.

    Attributes:
        connector: the Connector.
        states: final states of the pass before.
        instead_of: the vectors that would be there without the Connector.
        mask, memory: see `Pass`.
    """

    connector: "Connector"
    states: Float[Tensor, "B T D"]
    instead_of: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    memory: PassMemory | None = None

    @property
    def group(self) -> Hashable:
        """Key of the requests that share its forward."""
        return id(self.connector), _single(self.states)


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
    """Return the result of each request, in order; requests of one kind to one model share a forward.

    Raises:
        UsageError: a program asks for something else.
    """
    groups: dict[tuple[type, Hashable], list[int]] = {}
    for number, request in enumerate(requests):
        check_kind(request)
        groups.setdefault((type(request), request.group), []).append(number)
    results: dict[int, Tensor] = {}
    for (kind, _), numbers in groups.items():
        some: list[Any] = [requests[number] for number in numbers]
        results.update(zip(numbers, _RUN[kind](some, lm), strict=True))
    return [results[number] for number in range(len(requests))]


def check_kind(request: object) -> None:
    """Raise `UsageError` for what is no request."""
    if type(request) not in _RUN:
        raise UsageError(
            f"a scaffold's program yielded a {type(request).__name__}: it can yield Pass, Encode and Blocks "
            "(shoulders.scaffolds.program)"
        )


def _single(vectors: Float[Tensor, "B T D"]) -> bool:
    """Return whether this is one step of a decode.

    Beside a text that is read for the first time each step would be padded to the length of that text.
    """
    return vectors.shape[1] == 1


def _passes(requests: Sequence[Pass], lm: FrozenLM) -> list[Tensor]:
    """Run passes through the frozen model."""
    one = requests[0]
    if len(requests) > 1 or one.beside is not None:
        rows = [StackInput(one.embeds, one.mask, one.memory, one.edits, one.beside) for one in requests]
        return lm.states_together(rows, one.part)
    if not (one.constant and torch.is_grad_enabled()) or one.edits is not None or lm.recurrent:
        return [lm.states(one.embeds, one.mask, one.memory, one.edits, one.part)]
    # The constant columns run first, without gradients or stored activations. The trained vectors after them attend to
    # their keys and values.
    memory, split = one.memory or PassMemory(), one.constant
    masks = (None, None) if one.mask is None else (one.mask[:, :split], one.mask[:, split:])
    with torch.no_grad():
        before = lm.states(one.embeds[:, :split].detach(), masks[0], memory, part=one.part)
    return [torch.cat([before, lm.states(one.embeds[:, split:], masks[1], memory, part=one.part)], dim=1)]


def _encoded(requests: Sequence[Encode], lm: FrozenLM) -> list[Tensor]:  # noqa: ARG001
    """Run texts through one frozen encoder."""
    encoder = requests[0].encoder
    if len(requests) == 1:
        return [encoder.states(requests[0].embeds, requests[0].mask)]
    longest = max(one.embeds.shape[1] for one in requests)
    embeds = torch.cat([_pad_right(one.embeds, longest) for one in requests])
    masks = [one.embeds.new_ones(one.embeds.shape[:2]).bool() if one.mask is None else one.mask for one in requests]
    states = encoder.states(embeds, torch.cat([_pad_right(mask, longest) for mask in masks]))
    parts = states.split([one.embeds.shape[0] for one in requests])
    return [part[:, : one.embeds.shape[1]] for part, one in zip(parts, requests, strict=True)]


def _connected(requests: Sequence[Blocks], lm: FrozenLM) -> list[Tensor]:  # noqa: ARG001
    """Run states through the blocks of one Connector."""
    connector = requests[0].connector
    parts = [StackInput(one.states, one.mask, one.memory) for one in requests]
    weights = connector.weights(requests[0].states.dtype, requests[0].memory)
    outputs = run_stack_together(connector.blocks, parts, weights)
    return [connector.placed(output, one.instead_of) for output, one in zip(outputs, requests, strict=True)]


_RUN: Mapping[type, Any] = {Pass: _passes, Encode: _encoded, Blocks: _connected}


def _pad_right(rows: Tensor, length: int) -> Tensor:
    """Return rows with zeros (False) after them, so that they have `length` columns."""
    if rows.shape[1] == length:
        return rows
    return torch.cat([rows, rows.new_zeros(rows.shape[0], length - rows.shape[1], *rows.shape[2:])], dim=1)
