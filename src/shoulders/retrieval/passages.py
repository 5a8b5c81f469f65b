"""Passages of about 100 words: cut from documents, and kept with them in an SQLite file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
LINE_BREAK = regex.compile(r"(?<!\n\s*)\n(?!\s*\n)")  # inside a paragraph


@final
@dataclass(frozen=True, slots=True)
class Cutting:
    """How documents become passages. Source: Karpukhin et al. 2020, section 4.1 (disjoint blocks of 100 words).

    Attributes:
        words: of a passage; the last one of a document may be shorter.
        sentences: end each passage with a sentence, where one ends within so many words.
    """

    words: int = 100
    sentences: bool = False

    def __post_init__(self) -> None:
        if self.words < 1:
            raise UsageError(f"passages of {self.words} words: 1 at least")

    def cut(self, text: str) -> Iterator[str]:
        """The passages of a text, every word of it in one of them; runs of white space become one space."""
        for start, end in self._sentence_blocks(text) if self.sentences else self._blocks(text, 0, len(text)):
            yield " ".join(text[start:end].split())

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


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Sentences by UAX 29, not ended by an abbreviation, nor by a line's end alone."""
    plain = regex.sub(r"\p{Cs}", "\ufffd", text)  # half a surrogate pair is no text to the library
    plain = LINE_BREAK.sub(" ", plain.replace("\r", " "))
    start, end = 0, 0
    for sentence in unicode_sentences(plain):  # those of signs alone are not among them, and go with the one before
        begin = plain.index(sentence, end)
        if begin > start and not ABBREVIATED.search(plain, max(start, end - NEAR), end):
            yield start, begin
            start = begin
        end = begin + len(sentence)
    yield start, len(text)


def same_text(text: str) -> bytes:
    """What two passages share if they differ in letter case, the look of letters (full width) or white space only."""
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
    terms INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX passages_of ON passages (document);
CREATE INDEX passages_like ON passages (hash, copy, terms);
CREATE TABLE pending (passage INTEGER PRIMARY KEY);
"""
AT_ONCE = 10_000  # SQLite takes at most 32,766 values in one statement


@dataclass(frozen=True, slots=True)
class Stored:
    """A passage as it is kept."""

    id: int
    title: str
    text: str

    @property
    def searched(self) -> str:
        """What of it is searched: its title too, as in Pyserini's index of Wikipedia."""
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True, slots=True)
class Cut:
    """A passage before it is kept: its text, what its copies share, and its terms, joined by spaces."""

    text: str
    hash: bytes
    terms: str


