"""JSON Lines files, plain or compressed, read from the beginning to the end or one object at a time."""

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

from shoulders.errors import BadRow, DataError, SaveFailed
from shoulders.store.encodings import WAY_OUT
from shoulders.store.files import in_cache

CHUNK = 1 << 20  # bytes


def unpacked(path: Path) -> Path:
    """A `.gz` file, unpacked: `unpacked/` of the cache folder (`$SHOULDERS_CACHE`, or `~/.cache/shoulders`).

    It is unpacked anew if its size or its time has changed since, and by no more than one of two processes to the end.

    Raises:
        DataError: there is no such file, it is cut off, or it is not gzip.
        SaveFailed: the cache folder cannot be written, or its disk is full.
    """
    with _reading(path):
        place = in_cache("unpacked", path)
    if place.exists():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as plain:
                plain.writelines(_chunks(path))
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


Made = TypeVar("Made")

BLOCK = 1 << 14  # bytes between two places that are kept: what is read to get at one object, at most
ARRAYS = (".json", ".json.gz")  # what files that hold an array are called
HALVES = re.compile(rb"\\u[dD][89a-fA-F]")  # escapes, two of which make a character
HALF = re.compile(r"[\ud800-\udfff]")
BROKEN = (ValueError, EOFError, OSError, zlib.error)  # what a file, or what packs it, can be


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, gzip-compressed if its name ends in .gz.

    Raises:
        BadRow: a line that is not a JSON object, with file and line number.
        DataError: the file cannot be read to its end.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as lines:
            for line in lines:
                number += 1
                if not _blank(line):
                    yield _made(path, number, line, dict)
    except BROKEN as error:
        raise DataError(f"{path}, line {number}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Where in a file its objects stand: the first of every 16 KiB, by its number, its byte and its line."""

    objects: "array[int]" = field(default_factory=lambda: array("Q"))
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    lines: "array[int]" = field(default_factory=lambda: array("Q"))


@final
class JsonLines(Generic[Made]):
    """What is made of the objects of a JSON Lines file, by number, blank lines left out.

    Nothing of the file is held in memory: 24 bytes are kept for each 16 KiB of it, and an object is read when it is
    asked for. The file is gone through once, when the first thing is asked. A `.gz` file, which cannot be entered in
    the middle, is unpacked into the cache folder (`shoulders.data.lines`).

    Args:
        make: what is wanted of an object; its `ValueError` says what is wrong with one.
    """

    def __init__(self, path: Path, make: Callable[[dict[str, Any]], Made]) -> None:
        self.path, self._make = path, make

    def __len__(self) -> int:
        """Lines that are not blank.

        Raises:
            DataError: the file cannot be read to its end.
        """
        return self._index[1]

    def __getitem__(self, number: int) -> Made:
        """One object.

        Raises:
            IndexError: there are not so many.
            BadRow: the line is not a JSON object, or not one to make something of, with file and line number.
            DataError: the file was changed meanwhile.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        line, content = self._read(number)
        return _made(self.path, line, content, self._make)

    @cached_property
    def _file(self) -> Path:
        return unpacked(self.path) if self.path.suffix == ".gz" else self.path

    @cached_property
    def _index(self) -> tuple[_Blocks, int, tuple[int, int]]:
        """Where objects stand, how many there are, and what tells that the file is the same still."""
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
        """The line that an object stands in, by its number in the file and its content."""
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


def _made(path: Path, number: int, line: bytes, make: Callable[[dict[str, Any]], Made]) -> Made:
    try:
        values = json_object(line.decode())
        if HALVES.search(line) and (half := HALF.search(json.dumps(values, ensure_ascii=False))):
            raise ValueError(f"{ascii(half[0])[1:-1]} is half a character: write both halves, or leave it out")
        return make(values)
    except UnicodeDecodeError as error:
        raise BadRow(f"{path}, line {number}: {error}: {WAY_OUT}") from error
    except ValueError as error:
        raise BadRow(f"{path}, line {number}: {error}") from error


def json_object(line: str) -> dict[str, Any]:
    """The object that a line holds, or `ValueError`."""
    try:
        # A byte order mark; joined files have some in their middle.
        return _object(json.loads(line.removeprefix("\ufeff")))
    except RecursionError:  # data can be nested without end, too
        raise ValueError("nested too deep") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    return value


def read_array(path: Path, places: Mapping[str, str]) -> Iterator[Any]:
    """Read the items of the array that a JSON file is or holds, one at a time; unpacked if its name ends in .gz.

    Args:
        places: for files that are an object, by a field of it where the items are, as ijson writes it.

    Raises:
        DataError: there is no such array in it, or it cannot be read to its end.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as packed:
            file = cast(BinaryIO, packed)
            place = _place(_from_start(file), places)
            if place is None:
                fields = ", ".join(repr(field) for field in places)
                raise DataError(f"{path} holds no array of records, neither by itself nor as one of {fields or '-'}")
            yield from ijson.items(_from_start(file), place, use_float=True)
    except (ijson.JSONError, *BROKEN) as error:
        raise DataError(f"{path}: {error}") from error


def _from_start(file: BinaryIO) -> BinaryIO:
    """The file where its JSON begins, after a byte order mark if it has one."""
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
class JsonArray(Generic[Made]):
    """What is made of the objects of an array in a JSON file, by number.

    The file is read once, as a stream, when the first thing is asked; what is made of its objects stays in memory.

    Args:
        make, places: as `JsonLines` and `read_array` have them.
    """

    def __init__(self, path: Path, make: Callable[[dict[str, Any]], Made], places: Mapping[str, str]) -> None:
        self.path, self._make, self._places = path, make, places

    def __len__(self) -> int:
        """Objects in all.

        Raises:
            DataError: the file cannot be read to its end.
        """
        return len(self._items)

    def __getitem__(self, number: int) -> Made:
        """One object.

        Raises:
            IndexError: there are not so many.
            BadRow: it is not an object, or not one to make something of, with file and number, from 1.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        made, wrong = self._items[number]
        if made is None:
            raise BadRow(f"{self.path}, record {number + 1}: {wrong}")
        return made

    @cached_property
    def _items(self) -> list[tuple[Made | None, str]]:
        return [self._tried(value) for value in read_array(self.path, self._places)]

    def _tried(self, value: Any) -> tuple[Made | None, str]:
        try:
            return self._make(_object(value)), ""
        except ValueError as error:
            return None, str(error)


def json_records(
    path: Path, make: Callable[[dict[str, Any]], Made], places: Mapping[str, str] = {}
) -> JsonLines[Made] | JsonArray[Made]:
    """What is made of the objects of a file, by number: of an array if its name ends in .json, else of its lines."""
    return JsonArray(path, make, places) if path.name.endswith(ARRAYS) else JsonLines(path, make)


def first_record(path: Path, places: Mapping[str, str] = {}) -> dict[str, Any]:
    """The first object of such a file; {} where there is none, or it is broken, which is for its reader to say."""
    try:
        found = read_array(path, places) if path.name.endswith(ARRAYS) else read_json_lines(path)
        return _object(next(iter(found), {}))
    except (ValueError, DataError):
        return {}
