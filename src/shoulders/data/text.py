"""Plain text for language modelling: the documents of files or of a hub data set."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, final

from shoulders.data.lines import JsonLines
from shoulders.data.readers import datasets_library
from shoulders.errors import DataError, SourceNotFound
from shoulders.store.encodings import decode_whole
from shoulders.store.files import hub_errors

PLAIN = (".txt", ".md")
LINES = (".jsonl", ".jsonl.gz")


def open_text(source: str) -> "Documents":
    """The documents of a text file, of a JSONL file's `text` fields, of a folder of both, or of `hub:NAME[:CONFIG]`.

    However many there are, each is read when it is needed.

    Raises:
        SourceNotFound, HubUnreachable: there is nothing by that name.
        DataError: there is no text at all; also later, of a line that is broken, when it is read.
    """
    if source.startswith("hub:"):
        found = _hub_documents(source.removeprefix("hub:"))
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise SourceNotFound(f"there is no text at {source!r}: name a file, a folder, or hub:NAME")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found = _joined([_documents(file) for file in files if file.name.endswith(PLAIN + LINES)])
    if not any(text.strip() for text in found):
        raise DataError(
            f"{source!r} holds no text ({', '.join(PLAIN)} files, or {', '.join(LINES)} with a `text` field)"
        )
    return found


@final
@dataclass(frozen=True, slots=True)
class Documents:
    """So many documents, each read when it is asked for."""

    count: int
    read: Callable[[int], str]

    def __len__(self) -> int:
        """Documents in all."""
        return self.count

    def __getitem__(self, number: int) -> str:
        """One document."""
        if not 0 <= number < self.count:
            raise IndexError(number)
        return self.read(number)


def held_out(documents: Documents, one_in: int) -> tuple[Documents, Documents]:
    """Documents to train on, and one in so many to measure on."""
    if len(documents) < 2:
        raise DataError("one document cannot be divided into training and development: name text.validation")
    measured = -(-len(documents) // one_in)
    others = Documents(len(documents) - measured, lambda number: documents[number + number // (one_in - 1) + 1])
    return others, Documents(measured, lambda number: documents[number * one_in])


def _joined(parts: Sequence[Documents]) -> Documents:
    ends = list(accumulate(map(len, parts)))

    def read(number: int) -> str:
        which = bisect_right(ends, number)
        return parts[which][number - ends[which] + len(parts[which])]

    return Documents(ends[-1] if ends else 0, read)


def _documents(file: Path) -> Documents:
    if file.name.endswith(PLAIN):
        return Documents(1, lambda _: _plain(file))
    lines = JsonLines(file, _text)
    return Documents(len(lines), lines.__getitem__)


def _plain(file: Path) -> str:
    try:
        return decode_whole(file.read_bytes())
    except (OSError, DataError) as error:
        raise DataError(f"{file}: {error}") from error


def _hub_documents(spec: str) -> Documents:
    name, _, config = spec.partition(":")
    with hub_errors(name):
        rows = datasets_library().load_dataset(name, config or None, split="train")

    def read(number: int) -> str:
        try:
            return _text(rows[number])
        except ValueError as error:
            raise DataError(f"{name}, row {number}: {error}") from error

    return Documents(len(rows), read)


def _text(record: Mapping[str, Any]) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise ValueError("it has no `text` field: documents are its values")
    return text
