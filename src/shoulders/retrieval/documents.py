"""Documents of a corpus: text, Markdown, HTML, PDF, JSON Lines, tables and hub data sets.

Documents are read one at a time, so a source may be larger than memory.
"""

import gzip
import io
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import regex

from shoulders.data.formats import id_of, one_text
from shoulders.data.lines import json_object
from shoulders.data.readers import datasets_library
from shoulders.errors import DataError, SourceNotFound, first_line
from shoulders.retrieval.texts import WHOLE, Section, clean, read_text
from shoulders.store.encodings import WAY_OUT, line_encoding
from shoulders.store.files import hub_errors, printable_path

LINES, TABLES = (".jsonl", ".jsonl.gz"), (".tsv", ".tsv.gz")
KNOWN = WHOLE + LINES + TABLES
HUB = "hub:"
COLUMNS = ("id", "text", "title")
BESIDE = "__MACOSX"  # a folder that macOS adds to archives
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, GeneratorExit)  # of the program, not failures of a library
FIELD = regex.compile(r'(?<![^\t])(?:"((?:[^"]++|"")*+)"(?=\t|$)|[^\t]*)')
UNDECODED = regex.compile(r"[\udc80-\udcff]")  # bytes that a line's encoding does not have, as Python passes them on


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a source.

    Attributes:
        id: unique in its source, and the same whenever the source is read.
        place: file and line, for messages.
        read: bytes of the source up to the end of the document, for progress.
        passage: whether it is a passage already and must not be cut.
        sections: pages of a PDF, or what follows the headings of a page or of Markdown.
    """

    id: str
    title: str
    text: str
    place: str
    read: int
    passage: bool = False
    sections: Sequence[Section] = ()

    def section(self, start: int, end: int) -> str:
        """Return the section with most of a span of the text, as it is added to the title; "" if there is none.

        That is " > page 3" or " > Setup > Linux"; a first heading that is the document's title is left out.
        """
        first = max(0, bisect_right(self.sections, start, key=lambda one: one.start) - 1)
        most, path = 0, ()
        for number in range(first, len(self.sections)):
            here = self.sections[number]
            if here.start >= end:
                break
            until = self.sections[number + 1].start if number + 1 < len(self.sections) else end
            covered = min(end, until) - max(start, here.start)
            if covered > most:
                most, path = covered, here.path
        return "".join(f" > {name}" for name in (path[1:] if path[:1] == (self.title,) else path))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A part of a source that gives no document.

    Attributes:
        lost: whether it could not be read, so that its documents are unknown; otherwise it is empty, or part of one.
    """

    place: str
    reason: str
    read: int
    lost: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """A named source of documents.

    Attributes:
        name: the name under which its documents are stored.
        size: bytes of the whole source, for progress; 0 if unknown.
        items: a function that reads the source from the beginning.
    """

    name: str
    size: int
    items: Callable[[], Iterator[Document | Skipped]]


def texts_source(texts: Sequence[str], name: str = "texts") -> Source:
    """Return texts that are at hand as a source; the number of each is its id."""

    def items() -> Iterator[Document | Skipped]:
        for number, text in enumerate(texts):
            place = f"text {number} of {name}"
            yield Document(str(number), "", text, place, 0) if text.strip() else Skipped(place, "it is empty", 0)

    return Source(name, 0, items)


def open_source(name: str, *, as_is: bool = False) -> Source:
    """Return a source by its name.

    Args:
        as_is: records of JSON Lines and of the hub are passages already.

    Raises:
        SourceNotFound: it does not exist, or holds no file of a readable type.
        HubUnreachable: it is a data set of the hub, and the hub does not answer.
    """
    if name.startswith(HUB):
        return _hub_source(name, as_is=as_is)
    path = Path(name).expanduser().resolve()
    closed: list[OSError] = []
    if path.is_dir():
        files = _files(path, closed.append)
    else:
        files = [path] if path.is_file() and path.name.lower().endswith(KNOWN) else []
    if not path.exists():
        raise SourceNotFound(f"there is no file or folder {name!r} (a data set of the hub is named {HUB}NAME)")
    if not files:
        what = "holds no file of a readable type" if path.is_dir() else "is not a file of a readable type"
        raise SourceNotFound(f"{printable_path(name)} {what}: {', '.join(KNOWN)}")
    root = path if path.is_dir() else path.parent
    sizes = [_size(file) for file in files]

    def items() -> Iterator[Document | Skipped]:
        for error in closed:
            yield Skipped(printable_path(error.filename), error.strerror or first_line(error), 0)
        before = 0
        for file, size in zip(files, sizes, strict=True):
            yield from _file_items(
                _File(file, clean(printable_path(file.relative_to(root).as_posix())), before, size, as_is)
            )
            before += size

    return Source(printable_path(path), sum(sizes), items)


