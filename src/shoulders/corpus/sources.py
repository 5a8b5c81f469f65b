"""What a corpus is made from. Documents are read when they are needed, so a source may be larger than memory.

    PATH                  a file, or a folder with all below it: .txt, .md, .html, .pdf, .jsonl[.gz], .tsv[.gz]
    hub:NAME[:CONFIG]     the training part of a Hugging Face data set, streamed

Records of JSON Lines and of the hub have a `text`, and may have a `title` and an `id`. A .tsv is DPR's: columns `id`,
`text` and `title`, each row a passage already.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, AnyStr, BinaryIO, cast

from shoulders.backbone.sources import hub_errors
from shoulders.corpus.files import WHOLE, clean, read_text
from shoulders.data.lines import json_object
from shoulders.data.readers import datasets_library
from shoulders.errors import DataError, SourceNotFound, first_line
from shoulders.files import legible

LINES, TABLES = (".jsonl", ".jsonl.gz"), (".tsv", ".tsv.gz")
KNOWN = WHOLE + LINES + TABLES
HUB = "hub:"
COLUMNS = ("id", "text", "title")


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a source.

    Attributes:
        id: the same whenever the source is read, and no other's in it.
        place: where it stands, for messages.
        read: bytes of the source up to its end, for progress.
        passage: it is a passage already, kept as it is.
    """

    id: str
    title: str
    text: str
    place: str
    read: int
    passage: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """What a source holds and gives no document.

    Attributes:
        lost: it could not be read, so nobody knows which documents are in it; otherwise it is empty.
    """

    place: str
    reason: str
    read: int
    lost: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """A named source.

    Attributes:
        name: that its documents are kept under.
        size: bytes of all of it, for progress; 0 where nobody knows.
        items: reads it from the beginning.
    """

    name: str
    size: int
    items: Callable[[], Iterator[Document | Skipped]]


def open_source(name: str, *, as_is: bool = False) -> Source:
    """A source by its name.

    Args:
        as_is: records of JSON Lines and of the hub are passages already.

    Raises:
        SourceNotFound: nothing is there, or nothing that can be read.
        HubUnreachable: it is a data set of the hub, and the hub does not answer.
    """
    if name.startswith(HUB):
        return _hub_source(name, as_is=as_is)
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.name.lower().endswith(KNOWN) and file.is_file()]
        if not files:
            raise SourceNotFound(f"{name} holds no file that can be read: {', '.join(KNOWN)}")
    elif path.is_file() and path.name.lower().endswith(KNOWN):
        files = [path]
    elif path.exists():
        raise SourceNotFound(f"{name} is none of the files that can be read: {', '.join(KNOWN)}")
    else:
        raise SourceNotFound(f"there is no file or folder {name!r} (a data set of the hub is named {HUB}NAME)")
    root = path if path.is_dir() else path.parent
    sizes = [file.stat().st_size for file in files]

    def items() -> Iterator[Document | Skipped]:
        before = 0
        for file, size in zip(files, sizes, strict=True):
            yield from _file_items(_File(file, clean(legible(file.relative_to(root).as_posix())), before, size, as_is))
            before += size

    return Source(legible(path), sum(sizes), items)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    id: str
    before: int  # bytes of the source's files before it
    size: int
    as_is: bool

    def place(self, line: int = 0) -> str:
        return f"{legible(self.path)}, line {line}" if line else legible(self.path)

    def skipped(self, reason: str, *, line: int = 0, read: int | None = None, lost: bool = True) -> Skipped:
        return Skipped(self.place(line), reason, self.before + (self.size if read is None else read), lost)

    def record(self, values: Mapping[str, Any], line: int, read: int, *, passage: bool) -> Document | Skipped:
        key = f"{self.id}#{values.get('id', line)}"
        return _document(values, key, self.place(line), self.before + read, passage=passage)


def _file_items(file: _File) -> Iterator[Document | Skipped]:
    name = file.path.name.lower()
    if name.endswith(LINES):
        yield from _json_items(file)
    elif name.endswith(TABLES):
        yield from _table_items(file)
    else:
        yield _whole(file)


