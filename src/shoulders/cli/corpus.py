"""What the commands on an evidence corpus do: `shoulders index`, `encode`, `upload` and `search`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import regex
from rich.text import Text

from shoulders.cli.show import console, counting, harmless, need, quiet_libraries, reading, short
from shoulders.errors import UsageError
from shoulders.retrieval.search import HYBRID, SPARSE

if TYPE_CHECKING:
    from shoulders.retrieval.bm25 import Analyser
    from shoulders.retrieval.index import Hit, Index
    from shoulders.retrieval.milvus import Milvus
    from shoulders.retrieval.search import Searcher
    from shoulders.retrieval.upload import Sent


def run_index(names: Sequence[str], out: Path, *, sentences: bool, as_is: bool, prune: bool) -> None:
    """Build an index, or bring one up to date, and say what was done."""
    need("tantivy", "search")
    from shoulders.retrieval.building import NAMED, build
    from shoulders.retrieval.passages import Cutting

    if not all(names):
        raise UsageError("a source without a name: name files, folders or hub:NAME")
    cutting = Cutting(sentences=sentences)
    with reading("indexing") as show:
        built = build(
            names,
            out,
            cutting,
            as_is=as_is,
            prune=prune,
            on_progress=lambda at: show(at.read, at.size, at.documents),
        )
    for skipped in built.skipped:
        console.print(f"skipped {skipped.place}: {skipped.reason}", style="yellow", markup=False, soft_wrap=True)
    if built.done["skipped"] > NAMED:
        console.print(f"and {built.done['skipped'] - NAMED:,} more", style="yellow")
    for name in built.unpruned:
        told = f"nothing was deleted of {name}: not all of it could be read"
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    words = ("added", "replaced", "deleted", "unchanged", "skipped")
    console.print("documents: " + ", ".join(f"{built.done[word]:,} {word}" for word in words))
    counts = built.counts
    told = f"{out}: {counts.passages:,} passages of {counts.documents:,} documents"
    told += f", {counts.copies:,} more are copies of these" if counts.copies else ""
    console.print(told, markup=False, soft_wrap=True)


def run_encode(folder: Path, retriever: str, *, name: str, kind: str, pooling: str, dtype: str) -> None:
    """Make the vectors of an index's passages, and what searches them."""
    need("tantivy", "search")
    need("faiss", "search")
    quiet_libraries()
    from shoulders.errors import UnknownName
    from shoulders.retrieval.bi_encoder import BiEncoder
    from shoulders.retrieval.dense import KINDS, build_faiss
    from shoulders.retrieval.index import Index
    from shoulders.retrieval.vectors import encode

    if kind and kind not in KINDS:
        raise UnknownName("kind of dense index", kind, KINDS)
    index = Index(folder)
    encoder = BiEncoder.load(retriever, pooling=pooling)
    with counting("encoding", "passages") as show:
        vectors = encode(index, encoder, name, dtype=dtype, on_progress=show)
    kind = build_faiss(vectors, kind)
    told = f"{vectors.folder}: {len(vectors):,} vectors of {vectors.dimension} numbers ({vectors.type}), in {kind}"
    console.print(told, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Engine:
    """A server, its collection and the variable that holds its token, as options name them."""

    address: str
    collection: str = ""
    token_variable: str = ""


def run_upload(folder: Path, engine: Engine, k1: float, b: float) -> None:
    """Send an index to a server, or what changed of it, and say what was done."""
    need("tantivy", "search")
    with connected(engine) as server:
        from shoulders.retrieval.index import Index
        from shoulders.retrieval.upload import Target, upload_weights

        index = Index(folder)
        target = Target(server, engine.collection or _name(folder))
        with counting("sending", "passages") as on_sent:
            sent = upload_weights(index, target, k1, b, on_sent)
    _tell(sent, f"{target}: {sent.passages:,} passages, BM25 with k1 = {k1} and b = {b}")


def run_vectors(folder: Path, engine: Engine, dense: str, kind: str) -> None:
    """Send the vectors of an index of that name, or what changed of them."""
    need("tantivy", "search")
    with connected(engine) as server:
        from shoulders.retrieval.index import Index
        from shoulders.retrieval.upload import Target, upload_vectors
        from shoulders.retrieval.vectors import VectorStore, vectors_in

        index, vectors = Index(folder), VectorStore(vectors_in(folder, dense))
        vectors.check(index.store)
        target = Target(server, engine.collection or _name(folder, dense))
        with counting("sending", "passages") as on_sent:
            sent = upload_vectors(index, vectors, target, kind, on_sent)
    _tell(sent, f"{target}: {sent.passages:,} vectors of {vectors.dimension} numbers by {vectors.encoder}")


def _tell(sent: "Sent", holds: str) -> None:
    renewed = f", {sent.renewed:,} sent anew (their mean length moved)" if sent.renewed else ""
    console.print(
        f"passages: {sent.added:,} added, {sent.deleted:,} deleted, {sent.unchanged:,} unchanged{renewed}\n{holds}",
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def connected(engine: Engine) -> Iterator["Milvus"]:
    """The server, while within.

    Raises:
        UsageError: the token's variable is not set.
    """
    need("pymilvus", "distributed")
    from shoulders.retrieval.milvus import TOKEN_VARIABLE, Milvus

    variable = engine.token_variable
    if variable and variable not in os.environ:
        raise UsageError(f"the environment has no variable {variable}: put the server's token into it (--token-env)")
    with Milvus(engine.address, os.environ.get(variable or TOKEN_VARIABLE, "")) as server:
        yield server


def _name(folder: Path, *parts: str) -> str:
    """A name that Milvus takes: letters, digits and underscores, a letter first."""
    name = regex.sub(r"[^A-Za-z0-9_]+", "_", "_".join([folder.resolve().name, *parts]))[:200]
    return name if name[:1].isalpha() else f"index_{name}"


def run_search(
    folder: Path,
    queries: Sequence[str],
    k: int,
    retriever: str = SPARSE,
    *,
    weight: float | None = None,
    dense: str = "",
    engine: Engine | None = None,
) -> None:
    """Print the passages that are found for each query, its words highlighted."""
    need("tantivy", "search")
    need("faiss", "search")
    quiet_libraries()
    from shoulders.retrieval.dense import retriever_of
    from shoulders.retrieval.index import Index

    if weight is not None and retriever != HYBRID:
        raise UsageError(
            f"--weight {weight} counts in a sum of scores, and {retriever} has none: add --retriever {HYBRID}, or "
            "leave --weight out"
        )
    weight = 1.0 if weight is None else weight
    index = Index(folder)
    terms = [_terms(query, index.analyser, retriever) for query in queries]
    if engine is None:
        _print(index, retriever_of(index, retriever, dense, weight), queries, k, terms, sparse=retriever == SPARSE)
        return
    with _on_server(index, engine, retriever, dense, weight) as searcher:
        _print(index, searcher, queries, k, terms, sparse=retriever == SPARSE)


@contextmanager
def _on_server(index: "Index", engine: Engine, retriever: str, dense: str, weight: float) -> Iterator["Searcher"]:
    with connected(engine) as server:
        from shoulders.retrieval.distributed import server_retriever

        served = server_retriever(index, server, retriever, engine.collection, dense, weight)
        if served.stale:
            told = f"what is at {engine.address} is not all of {index.folder} as it is now: shoulders upload"
            console.print(told, style="yellow", markup=False, soft_wrap=True)
        yield served.searcher


def _print(
    index: "Index", searcher: "Searcher", queries: Sequence[str], k: int, terms: Sequence[set[str]], *, sparse: bool
) -> None:
    folder = index.folder
    if index.unfinished:
        told = (
            f"{folder} is being brought up to date, or that was interrupted: finish it with the same `shoulders index`"
        )
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    for query, some, hits in zip(queries, terms, index.search(queries, k, searcher), strict=True):
        if len(queries) > 1:
            console.print(Text(short(query), style="bold underline"), soft_wrap=True)
        for rank, hit in enumerate(hits, start=1):
            console.print(_shown(rank, hit, index.analyser, some), soft_wrap=True)
        if len(hits) < k:
            had = "have a word of the query" if sparse else "were found"
            told = f"{len(hits):,} of {index.passages:,} passages {had}, {k:,} were asked for"
            none = f"no passage {'has a word of' if sparse else 'was found for'} {short(query)!r}"
            console.print(told if hits else none, style="yellow", markup=False, soft_wrap=True)


def _terms(query: str, analyser: "Analyser", retriever: str) -> set[str]:
    found = set(analyser.terms(query))
    if not found and (retriever == SPARSE or not query.strip()):
        raise UsageError(f"{short(query)!r} has no word to search for (a, the, of and the like are none)")
    return found


def _shown(rank: int, hit: "Hit", analyser: "Analyser", terms: set[str]) -> Text:
    head = Text(f"{rank:3}  {hit.score:7.3f}  ")
    title, text = (Text(harmless(" ".join(part.split()))) for part in (hit.title, hit.text))
    title.stylize("bold")
    for part in (title, text):
        for start, end in analyser.words(part.plain):
            if terms.intersection(analyser.terms(part.plain[start:end])):
                part.stylize("bold green", start, end)
    return Text.assemble(head, title, "\n     ", text)
