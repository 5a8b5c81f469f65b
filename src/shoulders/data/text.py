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
from shoulders.store.encodings import decode_strict
from shoulders.store.files import hub_errors

PLAIN = (".txt", ".md")
LINES = (".jsonl", ".jsonl.gz")


def open_text(source: str) -> "Documents":
    """Return the documents of a text file, a JSONL file (field `text`), a folder of both, or `hub:NAME[:CONFIG]`.

    Each document is read when it is accessed.

    Raises:
        SourceNotFound, HubUnreachable: there is no such file, folder or data set.
        DataError: there is no text; when a document is accessed, its line is broken.
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
            f"{source!r} contains no text ({', '.join(PLAIN)} files, or {', '.join(LINES)} with a `text` field)"
        )
    return found


@final
@dataclass(frozen=True, slots=True)
class Documents:
    """A sequence of documents, each read when it is accessed."""

    count: int
    read: Callable[[int], str]

    def __len__(self) -> int:
        """Return the number of documents."""
        return self.count

    def __getitem__(self, number: int) -> str:
        """Return one document."""
        if not 0 <= number < self.count:
            raise IndexError(number)
        return self.read(number)


def held_out(documents: Documents, one_in: int) -> tuple[Documents, Documents]:
    """Split documents into training and development, every `one_in`-th for development."""
    if len(documents) < 2:
        raise DataError("one document cannot be split into training and development: name text.validation")
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
        return decode_strict(file.read_bytes())
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
        raise ValueError("it has no `text` field, which has to contain the document")
    return text
