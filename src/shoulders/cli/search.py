"""`shoulders search`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from shoulders.cli.show import console, harmless, need, quiet_libraries, short
from shoulders.cli.upload import Engine, connected
from shoulders.corpus.searching import HYBRID, SPARSE
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.corpus.analyser import Analyser
    from shoulders.corpus.index import Hit, Index
    from shoulders.corpus.searching import Searcher


def run(
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
    from shoulders.corpus.index import Index
    from shoulders.corpus.retrievers import retriever_of

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
        from shoulders.corpus.distributed import server_retriever

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
