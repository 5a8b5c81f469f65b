"""Edits of a frozen model for the rows of a forward: keys and values to find, low-rank updates, factors of activations.

The linear layers of a stack are hooked once, when an edit is first used. A hook does nothing without edits, and never
touches a weight: quantised layers are edited like any other, and rows with different edits share one forward.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from threading import Lock
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.pytorch_utils import Conv1D

from shoulders.errors import UsageError
from shoulders.records import KeysValues

SHARED = {"down": 2, "up": 2, "gate": 1, "before": 1, "after": 1}  # dimensions of what is the same for all rows


@dataclass(frozen=True, slots=True)
class LayerEdit:
    """The edit of one linear layer W: it gives `after * (W(before * x) + scale * up(gate * down(before * x)))`.

    What is the same for all rows has no dimension for them; what differs has the rows (B) as its first.

    Attributes:
        down, up: low-rank update, in the type of the activations; None without one. Without `down`, `up` multiplies
            the vectors that come with each pass (`Edits.vectors`), where there are any, instead of what W reads.
        scale: factor of the update.
        gate: factors of its r rank-one components.
        before, after: factors of the entries of input and output.
    """

    down: Float[Tensor, "*B r I"] | None = None
    up: Float[Tensor, "*B O r"] | None = None
    scale: float = 1.0
    gate: Float[Tensor, "*B r"] | None = None
    before: Float[Tensor, "*B I"] | None = None
    after: Float[Tensor, "*B O"] | None = None

    def __deepcopy__(self, _: dict[int, object]) -> Self:
        """Return itself: its tensors are never written to."""
        return self

    def select(self, rows: Int[Tensor, "B"]) -> Self:
        """Return the edit of these rows, in this order."""
        by_row = {name: one.index_select(0, rows) for name, one in self.by_row()}
        return replace(self, **by_row) if by_row else self

    def by_row(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what differs between rows, with its name."""
        for name, shared in SHARED.items():
            one: Tensor | None = getattr(self, name)
            if one is not None and one.dim() > shared:
                yield name, one

    def on(self, device: torch.device) -> Self:
        """Return the edit on the device of its layer: the layers of one model may be on several."""
        tensors = ((name, getattr(self, name)) for name in SHARED)
        moved = {name: one.to(device) for name, one in tensors if one is not None and one.device != device}
        return replace(self, **moved) if moved else self

    def output(
        self,
        read: Float[Tensor, "B T I"],
        output: Float[Tensor, "B T O"],
        vectors: Float[Tensor, "B T N"] | None = None,
    ) -> Float[Tensor, "B T O"]:
        """Return the layer's edited output, given what it read (after `before`), its own output and the vectors."""
        hidden = vectors if self.down is None else read @ self.down.mT
        if hidden is not None and self.up is not None:
            hidden = hidden[..., : self.up.shape[-1]]
            if self.gate is not None:
                hidden = hidden * _over_positions(self.gate)
            if self.up.dim() == 2:
                flat = torch.addmm(output.flatten(0, 1), hidden.flatten(0, 1), self.up.mT, alpha=self.scale)
                output = flat.view_as(output)
            else:
                output = torch.baddbmm(output, hidden, self.up.mT, alpha=self.scale)
        return output if self.after is None else output * _over_positions(self.after)


LayerEdits = Mapping[str, LayerEdit]  # by the name of the linear layer in the stack


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits for the rows of one pass.

    Attributes:
        prompt: keys and values of P columns, in every layer; no layer computes anything for them. They stand between
            the memory's columns and those of the pass, or at `slot`.
        slot: for each row, the first of P columns of the pass itself that have these keys and values instead of their
            own. So each row has its prompt beside its own text, whatever padding it has.
        layers: edits of linear layers, for this pass and all that continue its memory.
        vectors: vectors of each position of this pass alone, for edits of layers that have no `down`.
    """

    prompt: KeysValues | None = None
    slot: tuple[int, ...] = ()
    layers: LayerEdits = field(default_factory=dict)
    vectors: Float[Tensor, "B T r"] | None = None

    @property
    def begins(self) -> bool:
        """Whether it changes the memory that passes continue."""
        return self.prompt is not None or bool(self.layers)


def linear_layers(stack: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of a stack by name, quantised ones and those of GPT-2 among them."""
    return {name: one for name, one in stack.named_modules() if isinstance(one, nn.Linear | Conv1D)}


# Linear layers that write keys and values, by the end of their names; the last four write queries, too.
WRITERS = ("k_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj", "Wqkv")


