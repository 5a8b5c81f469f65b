"""Records of JSON Lines and JSON files, plain or compressed: one after the other, or by number."""

import gzip
import json
import os
import re
import tempfile
import zlib
from array import array
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, BinaryIO, Generic, TypeVar, cast, final

import ijson

from shoulders.errors import BadRow, DataError, SaveFailed, first_line
from shoulders.store.encodings import WAY_OUT
from shoulders.store.files import cache_path

CHUNK = 1 << 20  # bytes


def unpacked(path: Path) -> Path:
    """Return the path of an unpacked `.gz` file, in `unpacked/` of the cache folder.

    It is unpacked again once its size or modification time has changed. Several processes may do so at once.

    Raises:
        DataError: the file does not exist, is truncated, or is not gzip.
        SaveFailed: the cache folder cannot be written, or its disk is full.
    """
    with _reading(path):
        place = cache_path("unpacked", path)
    if place.exists():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as plain:
                plain.writelines(_chunks(path))
            changed = path.stat().st_mtime_ns
            os.utime(part, ns=(changed, changed))  # so that a copy of another process takes its place unnoticed
            os.replace(part, place)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise SaveFailed(
            f"cannot unpack {path} to {place}: {error.strerror or error}; free space, or name another folder in "
            "SHOULDERS_CACHE"
        ) from error
    return place


def _chunks(path: Path) -> Iterator[bytes]:
    with _reading(path), gzip.open(path) as packed:
        while chunk := packed.read(CHUNK):
            yield chunk


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: {error}") from error


Item = TypeVar("Item")