def _files(root: Path, refused: Callable[[OSError], None]) -> list[Path]:
    """Return the files below a folder that can be read, hidden ones left out (`.git`, `._x` of macOS)."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=refused):
        folders[:] = [one for one in folders if not one.startswith(".") and one != BESIDE]
        files = [Path(folder, one) for one in names if not one.startswith(".") and one.lower().endswith(KNOWN)]
        found += [file for file in files if _is_file(file)]
    return sorted(found)


def _is_file(path: Path) -> bool:
    """Return whether it is no pipe or device; what cannot be examined is left to the reader, which reports it."""
    try:
        return path.is_file() or not path.exists()
    except OSError:
        return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    id: str
    before: int  # bytes of the source's files before it
    size: int
    as_is: bool

    def place(self, line: int = 0) -> str:
        return f"{printable_path(self.path)}, line {line}" if line else printable_path(self.path)

    def skipped(self, reason: str, *, line: int = 0, read: int | None = None, lost: bool = True) -> Skipped:
        return Skipped(self.place(line), reason, self.before + (self.size if read is None else read), lost)

    def record(self, values: Mapping[str, Any], line: int, read: int, *, passage: bool) -> Document | Skipped:
        return _document(values, f"{self.id}#", line, self.place(line), self.before + read, passage=passage)


def _file_items(file: _File) -> Iterator[Document | Skipped]:
    name = file.path.name.lower()
    reader = _json_items if name.endswith(LINES) else _table_items if name.endswith(TABLES) else _whole
    try:
        yield from reader(file)
    except INTERRUPTIONS:
        raise
    except (
        BaseException
    ) as error:  # a panic of a library in Rust is no Exception; the other files are read all the same
        yield file.skipped(f"it cannot be read ({type(error).__name__}: {first_line(error)})")


def _whole(file: _File) -> Iterator[Document | Skipped]:
    try:
        title, text, lost, sections = read_text(file.path)
    except DataError as error:
        yield file.skipped(str(error))
        return
    for where, reason in lost:
        yield Skipped(", ".join(filter(None, [file.place(), where])), reason, file.before + file.size, lost=False)
    if text.strip():
        yield Document(file.id, title, text, file.place(), file.before + file.size, sections=sections)
    else:
        yield file.skipped("there is no text in it", lost=False)


def _json_items(file: _File) -> Iterator[Document | Skipped]:
    with _reading(file, "\n") as (raw, lines, trouble):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = json_object(_decoded(line))
            except (ValueError, RecursionError) as error:
                yield file.skipped(first_line(error), line=number, read=raw.tell())
            else:
                yield file.record(values, number, raw.tell(), passage=file.as_is)
    yield from (file.skipped(reason) for reason in trouble)


def _table_items(file: _File) -> Iterator[Document | Skipped]:
    with _reading(file, "\n") as (raw, lines, trouble):
        header = [name.strip('"') for name in next(lines, "").rstrip("\r\n").split("\t")]
        named = set(COLUMNS) <= set(header)
        if not named and not trouble:
            trouble.append(f"its first line does not name the columns {', '.join(COLUMNS)}")
        for number, line in enumerate(lines if named else (), start=2):
            row = _fields(line, len(header))
            if UNDECODED.search(line):
                yield file.skipped(f"it is not UTF-8: {WAY_OUT}", line=number, read=raw.tell())
            elif len(row) == len(header):
                yield file.record(dict(zip(header, row, strict=True)), number, raw.tell(), passage=True)
            elif line.strip():
                yield file.skipped(f"{len(row)} columns in place of {len(header)}", line=number, read=raw.tell())
    yield from (file.skipped(reason) for reason in trouble)


def _fields(line: str, columns: int) -> list[str]:
    """Return the fields of a table's line; quotes are text unless they enclose a field, in which they are doubled."""
    line = line.rstrip("\r\n")
    plain = line.split("\t")
    if '"' not in line:
        return plain
    quoted = [one[0] if one[1] is None else one[1].replace('""', '"') for one in FIELD.finditer(line)]
    return quoted if len(quoted) == columns else plain


def _decoded(text: str) -> str:
    """Return the text, or raise `ValueError` if the file's encoding does not have some of its bytes."""
    if UNDECODED.search(text):
        raise ValueError(f"it is not UTF-8: {WAY_OUT}")
    return text


@contextmanager
def _reading(file: _File, newline: str) -> Iterator[tuple[BinaryIO, Iterator[str], list[str]]]:
    """Yield the file, the lines of its decompressed text, and a list for the reason why reading stopped early."""
    trouble: list[str] = []
    try:
        raw = file.path.open("rb")
    except OSError as error:
        yield cast(BinaryIO, io.BytesIO()), iter(()), [error.strerror or first_line(error)]
        return
    packed = file.path.suffix.lower() == ".gz"
    with raw, gzip.open(raw) if packed else raw as stream, closing(_text_lines(stream, newline, trouble)) as lines:
        yield raw, lines, trouble


def _text_lines(stream: io.BufferedReader | gzip.GzipFile, newline: str, trouble: list[str]) -> Generator[str]:
    number, text = 0, None
    try:
        text = io.TextIOWrapper(stream, line_encoding(stream.peek(4)), "surrogateescape", newline)
        for line in text:
            number += 1
            yield line
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        trouble.append(f"it cannot be read beyond line {number}: {first_line(error)}")
    finally:
        if text:
            text.detach()  # which else would close the file with itself


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
                yield _document(values, "", number, place, read, passage=as_is)

    return Source(name, (about and about.num_bytes) or 0, items)


def _document(
    values: Mapping[str, Any], begin: str, number: int, place: str, read: int, *, passage: bool
) -> Document | Skipped:
    """Return the document of a record; a record without `id` (or BEIR's `_id`) gets its number as its id."""
    text = values.get("text")
    if not isinstance(text, str):
        return Skipped(place, "there is no `text` in it", read)
    try:
        own = id_of(values.get("id"), "id") or id_of(values.get("_id"), "_id")
        title = one_text(values.get("title"), "title")
    except ValueError as error:
        return Skipped(place, str(error), read)
    key = f"{begin}{own or number}"
    text = clean(text).strip()
    if not text:
        return Skipped(place, "its text is empty", read, lost=False)
    return Document(clean(key), " ".join(clean(title).split()), text, place, read, passage)
