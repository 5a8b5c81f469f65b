"""Uploading an index to Milvus, and bringing a collection up to date.

A record of what was sent (`UploadState`) is kept beside the index, a file for each collection, named by the key that
the collection gets when it is created. It is written before a batch is sent and after the server has acknowledged it.
Whenever a process is killed, the next one first deletes what may have arrived unacknowledged.

A passage's number is never given to another text, so what changed is a difference of two sets of numbers.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple, Protocol, final

import numpy as np
from numpy.typing import NDArray

from shoulders.errors import UnknownName, UsageError
from shoulders.retrieval.bm25 import PYSERINI, Analyser, check_bm25
from shoulders.retrieval.index import Index
from shoulders.retrieval.milvus import BUILT, FLAT, Milvus, Vector
from shoulders.store.files import check_format, database_errors, lock_folder, open_database, save_failed, transaction

FORMAT, VERSION = "shoulders-collection", 1
BM25, VECTORS = "bm25", "vectors"
BATCH = 2000  # passages of one request: 1.5 MB of weights, 6 MB of vectors of 768
DRIFT = 1e-3  # relative change of the mean length after which all weights are uploaded again
ENGINE = "engine"  # key of the kind of Milvus's index over dense vectors
ROUND, COLLECTION, KIND, INDEX = "round", "collection", "kind", "index"
FOLDER, SUFFIX = "milvus", ".sqlite"
TABLES = """
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE terms (number INTEGER PRIMARY KEY, term TEXT NOT NULL UNIQUE, passages INTEGER NOT NULL);
CREATE TABLE sent (passage INTEGER PRIMARY KEY, round INTEGER NOT NULL);
CREATE TABLE uncertain (passage INTEGER PRIMARY KEY);
"""
AT_ONCE = 10_000  # SQLite takes at most 32,766 values in one statement
PASSAGES, ROWS = "passages", "rows"
TERMS = "SELECT term, number, passages FROM terms WHERE term"

OnProgress = Callable[[int, int], None]


class PassageVectors(Protocol):
    """Dense vectors of passages, as they are stored."""

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """The identity of the encoder that made them."""
        ...

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield passage numbers [N] and their vectors [N, D]."""
        ...


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """The collection on a server that an index is uploaded to, whether it exists already or not."""

    server: Milvus
    collection: str

    def __str__(self) -> str:
        return f"the collection {self.collection!r} at {self.server.address}"


@dataclass(frozen=True, slots=True)
class UploadResult:
    """Numbers of passages in an upload; `passages` is how many the collection holds now."""

    added: int
    deleted: int
    renewed: int
    unchanged: int
    passages: int


def upload_weights(
    index: Index,
    target: UploadTarget,
    k1: float = PYSERINI[0],
    b: float = PYSERINI[1],
    on_sent: OnProgress = lambda *_: None,
) -> UploadResult:
    """Upload BM25 weights; where the collection holds some already, upload the changes.

    A weight is the part of BM25 that depends on the passage, tf (k1 + 1) / (tf + k1 (1 - b + b length / mean)); the idf
    of a term is part of the query, from counts over all uploaded passages. So a change of the corpus changes other
    weights only through the mean length. The mean of the first upload is used until the true one differs from it by
    more than `DRIFT`; then all weights are uploaded again. Until then the relative error of a score is below that.

    Args:
        on_sent: called with the number of passages done, and of all.

    Raises:
        UsageError: the collection is another index's or was made otherwise, or another process is uploading.
        SourceNotFound: the server does not answer. The same call resumes the upload.
        SaveFailed: the disk of the server or of this machine is full.
    """
    check_bm25(k1, b)
    about = {"kind": BM25, "analyser": index.analyser.identity, "k1": k1, "b": b}
    with _begun(index.folder, target, about) as upload:
        counts = index.store.counts()
        mean = max(counts.terms / counts.passages, 1) if counts.passages else 1.0
        weights = _Weights(index, upload.state, k1, b, upload.round_for(mean))
        return upload.run_weights(weights, index, on_sent)


def upload_vectors(
    index: Index, vectors: PassageVectors, target: UploadTarget, kind: str = "", on_sent: OnProgress = lambda *_: None
) -> UploadResult:
    """Upload dense vectors; where the collection holds some already, add the new ones and delete those that are gone.

    Args:
        kind: of Milvus's index over them: "FLAT" compares all vectors; "HNSW", "IVF_FLAT" and "IVF_SQ8" are faster and
            approximate. "" for the present kind, or "FLAT".

    Raises:
        UnknownName: there is no such kind.
        UsageError, SourceNotFound, SaveFailed: as in `upload_weights`; a collection's kind cannot be changed.
    """
    if kind and kind not in BUILT:
        raise UnknownName("kind of Milvus's index", kind, BUILT)
    about = {"kind": VECTORS, "encoder": vectors.fingerprint, "dimension": vectors.dimension}
    wanted = {**about, ENGINE: kind} if kind else about
    with _begun(index.folder, target, wanted, {ENGINE: FLAT}) as upload:
        return upload.run_vectors(vectors, index, on_sent)


