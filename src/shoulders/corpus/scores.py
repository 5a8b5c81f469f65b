"""Scores of passages kept in a file: a pair is scored once for all epochs, runs and measurements."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from pathlib import Path
from typing import final

from shoulders.files import database_errors, open_database, transaction
from shoulders.ranking.scoring import AT_ONCE, Pair, Ranker

TABLE = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID;"
IN_A_QUERY = 10_000  # SQLite takes at most 32,766 values in one statement


@final
class ScoreStore:
    """Scores by ranker and pair, in an SQLite file that several processes may use.

    Args:
        path: of the file, made if it is not there.

    Raises:
        CorruptFile: there is another file.
        SaveFailed: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_database(self.path, TABLE)

    def scores(self, ranker: Ranker, pairs: Sequence[Pair]) -> list[float]:
        """A score for each pair. The ranker scores those that it never scored; they are kept as they come."""
        keys = [_key(ranker.fingerprint, pair) for pair in pairs]
        known = self._get(list(dict.fromkeys(keys)))
        missing = list({key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}.items())
        for start in range(0, len(missing), AT_ONCE):
            some = missing[start : start + AT_ONCE]
            new = dict(zip([key for key, _ in some], ranker.scores([pair for _, pair in some]), strict=True))
            self._put(new)
            known |= new
        return [known[key] for key in keys]

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        found: dict[bytes, float] = {}
        with self._told():
            for start in range(0, len(keys), IN_A_QUERY):
                some = keys[start : start + IN_A_QUERY]
                marks = ",".join("?" * len(some))
                found.update(self._file.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", some))  # noqa: S608
        return found

    def _put(self, scores: dict[bytes, float]) -> None:
        with self._told(), transaction(self._file):
            self._file.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", scores.items())

    def _told(self) -> AbstractContextManager[None]:
        return database_errors(self.path, "store of scores", "evidence.store")


def _key(fingerprint: str, pair: Pair) -> bytes:
    digest = blake2b(digest_size=16)
    for part in (fingerprint, pair.question, pair.title, pair.text):
        digest.update(part.encode(errors="surrogatepass") + b"\xff")  # a byte that UTF-8 does not have
    return digest.digest()
