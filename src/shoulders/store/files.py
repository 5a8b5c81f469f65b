"""Files on disk: atomic folders and files, JSON, tensors, SQLite; the cache folder, locks, and errors of the hub.

A killed process or a full disk never destroys what a file or folder contained before.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from torch import Tensor

from shoulders.errors import CorruptFile, DataError, HubUnreachable, SaveFailed, SourceNotFound, UsageError, first_line
from shoulders.store.encodings import decode_strict

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DATABASE_CACHE = -128 * 1024  # KiB of an SQLite file
BEST = "best"  # folder in a run's folder: the scaffold with the best development score
RECIPE = "recipe.json"  # file in a run's folder: everything that the run depends on


@contextmanager
def atomic_folder(target: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder that replaces the target once it is complete; if anything fails, the target is kept.

    Args:
        target: a new folder, or an existing one, which is replaced as a whole.
        marker: a file that identifies a folder of this kind. A folder that has other files but not this one is never
            replaced.

    Raises:
        SaveFailed: the disk is full, the folder cannot be written, or it contains other files.
    """
    check_replaceable(target, marker)
    backup = _backup(target)
    try:
        scratch = _scratch(target)
    except OSError as error:
        raise save_failed(target, error) from error
    try:
        yield scratch
        for path in scratch.rglob("*"):
            _sync(path)
        if target.exists():
            shutil.rmtree(backup, ignore_errors=True)
            os.rename(target, backup)
        os.rename(scratch, target)
        _sync(target.parent)
        shutil.rmtree(backup, ignore_errors=True)
    except (OSError, SaveFailed) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):  # no error of the disk, and its message is complete
            raise
        raise save_failed(target, reason, kept=target.exists() or backup.exists()) from reason
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_replaceable(target: Path, marker: str) -> None:
    """Raise `SaveFailed` if `atomic_folder` would not replace the target."""
    if target.is_file():
        raise SaveFailed(f"{target} is a file: name a new folder")
    if target.is_dir() and any(target.iterdir()) and not (target / marker).exists():
        raise SaveFailed(f"{target} contains other files (no {marker} among them): name a new folder")


def recover_folder(target: Path) -> Path:
    """Return the folder, after restoring it if a process was killed while replacing it."""
    backup = _backup(target)
    if not target.exists() and backup.exists():
        os.rename(backup, target)
    return target


def _scratch(target: Path) -> Path:
    """Return an empty folder beside the target; remove those that killed processes left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{escape(target.name)}.????????.part"):
        shutil.rmtree(stale, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))


def _backup(target: Path) -> Path:
    target = target.absolute()  # "." has no name of its own
    return target.with_name(f".{target.name}.old")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_failed(target: Path, error: OSError, *, kept: bool = False, option: str = "--out") -> SaveFailed:
    """Return the error of a file or folder that cannot be written.

    Args:
        kept: the earlier file or folder is still there, which the message then says.
        option: command line option or recipe value that names the place.
    """
    way_out = "free space there, or name another place" if error.errno in FULL else "name another place"
    before = f"; {target} is as it was before" if kept else ""
    return SaveFailed(f"cannot write {target}: {error.strerror or error}{before}: {way_out} ({option})")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented; the file is replaced once it is complete."""
    text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    with atomic_file(path) as part:
        # Python has surrogates for the bytes of a file name that are not UTF-8: written as JSON's escapes.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces the file once it is written; if anything fails, the file stays.

    Raises:
        SaveFailed: the disk is full, or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):  # there may be no such folder
            part.unlink()
        raise save_failed(path, error, kept=path.exists()) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SourceNotFound: the file does not exist or may not be read.
        CorruptFile: the file is not a JSON object.
    """
    try:
        content = json.loads(decode_strict(path.read_bytes()))
    except OSError as error:
        raise SourceNotFound(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError, DataError) as error:
        raise CorruptFile(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CorruptFile(f"{path} is not a JSON object")
    return content


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested JSON objects by dotted key, e.g. "training.steps"."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def check_format(content: Mapping[str, Any], wanted: tuple[str, int], what: object, way_out: str) -> None:
    """Raise `UsageError` unless a description's `format` and `version` are those wanted."""
    found = (content.get("format"), content.get("version"))
    if found != wanted:
        raise UsageError(
            f"{what} is of format {found[0]!r} version {found[1]}, this version of shoulders reads {wanted[0]!r} "
            f"version {wanted[1]}: {way_out}"
        )


