"""One writer at a time."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from shoulders.errors import UsageError
from shoulders.files import save_failed

LOCK = "writer.lock"


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for writing. The lock ends with the process, however that ends.

    Raises:
        UsageError: another process holds it; the message says which.
        SaveFailed: the folder cannot be written.
    """
    try:
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise save_failed(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{folder} is being written by {_holder(folder)}: wait until it is done") from None
        file.truncate(0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": started}))
        file.flush()
        yield


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):  # it has the lock and has not written its name yet
        return "another process"