def _whole(file: _File) -> Document | Skipped:
    try:
        title, text = read_text(file.path)
    except DataError as error:
        return file.skipped(str(error))
    if not text.strip():
        return file.skipped("there is no text in it", lost=False)
    return Document(file.id, title, text, file.place(), file.before + file.size)


def _json_items(file: _File) -> Iterator[Document | Skipped]:
    with _reading(file) as (raw, lines, trouble):
        for number, line in enumerate(_until_trouble(lines, trouble), start=1):
            if not line.strip():
                continue
            try:
                values = json_object(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield file.skipped(first_line(error), line=number, read=raw.tell())
            else:
                yield file.record(values, number, raw.tell(), passage=file.as_is)
    yield from (file.skipped(reason) for reason in trouble)


def _table_items(file: _File) -> Iterator[Document | Skipped]:
    with _reading(file) as (raw, stream, trouble):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        rows = csv.reader(_until_trouble(text, trouble), delimiter="\t")
        header = next(_whole_rows(rows), "")
        named = set(COLUMNS) <= set(header)
        if not named and not trouble:
            trouble.append(f"its first line does not name the columns {', '.join(COLUMNS)}")
        for row in _whole_rows(rows) if named else ():
            if isinstance(row, str) or len(row) != len(header):
                reason = row if isinstance(row, str) else f"{len(row)} columns in place of {len(header)}"
                yield file.skipped(reason, line=rows.line_num, read=raw.tell())
            else:
                yield file.record(dict(zip(header, row, strict=True)), rows.line_num, raw.tell(), passage=True)
    yield from (file.skipped(reason) for reason in trouble)


def _whole_rows(rows: Iterator[list[str]]) -> Iterator[list[str] | str]:
    """Rows of a table; for one that cannot be read the reason."""
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield str(error)


@contextmanager
def _reading(file: _File) -> Iterator[tuple[BinaryIO, BinaryIO, list[str]]]:
    """The file, what is packed in it, and a list for the reason why it could not be read to its end."""
    trouble: list[str] = []
    try:
        raw = file.path.open("rb")
    except OSError as error:
        yield cast(BinaryIO, io.BytesIO()), cast(BinaryIO, io.BytesIO()), [error.strerror or first_line(error)]
        return
    with raw, gzip.open(raw) if file.path.suffix.lower() == ".gz" else raw as stream:
        yield raw, cast(BinaryIO, stream), trouble


def _until_trouble(lines: Iterable[AnyStr], trouble: list[str]) -> Iterator[AnyStr]:
    number = 0
    try:
        for line in lines:
            number += 1
            yield line
    except (OSError, EOFError, zlib.error) as error:
        trouble.append(f"it cannot be read beyond line {number}: {first_line(error)}")


def _hub_source(name: str, *, as_is: bool) -> Source:
    path, _, config = name.removeprefix(HUB).partition(":")
    with hub_errors(path):
        rows = datasets_library().load_dataset(path, config or None, split="train", streaming=True)
    about = (rows.info.splits or {}).get("train")

    def items() -> Iterator[Document | Skipped]:
        read = 0
        with hub_errors(path):
            for number, values in enumerate(rows):
                text = values.get("text")
                read += len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
                place = f"{name}, row {number}"
                yield _document(values, str(values.get("id", number)), place, read, passage=as_is)

    return Source(name, (about and about.num_bytes) or 0, items)


def _document(values: Mapping[str, Any], key: str, place: str, read: int, *, passage: bool) -> Document | Skipped:
    text, title = values.get("text"), values.get("title") or ""
    if not isinstance(text, str):
        return Skipped(place, "there is no `text` in it", read)
    text = clean(text).strip()
    if not text:
        return Skipped(place, "its text is empty", read, lost=False)
    return Document(clean(key), " ".join(clean(str(title)).split()), text, place, read, passage)
