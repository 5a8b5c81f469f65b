"""BM25: analysis of text into terms, and search on tantivy."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, final
from unicodedata import decimal, lookup, name, normalize
from weakref import finalize

import regex
import Stemmer
from tantivy import Document, Index, Occur, Query, SchemaBuilder, Searcher

from shoulders.data.matching import IDEOGRAPHIC, IGNORABLE, KATAKANA, SOUTH_EAST_ASIAN, Folding
from shoulders.errors import CorruptFile, SaveFailed, UsageError, first_line
from shoulders.retrieval.search import ScoredPassage, best_first

# Lucene's English stop words, which Pyserini uses.
ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(ENGLISH.split())
SHORT = 2  # as in Lucene; snowball's Porter makes u of us, and nothing of s
REMEMBERED = 200_000  # stems of words
SPACELESS = rf"[{IDEOGRAPHIC}{KATAKANA}{SOUTH_EAST_ASIAN}]"  # scripts without spaces between words
CLUSTER = rf"[{SPACELESS}&&[\p{{L}}\p{{N}}]]\p{{M}}*"  # a character of theirs with its marks
WORD = rf"[[\p{{L}}\p{{N}}]--{SPACELESS}][[\p{{L}}\p{{N}}\p{{M}}]--{SPACELESS}]*"
ASCII_TERM = regex.compile("[a-z0-9]+")  # what WORD finds in plain English, faster
POSSESSIVE = r"['\u2019\u02bc\uff07]s\b"
# Accents, and the points of Arabic and Hebrew: other scripts' marks are vowels, and the last two are a kana's own.
ACCENT = r"[[\p{M}&&[\p{Inherited}\p{Arabic}\p{Hebrew}\p{Syriac}\p{Cyrillic}]]--[\u3099\u309a]]"
MODIFIER = r"[[\u02b9-\u02ff\u0640]&&\p{Lm}]"  # as in Hawai\u02bbi, and the Arabic tatweel
TERM_LETTER = regex.compile(r"[\p{L}\p{N}\p{M}]")
UNSEEN = regex.compile(rf"{IGNORABLE}|{ACCENT}|{MODIFIER}", regex.V1)
WITH = regex.compile(r"(?:LATIN|CYRILLIC) SMALL LETTER \w+(?= WITH )")  # a stroke, a hook: no mark of its own
# Source: Lucene's ASCIIFoldingFilter and ICUFoldingFilter, for letters that Unicode does not decompose.
LETTERS = {
    "\u00e6": "ae", "\u0153": "oe", "\u00fe": "th", "\u00f0": "d", "\u0131": "i", "\u0237": "j", "\u014b": "n",
    "\u0138": "q", "\u01dd": "e", "\u0259": "e", "\u025b": "e", "\u0254": "o",
    "\u0629": "\u0647", "\u0649": "\u064a", "\u06a9": "\u0643", "\u06cc": "\u064a",
}  # fmt: skip


def _folded(character: str) -> str:
    letters = UNSEEN.sub("", normalize("NFKD", character))
    return "".join(map(_plain, normalize("NFKD", letters.casefold())))


def _plain(letter: str) -> str:
    if not TERM_LETTER.match(letter):
        return " "
    if (value := decimal(letter, None)) is not None:
        return str(value)
    if found := WITH.match(name(letter, "")):
        return lookup(found[0])
    return LETTERS.get(letter, letter)


FOLDED = Folding(_folded)


@final
class Analyser:
    """Analysis of English (stop words, Porter's stems) and of scripts without spaces (characters and pairs).

    Source: the chain of Lucene's EnglishAnalyzer (possessives, lower case, stop words, Porter), with the folding of its
    ICUFoldingFilter for letters and accents, and the pairs of its CJKBigramFilter.
    """

    NAME, VERSION = "english", 2

    def __init__(self) -> None:
        self._stem = lru_cache(REMEMBERED)(Stemmer.Stemmer("porter").stemWord)
        self._run = regex.compile(rf"(?:{CLUSTER})+|{WORD}", regex.V1)
        self._cluster, self._word = regex.compile(CLUSTER, regex.V1), regex.compile(rf"{CLUSTER}|{WORD}", regex.V1)
        self._possessive = regex.compile(POSSESSIVE, regex.IGNORECASE)

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version and settings, in types that JSON has."""
        settings = {
            "folding": "NFKD, casefold, accents and strokes removed, digits, NFC",
            "terms": WORD,
            "characters and pairs": CLUSTER,
            "possessives": POSSESSIVE,
            "stop_words": sorted(STOP_WORDS),
            "stems": f"porter, of words longer than {SHORT}",
        }
        return {"name": self.NAME, "version": self.VERSION, "settings": settings}

    def terms(self, text: str) -> list[str]:
        """Return the terms of a text in their order."""
        text = self._possessive.sub("", text)
        plain = text.lower() if text.isascii() else normalize("NFC", text.translate(FOLDED))
        words = ASCII_TERM.findall(plain) if plain.isascii() else self._words_of(plain)
        return [self._stem(word) if len(word) > SHORT else word for word in words if word not in STOP_WORDS]

    def words(self, text: str) -> list[tuple[int, int]]:
        """Return where the words are that terms are made from; in scripts without spaces, the characters."""
        return [match.span() for match in self._word.finditer(text)]

    def _words_of(self, folded: str) -> list[str]:
        runs = self._run.findall(folded)
        if not self._cluster.search(folded):
            return runs
        return [word for run in runs for word in self._parts(run)]

    def _parts(self, run: str) -> list[str]:
        clusters = self._cluster.findall(run)
        return [*clusters, *map("".join, pairwise(clusters))] or [run]

    def check(self, identity: Mapping[str, Any], what: str) -> None:
        """Raise `UsageError` if something was analysed by another analyser."""
        if identity == self.identity:
            return
        ours, theirs = self.identity["settings"], identity.get("settings") or {}
        other = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        settings = f" with other settings ({', '.join(other)})" if other else ""
        raise UsageError(
            f"{what} was analysed by {_named(identity)}{settings}, this version of shoulders analyses by "
            f"{_named(self.identity)}: build it again in a new folder (shoulders index SOURCE --out FOLDER)"
        )


def _named(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('name')!r} version {identity.get('version')}"


K1, B = 1.2, 0.75
ENGINE: dict[str, Any] = {"engine": "tantivy", "k1": K1, "b": B}
NUMBER, TERMS = "passage", "terms"
HEAP = 128_000_000  # bytes that a writer fills before it makes a segment
SMALL_HEAP = 15_000_000  # the least that tantivy takes
TIES = 4096  # passages looked at more when the cut goes through equal scores


def _schema() -> Any:
    builder = SchemaBuilder()
    builder.add_integer_field(NUMBER, indexed=True, fast=True)  # an unsigned field kills the writer
    builder.add_text_field(TERMS, tokenizer_name="whitespace", index_option="freq")
    return builder.build()


@contextmanager
def _errors_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise SaveFailed(
            f"cannot write {folder}: {first_line(error)}: free space there, then run the same command again"
        ) from error


@final
class SparseWriter:
    """Writer of an engine's folder; readers see no change before `commit`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _errors_named(folder):
            folder.mkdir(exist_ok=True)
            self._writer = Index(_schema(), path=str(folder)).writer(HEAP, num_threads=1)

    def add(self, passage: int, terms: str) -> None:
        """Add a passage by its terms, joined by spaces."""
        with _errors_named(self.folder):
            self._writer.add_document(Document(**{NUMBER: passage, TERMS: terms}))

    def remove(self, passage: int) -> None:
        """Remove a passage, if there is one of that number."""
        with _errors_named(self.folder):
            self._writer.delete_documents_by_term(NUMBER, passage)

    def commit(self) -> None:
        """Make all changes durable and visible."""
        with _errors_named(self.folder):
            self._writer.commit()

    def abandon(self) -> None:
        """Let go of the folder without a commit, even while something holds this object, such as a traceback."""
        del self._writer

    def close(self) -> None:
        """Wait until segments are merged."""
        with _errors_named(self.folder):
            self._writer.wait_merging_threads()


@final
class SparseSearcher:
    """BM25 search; the queries of one call are answered in parallel.

    Args:
        source: the engine's folder, or an index in memory.

    Raises:
        CorruptFile: the folder holds no readable index of tantivy.
    """

    def __init__(self, source: Path | Index, analyser: Analyser) -> None:
        self.analyser = analyser
        try:
            index = Index.open(str(self._readable(source))) if isinstance(source, Path) else source
            self._schema, self._searcher = index.schema, index.searcher()
        except ValueError as error:
            raise CorruptFile(
                f"{source} cannot be read ({first_line(error)}): build the index again (shoulders index)"
            ) from error

    def _readable(self, folder: Path) -> Path:
        """Return a folder whose index tantivy can open: it locks the folder even to read, so it must be writable."""
        if os.access(folder, os.W_OK) or not folder.is_dir():
            return folder
        links = Path(mkdtemp(prefix="shoulders-index-"))
        finalize(self, rmtree, links, ignore_errors=True)
        for file in folder.iterdir():
            if file.suffix != ".lock":
                (links / file.name).symlink_to(file.absolute())
        return links

    def search(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Return for each query the k passages with the highest scores, of those that have a term of it."""
        terms = [Counter(self.analyser.terms(query)) for query in queries]
        searcher = self._searcher
        if len(terms) == 1:
            return [self._find(searcher, terms[0], k)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda one: self._find(searcher, one, k), terms))

    def _find(self, searcher: Searcher, terms: Counter[str], k: int) -> list[ScoredPassage]:
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
        return best_first([ScoredPassage(int(n or 0), score) for n, (score, _) in zip(numbers, hits, strict=True)], k)


def in_memory(texts: Sequence[str], analyser: Analyser) -> Index:
    """Return an index of texts that is in no folder; the number of a passage is the place of its text."""
    index = Index(_schema())
    writer = index.writer(SMALL_HEAP, num_threads=1)
    for number, text in enumerate(texts):
        writer.add_document(Document(**{NUMBER: number, TERMS: " ".join(analyser.terms(text))}))
    writer.commit()
    index.reload()
    return index


PYSERINI = (0.9, 0.4)


def check_bm25(k1: float, b: float) -> None:
    """Raise `UsageError` for parameters that BM25 cannot have."""
    if not (0 <= k1 < math.inf and 0 <= b <= 1):
        raise UsageError(f"k1 must be at least 0 and b between 0 and 1, got k1 = {k1}, b = {b}")
