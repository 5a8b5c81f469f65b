"""Rows of bytes on disk by key: what a frozen model computed once, read from then on by all processes."""

import fcntl
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound
from shoulders.store.files import read_json, save_failed, write_json

MANIFEST, INDEX, DATA, LOCK = "manifest.json", "index.bin", "states.bin", "lock"
POSITIONS_AT_ONCE = 4096  # of one batch of rows that are computed, padding included


def in_batches(rows: Mapping[bytes, Sequence[int]], positions: int) -> Iterator[list[tuple[bytes, Sequence[int]]]]:
    """Rows by key in batches of similar length, the longest first, each of at most `positions` with its padding."""
    left = sorted(rows.items(), key=lambda item: len(item[1]))
    while left:
        size = max(1, positions // len(left[-1][1]))
        left, part = left[:-size], left[-size:]
        yield part


def key_of(ids: Sequence[int]) -> bytes:
    """A row's key: a hash over its token ids."""
    return blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a row lies among the data."""

    LAYOUT = Struct("<16sQQI")  # key, offset, size, checksum of key and data
    CHECKSUM = Struct("<I")  # of the entry itself
    BYTES = LAYOUT.size + CHECKSUM.size

    offset: int
    size: int
    checksum: int

    @property
    def end(self) -> int:
        return self.offset + self.size

    def packed(self, key: bytes) -> bytes:
        plain = self.LAYOUT.pack(key, self.offset, self.size, self.checksum)
        return plain + self.CHECKSUM.pack(zlib.crc32(plain))

    @classmethod
    def unpacked(cls, raw: bytes) -> "tuple[bytes, _Entry] | None":
        """Key and entry; None where it is damaged."""
        if cls.CHECKSUM.unpack(raw[cls.LAYOUT.size :])[0] != zlib.crc32(raw[: cls.LAYOUT.size]):
            return None
        key, *rest = cls.LAYOUT.unpack(raw[: cls.LAYOUT.size])
        return key, cls(*rest)


NOTHING = _Entry(0, 0, 0).packed(bytes(16))  # stands where a damaged entry was


@final
class RowFile:
    """Rows of bytes by key: data and index, both only ever appended to, under a lock that all processes share.

    Nothing is truncated: another process may have the data mapped. What a killed process left behind the last whole
    row is written over by the next, and what is damaged is told of (a Python warning) and no longer known.

    Args:
        folder: of this file alone; made if there is none.
        about: what the rows belong to; rows of anything else are not kept.
        what: the rows are, as messages say it.
        option: the recipe value that names the folder.

    Attributes:
        damaged: rows, and entries of the index, that this process found damaged.

    Raises:
        SaveFailed: on making it, or on new rows: the folder cannot be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], *, what: str, option: str) -> None:
        self.folder, self.what, self.option = folder, what, option
        self.damaged = 0
        self._forget()
        with self._locked():
            self._open(about)
            self._refresh()

    def read(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.uint8]]:
        """The rows that are known here, or have become known by another process."""
        wanted = set(keys)
        found = self._read(wanted)
        if len(found) < len(wanted):
            with self._locked():
                self._refresh()
            found |= self._read(wanted - found.keys())
        return found

    def append(self, rows: Mapping[bytes, NDArray[np.uint8]]) -> None:
        """Write rows that are not known yet."""
        with self._locked():
            self._refresh()
            at, entries = self._end, b""
            with (self.folder / DATA).open("r+b") as data:
                data.seek(at)
                for key, row in rows.items():
                    if key not in self._known:
                        data.write(row.data)
                        entries += _Entry(at, len(row), _checksum(key, row)).packed(key)
                        at += len(row)
                data.flush()
                os.fsync(data.fileno())  # a row that the index names is on disk
            self._write_index(self._indexed, entries)
            self._refresh()

    def _read(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.uint8]]:
        found = {key: self._bytes(self._known[key]) for key in keys if key in self._known}
        damaged = [key for key, row in found.items() if _checksum(key, row) != self._known[key].checksum]
        if damaged:
            self._tell(len(damaged), "rows")
        for key in damaged:
            del found[key], self._known[key]
        return found

    def _bytes(self, entry: _Entry) -> NDArray[np.uint8]:
        path = self.folder / DATA
        if entry.end > len(self._mapped) and path.exists() and path.stat().st_size > len(self._mapped):
            self._mapped = np.memmap(path, np.uint8, mode="c")  # never written; PyTorch warns of what it may not
        return self._mapped[entry.offset : entry.end]

    def _forget(self) -> None:
        self._known: dict[bytes, _Entry] = {}
        self._indexed = self._end = 0  # bytes of the index that have been read, and of the data that they name
        self._mapped: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def _open(self, about: Mapping[str, Any]) -> None:
        """Make the files, or check whose they are."""
        try:
            found = read_json(self.folder / MANIFEST)
        except (SourceNotFound, CorruptFile):
            found = None
        if found != about:
            files = [path for path in (self.folder / INDEX, self.folder / DATA) if path.exists()]
            for path in files:
                path.unlink()
            if files:
                warnings.warn(f"{self.folder / MANIFEST} is damaged: its {self.what} are computed anew", stacklevel=4)
            write_json(self.folder / MANIFEST, about)
        for name in (INDEX, DATA):
            (self.folder / name).touch()

    def _refresh(self) -> None:
        """Learn of rows that have been added since; under the lock, where no entry is half written."""
        path = self.folder / INDEX
        if path.stat().st_size < self._indexed:  # built anew by another process
            self._forget()
        with path.open("rb") as index:
            index.seek(self._indexed)
            raw = index.read()
        damaged = 0
        for start in range(0, len(raw) - _Entry.BYTES + 1, _Entry.BYTES):
            entry = _Entry.unpacked(raw[start : start + _Entry.BYTES])
            if entry is None:
                self._write_index(self._indexed, NOTHING)
                damaged += 1
            elif entry[1].size:
                self._known[entry[0]] = entry[1]
                self._end = max(self._end, entry[1].end)
            self._indexed += _Entry.BYTES
        if damaged:
            self._tell(damaged, "entries of the index")

    def _write_index(self, at: int, entries: bytes) -> None:
        with (self.folder / INDEX).open("r+b") as index:
            index.seek(at)
            index.write(entries)

    def _tell(self, damaged: int, what: str) -> None:
        self.damaged += damaged
        warnings.warn(f"{damaged} damaged {what} in {self.folder}: their {self.what} are computed anew", stacklevel=5)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / LOCK).open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except (OSError, SaveFailed) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            assert isinstance(reason, OSError)
            kept = self._indexed > 0
            raise save_failed(self.folder, reason, kept=kept, option=self.option) from reason


def _checksum(key: bytes, row: NDArray[np.uint8]) -> int:
    return zlib.crc32(row.data, zlib.crc32(key))
