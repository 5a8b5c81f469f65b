"""JSON Lines files."""

import gzip
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from shoulders.errors import DataError


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, gzip-compressed if its name ends in .gz.

    Raises:
        DataError: a line that is not a JSON object, with file and line number.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield json_object(line)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}, line {number}: {error}") from error


@final
class JsonLines:
    """The objects of a JSON Lines file by number, blank lines left out.

    Only where a line begins is kept in memory; a `.gz` file, which cannot be entered in the middle, is held whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        packed = path.suffix == ".gz"
        self._lines: list[bytes] = []
        self._starts, self._numbers = array("Q"), array("Q")
        start = 0
        try:
            with gzip.open(path) if packed else path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        self._starts.append(start)
                        self._numbers.append(number)
                        self._lines += [line] if packed else []
                    start += len(line)
        except (EOFError, OSError) as error:
            raise DataError(f"{path}: {error}") from error

    def __len__(self) -> int:
        """Lines that are not blank."""
        return len(self._starts)

    def line(self, number: int) -> int:
        """Where in the file an object stands, counted from 1."""
        return self._numbers[number]

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One object.

        Raises:
            DataError: the line is not one, with file and line number.
        """
        try:
            return json_object((self._lines[number] if self._lines else self._read(number)).decode())
        except ValueError as error:
            raise DataError(f"{self.path}, line {self.line(number)}: {error}") from error

    def _read(self, number: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            return file.readline()


def json_object(line: str) -> dict[str, Any]:
    """The object that a line holds, or `ValueError`."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    return value
