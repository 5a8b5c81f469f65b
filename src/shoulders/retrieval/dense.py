"""Dense search on FAISS over the vectors of an index, and the retrievers of an index by their names."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import faiss
import numpy as np
from numpy.typing import NDArray

from shoulders.errors import CorruptFile, SourceNotFound, UnknownName, UsageError, first_line
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.hybrid import make_retriever
from shoulders.retrieval.index import Index
from shoulders.retrieval.search import ScoredPassage, Searcher, best_first
from shoulders.retrieval.vectors import AGAIN, VectorStore, load_encoder, vectors_in
from shoulders.store.files import atomic_file, lock_folder, read_json, write_json

FLAT, SQ8, IVF_SQ8, IVF_PQ, IVF_RABITQ = "flat", "sq8", "ivf-sq8", "ivf-pq", "ivf-rabitq"
CANDIDATES = {FLAT: 1, SQ8: 2, IVF_SQ8: 2, IVF_PQ: 10, IVF_RABITQ: 10}  # examined for each passage requested
KINDS = tuple(CANDIDATES)
LARGE = 1_000_000  # passages from which on an index has cells, and a search examines some of them
ENGINE, ABOUT = "faiss.index", "faiss.json"
MORE = 64  # candidates examined in addition, at least
TRAINED_ON = 64  # vectors for each cell
CODES = 256  # of a part of a vector in ivf-pq
SEALED = 1 << 20  # bytes at either end of a file
AT_ONCE = 256  # queries


@final
class DenseSearcher:
    """Dense search over the vectors of an index.

    Args:
        encoder: makes the vectors of queries.

    Raises:
        UsageError: the vectors were made by another retriever.
        SourceNotFound, CorruptFile: there is no FAISS index over these vectors, or it is broken.
    """

    def __init__(self, vectors: VectorStore, encoder: BiEncoder) -> None:
        fingerprint = encoder.fingerprint()
        if fingerprint != vectors.fingerprint:
            raise UsageError(
                f"the vectors {vectors.folder} were made by the retriever {vectors.encoder} "
                f"({vectors.fingerprint[:12]}), queries are read by {encoder.name} ({fingerprint[:12]}): search with "
                "the same, or make vectors with this one (shoulders encode)"
            )
        self.vectors, self.encoder = vectors, encoder
        self.kind, self._index = _opened(vectors)

    @property
    def fingerprint(self) -> str:
        """The identity of the vectors and the kind of search."""
        return f"dense {self.vectors.fingerprint} {self.vectors.type} {self.kind}"

    def search(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Return for each query the k passages whose vectors have the largest dot product with the query's.

        Fewer if the index has fewer or the cells near the query hold fewer; none for an empty query.

        Raises:
            UsageError: a query's vector is not finite.
        """
        found: list[list[ScoredPassage]] = [[] for _ in queries]
        asked = [number for number, query in enumerate(queries) if query.strip()]
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            rows = self.encoder.encode_questions([queries[number] for number in some])
            if not np.isfinite(rows).all():
                raise UsageError(
                    f"{self.encoder.name} gives a query a vector that is not finite: its weights are broken"
                )
            for number, one in zip(some, self.nearest(rows, k), strict=True):
                found[number] = one
        return found

    def nearest(self, rows: NDArray[np.float32], k: int) -> list[list[ScoredPassage]]:
        """Return for each vector [Q, E] the k passages of the largest dot product, best first."""
        if not len(self.vectors):
            return [[] for _ in rows]
        found = self._candidates(rows, k)
        return [best_first(self._scored(row, some[some >= 0]), k) for row, some in zip(rows, found, strict=True)]

    def _candidates(self, rows: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return numbers of passages [Q, at least k], -1 for none; of equal scores all or none are included."""
        depth = k * CANDIDATES[self.kind] + MORE
        while True:
            depth = min(depth, len(self.vectors))
            scores, numbers = self._index.search(rows, depth)
            cut = (scores[:, -1] == scores[:, min(k, depth) - 1]) & (numbers[:, -1] >= 0)
            if depth == len(self.vectors) or not cut.any():
                return numbers
            depth *= 4

    def _scored(self, row: NDArray[np.float32], numbers: NDArray[np.int64]) -> list[ScoredPassage]:
        # Not a matrix product: BLAS rounds a row according to how many there are.
        scores = np.einsum("ne,e->n", self.vectors.take(numbers), row)
        return [ScoredPassage(int(n), float(s)) for n, s in zip(numbers, scores, strict=True)]


def default_kind(passages: int) -> str:
    """Return the kind of FAISS index that is used for so many passages."""
    return SQ8 if passages < LARGE else IVF_SQ8


def build_faiss(vectors: VectorStore, kind: str = "") -> str:
    """Build the FAISS index of some vectors beside them, unless it is up to date, and return its kind.

    Args:
        kind: one of `KINDS`. "flat" and "sq8" compare every vector, in float32 or a byte for each number; the "ivf-"
            kinds those in cells near the query, with a byte for each number, for 8 numbers ("ivf-pq"), or a bit for
            each number ("ivf-rabitq"). "" for the present kind, or that of `default_kind`.

    Raises:
        UnknownName: there is no such kind.
        UsageError: there are too few vectors for it, or another process is building it.
        SaveFailed: it cannot be written.
    """
    about = vectors.folder / ABOUT
    before = read_json(about) if about.exists() else {}
    kind = kind or str(before.get("kind") or default_kind(len(vectors)))
    if kind not in KINDS:
        raise UnknownName("kind of dense index", kind, KINDS)
    path = vectors.folder / ENGINE
    same = (before.get("kind"), before.get("of")) == (kind, _of(vectors))
    if same and path.exists() and before.get("seal") == _seal(path):
        return kind
    with lock_folder(vectors.folder):
        built = _built(vectors, kind)
        with atomic_file(path) as part:
            try:
                faiss.write_index(built, str(part))
            except RuntimeError as error:  # FAISS's error for a full disk
                raise OSError(first_line(error)) from error
        write_json(about, {"kind": kind, "of": _of(vectors), "seal": _seal(path), "faiss": faiss.__version__})
    return kind


def open_dense(index: Index, name: str = "", encoder: BiEncoder | None = None) -> DenseSearcher:
    """Return the searcher over an index's vectors of that name, or over the only ones.

    Args:
        encoder: the one that made them; None loads it by the name that is stored with them.

    Raises:
        UsageError: the index changed since they were made, or the retriever's weights did.
        SourceNotFound: there are no vectors, or the retriever is missing.
    """
    vectors = VectorStore(vectors_in(index.folder, name))
    vectors.check(index.store)
    return DenseSearcher(vectors, encoder or load_encoder(vectors))


def _built(vectors: VectorStore, kind: str) -> Any:
    cells = max(1, min(int(4 * math.sqrt(len(vectors))), len(vectors) // 39))  # FAISS warns of fewer than 39 in a cell
    inner = faiss.index_factory(vectors.dimension, _recipe(kind, vectors.dimension, cells), faiss.METRIC_INNER_PRODUCT)
    if kind == IVF_PQ and len(vectors) < CODES:
        raise UsageError(f"ivf-pq learns {CODES} codes, and there are {len(vectors)} vectors: take --kind {SQ8}")
    if kind not in (FLAT, SQ8):
        ivf: Any = faiss.downcast_index(faiss.extract_index_ivf(inner))
        ivf.nprobe = int(4 * math.sqrt(cells))
        if kind == IVF_PQ:
            ivf.do_polysemous_training = False  # minutes of ordering the codes for a search that is not used here
            ivf.pq.cp.min_points_per_centroid, ivf.pq.cp.max_points_per_centroid = 1, TRAINED_ON
    if len(vectors):
        inner.train(_sample(vectors, max(cells, CODES) * TRAINED_ON))
    index = faiss.IndexIDMap(inner)
    for numbers, rows in vectors.batches():
        index.add_with_ids(rows, numbers)
    return index


def _recipe(kind: str, dimension: int, cells: int) -> str:
    """Return the description of an index for FAISS's factory."""
    parts = max(part for part in range(1, max(1, dimension // 8) + 1) if dimension % part == 0)
    return {
        FLAT: "Flat",
        SQ8: "SQ8",
        IVF_SQ8: f"IVF{cells},SQ8",
        IVF_PQ: f"IVF{cells},PQ{parts}x8",
        IVF_RABITQ: f"RR{dimension},IVF{cells},RaBitQ",  # its error bounds are those of vectors turned at random
    }[kind]


def _sample(vectors: VectorStore, size: int) -> NDArray[np.float32]:
    """Return vectors spread evenly over the corpus, the same every time."""
    places = np.linspace(0, len(vectors) - 1, min(size, len(vectors))).astype(np.int64)
    return vectors.take(vectors.ids[places])


def _of(vectors: VectorStore) -> str:
    """Return an identity of the vectors that a FAISS index is made of."""
    return f"{vectors.fingerprint} {vectors.state} {vectors.type}"


def _opened(vectors: VectorStore) -> tuple[str, Any]:
    path, about = vectors.folder / ENGINE, vectors.folder / ABOUT
    if not (path.exists() and about.exists()):
        raise SourceNotFound(f"the vectors {vectors.folder} are not ready to be searched: {AGAIN}")
    known = read_json(about)
    if known.get("of") != _of(vectors):
        raise UsageError(f"{path} was built from other vectors than {vectors.folder} holds now: {AGAIN}")
    if known.get("seal") != _seal(path) or known.get("kind") not in KINDS:
        raise CorruptFile(f"{path} does not match {about.name}: delete both, then {AGAIN}")
    try:
        return known["kind"], faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise CorruptFile(f"{path} is broken ({first_line(error)}): delete it, then {AGAIN}") from error


def _seal(path: Path) -> str:
    """Return the size of a file with a hash of both its ends; hashing all of it would read what is only mapped."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(SEALED)
        file.seek(max(0, size - SEALED))
        return f"{size} {blake2b(first + file.read(), digest_size=16).hexdigest()}"


def open_retriever(index: Index, kind: str, dense: str = "", weight: float = 1.0) -> Searcher:
    """Return the retriever of an index by its kind (see `make_retriever`).

    Args:
        dense: the name of its vectors, if it has several.

    Raises:
        UnknownName: there is no such kind, or there are no vectors of that name.
        UsageError, SourceNotFound: the index has no vectors that can be searched (`open_dense`).
    """
    return make_retriever(kind, lambda: open_dense(index, dense), lambda: index.sparse, weight)
