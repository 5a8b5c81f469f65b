"""Vectors of an index's passages, in the index's own folder.

dense/NAME/manifest.json   encoder, how it reads, type and counts; whether all passages are there
dense/NAME/shards/N.npy    passages' numbers with their vectors, never changed once written

The number of a passage is never reused, so vectors are brought up to date by comparing numbers: those of deleted
passages are removed, new passages are encoded. A killed run loses at most one shard.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from shoulders.errors import CorruptFile, DataError, HubUnreachable, SourceNotFound, UnknownName, UsageError
from shoulders.retrieval.bi_encoder import BiEncoder, TextForm, reading_from_json
from shoulders.retrieval.index import MANIFEST, RUN, Index
from shoulders.retrieval.passages import PassageStore
from shoulders.store.files import (
    absolute_name,
    atomic_file,
    check_format,
    lock_folder,
    read_json,
    save_failed,
    write_json,
)

DENSE, SHARDS = "dense", "shards"
FORMAT, VERSION = "shoulders-vectors", 1
TYPES = ("float16", "float32")
SHARD = 1024  # passages
PASSAGE, VECTOR = "passage", "vector"  # fields of a shard's rows
AGAIN = "run the same `shoulders encode` command again"


@final
class VectorStore:
    """Vectors of passages, memory-mapped.

    Attributes:
        folder: of the vectors.
        encoder: the name of the retriever that made them.
        fingerprint: of that retriever.
        reading: the form of the texts that it reads.
        dimension: E, numbers of a vector.
        type: in which they are stored, "float16" or "float32".
        state: a hash over the numbers of the passages.
        ids: the numbers of the passages, in ascending order.

    Raises:
        SourceNotFound: the folder holds no vectors.
        UsageError: they are of another format, or not finished.
        CorruptFile: a part is broken.
    """

    def __init__(self, folder: Path) -> None:
        manifest = _manifest(folder)
        if not manifest.get("finished"):
            raise UsageError(f"the vectors {folder} are not finished: {AGAIN}")
        self.folder, self._run = folder, manifest["run"]
        self.encoder, self.fingerprint = manifest["encoder"]["name"], manifest["encoder"]["fingerprint"]
        self.reading: TextForm = reading_from_json(manifest["encoder"].get("reading"), str(folder / MANIFEST))
        self.dimension, self.type, self.state = manifest["dimension"], manifest["type"], manifest["state"]
        self._shards = [_shard(path, self.dimension, self.type) for path in _paths(folder)]
        numbers = _numbers(self._shards)
        self._order = np.argsort(numbers)
        self.ids = numbers[self._order]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        if _state(self.ids) != self.state:
            raise CorruptFile(f"the vectors {folder} do not match their manifest: {AGAIN}")

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield all vectors with the numbers of their passages, [N] and [N, E], a shard at a time."""
        for shard in self._shards:
            yield shard[PASSAGE].astype(np.int64), shard[VECTOR].astype(np.float32)

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of some passages [N, E]; all of them must be there."""
        rows = self._order[np.searchsorted(self.ids, numbers)]
        shards = np.searchsorted(self._starts, rows, "right") - 1
        found = np.empty((len(rows), self.dimension), np.float32)
        for shard in np.unique(shards):
            chosen = shards == shard
            found[chosen] = self._shards[shard][VECTOR][rows[chosen] - self._starts[shard]]
        return found

    def check(self, store: PassageStore) -> None:
        """Raise `UsageError` if the index holds other passages by now."""
        if store.state(RUN) == self._run:
            return
        numbers = store.numbers()
        if _state(numbers) != self.state:
            new, gone = len(np.setdiff1d(numbers, self.ids)), len(np.setdiff1d(self.ids, numbers))
            raise UsageError(
                f"the index changed after the vectors {self.folder} were made ({new:,} passages are new, {gone:,} are "
                f"gone): {AGAIN}"
            )


def encode(
    index: Index,
    encoder: BiEncoder,
    name: str = "",
    *,
    dtype: str = "float16",
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> VectorStore:
    """Encode the passages of an index, or only those that are new; what a killed run encoded is kept.

    Args:
        name: of the vectors in the index; "" for one made from the retriever's.
        dtype: type in which they are stored.
        on_progress: called with the number of new passages encoded, and of all new ones.

    Raises:
        UsageError: another process is encoding, the index is not finished or changes meanwhile, or the vectors of that
            name are another retriever's.
        DataError: a vector is not finite.
        SaveFailed: nothing can be written there.
    """
    if dtype not in TYPES:
        raise UnknownName("type of vectors", dtype, TYPES)
    if index.unfinished:
        raise UsageError(f"the index {index.folder} is not finished: finish it with `shoulders index`")
    folder = index.folder / DENSE / (name or vectors_name(encoder.name))
    if folder.parent.parent != index.folder or folder.name in ("", ".", ".."):
        raise UsageError(
            f"{name!r} is not a name for vectors (letters, digits and -._ only), e.g. {vectors_name(encoder.name)}"
        )
    try:
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise save_failed(folder, error) from error
    with lock_folder(folder):
        _follow(index.store, folder, encoder, dtype, on_progress)
    return VectorStore(folder)


def vectors_name(encoder: str) -> str:
    """Return the name of a retriever's vectors."""
    return re.sub(r"[^\w.-]+", "-", encoder.rpartition(":")[2]).strip("-.") or "vectors"


