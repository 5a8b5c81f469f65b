import csv
import gzip
import io
import json
import os
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pypdf import PdfWriter

from pdfs import save_pdf
from shoulders.errors import HubUnreachable, SourceNotFound
from shoulders.retrieval import documents as documents_module
from shoulders.retrieval.documents import Document, Skipped, _fields, open_source


def read(name, **how):
    items = list(open_source(str(name), **how).items())
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Skipped)]


def test_files_of_all_kinds(tmp_path):
    (tmp_path / "plain.txt").write_bytes("\ufeffPlain\x00 text\r\nwith \u202ea mark".encode())
    (tmp_path / "sixteen.TXT").write_bytes("Größe".encode("utf-16"))
    (tmp_path / "notes.md").write_text(
        "---\na: b\n---\n# The title #\n\nSee [this](http://x.y) now\n```py\ncode\n```\n"
    )
    page = "<html><head><title> A &amp;\n B </title><script>x()</script></head><body><p>One</p><p>t<b>w</b>o<style>p{}"
    (tmp_path / "page.html").write_text(f"{page}</style><ul><li>three<li>four</ul>a<br>b&#1;c</body>")
    latin = '<meta charset="latin1"><p>Málaga</p>'
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old.htm").write_bytes(latin.encode("latin-1"))
    save_pdf(tmp_path / "paper.pdf", [["Words in a portable docu-", "ment, on two lines."]])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    documents, skipped = read(tmp_path)
    assert skipped == []
    found = {document.id: (document.title, " ".join(document.text.split())) for document in documents}
    assert found == {
        "plain.txt": ("plain", "Plain text with a mark"),
        "sixteen.TXT": ("sixteen", "Größe"),
        "notes.md": ("The title", "The title See this now code"),
        "page.html": ("A & B", "One two three four a b c"),
        "sub/old.htm": ("old", "Málaga"),
        "paper.pdf": ("paper", "Words in a portable document, on two lines."),
    }
    assert not any(document.passage for document in documents)


