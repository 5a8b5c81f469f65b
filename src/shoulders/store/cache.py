"""Caches on disk by content key: what a frozen model computed once, read from then on by all processes.

`ValueCache` holds small values (sampled answers, scores) in an SQLite file. `RowCache` holds tensors as rows of bytes
in a file that is mapped into memory. SQLite copies a large value: it takes 1.2 to 1.7 times as long to read rows of
0.1 to 1 MB, 5 times for rows of 25 MB, and training reads such rows at every step.
"""

import fcntl
import json
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from threading import Lock
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound
from shoulders.store.files import database_errors, open_database, read_json, save_failed, transaction, write_json

TABLE = """
CREATE TABLE IF NOT EXISTS cached (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL
) WITHOUT ROWID;
"""
SELECT = "SELECT key, CAST(value AS BLOB), checksum FROM cached"  # damage can change the type of a value
KEYS_IN_A_QUERY = 10_000  # SQLite takes at most 32,766 values in one statement
MANIFEST, INDEX, DATA, LOCK = "manifest.json", "index.bin", "states.bin", "lock"


def key_of_texts(*parts: str) -> bytes:
    """Return the content key of some texts: a hash over all of them and where each ends."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode(errors="surrogatepass") + b"\xff")  # a byte that UTF-8 does not have
    return digest.digest()


def key_of_ids(ids: Sequence[int]) -> bytes:
    """Return the content key of a row of token ids: a hash over them."""
    return blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=16).digest()


@final
class ValueCache:
    """Small JSON values by key in an SQLite file, or in memory for one run.

    Several processes may use one file, and several threads one cache. A process that is killed, or a full disk, leaves
    fewer entries and never a wrong one. Entries have a checksum: a damaged one is reported (a Python warning) and
    counts as missing.

    Args:
        path: of the file, made if there is none; None for memory.
        option: the recipe value that names the file, for messages.

    Raises:
        CorruptFile: the file is something else.
        SaveFailed: the file cannot be written.
    """

    def __init__(self, path: str | Path | None = None, *, option: str = "evidence.store") -> None:
        self.path = Path(path).expanduser() if path else None
        self._option, self._writing = option, Lock()
        with self._errors():
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_database(self.path, TABLE)
            known = self._file.execute("SELECT 1 FROM sqlite_master WHERE name = 'cached'").fetchone()
        if not known:
            raise CorruptFile(
                f"{self.path} is an SQLite file of another program or version: name another ({option}), or delete it"
            )

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Any]:
        """Return the values of those keys that have one."""
        wanted = list(dict.fromkeys(keys))
        rows: list[tuple[bytes, bytes, int]] = []
        with self._errors():
            for start in range(0, len(wanted), KEYS_IN_A_QUERY):
                some = wanted[start : start + KEYS_IN_A_QUERY]
                query = f"{SELECT} WHERE key IN ({','.join('?' * len(some))})"
                rows += self._file.execute(query, some)
        found = {key: json.loads(value) for key, value, checksum in rows if checksum == _checksum(key, value)}
        if damaged := len(rows) - len(found):
            warnings.warn(f"{damaged} damaged entries in {self.path}: they are computed anew", stacklevel=3)
        return found

    def put(self, values: Mapping[bytes, Any]) -> None:
        """Keep values under their keys, replacing earlier ones: all of them or, if that fails, none."""
        texts = {key: json.dumps(value).encode() for key, value in values.items()}
        rows = [(key, text, _checksum(key, text)) for key, text in texts.items()]
        with self._errors(), self._writing, transaction(self._file):
            self._file.executemany("INSERT OR REPLACE INTO cached VALUES (?, ?, ?)", rows)

    def _errors(self) -> AbstractContextManager[None]:
        return database_errors(self.path or "memory", "cache", self._option)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Position of a row in the data file, as the index records it."""

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
        """Return the key and the entry; None if they are damaged."""
        if cls.CHECKSUM.unpack(raw[cls.LAYOUT.size :])[0] != zlib.crc32(raw[: cls.LAYOUT.size]):
            return None
        key, *rest = cls.LAYOUT.unpack(raw[: cls.LAYOUT.size])
        return key, cls(*rest)


EMPTY = _Entry(0, 0, 0).packed(bytes(16))  # replaces a damaged entry


@final
class RowCache:
    """Rows of bytes by key: a data file and an index, both only appended to, under a lock that all processes share.

    Files are never truncated, since another process may have the data mapped. What a killed process left behind the
    last whole row is overwritten by the next row. A damaged row is reported (a Python warning) and counts as missing.

    Args:
        folder: holds these files alone; made if there is none.
        about: description of what the rows were computed with; rows of another description are deleted.
        what: name of the rows in messages.
        option: the recipe value that names the folder, for messages.

    Attributes:
        damaged: number of rows and index entries that this process found damaged.

    Raises:
        SaveFailed: the folder cannot be written, now or when rows are added.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], *, what: str, option: str) -> None:
        self.folder, self.what, self.option = folder, what, option
        self.damaged = 0
        self._forget()
        with self._locked():
            self._open(about)
            self._refresh()

    def read(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.uint8]]:
        """Return the rows of those keys that have one, rows that other processes added included."""
        wanted = set(keys)
        found = self._read(wanted)
        if len(found) < len(wanted):
            with self._locked():
                self._refresh()
            found |= self._read(wanted - found.keys())
        return found

    def append(self, rows: Mapping[bytes, NDArray[np.uint8]]) -> None:
        """Write the rows whose keys have none yet."""
        with self._locked():
            self._refresh()
            at, entries = self._end, b""
            with (self.folder / DATA).open("r+b") as data:
                data.seek(at)
                for key, row in rows.items():
                    if key not in self._known:
                        data.write(row.data)
                        entries += _Entry(at, len(row), _checksum(key, row.data)).packed(key)
                        at += len(row)
                data.flush()
                os.fsync(data.fileno())  # before the index names the rows
            self._write_index(self._indexed, entries)
            self._refresh()

    def _read(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.uint8]]:
        found = {key: self._bytes(self._known[key]) for key in keys if key in self._known}
        damaged = [key for key, row in found.items() if _checksum(key, row.data) != self._known[key].checksum]
        if damaged:
            self._warn(len(damaged), "rows")
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
        self._indexed = self._end = 0  # bytes of the index that were read, and of the data that they cover
        self._mapped: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def _open(self, about: Mapping[str, Any]) -> None:
        """Make the files; delete rows that were computed with something else."""
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
        """Read index entries that were added since; under the lock, so that no entry is half written."""
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
                self._write_index(self._indexed, EMPTY)
                damaged += 1
            elif entry[1].size:
                self._known[entry[0]] = entry[1]
                self._end = max(self._end, entry[1].end)
            self._indexed += _Entry.BYTES
        if damaged:
            self._warn(damaged, "entries of the index")

    def _write_index(self, at: int, entries: bytes) -> None:
        with (self.folder / INDEX).open("r+b") as index:
            index.seek(at)
            index.write(entries)

    def _warn(self, damaged: int, what: str) -> None:
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


def _checksum(key: bytes, value: bytes | memoryview) -> int:
    return zlib.crc32(value, zlib.crc32(key))