def vectors_in(index: Path, name: str = "") -> Path:
    """Return the folder of an index's vectors of that name, or of the only ones.

    Raises:
        SourceNotFound: there are no vectors.
        UnknownName: there are none of that name.
        UsageError: there are several, and `name` is empty.
    """
    names = sorted(path.parent.name for path in (index / DENSE).glob(f"*/{MANIFEST}"))
    if not names:
        raise SourceNotFound(f"{index} holds no vectors: make them with `shoulders encode {index} --retriever NAME`")
    if name and name not in names:
        raise UnknownName(f"vectors in {index} named", name, names)
    if not name and len(names) > 1:
        raise UsageError(
            f"{index} holds vectors of {len(names)} retrievers ({', '.join(names)}): name one "
            "(--dense NAME; evidence.dense=NAME in a recipe)"
        )
    return index / DENSE / (name or names[0])


def load_encoder(vectors: VectorStore) -> BiEncoder:
    """Load the retriever that made some vectors, by the name that is stored with them.

    Raises:
        SourceNotFound: the retriever is missing.
    """
    try:
        return BiEncoder.load(vectors.encoder, pooling=vectors.reading.pooling)
    except (SourceNotFound, HubUnreachable) as error:
        index = vectors.folder.parent.parent
        raise SourceNotFound(
            f"{error}. The vectors {vectors.folder.name!r} of the index {index} were made by {vectors.encoder!r}. "
            "Put it back there, search other vectors (--dense NAME; evidence.dense=NAME in a recipe), or make new "
            f"ones: shoulders encode {index} --retriever NAME"
        ) from error


def _follow(
    store: PassageStore, folder: Path, encoder: BiEncoder, dtype: str, on_progress: Callable[[int, int], None]
) -> None:
    fingerprint = encoder.fingerprint()
    if (folder / MANIFEST).exists():
        _check_same(folder, encoder.name, fingerprint, dtype)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": {
            "name": absolute_name(encoder.name),
            "fingerprint": fingerprint,
            "reading": asdict(encoder.reading),
        },
        "dimension": encoder.dimension,
        "type": dtype,
        "run": store.state(RUN),
        "finished": False,
    }
    write_json(folder / MANIFEST, manifest)
    numbers = store.numbers()
    kept = _prune(folder, numbers, encoder.dimension, dtype)
    new = np.setdiff1d(numbers, kept)
    free = count(1 + max((int(path.stem) for path in _paths(folder)), default=0))
    for start in range(0, len(new), SHARD):
        rows = _rows(store, encoder, new[start : start + SHARD], dtype)
        _write(folder / SHARDS / f"{next(free):06}.npy", rows)
        on_progress(min(start + SHARD, len(new)), len(new))
    if store.state(RUN) != manifest["run"]:
        raise UsageError(f"the index {folder.parent.parent} was changed meanwhile: {AGAIN}")
    counts = {"passages": len(numbers), "shards": len(_paths(folder))}
    write_json(folder / MANIFEST, {**manifest, "finished": True, "state": _state(numbers), "counts": counts})


