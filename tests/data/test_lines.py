"""Records in files: read one by one, from plain files and packed ones, and what is wrong with them."""

import gzip
import json
import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoulders.data.lines import JsonLines, read_json_lines
from shoulders.errors import BadRow, DataError, SaveFailed


def written(path, count, blank=0):
    """So many objects, of different sizes, with a blank line after every `blank`."""
    rows = [{"n": number, "text": "x" * (number * 37 % 500)} for number in range(count)]
    lines = [json.dumps(row) + "\n" + "\n" * (blank > 0 and number % blank == 0) for number, row in enumerate(rows)]
    content = "".join(lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("blank", [0, 3])
def test_every_object_is_found_in_any_order(tmp_path, name, blank):
    rows = written(tmp_path / name, 500, blank)
    found = JsonLines(tmp_path / name, dict)
    assert len(found) == 500
    assert [found[number] for number in reversed(range(500))] == rows[::-1]
    assert list(read_json_lines(tmp_path / name)) == rows
    for number in (-1, 500):
        with pytest.raises(IndexError):
            found[number]


def test_a_file_without_an_object_is_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n  \n")
    assert len(JsonLines(tmp_path / "a.jsonl", dict)) == 0


@given(st.lists(st.sampled_from(['{"n": 1}', '\ufeff{"n": 1}', "", "\ufeff", "  "])), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=40, deadline=None, database=None)
def test_byte_order_marks_are_no_part_of_a_line(tmp_path_factory, lines, end):
    """At the beginning, and where files with one were joined."""
    path = tmp_path_factory.mktemp("marks") / "rows.jsonl"
    path.write_bytes(end.join(lines).encode())
    found = JsonLines(path, dict)
    assert [found[number] for number in range(len(found))] == [{"n": 1}] * sum("n" in line for line in lines)
    assert list(read_json_lines(path)) == [found[number] for number in range(len(found))]


def test_nothing_of_a_file_stays_in_memory(tmp_path):
    """20 MB of records, and what is kept of them is some tens of kilobytes."""
    written(tmp_path / "large.jsonl", 80_000)
    tracemalloc.start()
    found = JsonLines(tmp_path / "large.jsonl", dict)
    assert [found[number]["n"] for number in (79_999, 0, 40_000)] == [79_999, 0, 40_000]
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "large.jsonl").stat().st_size > 20e6
    assert kept < 100_000
    assert peak < 500_000


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"n": ', "Expecting value"),
        (b"[1]", "not a JSON object but list"),
        (b'{"n": "\xff"}', r"can't decode byte 0xff.*: convert it \(iconv"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"n": 0}', "n must not be 0"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_line_is_named_and_costs_no_other(tmp_path, line, said, packed):
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    content = b'{"n": 1}\n\n' * 3000 + line + b'\n{"n": 2}'
    path.write_bytes(gzip.compress(content) if packed else content)

    def made(row):
        if row["n"] == 0:
            raise ValueError("n must not be 0")
        return row["n"]

    found = JsonLines(path, made)
    assert (found[2999], found[3001], len(found)) == (1, 2, 3002)
    with pytest.raises(BadRow, match=rf"{path.name}, line 6001: .*{said}"):
        found[3000]


def test_a_file_that_is_changed_meanwhile_is_not_read_on(tmp_path):
    """Places in it would be those of other lines."""
    path = tmp_path / "rows.jsonl"
    written(path, 10)
    found = JsonLines(path, dict)
    assert len(found) == 10
    path.write_text('{"n": 7}\n' * 10)
    with pytest.raises(DataError, match=r"rows\.jsonl was changed while it was being read: start again"):
        found[1]
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        found[1]


def test_a_packed_file_is_unpacked_once_and_again_when_it_changes(tmp_path, cache):
    path = tmp_path / "rows.jsonl.gz"
    written(path, 5)
    assert len(JsonLines(path, dict)) == len(JsonLines(path, dict)) == 5
    (first,) = (cache / "unpacked").iterdir()
    assert first.read_bytes() == gzip.decompress(path.read_bytes())
    rows = written(path, 6)
    assert JsonLines(path, dict)[5] == rows[5]
    assert len(list((cache / "unpacked").iterdir())) == 2


def test_an_unpacked_file_that_another_process_puts_in_place_is_the_same_file(tmp_path, cache):
    rows = written(tmp_path / "rows.jsonl.gz", 5)
    found = JsonLines(tmp_path / "rows.jsonl.gz", dict)
    assert len(found) == 5
    (place,) = (cache / "unpacked").iterdir()
    place.unlink()
    assert len(JsonLines(tmp_path / "rows.jsonl.gz", dict)) == 5
    assert found[3] == rows[3]


def test_a_broken_archive_is_named_and_leaves_nothing(tmp_path, cache):
    path = tmp_path / "rows.jsonl.gz"
    written(path, 500)
    whole = path.read_bytes()
    broken = {"ended before": whole[:-20], "Not a gzipped": b"{}\n", "invalid": whole[:40] + b"\xff" * 40 + whole[80:]}
    for said, content in broken.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"rows\.jsonl\.gz: .*{said}"):
            len(JsonLines(path, dict))
        with pytest.raises(DataError, match=r"rows\.jsonl\.gz"):
            list(read_json_lines(path))
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        len(JsonLines(path, dict))
    assert list((cache / "unpacked").iterdir()) == []


def test_a_cache_that_cannot_be_written_says_how_to_name_another(tmp_path, monkeypatch):
    written(tmp_path / "rows.jsonl.gz", 5)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHOULDERS_CACHE", os.fspath(tmp_path / "file"))
    with pytest.raises(SaveFailed, match=r"cannot unpack .*rows\.jsonl\.gz to .*another folder in SHOULDERS_CACHE"):
        len(JsonLines(tmp_path / "rows.jsonl.gz", dict))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=[]), max_size=12), escaped=st.booleans())
def test_text_is_read_as_it_was_written_or_its_line_is_named(tmp_path, text, escaped):
    row = json.dumps({"deep": [{"text": text}]}, ensure_ascii=escaped)
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n' + row.encode("utf-8", "surrogatepass") + b"\n")
    broken = any("\ud800" <= letter <= "\udfff" for letter in json.loads(row)["deep"][0]["text"])
    if broken:
        with pytest.raises(BadRow, match=r"a\.jsonl, line 2: ") as refused:
            list(read_json_lines(tmp_path / "a.jsonl"))
        assert str(refused.value).isascii() or not escaped
    else:
        assert JsonLines(tmp_path / "a.jsonl", dict)[1] == json.loads(row)
