"""The cache of small values: what is kept, and what is never returned wrong whatever happened to the file."""

import sqlite3

import pytest

from processes import process, together
from shoulders.errors import CorruptFile, SaveFailed
from shoulders.store import cache as module
from shoulders.store.cache import ValueCache, key_of_ids, key_of_texts

VALUES = {key_of_texts("v", str(n)): [n, n / 3, "Zürich " * n] for n in range(12)}


def test_what_one_process_keeps_another_finds(tmp_path, monkeypatch):
    first = ValueCache(tmp_path / "new" / "values.sqlite")
    first.put(VALUES)
    first.put({key_of_texts("v", "3"): "replaced"})
    monkeypatch.setattr(module, "KEYS_IN_A_QUERY", 5)
    again = ValueCache(str(tmp_path / "new" / "values.sqlite"))
    assert again.get([*VALUES, *VALUES, b"unknown"]) == {**VALUES, key_of_texts("v", "3"): "replaced"}
    assert again.get([]) == {}


def test_numbers_return_exactly(tmp_path):
    numbers = {bytes([n]): value for n, value in enumerate((0.1 + 0.2, -1e-310, float("inf"), float("-inf"), 1e308))}
    ValueCache(tmp_path / "values").put(numbers)
    assert ValueCache(tmp_path / "values").get(numbers) == numbers


def test_a_cache_without_a_file_is_in_memory():
    one, other = ValueCache(), ValueCache("")
    one.put(VALUES)
    assert one.get(VALUES) == VALUES
    assert other.get(VALUES) == {}


def test_keys_tell_texts_and_rows_apart():
    keys = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("\ud800",), ()]
    rows = [[1, 2], [2, 1], [1], [1, 2, 0], [258]]
    assert len({key_of_texts(*parts) for parts in keys} | {key_of_ids(row) for row in rows}) == len(keys) + len(rows)


def test_a_damaged_entry_is_reported_and_never_returned(tmp_path):
    path = tmp_path / "values.sqlite"
    ValueCache(path).put(VALUES)
    first, second, third, *whole = VALUES
    changes = (("value = CAST(value || ' ' AS BLOB)", first), ("checksum = checksum + 1", second), ("value = 7", third))
    file = sqlite3.connect(path)
    for change, key in changes:
        file.execute(f"UPDATE cached SET {change} WHERE key = ?", (key,))
    file.commit()
    file.close()
    cache = ValueCache(path)
    with pytest.warns(UserWarning, match=r"3 damaged entries in .*values\.sqlite: they are computed anew"):
        assert cache.get(VALUES) == {key: VALUES[key] for key in whole}
    cache.put({key: VALUES[key] for key in (first, second, third)})
    assert cache.get(VALUES) == VALUES


def test_a_value_that_cannot_be_kept_keeps_none_of_its_batch(tmp_path):
    cache = ValueCache(tmp_path / "values.sqlite")
    cache.put({b"before": 1})
    with pytest.raises(TypeError):
        cache.put({b"one": 1, b"two": object()})
    assert cache.get([b"before", b"one", b"two"]) == {b"before": 1}


def test_a_full_disk_is_named_and_what_was_kept_stays(tmp_path):
    cache = ValueCache(tmp_path / "values.sqlite", option="my.option")
    cache.put(VALUES)
    pages = cache._file.execute("PRAGMA page_count").fetchone()[0]
    cache._file.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(SaveFailed, match=r"full.*: free space there, or name another \(my\.option\)"):
        cache.put({b"large": "x" * 100_000})
    assert ValueCache(tmp_path / "values.sqlite").get([*VALUES, b"large"]) == VALUES


def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and long enough that nobody could take it for one" * 20)
    before = text.read_bytes()
    with pytest.raises(CorruptFile, match=r"notes\.txt is no cache \(.*name another \(my\.option\)"):
        ValueCache(text, option="my.option")
    with pytest.raises(SaveFailed, match="name another"):
        ValueCache(text / "below.sqlite")
    assert text.read_bytes() == before


def test_an_sqlite_file_of_another_program_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    file = sqlite3.connect(path)
    file.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, answers TEXT NOT NULL)")
    file.execute("PRAGMA user_version = 1")
    file.commit()
    with pytest.raises(CorruptFile, match=r"another program or version: name another \(evidence\.store\)"):
        ValueCache(path)
    assert file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("answers",)]


WRITE = """
from shoulders.store.cache import ValueCache, key_of_texts
path, name, count = arguments
cache = ValueCache(path)
for n in range(count):
    cache.put({key_of_texts(name, str(n)): [n] * 50, key_of_texts("shared", str(n)): n})
    pipe.send(n)
"""


def test_processes_share_a_file(tmp_path):
    path, names = str(tmp_path / "values.sqlite"), "abc"
    together(WRITE, *((path, name, 40) for name in names))
    wanted = {key_of_texts(name, str(n)): [n] * 50 for name in names for n in range(40)}
    wanted |= {key_of_texts("shared", str(n)): n for n in range(40)}
    assert ValueCache(path).get(wanted) == wanted


def test_a_killed_process_leaves_whole_entries(tmp_path):
    path = str(tmp_path / "values.sqlite")
    with process(WRITE, path, "a", 100_000) as (_, pipe):
        done = [pipe.recv() for _ in range(30)][-1]
    cache = ValueCache(path)
    wanted = {key_of_texts("a", str(n)): [n] * 50 for n in range(done + 1)}
    assert cache.get(wanted) == wanted
    cache.put(VALUES)
    assert cache.get(VALUES) == VALUES
