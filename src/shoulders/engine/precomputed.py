"""What the frozen model alone makes of the training data, computed once and kept on disk.

States of the first pass of a recursion, and keys and values of the text before a prompt.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from shoulders.backbone.frozen import FrozenLM, pad_right
from shoulders.backbone.passes import PassMemory, plain
from shoulders.engine.batches import by_length
from shoulders.errors import UsageError
from shoulders.records import KeysValues
from shoulders.scaffolds.base import Scaffold
from shoulders.store.cache import RowFile, key_of_ids


def check_contexts(scaffold: Scaffold) -> None:
    """Raise `UsageError` for a scaffold that trains before the text ends, or needs more of it than keys and values."""
    if scaffold.reads_before:
        return
    raise UsageError(
        f"scaffold.kind={scaffold.kind} with scaffold.placement={scaffold.placement} leaves no text before a prompt "
        "whose keys and values could be stored: leave training.contexts empty, or train scaffold.kind=soft_prompt or "
        "input_prompt with scaffold.placement=infix or suffix"
    )


def check_first_pass(scaffold: Scaffold) -> None:
    """Raise `UsageError` for a scaffold whose first pass is not that of the bare model: its states cannot be stored."""
    if scaffold.trained_before:
        raise UsageError(
            f"{scaffold.trained_before} trains before the first pass ends, so that its states are no constants that "
            "could be stored: leave training.first_pass empty, or train scaffold.kind=recursion with "
            "scaffold.inner=bare"
        )


FORMAT = 1
POSITIONS_AT_ONCE = 4096  # of one batch of rows that are computed, padding included


@final
class StateStore:
    """Final states of the bare model for rows of token ids, kept in a folder; each backbone and type has its own place.

    A row is known by all its ids. States are causal, so those of a row's beginning are the beginning of its states;
    the store makes nothing of that and keeps exact rows only.

    A process that is killed, or a full disk, leaves fewer rows than were computed and never a wrong one: a row is known
    once it is on disk, and has a checksum. What is damaged is told of (a Python warning), computed again and written
    anew. Several processes may use one folder at once.

    Args:
        folder: for all backbones; made if there is none.
        lm: the backbone.

    Attributes:
        computed: rows that this process had to compute.

    Raises:
        SaveFailed: on making it, or on new rows: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, lm: FrozenLM) -> None:
        self.lm = lm
        about = {
            "format": FORMAT,
            "fingerprint": lm.fingerprint(),
            "width": lm.width,
            "dtype": str(lm.dtype).removeprefix("torch."),
        }
        place = Path(folder).expanduser() / f"{about['fingerprint'][:16]}-{about['dtype']}"
        self._kept = RowFile(place, about, what="states", option="training.first_pass")
        self.computed = 0

    @property
    def damaged(self) -> int:
        """Rows, and entries of the index, that this process found damaged."""
        return self._kept.damaged

    @torch.no_grad()
    def states(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B T D"]:
        """The states of each row, padded with zeros at the end; on the backbone's device and in its type."""
        keys = [key_of_ids(row) for row in rows]
        found = {key: self._as_states(kept) for key, kept in self._kept.read(keys).items()}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        if missing:
            fresh = self._fresh(missing)
            self._kept.append({key: states.view(torch.uint8).numpy().reshape(-1) for key, states in fresh.items()})
            self.computed += len(fresh)
            found |= fresh
        padded = torch.zeros(len(rows), max(map(len, rows)), self.lm.width, dtype=self.lm.dtype)
        for number, key in enumerate(keys):
            padded[number, : len(found[key])] = found[key]
        return padded.to(self.lm.device)

    def _as_states(self, kept: NDArray[np.uint8]) -> Float[Tensor, "T D"]:
        return torch.from_numpy(kept.copy()).view(self.lm.dtype).view(-1, self.lm.width)

    def _fresh(self, rows: Mapping[bytes, Sequence[int]]) -> dict[bytes, Float[Tensor, "T D"]]:
        """States of rows, computed in batches of similar length."""
        found: dict[bytes, Tensor] = {}
        for part in by_length([*rows.items()], lambda item: len(item[1]), POSITIONS_AT_ONCE):
            ids = pad_right([list(row) for _, row in part], self.lm.end).ids.to(self.lm.device)
            states = self.lm.states(self.lm.embed(ids)).to("cpu", self.lm.dtype)
            found.update({key: states[number, : len(row)].contiguous() for number, (key, row) in enumerate(part)})
        return found


Row = Sequence[tuple[Tensor, Tensor]]  # keys and values of one text by layer, each (heads, positions, width)


@final
class Contexts:
    """Reads texts for what stands after them; with a folder, each text once for all epochs, runs and scaffolds.

    A text is read alone from position 0, and serves any batch: shorter rows are padded with zeros on the left, under
    the batch's mask. It is known by all its token ids; texts that begin alike share nothing.

    The folder is as safe as that of `StateStore` (one `RowFile`): a process that is killed, or a full disk, leaves
    fewer texts than were read and never a wrong one; what is damaged is told of, read again and written anew.

    Args:
        lm: the backbone.
        folder: for all backbones; made if there is none. Empty: nothing is kept, texts that a batch has twice are still
            read once.

    Attributes:
        computed: texts that this process had to read.

    Raises:
        UsageError: the backbone keeps more than keys and values.
        SaveFailed: on making it, or on new texts: the folder cannot be written.
    """

    def __init__(self, lm: FrozenLM, folder: str | Path = "") -> None:
        self.lm, self.computed = lm, 0
        self._layers = _layers(lm)
        self._kept = _file(lm, self._layers, Path(folder)) if str(folder) else None

    @property
    def damaged(self) -> int:
        """Texts, and entries of the index, that this process found damaged."""
        return self._kept.damaged if self._kept else 0

    @torch.no_grad()
    def read(self, texts: Sequence[Sequence[int]]) -> KeysValues:
        """Keys and values of each text of token ids; texts of no token are all padding."""
        keys = [key_of_ids(text) for text in texts]
        asked = {key: text for key, text in zip(keys, texts, strict=True) if len(text)}
        kept = self._kept.read(asked) if self._kept else {}
        found = {key: self._as_row(row, len(asked[key])) for key, row in kept.items()}
        found |= self._fresh({key: text for key, text in asked.items() if key not in found})
        return self._together([found.get(key) for key in keys], max(map(len, texts)))

    def _fresh(self, texts: Mapping[bytes, Sequence[int]]) -> dict[bytes, Row]:
        """What was not known yet; each batch is on disk before the next is read."""
        found: dict[bytes, Row] = {}
        for part in by_length([*texts.items()], lambda item: len(item[1]), POSITIONS_AT_ONCE):
            ids = pad_right([list(text) for _, text in part], self.lm.end).ids.to(self.lm.device)
            read = _read(self.lm, ids)
            new = {key: self._row(read, number, len(text)) for number, (key, text) in enumerate(part)}
            if self._kept is not None:
                self._kept.append({key: _as_bytes(row) for key, row in new.items()})
            self.computed += len(new)
            found |= new
        return found

    def _row(self, read: Row, number: int, length: int) -> Row:
        """One text of a batch, without its padding and what lies before a layer's window."""
        begins = [length - layer.positions(length) for layer in self._layers]
        return [
            (keys[number, :, begin:length], values[number, :, begin:length])
            for (keys, values), begin in zip(read, begins, strict=True)
        ]

    def _as_row(self, kept: NDArray[np.uint8], length: int) -> Row:
        """The inverse of `_as_bytes`, without a copy."""
        flat = torch.from_numpy(kept).view(self.lm.dtype)
        row: list[tuple[Tensor, Tensor]] = []
        for layer in self._layers:
            shapes = [(layer.heads, layer.positions(length), width) for width in (layer.key_width, layer.value_width)]
            sizes = [int(np.prod(shape)) for shape in shapes]
            keys, values, flat = flat.split([*sizes, len(flat) - sum(sizes)])
            row.append((keys.view(shapes[0]), values.view(shapes[1])))
        return row

    def _together(self, rows: Sequence[Row | None], longest: int) -> KeysValues:
        """Rows as one batch that ends in one column; None is a text of no token."""
        layers: list[tuple[Tensor, Tensor]] = []
        for number, layer in enumerate(self._layers):
            shape = (len(rows), layer.heads, layer.positions(longest))
            keys = torch.zeros(*shape, layer.key_width, dtype=self.lm.dtype, device=self.lm.device)
            values = torch.zeros(*shape, layer.value_width, dtype=self.lm.dtype, device=self.lm.device)
            for place, row in enumerate(rows):
                if row is not None:
                    begin = shape[2] - row[number][0].shape[1]
                    keys[place, :, begin:], values[place, :, begin:] = row[number]
            layers.append((keys, values))
        return KeysValues(tuple(layers))


def context_bytes(lm: FrozenLM, length: int) -> int:
    """Of the keys and values of a text of so many tokens; the backbone may be on the meta device.

    Raises:
        UsageError: the backbone keeps more than keys and values.
    """
    size = torch.empty(0, dtype=lm.dtype).element_size()
    return size * sum(layer.numbers(length) for layer in _layers(lm))


@dataclass(frozen=True, slots=True)
class _Layer:
    """The shape of what a layer keeps; a window of 0 is none."""

    heads: int
    key_width: int
    value_width: int
    window: int

    def positions(self, length: int) -> int:
        """Kept of a text: what the position after it can look back to."""
        return min(length, self.window - 1) if self.window else length

    def numbers(self, length: int) -> int:
        return self.heads * (self.key_width + self.value_width) * self.positions(length)


@torch.no_grad()
def _layers(lm: FrozenLM) -> list[_Layer]:
    """Found by reading one token: configurations of different families name these sizes differently."""
    if not plain(lm.config):
        raise UsageError(
            f"{lm.name} ({lm.config.model_type}) has layers that keep more of a text than keys and values, such as "
            "linear attention: leave training.contexts empty"
        )
    read = _read(lm, torch.zeros(1, 1, dtype=torch.long, device=lm.device))
    windows = [getattr(layer, "sliding_window", 0) for layer in DynamicCache(config=lm.config).layers]
    return [
        _Layer(keys.shape[1], keys.shape[-1], values.shape[-1], window)
        for (keys, values), window in zip(read, windows, strict=True)
    ]


def _file(lm: FrozenLM, layers: Sequence[_Layer], folder: Path) -> RowFile:
    """Of this backbone, in its type, with positions counted as it does."""
    about: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": lm.fingerprint(),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "layers": [list(astuple(layer)) for layer in layers],
        "positions": lm.config.to_dict().get("rope_parameters"),  # of which no weight knows
    }
    layout = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=4).hexdigest()
    place = folder.expanduser() / f"contexts-{about['fingerprint'][:16]}-{about['dtype']}-{layout}"
    return RowFile(place, about, what="keys and values", option="training.contexts")


class _AllRead(Exception):
    """The last layer's keys and values are there."""


class _Reading(DynamicCache):
    """A cache that ends the pass once it is filled: nobody asks what the last layer makes of its keys and values.

    It keeps all positions in layers with a window, too: a batch is padded at the end, so that the last positions of its
    tensors are not the last ones of each text.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = [DynamicLayer() for _ in range(layers)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As the class above, until the last layer."""
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == len(self.layers) - 1:
            raise _AllRead
        return found


def _read(lm: FrozenLM, ids: Int[Tensor, "B T"]) -> Row:
    """Keys and values (B, heads, T, width) of texts with padding at the end."""
    cache = _Reading(len(DynamicCache(config=lm.config).layers))
    with suppress(_AllRead):
        lm.states(lm.embed(ids), memory=PassMemory(cache))
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[attr-defined]


def _as_bytes(row: Row) -> NDArray[np.uint8]:
    flat = torch.cat([one.reshape(-1) for layer in row for one in layer])
    return flat.cpu().view(torch.uint8).numpy()
