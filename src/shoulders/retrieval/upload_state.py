"""What a server was sent of an index: kept beside the index, so that the next upload sends what changed and no more.

A collection has a key of its own, drawn when it is made; its file here is named by that key.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from shoulders.store.files import database_errors, open_database, transaction

FOLDER, SUFFIX = "milvus", ".sqlite"
TABLES = """
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE terms (number INTEGER PRIMARY KEY, term TEXT NOT NULL UNIQUE, passages INTEGER NOT NULL);
CREATE TABLE sent (passage INTEGER PRIMARY KEY, round INTEGER NOT NULL);
CREATE TABLE uncertain (passage INTEGER PRIMARY KEY);
"""
AT_ONCE = 10_000  # SQLite takes at most 32,766 values in one statement
PASSAGES, ROWS = "passages", "rows"


class Term(NamedTuple):
    """A dimension of the sparse vectors, and how many of the passages that were sent have the term."""

    number: int
    passages: int


@final
class UploadState:
    """One collection: its vocabulary, and the passages that the server acknowledged.

    Numbers of terms are given in the order in which they are met and never change, so no two terms share a dimension.
    The passages that have a term are counted over those that were acknowledged: the same numbers whatever was killed
    in between, and however the server spreads its rows.

    Raises:
        SaveFailed, CorruptFile: the file cannot be used, or is another one.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        with self._told():
            self._file = open_database(path, TABLES, write=write)
            self._file.execute("SELECT count(*) FROM state").fetchone()

    def close(self) -> None:
        """Close the file."""
        with self._told():
            self._file.close()

    def __enter__(self) -> "UploadState":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def value(self, key: str) -> str:
        """A value kept beside the rest; "" if there is none."""
        with self._told():
            row = self._file.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return row[0] if row else ""

    def set_value(self, key: str, value: object) -> None:
        """Keep a value."""
        with self._told():
            self._file.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, str(value)))

    def sent(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The passages that were acknowledged, by number, and the round of each."""
        with self._told():
            rows = self._file.execute("SELECT passage, round FROM sent ORDER BY passage")
            pairs = np.fromiter((value for row in rows for value in row), np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def numbered(self, terms: Collection[str]) -> dict[str, int]:
        """The numbers of terms, given to those that have none yet."""
        with self._writing():
            self._file.executemany(
                "INSERT OR IGNORE INTO terms (term, passages) VALUES (?, 0)", ((term,) for term in terms)
            )
        return {term: known.number for term, known in self.known(terms).items()}

    def known(self, terms: Iterable[str]) -> dict[str, Term]:
        """Those of the terms that have a number."""
        found: dict[str, Term] = {}
        asked = list(dict.fromkeys(terms))
        with self._told():
            for start in range(0, len(asked), AT_ONCE):
                some = asked[start : start + AT_ONCE]
                query = f"{TERMS} IN ({','.join('?' * len(some))})"
                found.update(
                    (term, Term(number, passages)) for term, number, passages in self._file.execute(query, some)
                )
        return found

    def begin(self, passages: Sequence[int]) -> None:
        """Note that new passages are about to be sent."""
        with self._writing():
            self._doubt(passages)

    def acknowledge(self, passages: Sequence[int], rows: int, terms: Mapping[int, int], round_: int) -> None:
        """Note that the server has taken new passages.

        Args:
            rows: that it has of them; a passage without a term has none.
            terms: by number of a term, how many of them have it.
        """
        with self._writing():
            self._file.executemany("INSERT INTO sent VALUES (?, ?)", ((one, round_) for one in passages))
            self._file.executemany("DELETE FROM uncertain WHERE passage = ?", ((one,) for one in passages))
            self._change(len(passages), rows, terms)

    def renew(self, passages: Sequence[int], round_: int) -> None:
        """Note that the server has taken new weights of passages that it had."""
        with self._writing():
            self._file.executemany("UPDATE sent SET round = ? WHERE passage = ?", ((round_, one) for one in passages))

    def leave(self, passages: Sequence[int], rows: int, terms: Mapping[int, int]) -> None:
        """Note that passages are to be deleted on the server, which has so many rows of them with these terms."""
        with self._writing():
            self._file.executemany("DELETE FROM sent WHERE passage = ?", ((one,) for one in passages))
            self._doubt(passages)
            self._change(-len(passages), -rows, {number: -count for number, count in terms.items()})

    def uncertain(self) -> list[int]:
        """Passages that are not counted and that the server may have or not."""
        with self._told():
            return [passage for (passage,) in self._file.execute("SELECT passage FROM uncertain ORDER BY passage")]

    def settle(self) -> None:
        """Note that the server has none of them."""
        with self._writing():
            self._file.execute("DELETE FROM uncertain")

    def _doubt(self, passages: Sequence[int]) -> None:
        self._file.executemany("INSERT OR IGNORE INTO uncertain VALUES (?)", ((one,) for one in passages))

    def _change(self, passages: int, rows: int, terms: Mapping[int, int]) -> None:
        change = "UPDATE terms SET passages = passages + ? WHERE number = ?"
        self._file.executemany(change, ((count, number) for number, count in terms.items()))
        for key, value in ((PASSAGES, passages), (ROWS, rows)):
            self._file.execute("INSERT OR IGNORE INTO state VALUES (?, '0')", (key,))
            self._file.execute("UPDATE state SET value = CAST(value AS INTEGER) + ? WHERE key = ?", (value, key))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._told(), transaction(self._file):
            yield

    def _told(self) -> AbstractContextManager[Any]:
        return database_errors(self.path, "record of an upload", "INDEX, copied elsewhere")


TERMS = "SELECT term, number, passages FROM terms WHERE term"
