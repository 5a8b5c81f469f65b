"""What is left when a disk is full or a place cannot be written."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound, UsageError
from shoulders.store.files import (
    atomic_folder,
    check_format,
    open_database,
    read_json,
    recover_folder,
    transaction,
    write_json,
)


@pytest.fixture
def full_disk(monkeypatch):
    """Nothing can be written any more."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(Path, "write_text", refuse)


def test_a_folder_that_a_json_file_does_not_fit_into_is_named(tmp_path, full_disk):
    target = tmp_path / "best"
    with atomic_folder(target, "a.json") as scratch:
        write_json(scratch / "a.json", {"old": True})
    full_disk()
    with (
        pytest.raises(
            SaveFailed, match=f"{target}: No space left .*; {target} is as it was before: free space"
        ) as said,
        atomic_folder(target, "a.json") as scratch,
    ):
        write_json(scratch / "a.json", {"old": False})
    assert ".part" not in str(said.value)
    assert read_json(target / "a.json") == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    """Of the same target; another one's scratch folder may be in use."""
    left = atomic_folder(tmp_path / "best", "a.json")
    (left.__enter__() / "half.bin").write_bytes(b"x" * 100)
    other = atomic_folder(tmp_path / "best.2", "a.json")
    other.__enter__()
    assert len(list(tmp_path.glob(".*.part"))) == 2
    with atomic_folder(tmp_path / "best", "a.json") as scratch:
        write_json(scratch / "a.json", {})
        assert len(list(tmp_path.glob(".*.part"))) == 2
    assert sorted(path.name[:7] for path in tmp_path.iterdir()) == [".best.2", "best"]
    other.__exit__(None, None, None)


def test_a_json_file_that_does_not_fit_is_what_it_was(tmp_path, full_disk):
    write_json(tmp_path / "a.json", {"old": True})
    full_disk()
    with pytest.raises(SaveFailed, match=r"a\.json is as it was before: free space there, or name another place"):
        write_json(tmp_path / "a.json", {"old": False})
    assert read_json(tmp_path / "a.json") == {"old": True}


def test_nothing_is_written_in_the_place_of_a_file(tmp_path):
    (tmp_path / "file").write_text("kept")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SaveFailed, match="name a"):
            write_json(target / "a.json", {})
        with pytest.raises(SaveFailed, match="name a"), atomic_folder(target, "a.json"):
            pass
    assert (tmp_path / "file").read_text() == "kept"


def test_json_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SourceNotFound, match=r"cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptFile, match="is not JSON"):
        read_json(tmp_path / "a.json")


def test_the_folder_one_stands_in_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recover_folder(Path()) == Path()
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_database_keeps_all_of_a_transaction_or_nothing(tmp_path):
    path, table = tmp_path / "x.sqlite", "CREATE TABLE numbers (n INTEGER NOT NULL);"
    file, other = open_database(path, table), open_database(path, table)  # the second finds what is there
    with pytest.raises(sqlite3.IntegrityError), transaction(file):
        file.executemany("INSERT INTO numbers VALUES (?)", [(1,), (None,)])
    with transaction(file):
        file.executemany("INSERT INTO numbers VALUES (?)", [(2,), (3,)])
        assert other.execute("SELECT n FROM numbers").fetchall() == []
    reader = open_database(path, table, write=False)
    assert reader.execute("SELECT n FROM numbers").fetchall() == [(2,), (3,)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM numbers")
    with pytest.raises(sqlite3.OperationalError):
        open_database(tmp_path / "none.sqlite", table, write=False)


def test_formats_that_are_not_read_are_told():
    check_format({"format": "f", "version": 1}, ("f", 1), "x", "way out")
    with pytest.raises(UsageError, match=r"x is of format 'g' version None, .* reads 'f' version 1: way out"):
        check_format({"format": "g"}, ("f", 1), "x", "way out")
