"""JSON Lines files."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
                    yield _object(line)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}, line {number}: {error}") from error


def _object(line: str) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    return value