BLOCK = 1 << 14  # bytes between two indexed positions: at most so many are read to find an object
ARRAYS = (".json", ".json.gz")  # endings of files that contain an array
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")  # two of these make a character
SURROGATE = re.compile(r"[\ud800-\udfff]")
UNREADABLE = (ValueError, EOFError, OSError, zlib.error)  # errors of a broken file, or of broken compression


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file, which is gzip-compressed if its name ends in .gz.

    Raises:
        BadRow: a line is not a JSON object; the message has file and line number.
        DataError: the file cannot be read to its end.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as lines:
            for line in lines:
                number += 1
                if not _blank(line):
                    yield _parsed(path, number, line, dict)
    except UNREADABLE as error:
        raise DataError(f"{path}, line {number}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Index of a file: number, byte offset and line number of the first object in every 16 KiB."""

    objects: "array[int]" = field(default_factory=lambda: array("Q"))
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    lines: "array[int]" = field(default_factory=lambda: array("Q"))


@final
class JsonLines(Generic[Item]):
    """Sequence of the objects of a JSON Lines file, each converted by `convert`; blank lines are skipped.

    The file is not kept in memory: the index takes 24 bytes for each 16 KiB, and an object is read when it is accessed.
    The index is built by reading the file once, on the first access. A `.gz` file, which has no random access, is
    unpacked into the cache folder first (`unpacked`).

    Args:
        path: path of the file.
        convert: converts an object; the message of a `ValueError` from it becomes part of a `BadRow`.
    """

    def __init__(self, path: Path, convert: Callable[[dict[str, Any]], Item]) -> None:
        self.path, self._convert = path, convert

    def __len__(self) -> int:
        """Return the number of lines that are not blank.

        Raises:
            DataError: the file cannot be read to its end.
        """
        return self._index[1]

    def __getitem__(self, number: int) -> Item:
        """Return one object, converted.

        Raises:
            IndexError: there is no such number.
            BadRow: the line is not a JSON object or cannot be converted; the message has file and line number.
            DataError: the file was changed since it was indexed.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        line, content = self._read(number)
        return _parsed(self.path, line, content, self._convert)

    @cached_property
    def _file(self) -> Path:
        return unpacked(self.path) if self.path.suffix == ".gz" else self.path

    @cached_property
    def _index(self) -> tuple[_Blocks, int, tuple[int, int]]:
        """Index of the objects, their number, and size and modification time of the file."""
        blocks, count, at, block = _Blocks(), 0, 0, -1
        try:
            with self._file.open("rb") as lines:
                state = _state(lines)
                for number, line in enumerate(lines, start=1):
                    if not _blank(line):
                        if at // BLOCK != block:
                            block = at // BLOCK
                            blocks.objects.append(count)
                            blocks.starts.append(at)
                            blocks.lines.append(number)
                        count += 1
                    at += len(line)
        except OSError as error:
            raise DataError(f"{self.path}: {error}") from error
        return blocks, count, state

    def _read(self, number: int) -> tuple[int, bytes]:
        """Return the line number and the line of an object."""
        blocks, _, state = self._index
        block = bisect_right(blocks.objects, number) - 1
        before = number - blocks.objects[block]
        try:
            with self._file.open("rb") as lines:
                if _state(lines) == state:
                    lines.seek(blocks.starts[block])
                    for at, line in enumerate(lines, start=blocks.lines[block]):
                        if not _blank(line):
                            if not before:
                                return at, line
                            before -= 1
        except OSError as error:
            raise DataError(f"{self.path}: {error}") from error
        raise DataError(f"{self.path} was changed while it was being read: start again")


def _blank(line: bytes) -> bool:
    return not line.removeprefix(BOM_UTF8).strip()


def _state(file: IO[bytes]) -> tuple[int, int]:
    about = os.fstat(file.fileno())
    return about.st_size, about.st_mtime_ns


def _parsed(path: Path, number: int, line: bytes, convert: Callable[[dict[str, Any]], Item]) -> Item:
    try:
        values = json_object(line.decode())
        if SURROGATE_ESCAPE.search(line) and (half := SURROGATE.search(json.dumps(values, ensure_ascii=False))):
            raise ValueError(
                f"{ascii(half[0])[1:-1]} is half a character (a lone surrogate): write both halves, or remove it"
            )
        return convert(values)
    except UnicodeDecodeError as error:
        raise BadRow(f"{path}, line {number}: {error}: {WAY_OUT}") from error
    except ValueError as error:
        raise BadRow(f"{path}, line {number}: {error}") from error


def json_object(line: str) -> dict[str, Any]:
    """Parse a line as a JSON object; raise `ValueError` if it is none."""
    try:
        # Concatenated files have byte order marks in the middle.
        return _object(json.loads(line.removeprefix("\ufeff")))
    except RecursionError:  # of data with thousands of levels
        raise ValueError("nested too deeply") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    return value


def read_array(path: Path, places: Mapping[str, str]) -> Iterator[Any]:
    """Yield the items of an array in a JSON file, which is gzip-compressed if its name ends in .gz.

    Args:
        path: path of the file, whose top level is the array, or an object that contains it.
        places: for an object, the path of the items (in ijson's notation) by the field that it has.

    Raises:
        DataError: there is no such array, or the file cannot be read to its end.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as packed:
            file = cast(BinaryIO, packed)
            place = _place(_from_start(file), places)
            if place is None:
                fields = ", ".join(repr(field) for field in places)
                raise DataError(f"{path} is no array of records, and has none in a field {fields or '-'}")
            yield from ijson.items(_from_start(file), place, use_float=True)
    except (ijson.JSONError, *UNREADABLE) as error:
        raise DataError(f"{path}: {first_line(error)}") from error


def _from_start(file: BinaryIO) -> BinaryIO:
    """Return the file at its beginning, after the byte order mark if it has one."""
    file.seek(0)
    file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
    return file


def _place(file: BinaryIO, places: Mapping[str, str]) -> str | None:
    for prefix, event, value in ijson.parse(file):
        if not prefix and event == "start_array":
            return "item"
        if not prefix and event == "map_key" and value in places:
            return places[value]
    return None


@final
class JsonArray(Generic[Item]):
    """Sequence of the objects of an array in a JSON file, each converted by `convert`.

    The file is read once, as a stream, on the first access; the converted objects are kept in memory.

    Args:
        path: path of the file.
        convert: converts an object; the message of a `ValueError` from it becomes part of a `BadRow`.
        places: paths of the array in files whose top level is an object, as in `read_array`.
    """

    def __init__(self, path: Path, convert: Callable[[dict[str, Any]], Item], places: Mapping[str, str]) -> None:
        self.path, self._convert, self._places = path, convert, places

    def __len__(self) -> int:
        """Return the number of objects.

        Raises:
            DataError: the file cannot be read to its end.
        """
        return len(self._items)

    def __getitem__(self, number: int) -> Item:
        """Return one object, converted.

        Raises:
            IndexError: there is no such number.
            BadRow: it is not an object or cannot be converted; the message has file and number, from 1.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        item, fault = self._items[number]
        if item is None:
            raise BadRow(f"{self.path}, record {number + 1}: {fault}")
        return item

    @cached_property
    def _items(self) -> list[tuple[Item | None, str]]:
        return [self._tried(value) for value in read_array(self.path, self._places)]

    def _tried(self, value: Any) -> tuple[Item | None, str]:
        try:
            return self._convert(_object(value)), ""
        except ValueError as error:
            return None, str(error)


def json_records(
    path: Path, convert: Callable[[dict[str, Any]], Item], places: Mapping[str, str] = {}
) -> JsonLines[Item] | JsonArray[Item]:
    """Return the converted objects of a file: of an array if its name ends in .json or .json.gz, else of its lines."""
    return JsonArray(path, convert, places) if path.name.endswith(ARRAYS) else JsonLines(path, convert)


def first_record(path: Path, places: Mapping[str, str] = {}) -> dict[str, Any]:
    """Return the first object of such a file; {} if there is none or it is broken (which reading it later reports)."""
    try:
        found = read_array(path, places) if path.name.endswith(ARRAYS) else read_json_lines(path)
        return _object(next(iter(found), {}))
    except (ValueError, DataError):
        return {}
