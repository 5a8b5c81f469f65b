"""Sampled answers kept in a file: drawn once, used by every epoch, run and measurement."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from pathlib import Path
from typing import final

from shoulders.files import database_errors, open_database, transaction
from shoulders.records import Answer

TABLE = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answers TEXT NOT NULL);"


@final
class AnswerStore:
    """Answers by key, in an SQLite file, or in memory for one run.

    What was put is kept if the process is killed; several processes may use one file.

    Args:
        path: of the file, made if it is not there; "" for memory.

    Raises:
        CorruptFile: there is another file.
        SaveFailed: it cannot be written.
    """

    def __init__(self, path: str = "") -> None:
        self.path = path
        with self._told():
            if path:
                Path(path).expanduser().parent.mkdir(parents=True, exist_ok=True)
            self._file = open_database(Path(path).expanduser() if path else None, TABLE)

    def get(self, key: str) -> list[Answer]:
        """The answers under a key; none where nothing was put."""
        with self._told():
            row = self._file.execute("SELECT answers FROM answers WHERE key = ?", (_short(key),)).fetchone()
        return [Answer(*one) for one in json.loads(row[0])] if row else []

    def put(self, answers: Mapping[str, Sequence[Answer]]) -> None:
        """Keep answers under their keys, in the place of what was there."""
        rows = [(_short(key), json.dumps([_kept(one) for one in some])) for key, some in answers.items()]
        with self._told(), transaction(self._file):
            self._file.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def _told(self) -> AbstractContextManager[None]:
        return database_errors(self.path, "store of answers", "evidence.store")


def _kept(one: Answer) -> tuple[str, float, float]:
    return one.text, one.log_probability, one.margin


def _short(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=16).digest()
