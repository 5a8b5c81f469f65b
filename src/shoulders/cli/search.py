"""`shoulders search`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from shoulders.cli.show import console, need, short
from shoulders.cli.upload import Engine, connected
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.corpus.analyser import Analyser
    from shoulders.corpus.index import Hit, Index
    from shoulders.corpus.searching import Searcher


def run(folder: Path, queries: Sequence[str], k: int, engine: Engine | None = None) -> None:
    """Print the passages that are found for each query, its words highlighted."""
    need("tantivy", "search")
    from shoulders.corpus.index import Index

    index = Index(folder)
    with _searcher(index, engine) as searcher:
        _search(index, searcher, queries, k)


@contextmanager
def _searcher(index: "Index", engine: Engine | None) -> Iterator["Searcher | None"]:
    if engine is None:
        yield None
        return
    with connected(engine) as server:
        from shoulders.corpus.distributed import MilvusBM25

        searcher = MilvusBM25(index, server, engine.collection)
        if searcher.stale:
            told = f"what is at {engine.address} is not all of {index.folder} as it is now: shoulders upload"
            console.print(told, style="yellow", markup=False, soft_wrap=True)
        yield searcher


def _search(index: "Index", searcher: "Searcher | None", queries: Sequence[str], k: int) -> None:
    folder = index.folder
    terms = [_terms(query, index.analyser) for query in queries]
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
            told = f"{len(hits):,} of {index.passages:,} passages have a word of the query, {k:,} were asked for"
            none = f"no passage has a word of {short(query)!r}"
            console.print(told if hits else none, style="yellow", markup=False, soft_wrap=True)


def _terms(query: str, analyser: "Analyser") -> set[str]:
    found = set(analyser.terms(query))
    if not found:
        raise UsageError(f"{short(query)!r} has no word to search for (a, the, of and the like are none)")
    return found


def _shown(rank: int, hit: "Hit", analyser: "Analyser", terms: set[str]) -> Text:
    head = Text(f"{rank:3}  {hit.score:7.3f}  ")
    title, text = (Text(part) for part in (hit.title, " ".join(hit.text.split())))
    title.stylize("bold")
    for part in (title, text):
        for start, end in analyser.words(part.plain):
            if terms.intersection(analyser.terms(part.plain[start:end])):
                part.stylize("bold green", start, end)
    return Text.assemble(head, title, "\n     ", text)