@dataclass(frozen=True, slots=True)
class Known:
    """A document that is kept: its number, its hash, and the last run that saw it."""

    key: int
    hash: bytes
    seen: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What a store holds.

    Attributes:
        passages: that are searched; copies of them are not among them.
        terms: of all passages that are searched.
    """

    documents: int
    passages: int
    copies: int
    terms: int


@final
class PassageStore:
    """Documents and passages by number. A passage's number is never given to another one.

    Of passages with one text, the first is searched and the others are its copies; when it goes, the next takes its
    place. Which passages changed is kept until the engines have it (`pending`, `settle`), so that a process may be
    killed at any time.

    Raises:
        SaveFailed, CorruptFile: the file cannot be used, or is another one.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        with self._told():
            self._file = open_database(path, TABLES, write=write)
            self._file.execute("PRAGMA synchronous = FULL")  # the engines must never know more than this file
            self._one("SELECT count(*) FROM state")

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it."""
        with self._told():
            self._file.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All changes within, or none."""
        with self._told(), transaction(self._file):
            yield

    def state(self, key: str) -> str:
        """A value kept beside the passages; "" if there is none."""
        row = self._row("SELECT value FROM state WHERE key = ?", key)
        return row[0] if row else ""

    def set_state(self, key: str, value: str) -> None:
        """Keep a value."""
        self._file.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def source(self, name: str) -> int:
        """The number of a source, given when it is first seen."""
        self._file.execute("INSERT OR IGNORE INTO sources (name) VALUES (?)", (name,))
        return self._one("SELECT key FROM sources WHERE name = ?", name)

    def sources(self) -> list[str]:
        """The names of all sources."""
        return [name for (name,) in self._file.execute("SELECT name FROM sources ORDER BY key")]

    def known(self, source: int, document: str) -> Known | None:
        """A document of a source, if it is kept."""
        row = self._row("SELECT key, hash, seen FROM documents WHERE source = ? AND id = ?", source, document)
        return Known(*row) if row else None

    def see(self, document: int, run: int) -> None:
        """Note that a document is still in its source."""
        self._file.execute("UPDATE documents SET seen = ? WHERE key = ?", (run, document))

    def add(self, source: int, document: str, title: str, content: bytes, run: int) -> int:
        """A new document without passages."""
        row = (source, document, title, content, run)
        added = self._file.execute("INSERT INTO documents (source, id, title, hash, seen) VALUES (?, ?, ?, ?, ?)", row)
        return int(added.lastrowid or 0)

    def add_passages(self, document: int, passages: Iterable[Cut]) -> Iterator[tuple[int, Cut]]:
        """Keep passages of a document, as they are asked for. Gives number and passage of those that are no copies."""
        for cut in passages:
            copy = self._row("SELECT 1 FROM passages WHERE hash = ? AND copy = 0", cut.hash) is not None
            row = (document, cut.hash, copy, len(cut.terms.split()), cut.text)
            added = self._file.execute(
                "INSERT INTO passages (document, hash, copy, terms, text) VALUES (?, ?, ?, ?, ?)", row
            )
            if not copy:
                number = int(added.lastrowid or 0)
                self._note([number])
                yield number, cut

    def delete(self, document: int) -> None:
        """Delete a document with its passages; of what was searched, the next copy takes the place."""
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
        """Documents of a source that a run did not see."""
        rows = self._file.execute("SELECT key FROM documents WHERE source = ? AND seen <> ?", (source, run))
        return [key for (key,) in rows]

    def pending(self) -> list[int]:
        """Passages that changed since the engines were last in step."""
        return [number for (number,) in self._file.execute("SELECT passage FROM pending ORDER BY passage")]

    def settle(self) -> None:
        """Note that the engines have all changes."""
        self._file.execute("DELETE FROM pending")

    def get(self, numbers: Sequence[int]) -> Mapping[int, Stored]:
        """Those of the numbered passages that are searched."""
        found: dict[int, Stored] = {}
        with self._told():
            for start in range(0, len(numbers), AT_ONCE):
                some = numbers[start : start + AT_ONCE]
                rows = self._file.execute(f"{SEARCHED} AND p.id IN ({','.join('?' * len(some))})", some)
                found.update((row[0], Stored(*row)) for row in rows)
        return found

    def of_documents(self, ids: Sequence[str]) -> list[Stored]:
        """The passages of the documents with these ids, in their order; copies of other passages are among them.

        The id that a record of JSON Lines has of its own will do too, without its file's name before it.
        """
        found: list[Stored] = []
        with self._told():
            for document in ids:
                for file in self._files:
                    found += [Stored(*row) for row in self._file.execute(OF_DOCUMENT, (f"{file}{document}",))]
        return found

    @cached_property
    def _files(self) -> list[str]:
        """What ids may begin with, nothing among it; asked once, since it takes a look at every document."""
        return ["", *(file for (file,) in self._file.execute(FILES))]

    def passages(self) -> Iterator[Stored]:
        """All passages that are searched, by number."""
        with self._told():
            for row in self._file.execute(f"{SEARCHED} ORDER BY p.id"):
                yield Stored(*row)

    def numbers(self) -> NDArray[np.int64]:
        """The numbers of all passages that are searched, rising."""
        with self._told():
            rows = self._file.execute("SELECT id FROM passages WHERE copy = 0 ORDER BY id")
            return np.fromiter((number for (number,) in rows), np.int64)

    def counts(self) -> Counts:
        """How much there is."""
        with self._told():
            passages, terms = self._row("SELECT count(*), total(terms) FROM passages WHERE copy = 0") or (0, 0)
            copies = self._one("SELECT count(*) FROM passages WHERE copy = 1")
            return Counts(self._one("SELECT count(*) FROM documents"), passages, copies, int(terms))

    def _note(self, passages: Iterable[int]) -> None:
        self._file.executemany("INSERT OR IGNORE INTO pending VALUES (?)", ((number,) for number in passages))

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        return self._file.execute(query, values).fetchone()

    def _one(self, query: str, *values: object) -> int:
        row = self._row(query, *values)
        return int(row[0] or 0) if row else 0

    def _told(self) -> AbstractContextManager[None]:
        return database_errors(self.path, "store of passages", "--out")


PASSAGES = "SELECT p.id, d.title, p.text FROM passages p JOIN documents d ON d.key = p.document"
SEARCHED = f"{PASSAGES} WHERE p.copy = 0"
OF_DOCUMENT = f"{PASSAGES} JOIN sources s ON s.key = d.source WHERE d.id = ? ORDER BY p.id"
FILES = "SELECT DISTINCT substr(id, 1, instr(id, '#')) FROM documents WHERE instr(id, '#') > 0"  # begin ids of records
