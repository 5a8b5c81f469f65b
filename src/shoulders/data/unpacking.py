"""Compressed files as plain ones: unpacked once, into the cache folder."""

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoulders.backbone.sources import in_cache
from shoulders.errors import DataError, SaveFailed

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
