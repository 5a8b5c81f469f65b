"""`shoulders search`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from shoulders.cli.show import console, need, quiet_libraries, short
from shoulders.corpus.searching import SPARSE
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.corpus.analyser import Analyser
    from shoulders.corpus.index import Hit


def run(
    folder: Path, queries: Sequence[str], k: int, retriever: str = SPARSE, *, weight: float = 1.0, dense: str = ""
) -> None:
    """Print the passages that are found for each query, its words highlighted."""
    need("tantivy", "search")
    need("faiss", "search")
    quiet_libraries()
    from shoulders.corpus.index import Index
    from shoulders.corpus.retrievers import retriever_of

    index = Index(folder)
    terms = [_terms(query, index.analyser, retriever) for query in queries]
    searcher = retriever_of(index, retriever, dense, weight)
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
            had = "have a word of the query" if retriever == SPARSE else "were found"
            told = f"{len(hits):,} of {index.passages:,} passages {had}, {k:,} were asked for"
            none = f"no passage has a word of {short(query)!r}"
            console.print(told if hits else none, style="yellow", markup=False, soft_wrap=True)


def _terms(query: str, analyser: "Analyser", retriever: str) -> set[str]:
    found = set(analyser.terms(query))
    if not found and (retriever == SPARSE or not query.strip()):
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
