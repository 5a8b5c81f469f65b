"""Search of an index on Milvus: the same passages and scores as the local engines, however the server is sharded.

The server only computes inner products: terms, weights and statistics are computed here. Of passages with equal scores
the lower number comes first, as long as no more than `LIMIT` tie for the last place.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, final

import numpy as np
from jaxtyping import Float32

from shoulders.errors import SourceNotFound, UsageError
from shoulders.retrieval.hybrid import make_retriever
from shoulders.retrieval.index import Index
from shoulders.retrieval.milvus import FLAT, LIMIT, Milvus, Vector
from shoulders.retrieval.milvus_upload import (
    BM25,
    ENGINE,
    INDEX,
    PASSAGES,
    VECTORS,
    UploadState,
    check_about,
    upload_records,
)
from shoulders.retrieval.search import DENSE, SPARSE, ScoredPassage, Searcher, best_first
from shoulders.retrieval.vectors import VectorStore, load_encoder, vectors_in


class QueryEncoder(Protocol):
    """An encoder of queries."""

    def fingerprint(self) -> str:
        """Return the identity of the encoder; the passages' vectors must have the same."""
        ...

    def encode_questions(self, questions: Sequence[str], /) -> Float32[np.ndarray, "N D"]:
        """Return the vectors of queries."""
        ...


