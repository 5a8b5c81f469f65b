"""Constants of the training data that the frozen model alone computes, once, and that are kept on disk.

These are the states of the first pass of a recursion, and the keys and values of the text before a prompt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from shoulders.backbone.caches import plain, windows
from shoulders.backbone.frozen import FrozenLM, pad_right
from shoulders.engine.batches import by_length
from shoulders.errors import UsageError
from shoulders.records import KeysValues
from shoulders.scaffolds.base import Scaffold
from shoulders.store.cache import RowCache, key_of_ids


def check_contexts(scaffold: Scaffold) -> None:
    """Raise `UsageError` unless the frozen model alone reads the text before the scaffold's prompt."""
    if scaffold.reads_before:
        return
    raise UsageError(
        f"scaffold.kind={scaffold.kind} with scaffold.placement={scaffold.placement} has no text before a prompt whose "
        "keys and values could be stored: leave training.contexts empty, or train scaffold.kind=soft_prompt or "
        "input_prompt with scaffold.placement=infix or suffix"
    )


def check_first_pass(scaffold: Scaffold) -> None:
    """Raise `UsageError` unless the scaffold's first pass is that of the bare model, whose states can be stored."""
    if scaffold.trained_before:
        raise UsageError(
            f"{scaffold.trained_before} trains before the first pass ends, so that the states of that pass change and "
            "cannot be stored: leave training.first_pass empty, or train scaffold.kind=recursion with "
            "scaffold.inner=bare"
        )


FORMAT = 1
POSITIONS_AT_ONCE = 4096  # of one batch of rows that are computed, padding included


@final
class StateStore:
    """Final states of the bare model for rows of token ids, kept in a folder, apart for each backbone and type.

    The key of a row is all its token ids: rows that begin alike share nothing.

    After a killed process or a full disk rows may be missing, but none is wrong: each is written with a checksum before
    it counts as stored. Damaged rows raise a Python warning, are computed again and written anew. Several processes may
    use one folder at the same time.

    Args:
        folder: shared by all backbones; made if there is none.
        lm: the backbone.

    Attributes:
        computed: number of rows that this process had to compute.

    Raises:
        SaveFailed: the folder cannot be written, now or when rows are added.
    """

    def __init__(self, folder: str | Path, lm: FrozenLM) -> None:
        self.lm = lm
        about = {
            "format": FORMAT,
            "fingerprint": lm.fingerprint(),
            "width": lm.width,
            "dtype": lm.precision,
        }
        place = Path(folder).expanduser() / f"{about['fingerprint'][:16]}-{about['dtype']}"
        self._kept = RowCache(place, about, what="states", option="training.first_pass")
        self.computed = 0

    @property
    def damaged(self) -> int:
        """Number of rows and index entries that this process found damaged."""
        return self._kept.damaged

    @torch.no_grad()
    def states(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B T D"]:
        """Return the states of each row, padded with zeros at the end, on the backbone's device and in its type."""
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
        """Compute the states of rows, in batches of similar length."""
        found: dict[bytes, Tensor] = {}
        for part in by_length([*rows.items()], lambda item: len(item[1]), POSITIONS_AT_ONCE):
            ids = pad_right([list(row) for _, row in part], self.lm.end).ids.to(self.lm.device)
            states = self.lm.states(self.lm.embed(ids)).to("cpu", self.lm.dtype)
            found.update({key: states[number, : len(row)].contiguous() for number, (key, row) in enumerate(part)})
        return found


TextKeysValues = Sequence[tuple[Tensor, Tensor]]  # of one text by layer, each (heads, positions, width)


@final
class Contexts:
    """Keys and values of the texts before a prompt; with a folder, each text runs once for all epochs and scaffolds.

    A text runs alone from position 0 and fits any batch: shorter rows are padded with zeros on the left, under the
    batch's mask. Its key is all its token ids: texts that begin alike share nothing.

    The folder is as safe as that of `StateStore` (both are a `RowCache`): texts may be missing, but none is wrong.

    Args:
        lm: the backbone.
        folder: shared by all backbones; made if there is none. Empty to keep nothing: a text that a batch has twice
            still runs once.

    Attributes:
        computed: number of texts that this process had to compute.

    Raises:
        UsageError: the backbone keeps more than keys and values.
        SaveFailed: the folder cannot be written, now or when texts are added.
    """

    def __init__(self, lm: FrozenLM, folder: str | Path = "") -> None:
        self.lm, self.computed = lm, 0
        self._layers = _layers(lm)
        self._kept = _file(lm, self._layers, Path(folder)) if str(folder) else None

    @property
    def damaged(self) -> int:
        """Number of texts and index entries that this process found damaged."""
        return self._kept.damaged if self._kept else 0

    @torch.no_grad()
    def read(self, texts: Sequence[Sequence[int]]) -> KeysValues:
        """Return the keys and values of texts of token ids as one batch; a text without a token is all padding."""
        keys = [key_of_ids(text) for text in texts]
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if len(text)}
        kept = self._kept.read(wanted) if self._kept else {}
        found = {key: self._from_bytes(row, len(wanted[key])) for key, row in kept.items()}
        found |= self._fresh({key: text for key, text in wanted.items() if key not in found})
        return self._together([found.get(key) for key in keys], max(map(len, texts)))

    def _fresh(self, texts: Mapping[bytes, Sequence[int]]) -> dict[bytes, TextKeysValues]:
        """Compute texts that are not stored; each batch is on disk before the next one runs."""
        found: dict[bytes, TextKeysValues] = {}
        for part in by_length([*texts.items()], lambda item: len(item[1]), POSITIONS_AT_ONCE):
            ids = pad_right([list(text) for _, text in part], self.lm.end).ids.to(self.lm.device)
            batch = self.lm.keys_values(ids)
            new = {key: self._row(batch, number, len(text)) for number, (key, text) in enumerate(part)}
            if self._kept is not None:
                self._kept.append({key: _as_bytes(row) for key, row in new.items()})
            self.computed += len(new)
            found |= new
        return found

    def _row(self, batch: KeysValues, number: int, length: int) -> TextKeysValues:
        """Return one text of a batch, without its padding and the positions before a layer's window."""
        begins = [length - layer.positions(length) for layer in self._layers]
        return [
            (keys[number, :, begin:length], values[number, :, begin:length])
            for (keys, values), begin in zip(batch.layers, begins, strict=True)
        ]

    def _from_bytes(self, kept: NDArray[np.uint8], length: int) -> TextKeysValues:
        """Return the keys and values that `_as_bytes` was given, without a copy."""
        flat = torch.from_numpy(kept).view(self.lm.dtype)
        row: list[tuple[Tensor, Tensor]] = []
        for layer in self._layers:
            shapes = [(layer.heads, layer.positions(length), width) for width in (layer.key_width, layer.value_width)]
            sizes = [int(np.prod(shape)) for shape in shapes]
            keys, values, flat = flat.split([*sizes, len(flat) - sum(sizes)])
            row.append((keys.view(shapes[0]), values.view(shapes[1])))
        return row

    def _together(self, rows: Sequence[TextKeysValues | None], longest: int) -> KeysValues:
        """Return texts as one batch, padded on the left; None is a text without a token."""
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
    """Return the size of the keys and values of a text of `length` tokens; the backbone may be on the meta device.

    Raises:
        UsageError: the backbone keeps more than keys and values.
    """
    size = torch.empty(0, dtype=lm.dtype).element_size()
    return size * sum(layer.numbers(length) for layer in _layers(lm))