def writing_layers(stack: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of a stack that write its keys and values, by name.

    Raises:
        UsageError: none of them has a name that is known.
    """
    layers = linear_layers(stack)
    found = {name: layer for name, layer in layers.items() if name.rsplit(".", 1)[-1] in WRITERS}
    if not found:
        names = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise UsageError(
            f"none of the linear layers ({', '.join(names)}) is known to write keys and values ({', '.join(WRITERS)}): "
            "leave scaffold.recursion.keys_values at false"
        )
    return found


def layer_sizes(layer: nn.Module) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, Conv1D)  # its weights are transposed
    return layer.nx, layer.nf


LayerParts = Sequence[tuple[int, LayerEdit | None]]  # number of rows and edit of each part of a batch, in one layer
_Current = tuple[Mapping[str, LayerParts], Tensor | None]
_CURRENT: ContextVar[_Current] = ContextVar("edits of the current forward, and their vectors", default=({}, None))
_HOOKING = Lock()


def arranged(parts: Sequence[tuple[int, LayerEdits]], positions: int) -> Mapping[str, LayerParts]:
    """Return the edits of each layer for the rows of a batch, with as few products as these edits allow.

    Args:
        parts: number of rows and edits of each part of the batch, in order.
        positions: number of columns of the batch.
    """
    names = {name: None for _, layers in parts for name in layers}
    if not names:
        return {}
    merged = _merged(parts)
    if positions == 1 and not torch.is_grad_enabled():
        merged = _gathered(merged)
    return {name: [(rows, layers.get(name)) for rows, layers in merged] for name in names}


@contextmanager
def edited(
    stack: nn.Module, layers: Mapping[str, LayerParts], vectors: Float[Tensor, "B T N"] | None = None
) -> Iterator[None]:
    """Edit the layers of a stack in the forwards within this context (`arranged`), given the vectors of all rows."""
    if not layers:
        yield
        return
    _hook(stack)
    kept = _CURRENT.set((layers, vectors))
    try:
        yield
    finally:
        _CURRENT.reset(kept)


def _hook(stack: nn.Module) -> None:
    """Hook the linear layers of a stack, unless it has that mark; a copy of the stack has hooks and mark of its own."""
    with _HOOKING:
        if getattr(stack, "linear_layers_hooked", False):
            return
        for name, layer in linear_layers(stack).items():
            layer.register_forward_pre_hook(partial(_before, name))
            layer.register_forward_hook(partial(_after, name))
        stack.linear_layers_hooked = True  # type: ignore[assignment] (no tensor and no module)


def _before(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...] | None:  # noqa: ARG001
    """Return the edited input of a layer; None to leave it as it is."""
    parts = _parts(name)
    if not any(edit is not None and edit.before is not None for _, edit in parts):
        return None
    pieces = [
        piece if edit is None or edit.before is None else piece * _over_positions(edit.before.to(piece.device))
        for (_, edit), piece in zip(parts, _pieces(inputs[0], parts, name), strict=True)
    ]
    return (torch.cat(pieces).view_as(inputs[0]), *inputs[1:])


def _after(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:  # noqa: ARG001
    """Return the edited output of a layer; None to leave it as it is."""
    parts = _parts(name)
    if not parts:
        return None
    reads, outputs = _pieces(inputs[0], parts, name), _pieces(output, parts, name)
    vectors = _CURRENT.get()[1]
    if vectors is not None:
        vectors = vectors.to(output.device)
    given = [None] * len(parts) if vectors is None else vectors.split([count for count, _ in parts])
    pieces = [
        own if edit is None else edit.on(own.device).output(read.to(own.device), own, one)
        for (_, edit), read, own, one in zip(parts, reads, outputs, given, strict=True)
    ]
    return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).view_as(output)


def _parts(name: str) -> LayerParts:
    """Return the edits of a layer in the current forward; nothing if there are none."""
    return _CURRENT.get()[0].get(name, ())


def _pieces(batch: Tensor, parts: LayerParts, name: str) -> Sequence[Tensor]:
    """Return the rows of each part; some families flatten rows and positions into one dimension.

    Raises:
        UsageError: the layer reads something else than a vector for each position of each row.
    """
    rows = [count for count, _ in parts]
    if batch.dim() > 3 or batch.shape[0] % sum(rows):
        raise UsageError(
            f"the layer {name} reads vectors of shape {tuple(batch.shape)} for {sum(rows)} rows, and cannot be edited "
            "row by row: leave it out (scaffold.targets)"
        )
    return batch.reshape(sum(rows), -1, batch.shape[-1]).split(rows)


def _over_positions(factors: Float[Tensor, "*B N"]) -> Float[Tensor, "*B 1 N"]:
    return factors[:, None] if factors.dim() == 2 else factors


def _merged(parts: Sequence[tuple[int, LayerEdits]]) -> list[tuple[int, LayerEdits]]:
    """Return the parts with neighbours of the same edits as one part."""
    merged: list[tuple[int, LayerEdits]] = []
    for rows, layers in parts:
        if merged and _same(merged[-1][1], layers):
            before, known = merged[-1]
            merged[-1] = (before + rows, {name: _joined(known[name], layers[name]) for name in layers})
        else:
            merged.append((rows, layers))
    return merged


def _same(one: LayerEdits, other: LayerEdits) -> bool:
    """Return whether two parts of a batch have the same edits, but for what differs between rows."""
    return one is other or (one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one))


def _alike(one: LayerEdit, other: LayerEdit) -> bool:
    return one.scale == other.scale and all(
        _alike_tensors(getattr(one, name), getattr(other, name), shared) for name, shared in SHARED.items()
    )


def _alike_tensors(one: Tensor | None, other: Tensor | None, shared: int) -> bool:
    """Return whether two tensors are one, or both differ between rows."""
    if one is None or other is None:
        return one is other
    if one.dim() > shared and other.dim() > shared:
        return one.shape[1:] == other.shape[1:]
    return one is other or (one.shape == other.shape and one.data_ptr() == other.data_ptr() != 0)


def _joined(one: LayerEdit, other: LayerEdit) -> LayerEdit:
    """Return the edit of the rows of two parts that are alike."""
    names = [name for name, _ in one.by_row()]
    return replace(one, **{name: torch.cat([getattr(one, name), getattr(other, name)]) for name in names})


FEW = 2  # rows of a part up to which its weights are copied for each of them, to share a product with its neighbours
_Stack = Mapping[str, tuple[Tensor, Tensor]] | None  # A and B for each row, by layer; None if they cannot be stacked
_STACKS: dict[Any, tuple[_Stack, object]] = {}  # the newest one


def _gathered(parts: Sequence[tuple[int, LayerEdits]]) -> list[tuple[int, LayerEdits]]:
    """Return the parts of a step of a decode, with neighbours of few rows as one part with weights for each row.

    Each layer then has one batched product instead of one for each scaffold (as S-LoRA and Punica do).
    """
    runs = [(few, list(run)) for few, run in groupby(parts, _few)]
    return [part for few, run in runs for part in (_as_one(run) if few and len(run) > 1 else run)]


def _few(part: tuple[int, LayerEdits]) -> bool:
    rows, layers = part
    return rows <= FEW and bool(layers) and all(edit.down is not None for edit in layers.values())


def _as_one(run: Sequence[tuple[int, LayerEdits]]) -> Sequence[tuple[int, LayerEdits]]:
    """Return the parts as one if their weights can be stacked; the stack is kept for the steps to come."""
    key = tuple((rows, tuple((name, *_places(edit)) for name, edit in layers.items())) for rows, layers in run)
    kept = _STACKS.get(key)
    if kept is None:
        kept = _stacked(run), run  # as long as these tensors live, no others have their places
        _STACKS.clear()
        _STACKS[key] = kept
    stack, rows = kept[0], sum(count for count, _ in run)
    if stack is None:
        return run
    gated = any(edit.gate is not None for _, layers in run for edit in layers.values())
    gates = {
        name: torch.cat([_gate_of(layers[name], count) for count, layers in run]) if gated else None for name in stack
    }
    return [(rows, {name: LayerEdit(down, up, gate=gates[name]) for name, (down, up) in stack.items()})]


def _places(edit: LayerEdit) -> tuple[int | float, ...]:
    """Return what tells the weights of an update from others, and from themselves before a step of training."""
    weights = [one for one in (edit.down, edit.up) if one is not None]
    # What is made in inference mode has no count of writes: nothing writes to it.
    versions = [0 if one.is_inference() else one._version for one in weights]  # noqa: SLF001
    return (*(one.data_ptr() for one in weights), *versions, edit.scale)


def _stacked(run: Sequence[tuple[int, LayerEdits]]) -> _Stack:
    """Return A and B for each row; None for layers, sizes or kinds of edits that differ."""
    first = run[0][1]
    for _, layers in run:
        if layers.keys() != first.keys() or not all(_alike_sizes(edit, first[name]) for name, edit in layers.items()):
            return None
    return {
        name: (
            torch.cat([layers[name].down.expand(rows, -1, -1) for rows, layers in run]),  # type: ignore[union-attr]
            torch.cat([(layers[name].up * layers[name].scale).expand(rows, -1, -1) for rows, layers in run]),  # type: ignore[operator]
        )
        for name in first
    }


def _alike_sizes(one: LayerEdit, other: LayerEdit) -> bool:
    return (
        one.before is one.after is None
        and one.down is not None
        and other.down is not None
        and one.down.dim() == 2
        and one.down.shape == other.down.shape
    )


def _gate_of(edit: LayerEdit, rows: int) -> Float[Tensor, "B r"]:
    assert edit.down is not None
    gate = edit.down.new_ones(edit.down.shape[0]) if edit.gate is None else edit.gate
    return gate.expand(rows, -1)


_CASTS = WeakTensorKeyDictionary()


def in_type(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return trained weights in the type of a multiplication.

    Without gradients a cast is kept until the weights change: each step of a decode, and every request, uses it.
    """
    if weights.dtype == dtype or torch.is_grad_enabled():
        return weights.to(dtype)
    state = dtype, weights.device, weights.data_ptr(), weights._version  # noqa: SLF001 (counts writes in place)
    kept = _CASTS.get(weights)
    if kept is None or kept[0] != state:
        kept = _CASTS[weights] = (state, weights.to(dtype))
    return kept[1]