@final
class MilvusBM25:
    """BM25 with the k1 and b of the upload (`upload_weights`).

    Args:
        collection: "" for the one that the index was sent to.

    Raises:
        SourceNotFound: the index was not sent there, or the server does not answer.
        UsageError: the collection is another index's, or was analysed otherwise.
    """

    def __init__(self, index: Index, server: Milvus, collection: str = "") -> None:
        self.analyser = index.analyser
        self._held = _Collection(index, server, collection, {"kind": BM25, "analyser": index.analyser.identity})
        self.fingerprint, self.stale = self._held.fingerprint, self._held.stale

    def search(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Return for each query the k passages with the highest scores, of those that have a term of it.

        Raises:
            UsageError: k is larger than Milvus's limit.
            SourceNotFound: the server does not answer.
        """
        return self._held.search([self._weighed(query) for query in queries], k)

    def _weighed(self, query: str) -> dict[int, float]:
        """Return Lucene's idf times the count of each term, by the term's dimension."""
        counts = Counter(self.analyser.terms(query))
        state = self._held.state
        known, passages = state.known(counts), int(state.value(PASSAGES) or 0)
        return {
            term.number: counts[word] * math.log(1 + (passages - term.passages + 0.5) / (term.passages + 0.5))
            for word, term in known.items()
            if term.passages
        }


@final
class MilvusVectors:
    """Inner products with the vectors of `upload_vectors`; arguments and errors as for `MilvusBM25`.

    Raises:
        UsageError: the vectors were made by another encoder than the query's.
    """

    def __init__(self, index: Index, encoder: QueryEncoder, server: Milvus, collection: str = "") -> None:
        self._encoder = encoder
        self._held = _Collection(index, server, collection, {"kind": VECTORS, "encoder": encoder.fingerprint()})
        self.fingerprint, self.stale = self._held.fingerprint, self._held.stale

    def search(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Return for each query the k passages with the largest inner products; none for an empty query.

        Raises:
            UsageError: as for `MilvusBM25`, or the vectors have another dimension.
        """
        asked = [number for number, query in enumerate(queries) if query.strip()]
        vectors: list[Vector] = [{} for _ in queries]
        if asked:
            rows = self._encoder.encode_questions([queries[number] for number in asked])
            self._check(rows.shape[1])
            for number, row in zip(asked, rows, strict=True):
                vectors[number] = row
        return self._held.search(vectors, k)

    def _check(self, dimension: int) -> None:
        held = self._held.about["dimension"]
        if dimension != held:
            raise UsageError(
                f"the query's vectors have {dimension} dimensions, those at {self._held.server.address} "
                f"{held}: search with the encoder that made them"
            )


class ServerRetriever(NamedTuple):
    """A retriever on a server, and whether the index has changed since it was sent."""

    searcher: Searcher
    stale: bool


def server_retriever(
    index: Index, server: Milvus, kind: str, collection: str = "", dense: str = "", weight: float = 1.0
) -> ServerRetriever:
    """Return the retriever of an index on a server by its kind (see `make_retriever`).

    Args:
        collection: the name of the collection to search; for "hybrid" and "rrf" two names, "SPARSE,DENSE". "" for the
            collections that the index was sent to.
        dense: the name of the index's vectors, if it has several.

    Raises:
        UnknownName: there is no such kind.
        SourceNotFound, UsageError: as for `MilvusBM25`; or the vectors or the encoder that made them are missing here.
    """
    names = _collections(kind, collection)
    stale: list[bool] = []

    def weights() -> Searcher:
        searcher = MilvusBM25(index, server, names[SPARSE])
        stale.append(searcher.stale)
        return searcher

    def vectors() -> Searcher:
        store = VectorStore(vectors_in(index.folder, dense))
        searcher = MilvusVectors(index, load_encoder(store), server, names[DENSE])
        stale.append(searcher.stale)
        return searcher

    searcher = make_retriever(kind, vectors, weights, weight)
    return ServerRetriever(searcher, any(stale))


def _collections(kind: str, named: str) -> dict[str, str]:
    """Return the collection named for each kind of search, or ""."""
    names = [name.strip() for name in named.split(",")]
    if kind in (SPARSE, DENSE) or not named:
        return dict.fromkeys((SPARSE, DENSE), named)
    if len(names) != len((SPARSE, DENSE)):
        raise UsageError(
            f"{kind} searches two collections, and {named!r} names {len(names)}: name SPARSE,DENSE (--collection; "
            "evidence.collection in a recipe), or none if the index was sent to one of each"
        )
    return dict(zip((SPARSE, DENSE), names, strict=True))


@final
class _Collection:
    """A collection that an index was sent to, with its record beside the index.

    Attributes:
        fingerprint: identity of the collection and of its content after the last upload.
        stale: whether the index has changed since the last upload.
    """

    def __init__(self, index: Index, server: Milvus, name: str, wanted: Mapping[str, Any]) -> None:
        self.server = server
        self.name, self.about = _found(index, server, name, wanted)
        check_about(self.about, wanted, f"the collection {self.name!r} at {server.address}")
        path = dict(upload_records(index.folder)).get(self.about["key"])
        if path is None:
            raise UsageError(
                f"the collection {self.name!r} at {server.address} was sent from another index than {index.folder}: "
                "name its own (--collection), or send this one (shoulders upload)"
            )
        server.load(self.name)
        self.state = UploadState(path)
        self.fingerprint = f"{self.about['key']}/{self.about.get('index', '')}"
        self.stale = not self.about["finished"] or self.state.value(INDEX) != index.fingerprint

    def search(self, vectors: Sequence[Vector], k: int) -> list[list[ScoredPassage]]:
        if k > LIMIT:
            raise UsageError(f"number of passages must be at most {LIMIT:,} on Milvus, got {k:,}")
        asked = [number for number, vector in enumerate(vectors) if len(vector)]
        found: list[list[ScoredPassage]] = [[] for _ in vectors]
        more = min(k + 1, LIMIT)
        kind = self.about.get(ENGINE, FLAT)
        results = self.server.search(self.name, [vectors[number] for number in asked], more, kind)
        for number, some in zip(asked, results, strict=True):
            if len(some) > k and some[k].score == some[k - 1].score:  # the cut goes through equal scores
                (some,) = self.server.search(self.name, [vectors[number]], LIMIT, kind)
            found[number] = best_first(some, k)
        return found


def _found(index: Index, server: Milvus, name: str, wanted: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the collection of that name, or the one of that kind that the index was sent to."""
    if name:
        about = server.about(name)
        if about is None:
            raise SourceNotFound(
                f"there is no collection {name!r} at {server.address}: send the index there (shoulders upload "
                f"{index.folder} --to {server.address} --collection {name})"
            )
        return name, about
    kind, encoder = wanted["kind"], wanted.get("encoder")
    found: dict[str, dict[str, Any]] = {}
    for key, path in upload_records(index.folder):
        with UploadState(path) as state:
            collection, theirs = state.value("collection"), state.value("kind")
        about = server.about(collection) if theirs == kind else None
        if about and about.get("key") == key and about.get("encoder") == encoder:
            found[collection] = about
    if not found:
        which = " --dense NAME" if kind == VECTORS else ""
        raise SourceNotFound(
            f"{index.folder} was not sent to {server.address} ({kind}): shoulders upload {index.folder} --to "
            f"{server.address}{which}"
        )
    if len(found) > 1:
        raise UsageError(
            f"{index.folder} was sent to {', '.join(found)} at {server.address}: name one (--collection; "
            "evidence.collection in a recipe)"
        )
    return next(iter(found.items()))