@dataclass(frozen=True, slots=True)
class _Layer:
    """The shape of a layer's keys and values; a window of 0 is the whole text."""

    heads: int
    key_width: int
    value_width: int
    window: int

    def positions(self, length: int) -> int:
        """Return the number of positions kept of a text: those that the position after it attends to."""
        return min(length, self.window - 1) if self.window else length

    def numbers(self, length: int) -> int:
        """Return the count of numbers kept of a text of `length` tokens."""
        return self.heads * (self.key_width + self.value_width) * self.positions(length)


@torch.no_grad()
def _layers(lm: FrozenLM) -> list[_Layer]:
    """Return the shapes of all layers, from a pass over one token: families name these sizes differently."""
    if not plain(lm.config):
        raise UsageError(
            f"{lm.name} ({lm.config.model_type}) has layers that keep more of a text than keys and values, such as "
            "linear attention: leave training.contexts empty"
        )
    one = lm.keys_values(torch.zeros(1, 1, dtype=torch.long, device=lm.device))
    return [
        _Layer(keys.shape[1], keys.shape[-1], values.shape[-1], window)
        for (keys, values), window in zip(one.layers, windows(lm.config), strict=True)
    ]


def _file(lm: FrozenLM, layers: Sequence[_Layer], folder: Path) -> RowCache:
    """Return the file of this backbone, in its type, with its way to count positions."""
    about: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": lm.fingerprint(),
        "dtype": lm.precision,
        "layers": [list(astuple(layer)) for layer in layers],
        "positions": lm.config.to_dict().get("rope_parameters"),  # which the weights do not tell
    }
    layout = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=4).hexdigest()
    place = folder.expanduser() / f"contexts-{about['fingerprint'][:16]}-{about['dtype']}-{layout}"
    return RowCache(place, about, what="keys and values", option="training.contexts")


def _as_bytes(row: TextKeysValues) -> NDArray[np.uint8]:
    flat = torch.cat([one.reshape(-1) for layer in row for one in layer])
    return flat.cpu().view(torch.uint8).numpy()