def test_what_cannot_be_read_is_named_and_the_rest_read(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.pdf").write_bytes(b"no PDF at all")
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(tmp_path / "d.pdf")
    writer.encrypt("secret")
    writer.write(tmp_path / "e.pdf")
    (tmp_path / "f.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "g.tsv").write_text("a\tb\n1\t2\n")
    (tmp_path / "h.html").write_text("")
    documents, skipped = read(tmp_path)
    assert [document.id for document in documents] == ["a.txt"]
    reasons = {one.place.rsplit("/", 1)[1]: (one.reason, one.lost) for one in skipped}
    assert reasons["b.txt"] == reasons["d.pdf"] == reasons["h.html"] == ("there is no text in it", False)
    assert reasons["c.pdf"][0].startswith("not a PDF that can be read")
    assert reasons["e.pdf"] == ("it is encrypted", True)
    assert reasons["f.jsonl.gz"][0].startswith("it cannot be read beyond line 0: Not a gzipped file")
    assert reasons["g.tsv"] == ("its first line does not name the columns id, text, title", True)
    assert set(reasons) == {"b.txt", "c.pdf", "d.pdf", "e.pdf", "f.jsonl.gz", "g.tsv", "h.html"}


def test_file_names_that_are_no_utf_8_stay_apart_and_can_be_printed(tmp_path):
    for letter in (b"\xe8", b"\xe9"):
        name = os.fsdecode(b"caf" + letter)
        (tmp_path / f"{name}.txt").write_text("The cafe opens at eight.")
        (tmp_path / f"{name}.jsonl").write_text('{"text": ')
    documents, skipped = read(tmp_path)
    assert [(document.id, document.title) for document in documents] == [
        ("caf\\xe8.txt", "caf\\xe8"), ("caf\\xe9.txt", "caf\\xe9")
    ]  # fmt: skip
    assert [one.place for one in skipped] == [f"{tmp_path}/caf\\x{letter}.jsonl, line 1" for letter in ("e8", "e9")]
    for one in (*documents, *skipped):
        assert one.place.encode()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines(tmp_path, suffix):
    rows = [
        json.dumps({"id": 7, "title": "A\nb", "text": "one \ud83d half"}),
        "",
        '{"text": "cut',
        json.dumps({"text": "two"}),
        json.dumps({"text": 3}),
        json.dumps({"text": "\x00 "}),
        "[" * 100_000,
    ]
    content = "".join(f"{row}\n" for row in rows).encode() + b'{"text": "\xff"}\n'
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    documents, skipped = read(path)
    name = path.name
    assert [(d.id, d.title, d.text, d.passage) for d in documents] == [
        (f"{name}#7", "A b", "one   half", False),
        (f"{name}#4", "", "two", False),
    ]
    assert [(s.place.rsplit(", ")[1], s.lost) for s in skipped] == [
        ("line 3", True), ("line 5", True), ("line 6", False), ("line 7", True), ("line 8", True)
    ]  # fmt: skip
    assert all(document.passage for document in read(path, as_is=True)[0])


def test_dpr_tables_hold_passages(tmp_path):
    path = tmp_path / "psgs_w100.tsv.gz"
    rows = '"id"\t"text"\t"title"\n1\t"He said ""no"".\tTwice"\tA "b"\n2\tshort\n3\t""\tEmpty\n4\tlast\tC\n'
    path.write_bytes(gzip.compress(rows.encode()))
    documents, skipped = read(path)
    assert [(d.id, d.title, d.text, d.passage) for d in documents] == [
        ("psgs_w100.tsv.gz#1", 'A "b"', 'He said "no".\tTwice', True),
        ("psgs_w100.tsv.gz#4", "C", "last", True),
    ]
    assert [one.reason for one in skipped] == ["2 columns in place of 3", "its text is empty"]


def test_what_pandas_writes_for_nothing_is_nothing(tmp_path):
    rows = [
        '{"id": null, "title": NaN, "text": "one"}',
        '{"id": NaN, "title": null, "text": "two"}',
        '{"id": 7.0, "title": 1984, "text": "three"}',
        '{"_id": " b ", "title": "", "text": "four"}',
        '{"id": [1], "text": "five"}',
        '{"title": {"en": "x"}, "text": "six"}',
        '{"title": false, "text": "seven"}',
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    documents, skipped = read(tmp_path / "x.jsonl")
    assert [(one.id, one.title) for one in documents] == [
        ("x.jsonl#1", ""), ("x.jsonl#2", ""), ("x.jsonl#7", "1984"), ("x.jsonl#b", "")
    ]  # fmt: skip
    assert [(one.place.rsplit(", ")[1], one.reason) for one in skipped] == [
        ("line 5", "`id` is a list, neither text nor number"),
        ("line 6", "`title` is an object, neither text nor number"),
        ("line 7", "`title` is false, neither text nor number"),
    ]


CELLS = st.text(st.sampled_from("\"'ab ,"), max_size=6).map(str.strip)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.booleans())
@example([('"Stop, he said', "Guards"), ("Nobody moved.", "Banks")], False)
@example([('"Stop, he said', 'A "b"')], True)
def test_a_line_of_a_table_is_a_row_however_it_is_quoted(rows, as_csv):
    """As Python's writer quotes, fields are what was written; without quoting they are, unless quotes enclose them."""
    lines = io.StringIO()
    if as_csv:
        csv.writer(lines, delimiter="\t", lineterminator="\n").writerows((1, *row) for row in rows)
    else:
        lines.writelines(f"1\t{text}\t{title}\n" for text, title in rows)
    found = [_fields(line, 3)[1:] for line in lines.getvalue().splitlines()]
    assert len(found) == len(rows)
    for row, (text, title) in zip(found, rows, strict=True):
        if as_csv or not (text.startswith('"') or title.startswith('"')):
            assert row == [text, title]
        assert len(row) == 2


@pytest.mark.parametrize("name", ["x.tsv.gz", "x.jsonl.gz"])
def test_a_truncated_file_gives_what_can_be_read(tmp_path, name):
    number = range(20_000)
    table = "id\ttext\ttitle\n" + "".join(f"{n}\ttext {n * n}\tt\n" for n in number)
    lines = "".join(json.dumps({"text": f"text {n * n}"}) + "\n" for n in number)
    (tmp_path / name).write_bytes(gzip.compress((table if "tsv" in name else lines).encode())[:30_000])
    documents, skipped = read(tmp_path / name)
    assert 1000 < len(documents) < 20_000
    assert skipped[-1].lost
    assert "it cannot be read beyond line" in skipped[-1].reason
    assert len(skipped) <= 2  # the line that was cut, too


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_lines_and_tables_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes('{"id": 1, "text": "Größe"}\n\n{"id": 2, "text": "zwei"}\n'.encode(encoding))
    (tmp_path / "b.tsv").write_bytes("id\ttext\ttitle\n1\tGröße\tT\n".encode(encoding))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress('{"id": 1, "text": "Größe"}'.encode(encoding)))
    documents, skipped = read(tmp_path)
    assert skipped == []
    assert [(d.id, d.text) for d in documents] == [
        ("a.jsonl#1", "Größe"), ("a.jsonl#2", "zwei"), ("b.tsv#1", "Größe"), ("c.jsonl.gz#1", "Größe")
    ]  # fmt: skip


def test_files_joined_with_their_marks(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(2 * '\ufeff{"text": "one"}\n'.encode() + "\ufeff\n".encode())
    documents, skipped = read(tmp_path / "a.jsonl")
    assert [document.text for document in documents] == ["one", "one"]
    assert [one.place.rsplit(", ")[1] for one in skipped] == ["line 3"]


def test_a_line_that_is_not_of_the_encoding_is_named(tmp_path):
    rows = "id\ttext\ttitle\n1\tcafé\tT\n2\tplain\tT\n"
    (tmp_path / "a.tsv").write_bytes(rows.encode("latin-1"))
    (tmp_path / "b.jsonl").write_bytes('{"text": "café"}\n{"text": "plain"}\n'.encode("latin-1"))
    (tmp_path / "c.jsonl").write_bytes('{"text": "one"}\n'.encode("utf-16")[:-1])  # cut off
    documents, skipped = read(tmp_path)
    assert [document.text for document in documents] == ["plain", "plain"]
    assert [(one.place.rsplit("/")[-1], one.reason.partition(":")[0], one.lost) for one in skipped] == [
        ("a.tsv, line 2", "it is not UTF-8", True),
        ("b.jsonl, line 1", "it is not UTF-8", True),
        ("c.jsonl", "it cannot be read beyond line 0", True),
    ]


def test_hidden_files_are_none_of_a_folder(tmp_path):
    for name in ("a.txt", "._a.txt", ".git/b.txt", "__MACOSX/._a.txt", "__MACOSX/c.txt", "sub/.d.md", "sub/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    assert [document.id for document in read(tmp_path)[0]] == ["a.txt", "sub/e.txt"]
    assert [document.id for document in read(tmp_path / "sub" / ".d.md")[0]] == [".d.md"]  # named by itself


def test_names_that_are_not_utf_8_stay_apart(tmp_path):
    for name, content in ((b"caf\xe8.txt", b"\xe8"), (b"caf\xe9.txt", b"text")):
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    documents, skipped = read(tmp_path)
    assert [(d.id, d.title) for d in documents] == [("caf\\xe9.txt", "caf\\xe9")]
    assert [one.place.rsplit("/")[-1] for one in skipped] == ["caf\\xe8.txt"]


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "pipe.txt")  # opened, it would wait for ever
    ((one,),) = [read(tmp_path)[1]]
    assert (one.place, one.reason) == (str(tmp_path / "a.txt"), "No such file or directory")


class Panic(BaseException):
    """An error that is no Exception, as a library in Rust raises one when it panics."""


ERRORS = [RuntimeError("odd"), MemoryError(), RecursionError("deep"), struct.error("short"), Panic("unreachable code")]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.tsv"])
def test_whatever_a_library_raises_costs_one_file(tmp_path, monkeypatch, error, name):
    def fails(*_):
        raise error

    monkeypatch.setattr(documents_module, "read_text" if name == "a.txt" else "_text_lines", fails)
    (tmp_path / name).write_text("text")
    documents, (skipped,) = read(tmp_path)
    assert documents == []
    assert skipped.reason.startswith(f"it cannot be read ({type(error).__name__}: ")
    assert skipped.lost


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_is_no_failure_of_a_file(tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(documents_module, "read_text", fails)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(type(error)):
        read(tmp_path)


def test_an_endless_quotation_does_not_swallow_the_table(tmp_path):
    rows = "".join(f"{n}\ttext {n}\tt\n" for n in range(60_000))
    (tmp_path / "x.tsv").write_text(f'id\ttext\ttitle\n0\t"never closed\tt\n{rows}')
    documents, skipped = read(tmp_path / "x.tsv")
    assert (len(documents), skipped) == (60_001, [])
    assert documents[0].text == '"never closed'


def test_progress_ends_at_the_size(tmp_path, folder, lines):
    for place in (folder, lines):
        source = open_source(str(place))
        read = [item.read for item in source.items()]
        assert read == sorted(read)
        assert read[-1] == source.size > 0


def test_data_sets_of_the_hub(tmp_path):
    """Any data set that `datasets` loads; here a folder of files."""
    (tmp_path / "train.jsonl").write_text(
        '{"id": "a", "title": "T", "text": "one"}\n{"id": "b", "title": "", "text": ""}\n'
    )
    documents, skipped = read(f"hub:{tmp_path}")
    assert [(d.id, d.title, d.text) for d in documents] == [("a", "T", "one")]
    assert [s.reason for s in skipped] == ["its text is empty"]


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(SourceNotFound, match="there is no file or folder 'nowhere'"):
        open_source("nowhere")
    with pytest.raises(SourceNotFound, match="holds no file of a readable type"):
        open_source(str(tmp_path))
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(SourceNotFound, match=r"is not a file of a readable type: \.txt"):
        open_source(str(tmp_path / "x.docx"))
    with pytest.raises((HubUnreachable, SourceNotFound)):
        open_source("hub:nobody/nothing")