def _check_same(folder: Path, name: str, fingerprint: str, dtype: str) -> None:
    manifest = _manifest(folder)
    before = manifest["encoder"]
    if before["fingerprint"] != fingerprint:
        raise UsageError(
            f"the vectors {folder} are of the retriever {before['name']} ({before['fingerprint'][:12]}), not of {name} "
            f"({fingerprint[:12]}): give these another name (--name), or delete the folder"
        )
    if manifest["type"] != dtype:
        raise UsageError(
            f"the vectors {folder} are kept as {manifest['type']}, not as {dtype}: give these another name (--name), "
            "or delete the folder"
        )


def _prune(folder: Path, numbers: NDArray[np.int64], dimension: int, dtype: str) -> NDArray[np.int64]:
    """Remove from the shards the passages that the index no longer holds, and return the numbers of the rest."""
    held = []
    for path in _paths(folder):
        shard = _shard(path, dimension, dtype)
        stays = np.isin(shard[PASSAGE], numbers)
        if not stays.any():
            path.unlink()
            continue
        if not stays.all():
            _write(path, shard[stays])
        held.append(shard[stays])
    return _numbers(held)


def _rows(store: PassageStore, encoder: BiEncoder, numbers: NDArray[np.int64], dtype: str) -> NDArray[Any]:
    """Return the rows of a shard: passage numbers with their vectors."""
    stored = list(store.get(numbers.tolist()).values())
    found = encoder.encode_passages([one.title for one in stored], [one.text for one in stored])
    rows = np.empty(len(stored), _row_type(encoder.dimension, dtype))
    rows[PASSAGE] = [one.id for one in stored]
    with np.errstate(over="ignore"):  # reported below
        rows[VECTOR] = found
    broken = ~np.isfinite(rows[VECTOR]).all(1)
    if broken.any():
        why = "overflows float16: keep float32 (--type)" if np.isfinite(found).all() else "is not finite"
        which = stored[int(broken.argmax())]
        raise DataError(f"the vector that {encoder.name} gives passage {which.id} ({which.title!r}) {why}")
    return rows


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).exists():
        raise SourceNotFound(f"{folder} holds no vectors: make them with `shoulders encode`")
    manifest = read_json(folder / MANIFEST)
    check_format(manifest, (FORMAT, VERSION), folder, "delete the folder and make them again (shoulders encode)")
    return manifest


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / SHARDS).glob("*.npy") if path.stem.isdigit())


def _row_type(dimension: int, dtype: str) -> np.dtype[Any]:
    return np.dtype([(PASSAGE, "<i8"), (VECTOR, np.dtype(dtype).newbyteorder("<"), (dimension,))])


def _shard(path: Path, dimension: int, dtype: str) -> NDArray[Any]:
    try:
        rows = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise CorruptFile(f"{path} is broken ({error}): delete it, then {AGAIN}") from error
    if rows.dtype != _row_type(dimension, dtype):
        raise CorruptFile(f"{path} holds {rows.dtype}, not vectors of {dimension} numbers: delete it, then {AGAIN}")
    return rows


def _write(path: Path, rows: NDArray[Any]) -> None:
    with atomic_file(path) as part, part.open("wb") as file:
        np.save(file, rows)


def _numbers(shards: list[NDArray[Any]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *(shard[PASSAGE] for shard in shards)])


def _state(numbers: NDArray[np.int64]) -> str:
    return blake2b(numbers.astype("<i8").tobytes(), digest_size=16).hexdigest()
