"""BM25 on tantivy, a search engine inside the process.

tantivy is given the terms of our analyser, joined by spaces. Its k1 = 1.2 and b = 0.75 are fixed. Statistics of deleted
passages count until tantivy merges the segment that they are in.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from tantivy import Document, Index, Occur, Query, SchemaBuilder, Searcher

from shoulders.corpus.analyser import Analyser
from shoulders.corpus.searching import Scored, best_first
from shoulders.errors import CorruptFile, SaveFailed, first_line

K1, B = 1.2, 0.75
ENGINE: dict[str, Any] = {"engine": "tantivy", "k1": K1, "b": B}
NUMBER, TERMS = "passage", "terms"
HEAP = 128_000_000  # bytes that a writer fills before it makes a segment
TIES = 4096  # passages looked at more when the cut goes through equal scores


def _schema() -> Any:
    builder = SchemaBuilder()
    builder.add_integer_field(NUMBER, indexed=True, fast=True)  # an unsigned field kills the writer
    builder.add_text_field(TERMS, tokenizer_name="whitespace", index_option="freq")
    return builder.build()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise SaveFailed(
            f"cannot write {folder}: {first_line(error)}: free space there, then run the same command again"
        ) from error


@final
class SparseWriter:
    """Adds and removes passages; readers see nothing of it before `commit`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _told(folder):
            folder.mkdir(exist_ok=True)
            self._writer = Index(_schema(), path=str(folder)).writer(HEAP, num_threads=1)

    def add(self, passage: int, terms: str) -> None:
        """A passage by its terms, joined by spaces."""
        with _told(self.folder):
            self._writer.add_document(Document(**{NUMBER: passage, TERMS: terms}))

    def remove(self, passage: int) -> None:
        """Forget a passage; nothing happens if there is none of that number."""
        with _told(self.folder):
            self._writer.delete_documents_by_term(NUMBER, passage)

    def commit(self) -> None:
        """Make what was added and removed last, and visible."""
        with _told(self.folder):
            self._writer.commit()

    def close(self) -> None:
        """Wait until segments are merged."""
        with _told(self.folder):
            self._writer.wait_merging_threads()


@final
class SparseSearcher:
    """BM25 search; queries of one call are answered side by side.

    Raises:
        CorruptFile: the folder holds no index of tantivy's that can be read.
    """

    def __init__(self, folder: Path, analyser: Analyser) -> None:
        self.folder, self.analyser = folder, analyser
        try:
            index = Index.open(str(folder))
        except ValueError as error:
            raise CorruptFile(
                f"{folder} cannot be read ({first_line(error)}): build the index again (shoulders index)"
            ) from error
        self._schema, self._searcher = index.schema, index.searcher()

    def search(self, queries: Sequence[str], k: int) -> list[list[Scored]]:
        """For each query the k passages with the highest scores, of those that have a term of it."""
        terms = [Counter(self.analyser.terms(query)) for query in queries]
        searcher = self._searcher
        if len(terms) == 1:
            return [self._find(searcher, terms[0], k)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda one: self._find(searcher, one, k), terms))

    def _find(self, searcher: Searcher, terms: Counter[str], k: int) -> list[Scored]:
        clauses = []
        for term, count in terms.items():
            query = Query.term_query(self._schema, TERMS, term, "freq")
            clauses.append((Occur.Should, Query.boost_query(query, float(count)) if count > 1 else query))
        if not clauses:
            return []
        query = Query.boolean_query(clauses)
        hits = searcher.search(query, k + 1, count=False).hits
        last = hits[k - 1][0] if len(hits) > k else 0.0
        if len(hits) > k and hits[k][0] == last:
            hits = [hit for hit in searcher.search(query, k + TIES, count=False).hits if hit[0] >= last]
        numbers = searcher.fast_field_values(NUMBER, [place for _, place in hits])
        return best_first([Scored(int(n or 0), score) for n, (score, _) in zip(numbers, hits, strict=True)], k)