def printable_path(path: str | Path) -> str:
    """Return a path as valid Unicode: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_utf8_path(path: str | Path) -> None:
    """Raise `SourceNotFound` for a path that is not UTF-8: safetensors cannot open such files."""
    if printable_path(path) != str(path):
        raise SourceNotFound(
            f"{printable_path(path)} is not UTF-8, and weights cannot be read from such a path: rename it"
        )


def absolute_name(name: str) -> str:
    """Return a name that is valid in any working directory: existing paths become absolute, other names are unchanged.

    A name may consist of several joined by "|", such as the two encoders of a retriever.
    """
    parts = [Path(part).expanduser() for part in name.split("|")]
    return "|".join(
        str(path.absolute()) if part and path.exists() else part
        for part, path in zip(name.split("|"), parts, strict=True)
    )


def open_database(path: Path | None, tables: str, *, write: bool = True) -> sqlite3.Connection:
    """Open an SQLite file that one process at a time may write and many may read; what is committed survives a kill.

    Every statement is committed alone, unless it is within a `transaction`.

    Args:
        path: path of the file; None for a database in memory.
        tables: statements that create the tables of a new file.
        write: open for writing, and create the file if there is none; otherwise it must exist, and is read only.
    """
    place = f"{path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}" if path else ":memory:"
    if (
        path
        and not write
        and not (os.access(path.absolute().parent, os.W_OK) or path.with_name(f"{path.name}-wal").exists())
    ):
        place += "&immutable=1"  # a file with a write-ahead log wants a writable folder even to be read
    file = sqlite3.connect(place, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
    file.execute(f"PRAGMA cache_size = {DATABASE_CACHE}")
    if write:
        file.execute("PRAGMA journal_mode = WAL")
        if not file.execute("PRAGMA user_version").fetchone()[0]:
            file.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = 1; COMMIT;")
    return file


@contextmanager
def transaction(file: sqlite3.Connection) -> Iterator[None]:
    """Commit all changes within the block; if it raises, none."""
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")


@contextmanager
def database_errors(path: str | Path, what: str, way_out: str) -> Iterator[None]:
    """Turn errors of an SQLite file into `SaveFailed` (disk full, not writable, locked) or `CorruptFile` (no database).

    Args:
        what: what the file should be, e.g. "store of passages".
        way_out: option that names another file, e.g. "evidence.store".
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise SaveFailed(f"cannot use {path} ({error}): free space there, or name another ({way_out})") from error
    except sqlite3.DatabaseError as error:
        raise CorruptFile(f"{path} is no {what} ({error}): name another ({way_out}), or delete it") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, by Python's own means, so that a full disk raises an OSError."""
    path.write_bytes(safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


def check_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise `CorruptFile` if a trained weight is not a finite number."""
    for name, weight in tensors.items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise CorruptFile(
                f"{source} has {bad} of {weight.numel()} values of {name} that are not finite (NaN or infinite): "
                "train it again"
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CorruptFile: the file is truncated, or not a safetensors file.
        SourceNotFound: its path is not UTF-8.
    """
    check_utf8_path(path)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(
            f"{path} is truncated or not a safetensors file ({error}): fetch or train it again"
        ) from error


LOCK = "writer.lock"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for writing, which is made if there is none. The lock ends with the block, or with the process.

    Raises:
        UsageError: another process has the lock; the message names it.
        SaveFailed: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    except (OSError, ValueError, KeyError):  # it has the lock, but has not written its name yet
        return "another process"


def cache_folder() -> Path:
    """Return the cache folder: `$SHOULDERS_CACHE`, or `~/.cache/shoulders`."""
    return Path(os.environ.get("SHOULDERS_CACHE") or Path.home() / ".cache" / "shoulders")


def cache_path(kind: str, source: Path) -> Path:
    """Return the path in the cache folder for something derived from a file; it depends on the file's size and time."""
    stat = source.stat()
    key = hashlib.sha256(f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    return cache_folder() / kind / f"{source.stem}-{key}"


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn errors of loading something by name, from the hub or a folder, into errors of one line."""
    try:
        yield
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise HubUnreachable(name) from error
    except HfHubHTTPError as error:
        raise SourceNotFound(f"the Hugging Face hub has no {name!r} that you may read ({error})") from error
    except SafetensorError as error:
        raise CorruptFile(f"the weights of {name!r} are truncated or broken ({error}): fetch them again") from error
    except (OSError, ValueError) as error:
        offline = isinstance(error.__cause__, (OfflineModeIsEnabled, LocalEntryNotFoundError))
        if offline or isinstance(error, ConnectionError) or "connect to" in str(error):
            raise HubUnreachable(name) from error
        raise SourceNotFound(f"{name!r} cannot be loaded: {first_line(error)}") from error
    except UsageError:
        raise
    except Exception as error:  # libraries raise anything for a broken or unsupported configuration
        raise SourceNotFound(f"{name!r} cannot be loaded ({type(error).__name__}): {first_line(error)}") from error
