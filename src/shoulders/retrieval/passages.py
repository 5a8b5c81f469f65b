"""Passages of about 100 words: cut from documents, and stored with them in an SQLite file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, final
from unicodedata import normalize

import numpy as np
import regex
from numpy.typing import NDArray
from unicode_segmentation_rs import unicode_sentences

from shoulders.data.matching import IDEOGRAPHIC, LOOKS, SOUTH_EAST_ASIAN
from shoulders.errors import UsageError
from shoulders.store.files import database_errors, open_database, transaction

# What counts as a word of a passage in scripts without spaces: an ideograph or kana, and three characters of Thai, Lao,
# Khmer or Burmese with their marks. Nothing longer than 1,000 characters is one word.
EACH = rf"{IDEOGRAPHIC}\p{{Katakana}}"
WORD = regex.compile(
    rf"[^\s\u200b{EACH}{SOUTH_EAST_ASIAN}]{{1,1000}}|[{EACH}]\p{{M}}*|(?:[{SOUTH_EAST_ASIAN}]\p{{M}}*){{1,3}}"
)
ABBREVIATED = regex.compile(r"\b(?:\p{Lu}|Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Capt|Rev|No|vs|cf|al)\.[^\S\n]*\Z")
NEAR = 20  # characters before a sentence's end in which an abbreviation is looked for
LINE_ENDS = regex.compile(r"\n\s*+")  # and what follows; with more than one line's end it is a paragraph's


@final
@dataclass(frozen=True, slots=True)
class Cutting:
    """How documents are cut into passages. Source: Karpukhin et al. 2020, section 4.1 (disjoint blocks of 100 words).

    Attributes:
        words: length of a passage; the last one of a document may be shorter.
        sentences: whether passages end with a sentence, if one ends within that many words.
    """

    words: int = 100
    sentences: bool = False

    def __post_init__(self) -> None:
        if self.words < 1:
            raise UsageError(f"words of a passage must be at least 1, got {self.words}")

    def cut(self, text: str) -> Iterator[str]:
        """Yield the passages of a text; every word is in one of them, and runs of white space become one space."""
        for start, end in self.spans(text):
            yield " ".join(text[start:end].split())

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Return the start and end of each passage in a text."""
        return self._sentence_blocks(text) if self.sentences else self._blocks(text, 0, len(text))

    def _blocks(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        first, last, count = start, start, 0
        for word in WORD.finditer(text, start, end):
            if count == self.words:
                yield first, last
                count = 0
            if count == 0:
                first = word.start()
            last, count = word.end(), count + 1
        if count:
            yield first, last

    def _sentence_blocks(self, text: str) -> Iterator[tuple[int, int]]:
        first, last, count = 0, 0, 0
        for start, end in _sentences(text):
            length = sum(1 for _ in WORD.finditer(text, start, end))
            if count and count + length > self.words:
                yield first, last
                count = 0
            if length > self.words:
                yield from self._blocks(text, start, end)
            elif length:
                first, last, count = (first if count else start), end, count + length
        if count:
            yield first, last


def _within_paragraph(ends: regex.Match[str]) -> str:
    """Return a line's end inside a paragraph as a space, so that it ends no sentence; others as they are."""
    return ends[0] if ends[0].count("\n") > 1 else ends[0].replace("\n", " ")


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield the sentences of UAX 29, except that neither an abbreviation nor a line break alone ends one."""
    plain = regex.sub(r"\p{Cs}", "\ufffd", text)  # half a surrogate pair is no text to the library
    plain = LINE_ENDS.sub(_within_paragraph, plain.replace("\r", " "))
    start, end = 0, 0
    for sentence in unicode_sentences(plain):  # those of signs alone are not among them, and go with the one before
        begin = plain.index(sentence, end)
        if begin > start and not ABBREVIATED.search(plain, max(start, end - NEAR), end):
            yield start, begin
            start = begin
        end = begin + len(sentence)
    yield start, len(text)


def text_key(text: str) -> bytes:
    """Return a hash that is equal for texts that differ only in letter case, full-width forms or white space."""
    plain = normalize("NFD", normalize("NFD", text.translate(LOOKS)).casefold())
    return blake2b(" ".join(plain.split()).encode(errors="surrogatepass"), digest_size=16).digest()


TABLES = """
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE sources (key INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE documents (
    key INTEGER PRIMARY KEY, source INTEGER NOT NULL, id TEXT NOT NULL, title TEXT NOT NULL, hash BLOB NOT NULL,
    seen INTEGER NOT NULL, UNIQUE (source, id)
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL, hash BLOB NOT NULL, copy INTEGER NOT NULL,
    terms INTEGER NOT NULL, text TEXT NOT NULL, section TEXT NOT NULL DEFAULT ''
);
CREATE INDEX passages_of ON passages (document);
CREATE INDEX passages_like ON passages (hash, copy, terms);
CREATE TABLE pending (passage INTEGER PRIMARY KEY);
"""
AT_ONCE = 10_000  # SQLite takes at most 32,766 values in one statement


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage of the store; the title is that of its document, followed by its section."""

    id: int
    title: str
    text: str

    @property
    def searched(self) -> str:
        """The text that is searched: title and text, as in Pyserini's index of Wikipedia."""
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True, slots=True)
class NewPassage:
    """A passage to be stored: text, section, the hash that its copies share, and its terms, joined by spaces."""

    text: str
    section: str
    hash: bytes
    terms: str


@dataclass(frozen=True, slots=True)
class KnownDocument:
    """A stored document: its number, its hash, and the last run that found it in its source."""

    key: int
    hash: bytes
    seen: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of documents, passages and terms in a store.

    Attributes:
        passages: those that are searched, without copies.
        terms: of all passages that are searched.
    """

    documents: int
    passages: int
    copies: int
    terms: int


@final
class PassageStore:
    """Documents and passages by number. The number of a passage is never reused.

    Of passages with the same text, the first is searched and the others are its copies; when it is deleted, the next
    takes its place. Changed passages stay recorded until the engines are up to date (`pending`, `settle`), so a process
    may be killed at any time.

    Raises:
        SaveFailed, CorruptFile: the file cannot be used, or is of another kind.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        with self._errors_named():
            self._file = open_database(path, TABLES, write=write)
            self._file.execute("PRAGMA synchronous = FULL")  # the engines must never know more than this file
            if not self._one(HAS_SECTIONS):  # made before passages had sections
                with closing(open_database(path, TABLES)) as file:
                    file.execute("ALTER TABLE passages ADD COLUMN section TEXT NOT NULL DEFAULT ''")
            self._one("SELECT count(*) FROM state")

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it."""
        with self._errors_named():
            self._file.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Commit all changes within together, or none."""
        with self._errors_named(), transaction(self._file):
            yield

    def state(self, key: str) -> str:
        """Return a value stored beside the passages; "" if there is none."""
        row = self._row("SELECT value FROM state WHERE key = ?", key)
        return row[0] if row else ""

    def set_state(self, key: str, value: str) -> None:
        """Store a value."""
        self._file.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def source(self, name: str) -> int:
        """Return the number of a source, which it gets when it is first used."""
        self._file.execute("INSERT OR IGNORE INTO sources (name) VALUES (?)", (name,))
        return self._one("SELECT key FROM sources WHERE name = ?", name)

    def sources(self) -> list[str]:
        """Return the names of all sources."""
        return [name for (name,) in self._file.execute("SELECT name FROM sources ORDER BY key")]

    def known(self, source: int, document: str) -> KnownDocument | None:
        """Return a document of a source, if it is stored."""
        row = self._row("SELECT key, hash, seen FROM documents WHERE source = ? AND id = ?", source, document)
        return KnownDocument(*row) if row else None

    def see(self, document: int, run: int) -> None:
        """Note that a document is still in its source."""
        self._file.execute("UPDATE documents SET seen = ? WHERE key = ?", (run, document))

    def add(self, source: int, document: str, title: str, content: bytes, run: int) -> int:
        """Add a document without passages, and return its number."""
        row = (source, document, title, content, run)
        added = self._file.execute("INSERT INTO documents (source, id, title, hash, seen) VALUES (?, ?, ?, ?, ?)", row)
        return int(added.lastrowid or 0)

    def add_passages(self, document: int, passages: Iterable[NewPassage]) -> Iterator[tuple[int, NewPassage]]:
        """Store passages of a document one by one, and yield number and passage of those that are no copies."""
        for cut in passages:
            copy = self._row("SELECT 1 FROM passages WHERE hash = ? AND copy = 0", cut.hash) is not None
            row = (document, cut.hash, copy, len(cut.terms.split()), cut.text, cut.section)
            added = self._file.execute(INSERT, row)
            if not copy:
                number = int(added.lastrowid or 0)
                self._note([number])
                yield number, cut

    def delete(self, document: int) -> None:
        """Delete a document with its passages; the next copy of a passage that was searched takes its place."""
        rows = self._file.execute("SELECT id, hash FROM passages WHERE document = ? AND copy = 0", (document,))
        searched = rows.fetchall()
        self._file.execute("DELETE FROM passages WHERE document = ?", (document,))
        self._file.execute("DELETE FROM documents WHERE key = ?", (document,))
        self._note([number for number, _ in searched])
        for _, content in searched:
            heir = self._one("SELECT min(id) FROM passages WHERE hash = ?", content)
            if heir:
                self._file.execute("UPDATE passages SET copy = 0 WHERE id = ?", (heir,))
                self._note([heir])

    def unseen(self, source: int, run: int) -> list[int]:
        """Return the documents of a source that a run did not find in it."""
        rows = self._file.execute("SELECT key FROM documents WHERE source = ? AND seen <> ?", (source, run))
        return [key for (key,) in rows]

    def pending(self) -> list[int]:
        """Return the passages that changed since the engines were last brought up to date."""
        return [number for (number,) in self._file.execute("SELECT passage FROM pending ORDER BY passage")]

    def settle(self) -> None:
        """Note that the engines are up to date."""
        self._file.execute("DELETE FROM pending")

    def get(self, numbers: Sequence[int]) -> Mapping[int, StoredPassage]:
        """Return those of the numbered passages that are searched."""
        found: dict[int, StoredPassage] = {}
        with self._errors_named():
            for start in range(0, len(numbers), AT_ONCE):
                some = numbers[start : start + AT_ONCE]
                rows = self._file.execute(f"{SEARCHED} AND p.id IN ({','.join('?' * len(some))})", some)
                found.update((row[0], StoredPassage(*row)) for row in rows)
        return found

    def of_documents(self, ids: Sequence[str]) -> list[StoredPassage]:
        """Return the passages of the documents with these ids, in their order, including copies of other passages.

        An id may be given without the file name that precedes the own id of a record of JSON Lines.

        Raises:
            UsageError: several files have a record of that id, so that it may mean any of them.
        """
        found: list[StoredPassage] = []
        for document in ids:
            with self._errors_named():
                named = {name: self._file.execute(OF_DOCUMENT, (name,)).fetchall() for name in self._names(document)}
            named = {name: rows for name, rows in named.items() if rows}
            if len(named) > 1 and document not in named:
                raise UsageError(
                    f"the annotated id {document!r} is that of {' and '.join(named)}: write it with the file's name"
                )
            rows = named.get(document) or next(iter(named.values()), [])
            found += [StoredPassage(*row) for row in rows]
        return found

    def _names(self, document: str) -> list[str]:
        return [f"{file}{document}" for file in self._files]

    @cached_property
    def _files(self) -> list[str]:
        """The prefixes that ids may have, including the empty one; looked up once, since all documents are scanned."""
        return ["", *(file for (file,) in self._file.execute(FILES))]

    def passages(self) -> Iterator[StoredPassage]:
        """Yield all passages that are searched, by number."""
        with self._errors_named():
            for row in self._file.execute(f"{SEARCHED} ORDER BY p.id"):
                yield StoredPassage(*row)

    def numbers(self) -> NDArray[np.int64]:
        """Return the numbers of all passages that are searched, in ascending order."""
        with self._errors_named():
            rows = self._file.execute("SELECT id FROM passages WHERE copy = 0 ORDER BY id")
            return np.fromiter((number for (number,) in rows), np.int64)

    def counts(self) -> Counts:
        """Return the numbers of documents, passages and terms."""
        with self._errors_named():
            passages, terms = self._row("SELECT count(*), total(terms) FROM passages WHERE copy = 0") or (0, 0)
            copies = self._one("SELECT count(*) FROM passages WHERE copy = 1")
            return Counts(self._one("SELECT count(*) FROM documents"), passages, copies, int(terms))

    def digest(self) -> str:
        """Return a digest of the ids and texts of all documents."""
        digest = blake2b(digest_size=16)
        with self._errors_named():
            for document, content in self._file.execute("SELECT id, hash FROM documents ORDER BY key"):
                digest.update(f"{document}\0".encode() + content)
        return digest.hexdigest()

    def _note(self, passages: Iterable[int]) -> None:
        self._file.executemany("INSERT OR IGNORE INTO pending VALUES (?)", ((number,) for number in passages))

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        return self._file.execute(query, values).fetchone()

    def _one(self, query: str, *values: object) -> int:
        row = self._row(query, *values)
        return int(row[0] or 0) if row else 0

    def _errors_named(self) -> AbstractContextManager[None]:
        return database_errors(self.path, "store of passages", "--out")


HAS_SECTIONS = "SELECT count(*) FROM pragma_table_info('passages') WHERE name = 'section'"
INSERT = "INSERT INTO passages (document, hash, copy, terms, text, section) VALUES (?, ?, ?, ?, ?, ?)"
PASSAGES = "SELECT p.id, d.title || p.section, p.text FROM passages p JOIN documents d ON d.key = p.document"
SEARCHED = f"{PASSAGES} WHERE p.copy = 0"
OF_DOCUMENT = f"{PASSAGES} JOIN sources s ON s.key = d.source WHERE d.id = ? ORDER BY p.id"
FILES = "SELECT DISTINCT substr(id, 1, instr(id, '#')) FROM documents WHERE instr(id, '#') > 0"  # begin ids of records
