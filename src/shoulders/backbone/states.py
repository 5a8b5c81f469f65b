"""First-pass states on disk: what rows of tokens are to the frozen model alone, computed once and for all.

In LM-Connector-LM nothing that trains stands before the first pass (the paper, section 4.2), so its final states are
constants of the data set. They are computed once; later epochs, runs and recipes read them from a memory-mapped file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM, pad_right
from shoulders.backbone.rows import POSITIONS_AT_ONCE, RowFile, in_batches, key_of

FORMAT = 1


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
        keys = [key_of(row) for row in rows]
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
        for part in in_batches(rows, POSITIONS_AT_ONCE):
            ids = pad_right([list(row) for _, row in part], self.lm.end).ids.to(self.lm.device)
            states = self.lm.states(self.lm.embed(ids)).to("cpu", self.lm.dtype)
            found.update({key: states[number, : len(row)].contiguous() for number, (key, row) in enumerate(part)})
        return found