def upload_records(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the keys of all collections that an index was sent to, with the paths of their records."""
    for path in sorted((folder / FOLDER).glob(f"*{SUFFIX}")):
        yield path.stem, path


def check_about(about: Mapping[str, Any], wanted: Mapping[str, Any], target: str) -> None:
    """Raise `UsageError` if the description of a collection differs from the one wanted."""
    check_format(about, (FORMAT, VERSION), target, "upload to another (--collection)")
    for key, value in wanted.items():
        if key == "analyser" and about.get("kind") == BM25:
            Analyser().check(about.get(key) or {}, target)
        elif about.get(key) != value:
            raise UsageError(
                f"{target} has {key} {about.get(key)!r}, not {value!r}: name another collection (--collection), or the "
                f"{key} that it was made with"
            )


@contextmanager
def _begun(
    folder: Path, target: UploadTarget, about: Mapping[str, Any], usual: Mapping[str, Any] | None = None
) -> Iterator["_Upload"]:
    """Yield an upload to a collection, which is created if it is not there.

    Args:
        about: the description that the collection must have.
        usual: of a new one, where `about` has no value.
    """
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise save_failed(folder / FOLDER, error) from error
    with lock_folder(folder / FOLDER):
        known = target.server.about(target.collection)
        if known is None:
            known = {
                "format": FORMAT,
                "version": VERSION,
                "key": token_hex(8),
                "finished": False,
                **(usual or {}),
                **about,
            }
            part = folder / FOLDER / f"{known['key']}.part"
            with UploadState(part, write=True) as state:
                state.set_value(COLLECTION, target.collection)
                state.set_value(KIND, about["kind"])
            os.replace(part, part.with_suffix(SUFFIX))
            target.server.create(target.collection, known, known.get("dimension", 0), known.get(ENGINE, FLAT))
        check_about(known, about, str(target))
        path = folder / FOLDER / f"{known['key']}{SUFFIX}"
        if not path.exists():
            raise UsageError(
                f"{target} was sent from another index (its record {known['key']} is not in {folder / FOLDER}): name "
                "another one (--collection)"
            )
        target.server.load(target.collection)
        with UploadState(path, write=True) as state:
            yield _Upload(target, state, known)


class TermDimension(NamedTuple):
    """The dimension of a term in the sparse vectors, and how many of the uploaded passages have the term."""

    number: int
    passages: int


@final
class UploadState:
    """The record of one collection: its vocabulary, and the passages that the server has acknowledged.

    Dimensions of terms are assigned in the order of their first use and never change, so no two terms share one. The
    passages that have a term are counted among those that were acknowledged, so the counts do not depend on
    interruptions or on the server's shards.

    Raises:
        SaveFailed, CorruptFile: the file cannot be used, or is of another kind.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        with self._errors_named():
            self._file = open_database(path, TABLES, write=write)
            self._file.execute("SELECT count(*) FROM state").fetchone()

    def close(self) -> None:
        """Close the file."""
        with self._errors_named():
            self._file.close()

    def __enter__(self) -> "UploadState":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def value(self, key: str) -> str:
        """Return a value stored beside the rest; "" if there is none."""
        with self._errors_named():
            row = self._file.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row[0] if row else ""

    def set_value(self, key: str, value: object) -> None:
        """Store a value."""
        with self._errors_named():
            self._file.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, str(value)))

    def sent(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the passages that were acknowledged, by number, and the round of each."""
        with self._errors_named():
            rows = self._file.execute("SELECT passage, round FROM sent ORDER BY passage")
            pairs = np.fromiter((value for row in rows for value in row), np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def numbered(self, terms: Collection[str]) -> dict[str, int]:
        """Return the dimensions of terms, assigning new ones where there are none."""
        with self._writing():
            self._file.executemany(
                "INSERT OR IGNORE INTO terms (term, passages) VALUES (?, 0)", ((term,) for term in terms)
            )
        return {term: known.number for term, known in self.known(terms).items()}

    def known(self, terms: Iterable[str]) -> dict[str, TermDimension]:
        """Return the dimensions of those of the terms that have one."""
        found: dict[str, TermDimension] = {}
        asked = list(dict.fromkeys(terms))
        with self._errors_named():
            for start in range(0, len(asked), AT_ONCE):
                some = asked[start : start + AT_ONCE]
                query = f"{TERMS} IN ({','.join('?' * len(some))})"
                rows = self._file.execute(query, some)
                found.update((term, TermDimension(number, passages)) for term, number, passages in rows)
        return found

    def begin(self, passages: Sequence[int]) -> None:
        """Note that new passages are about to be sent."""
        with self._writing():
            self._doubt(passages)

    def acknowledge(self, passages: Sequence[int], rows: int, terms: Mapping[int, int], round_: int) -> None:
        """Note that the server has acknowledged new passages.

        Args:
            rows: number of their rows on the server; a passage without a term has none.
            terms: number of passages with a term, by the term's dimension.
        """
        with self._writing():
            self._file.executemany("INSERT INTO sent VALUES (?, ?)", ((one, round_) for one in passages))
            self._file.executemany("DELETE FROM uncertain WHERE passage = ?", ((one,) for one in passages))
            self._change(len(passages), rows, terms)

    def renew(self, passages: Sequence[int], round_: int) -> None:
        """Note that the server has acknowledged new weights of passages that it had."""
        with self._writing():
            self._file.executemany("UPDATE sent SET round = ? WHERE passage = ?", ((round_, one) for one in passages))

    def leave(self, passages: Sequence[int], rows: int, terms: Mapping[int, int]) -> None:
        """Note that passages are about to be deleted on the server, with their number of rows and their terms."""
        with self._writing():
            self._file.executemany("DELETE FROM sent WHERE passage = ?", ((one,) for one in passages))
            self._doubt(passages)
            self._change(-len(passages), -rows, {number: -count for number, count in terms.items()})

    def uncertain(self) -> list[int]:
        """Return the passages that the server may or may not have, and that are not counted."""
        with self._errors_named():
            return [passage for (passage,) in self._file.execute("SELECT passage FROM uncertain ORDER BY passage")]

    def settle(self) -> None:
        """Note that the server has none of the uncertain passages."""
        with self._writing():
            self._file.execute("DELETE FROM uncertain")

    def _doubt(self, passages: Sequence[int]) -> None:
        self._file.executemany("INSERT OR IGNORE INTO uncertain VALUES (?)", ((one,) for one in passages))

    def _change(self, passages: int, rows: int, terms: Mapping[int, int]) -> None:
        change = "UPDATE terms SET passages = passages + ? WHERE number = ?"
        self._file.executemany(change, ((count, number) for number, count in terms.items()))
        for key, value in ((PASSAGES, passages), (ROWS, rows)):
            self._file.execute("INSERT OR IGNORE INTO state VALUES (?, '0')", (key,))
            self._file.execute("UPDATE state SET value = CAST(value AS INTEGER) + ? WHERE key = ?", (value, key))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._errors_named(), transaction(self._file):
            yield

    def _errors_named(self) -> AbstractContextManager[Any]:
        return database_errors(self.path, "record of an upload", "INDEX, copied elsewhere")


@final
class _Weights:
    """Passages as sparse vectors of BM25 weights, without idf.

    Source: Robertson and Zaragoza 2009, with Lucene's idf, which is never negative.
    """

    def __init__(self, index: Index, state: UploadState, k1: float, b: float, mean: float) -> None:
        self.index, self.state, self.k1, self.b, self.mean = index, state, k1, b, mean

    def of(self, passages: list[int]) -> dict[int, Vector]:
        """Return the vectors of passages, leaving out those without a term."""
        stored = self.index.store.get(passages)  # one that was deleted meanwhile is not in it
        counted = {number: Counter(self.index.analyser.terms(one.searched)) for number, one in stored.items()}
        numbers = self.state.numbered({term for terms in counted.values() for term in terms})
        return {passage: self._vector(terms, numbers) for passage, terms in counted.items() if terms}

    def _vector(self, terms: Counter[str], numbers: Mapping[str, int]) -> dict[int, float]:
        norm = self.k1 * (1 - self.b + self.b * terms.total() / self.mean)
        return {numbers[term]: tf * (self.k1 + 1) / (tf + norm) for term, tf in terms.items()}


@final
class _Upload:
    """One upload to a collection that no other process writes."""

    def __init__(self, target: UploadTarget, state: UploadState, about: Mapping[str, Any]) -> None:
        self.server, self.collection, self.target = target.server, target.collection, target
        self.state, self.about = state, about
        self.done, self.all = 0, 0
        self.round = 1
        doubtful = state.uncertain()
        for start in range(0, len(doubtful), BATCH):
            self.server.delete(self.collection, doubtful[start : start + BATCH])
        state.settle()

    def round_for(self, mean: float) -> float:
        """Return the mean length that weights use: the previous one, or a new one if the mean has moved too far."""
        known = json.loads(self.state.value(ROUND) or "[0, 0]")
        if not known[1] or abs(mean / known[1] - 1) > DRIFT:
            known = [known[0] + 1, mean]
            self.state.set_value(ROUND, json.dumps(known))
        self.round = known[0]
        return known[1]

    def run_weights(self, weights: _Weights, index: Index, on_sent: OnProgress) -> UploadResult:
        """Upload new passages, delete those that are gone, and upload again those that were made with another mean."""
        numbers = index.store.numbers()
        sent, rounds = self.state.sent()
        gone, new = np.setdiff1d(sent, numbers), np.setdiff1d(numbers, sent)
        old = np.intersect1d(sent[rounds < self.round], numbers)
        self._expect(len(gone) + len(new) + len(old))
        self._delete(gone, on_sent)
        for some in _parts(new):
            self.state.begin(some)
            rows = weights.of(some)
            self.server.upsert(self.collection, rows)
            terms = Counter(number for row in rows.values() for number in row)
            self.state.acknowledge(some, len(rows), terms, self.round)
            self._tell(len(some), on_sent)
        for some in _parts(old):
            self.server.upsert(self.collection, weights.of(some))
            self.state.renew(some, self.round)
            self._tell(len(some), on_sent)
        return self._finished(UploadResult(len(new), len(gone), len(old), len(numbers) - len(new) - len(old), 0), index)

    def run_vectors(self, vectors: PassageVectors, index: Index, on_sent: OnProgress) -> UploadResult:
        """Upload new passages, and delete those that are gone."""
        numbers = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in vectors.batches())])
        sent, _ = self.state.sent()
        gone, new = np.setdiff1d(sent, numbers), np.setdiff1d(numbers, sent)
        self._expect(len(gone) + len(new))
        self._delete(gone, on_sent)
        for ids, rows in vectors.batches() if len(new) else ():
            wanted = np.flatnonzero(~np.isin(ids, sent))
            for some in _parts(wanted):
                passages = ids[some].tolist()
                self.state.begin(passages)
                self.server.upsert(self.collection, dict(zip(passages, rows[some], strict=True)))
                self.state.acknowledge(passages, len(passages), {}, self.round)
                self._tell(len(passages), on_sent)
        return self._finished(UploadResult(len(new), len(gone), 0, len(numbers) - len(new), 0), index)

    def _expect(self, passages: int) -> None:
        self.all = passages
        if passages and self.about["finished"]:
            self.server.set_about(self.collection, {**self.about, "finished": False})

    def _tell(self, passages: int, on_sent: OnProgress) -> None:
        self.done += passages
        on_sent(self.done, self.all)

    def _delete(self, gone: NDArray[np.int64], on_sent: OnProgress) -> None:
        for some in _parts(gone):
            rows = self.server.get(self.collection, some)
            terms = Counter(term for row in rows.values() if isinstance(row, Mapping) for term in row)
            self.state.leave(some, len(rows), terms)
            self.server.delete(self.collection, some)
            self.state.settle()
            self._tell(len(some), on_sent)

    def _finished(self, sent: UploadResult, index: Index) -> UploadResult:
        if self.all:
            self.server.flush(self.collection)
        found, rows = self.server.count(self.collection), int(self.state.value(ROWS) or 0)
        if found != rows:
            raise UsageError(
                f"{self.target} holds {found:,} passages, {rows:,} were sent from here: something else writes to it; "
                "send the index to another one (--collection)"
            )
        counts = {PASSAGES: int(self.state.value(PASSAGES) or 0), ROWS: rows}
        fingerprint = index.fingerprint
        mean = json.loads(self.state.value(ROUND) or "[0, 0]")[1]
        time = datetime.now(UTC).isoformat(timespec="seconds")
        finished = {"finished": True, "counts": counts, "mean_length": mean, "index": fingerprint, "time": time}
        self.server.set_about(self.collection, {**self.about, **finished})
        self.state.set_value(INDEX, fingerprint)
        return UploadResult(sent.added, sent.deleted, sent.renewed, sent.unchanged, counts[PASSAGES])


def _parts(numbers: NDArray[np.int64]) -> Iterator[list[int]]:
    for start in range(0, len(numbers), BATCH):
        yield numbers[start : start + BATCH].tolist()
