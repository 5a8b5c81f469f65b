"""Indexes: built, brought up to date, killed and resumed."""

import gc
import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bm25_scores import ExactBM25
from pdfs import save_pdf
from processes import process
from shoulders.errors import CorruptFile, DataError, SaveFailed, SourceNotFound, UsageError
from shoulders.evidence.base import with_evidence
from shoulders.evidence.packing import Packer
from shoulders.evidence.retrieved import Retrieved
from shoulders.records import Question
from shoulders.retrieval import building
from shoulders.retrieval import passages as passages_module
from shoulders.retrieval.bm25 import SparseWriter
from shoulders.retrieval.building import build
from shoulders.retrieval.documents import open_source
from shoulders.retrieval.index import Index
from shoulders.retrieval.passages import Cutting, PassageStore
from shoulders.store.files import lock_folder


def made(sources, folder, cutting=None, **how):
    return build([str(source) for source in sources], folder, cutting or Cutting(), **how)


def found(folder, query, k=100):
    return [hit.title for hit in Index(folder).search([query], k)[0]]


def content(folder, queries):
    """What an index answers, and all it holds."""
    index = Index(folder)
    answers = [[(hit.id, round(hit.score, 4)) for hit in hits] for hits in index.search(queries, 20)]
    manifest = {key: value for key, value in index.manifest.items() if key != "time"}
    return answers, list(index.store.passages()), manifest


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(building, "DOCUMENTS", 100)


def test_documents_are_cut_kept_and_found(folder, tmp_path):
    (folder / "Long.txt").write_text(" ".join(f"word{number}" for number in range(250)))
    built = made([folder], tmp_path / "index")
    assert (built.counts.documents, built.counts.passages, built.done["added"]) == (11, 13, 11)
    assert found(tmp_path / "index", "the people of Quito")[0] == "Quito"
    (hits,) = Index(tmp_path / "index").search(["word0 word120"], 5)
    assert {hit.text.split()[0] for hit in hits} == {"word0", "word100"}
    store = Index(tmp_path / "index").store
    (cut,) = [passage for passage in store.passages() if passage.text.startswith("word200")]
    assert len(cut.text.split()) == 50


def test_the_manifest_counts_what_is_there(lines, records, tmp_path):
    made([lines], tmp_path / "index")
    index = Index(tmp_path / "index")
    lengths = [len(index.analyser.terms(passage.searched)) for passage in index.store.passages()]
    counts = index.manifest["counts"]
    assert counts["documents"] == len(records)
    assert counts["passages"] == index.passages == len(lengths)
    assert counts["passages"] + counts["copies"] == len(records)
    assert index.manifest["statistics"]["terms_per_passage"] == pytest.approx(sum(lengths) / len(lengths))
    assert index.manifest["analyser"] == index.analyser.identity
    assert not index.unfinished


def test_only_what_changed_is_read_in(folder, tmp_path, monkeypatch):
    index = tmp_path / "index"
    made([folder], index)
    (folder / "Rome.txt").write_text("Rome has seven hills.")
    (folder / "Tokyo.txt").write_text("Tokyo is a capital.")
    (folder / "Lima.txt").unlink()
    added = []
    monkeypatch.setattr(SparseWriter, "add", lambda self, number, terms: added.append(terms) or None)
    built = made([folder], index)
    assert built.done == {"added": 1, "replaced": 1, "unchanged": 8}
    assert sorted(added) == ["rome rome ha seven hill", "tokyo tokyo capit"]


def test_up_to_date_is_as_new(folder, tmp_path):
    """Added, changed and deleted documents: the index answers as one that was built from the result."""
    made([folder], tmp_path / "old")
    (folder / "Rome.txt").write_text("Rome has seven hills.")
    (folder / "Tokyo.txt").write_text("Tokyo is a capital.")
    (folder / "Lima.txt").unlink()
    assert made([folder], tmp_path / "old").counts.documents == 11
    assert "Lima" in found(tmp_path / "old", "Lima")
    assert made([folder], tmp_path / "old", prune=True).done["deleted"] == 1
    made([folder], tmp_path / "new")
    for query in ("capital", "hills of Rome", "Lima", "Tokyo"):
        assert sorted(found(tmp_path / "old", query)) == sorted(found(tmp_path / "new", query))
    assert found(tmp_path / "old", "Lima") == []
    old, new = Index(tmp_path / "old"), Index(tmp_path / "new")
    assert old.manifest["counts"] == new.manifest["counts"]
    queries = ["capital people", "Tokyo"]
    scores = [
        [[round(hit.score, 5) for hit in hits] for hits in index.search(queries, 20, exact)]
        for index in (old, new)
        for exact in [ExactBM25(index.store.passages(), index.analyser, 0.9, 0.4)]
    ]
    assert scores[0] == scores[1]


def test_pruning_one_source_leaves_the_others(folder, lines, tmp_path):
    index = tmp_path / "index"
    made([folder, lines], index)
    before = Index(index).passages
    for path in list(folder.iterdir())[1:]:
        path.unlink()
    made([folder], index, prune=True)
    assert Index(index).passages == before - 9


def test_pruning_spares_a_source_that_could_not_be_read_to_the_end(folder, tmp_path):
    index = tmp_path / "index"
    made([folder], index)
    (folder / "Rome.txt").unlink()
    (folder / "broken.pdf").write_text("no PDF")
    built = made([folder], index, prune=True)
    assert built.unpruned == [str(folder)]
    assert "Rome" in found(index, "Rome")
    (folder / "broken.pdf").unlink()
    assert made([folder], index, prune=True).done["deleted"] == 1
    assert "Rome" not in found(index, "Rome")


def test_copies_are_searched_once_and_outlive_each_other(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [
        {"id": n, "title": t, "text": x} for n, t, x in [(1, "A", "Same text."), (2, "B", "same  TEXT."), (3, "C", "z")]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = made([path], tmp_path / "index", as_is=True)
    assert (built.counts.passages, built.counts.copies, built.counts.documents) == (2, 1, 3)
    assert found(tmp_path / "index", "same text") == ["A"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    built = made([path], tmp_path / "index", as_is=True, prune=True)
    assert (built.counts.passages, built.counts.copies, built.counts.documents) == (2, 0, 2)
    assert found(tmp_path / "index", "same text") == ["B"]
    assert found(tmp_path / "index", "B") == ["B"]


def test_the_second_of_two_documents_of_one_id_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1, "text": "first one"}\n{"id": 1, "text": "second one"}\n')
    for done in ("added", "unchanged"):
        built = made([path], tmp_path / "index")
        assert (built.done[done], built.done["skipped"]) == (1, 1)
        assert "line 2" in built.skipped[0].place
        assert "the id 'x.jsonl#1' stands there a second time" in built.skipped[0].reason
    assert Index(tmp_path / "index").search(["first"], 5)[0]


def test_cutting_otherwise_cuts_again(folder, tmp_path):
    assert made([folder], tmp_path / "index").counts.passages == 10
    built = made([folder], tmp_path / "index", Cutting(words=8, sentences=True))
    assert (built.done["replaced"], built.counts.passages) == (10, 20)
    assert made([folder], tmp_path / "index", Cutting(words=8, sentences=True)).done["unchanged"] == 10


class Killed(BaseException):
    pass


def dies(self, *_):
    raise Killed


def dies_after(method):
    def call(self, *arguments):
        method(self, *arguments)
        raise Killed

    return call


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (SparseWriter, "commit", dies),  # kept in SQLite, not in the engine
        (SparseWriter, "commit", dies_after(SparseWriter.commit)),  # in the engine, not struck off
        (PassageStore, "add_passages", dies),  # in the middle of a document
        (SparseWriter, "close", dies),  # all there but the manifest
        (building, "write_json", dies),
    ],
)
def test_a_build_that_was_killed_anywhere_goes_on(
    lines, records, asked, tmp_path, monkeypatch, small_batches, owner, name, replacement
):
    """First build and update, each killed in its middle: nothing is lost, nothing there twice."""
    source, queries = tmp_path / "part.jsonl", asked[:40]
    texts = [json.dumps(one) + "\n" for one in records]
    source.write_text("".join(texts[:400]))
    for rows in (texts[:400], [*texts[:50], *texts[100:350], *texts[500:700]]):
        source.write_text("".join(rows))
        made([source], tmp_path / f"whole{len(rows)}", prune=True)
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, replacement)
            with pytest.raises(Killed):
                made([source], tmp_path / "index", prune=True)
        gc.collect()  # of the engine's lock, which a killed process drops
        made([source], tmp_path / "index", prune=True)
        index, whole = Index(tmp_path / "index"), Index(tmp_path / f"whole{len(rows)}")
        assert index.manifest["counts"] == whole.manifest["counts"]
        texts_of = [sorted(passage.text for passage in one.store.passages()) for one in (index, whole)]
        assert texts_of[0] == texts_of[1]
        assert not index.unfinished
        assert index.sparse._searcher.num_docs == index.passages
        hits = [[sorted(hit.text for hit in hits) for hits in one.search(queries, 2000)] for one in (index, whole)]
        assert hits[0] == hits[1]


def test_what_a_killed_build_kept_is_found_even_if_its_source_is_empty_now(lines, tmp_path, monkeypatch, small_batches):
    with monkeypatch.context() as patched:
        patched.setattr(SparseWriter, "commit", dies)
        with pytest.raises(Killed):
            made([lines], tmp_path / "index")
    gc.collect()
    lines.write_text("")
    assert made([lines], tmp_path / "index").counts.documents == 100
    index = Index(tmp_path / "index")
    assert index.sparse._searcher.num_docs == index.passages > 0


KILLED = """
from shoulders.retrieval import building
from shoulders.retrieval.passages import Cutting
building.DOCUMENTS = 20
source, folder = arguments
def tell(at):
    pipe.send(at.documents)
    pipe.recv()
building.build([source], folder, Cutting(), on_progress=tell)
"""


def test_kill_9_in_the_middle_then_the_same_command(lines, asked, tmp_path, small_batches):
    made([lines], tmp_path / "whole")
    with process(KILLED, str(lines), tmp_path / "index") as (_, pipe):
        for _ in range(60):  # it goes no further, however late it is killed
            pipe.send("go on")
        acknowledged = [pipe.recv() for _ in range(15)][-1]
        time.sleep(0.03)
    with pytest.raises(SourceNotFound, match="is not finished: run the same `shoulders index` command again"):
        Index(tmp_path / "index")
    kept = sqlite3.connect(tmp_path / "index" / "passages.sqlite")
    assert kept.execute("SELECT count(*) FROM documents").fetchone()[0] >= acknowledged
    kept.close()
    built = made([lines], tmp_path / "index")
    assert built.done["unchanged"] >= acknowledged > 0
    assert built.done["added"] > 0
    assert content(tmp_path / "index", asked[:50]) == content(tmp_path / "whole", asked[:50])


def test_the_second_of_two_writers_is_refused_and_told_who_is_the_first(folder, tmp_path):
    made([folder], tmp_path / "index")
    with lock_folder(tmp_path / "index"), pytest.raises(UsageError, match=f"being written by process {os.getpid()} on"):
        made([folder], tmp_path / "index")
    made([folder], tmp_path / "index")  # the lock is gone with its holder
    (tmp_path / "index" / "writer.lock").unlink()


def test_reading_while_another_writes(folder, tmp_path, small_batches):
    made([folder], tmp_path / "index")
    index = Index(tmp_path / "index")
    for path in folder.iterdir():
        path.unlink()
    (folder / "New.txt").write_text("A new capital.")
    made([folder], tmp_path / "index", prune=True)
    assert index.search(["capital"], 20) == [[]]  # what was deleted under an open engine is not shown
    assert found(tmp_path / "index", "capital") == ["New"]


@pytest.mark.parametrize("names", [["empty.txt"], ["empty.txt", "broken.pdf"]])
def test_a_corpus_without_text_leaves_nothing_behind(tmp_path, names):
    (tmp_path / "empty.txt").write_text("  ")
    (tmp_path / "broken.pdf").write_text("x")
    with pytest.raises(DataError, match=f"there is no text in .*of {len(names)} the first: .*empty.txt: there is no"):
        made([tmp_path / name for name in names], tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_folders_that_are_no_place_for_an_index(folder, tmp_path):
    with pytest.raises(SaveFailed, match="holds other files and no index"):
        made([folder], folder)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SaveFailed, match="is a file"):
        made([folder], tmp_path / "file")
    with pytest.raises(SaveFailed, match="cannot write"):
        made([folder], tmp_path / "file" / "below")


def test_folders_that_hold_no_index_for_us(folder, tmp_path):
    index = tmp_path / "index"
    with pytest.raises(SourceNotFound, match=r"is not an index .*: build one with `shoulders index`"):
        Index(folder)
    made([folder], index)
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps({**manifest, "version": 7}))
    for use in (lambda: Index(index), lambda: made([folder], index)):
        with pytest.raises(UsageError, match=r"of format 'shoulders-index' version 7, this .* reads .* version 1"):
            use()
    other = {**manifest, "analyser": {"name": "german", "version": 2, "settings": {}}}
    (index / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match=r"'german' version 2.*'english' version 2"):
        Index(index)
    (index / "manifest.json").write_text("{")
    with pytest.raises(CorruptFile, match="is not JSON"):
        Index(index)


def test_an_index_of_another_analyser_is_not_added_to(folder, tmp_path):
    made([folder], tmp_path / "index")
    store = PassageStore(tmp_path / "index" / "passages.sqlite", write=True)
    store.set_state("analyser", json.dumps({"name": "german", "version": 2}))
    store.close()
    with pytest.raises(UsageError, match=r"'german' version 2.*'english' version 2"):
        made([folder], tmp_path / "index")


def test_a_broken_store_is_named(folder, tmp_path):
    made([folder], tmp_path / "index")
    (tmp_path / "index" / "passages.sqlite").write_bytes(b"no database at all" * 1000)
    with pytest.raises(CorruptFile, match=r"passages\.sqlite is no store of passages"):
        Index(tmp_path / "index").search(["capital"], 2)


def test_what_is_no_text_is_not_in_passages(tmp_path):
    (tmp_path / "x.html").write_text("<body><script>evil()</script><p>Clean\x07 \u202etext&#x200b;</p></body>")
    made([tmp_path / "x.html"], tmp_path / "index")
    assert [passage.text for passage in Index(tmp_path / "index").store.passages()] == ["Clean text"]


def test_retrieved_passages_are_evidence(folder, tmp_path, lm):
    made([folder], tmp_path / "index")
    index = Index(tmp_path / "index")
    question = Question("Who is proud of Oslo?")
    packer = Packer(lm, 1000)
    (asked,) = with_evidence([question], Retrieved(index, 2, packer))
    assert asked.text == question.text
    assert asked.evidence.startswith("Oslo\nOslo is a capital. People of Oslo are proud of it.\n\n")
    assert asked.evidence.count("is a capital") == 2
    exact = ExactBM25(index.store.passages(), index.analyser, 0.9, 0.4)
    (found,) = Retrieved(index, 3, packer, exact).find([question], "a")
    assert [passage.score for passage in found] == sorted((passage.score for passage in found), reverse=True)
    with pytest.raises(UsageError, match="number of passages must be at least 1, got 0"):
        Retrieved(index, 0, packer).find([question])


def test_passages_name_their_page_and_their_headings(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    sections = f"# Guide\n\n## Setup\n\n{'setup ' * 60}\n\n### Linux\n\n{'kernel ' * 75}\n\n## Use\n\n{'use ' * 90}"
    (docs / "a.md").write_text(sections)
    save_pdf(docs / "b.pdf", [["first " * 40], ["second " * 90], ["third " * 10]])
    (docs / "c.txt").write_text("# plain words")
    made([docs], tmp_path / "index")
    index = Index(tmp_path / "index")
    assert [(passage.title, passage.text.split()[-1]) for passage in index.store.passages()] == [
        ("Guide > Setup", "kernel"),
        ("Guide > Setup > Linux", "use"),
        ("Guide > Use", "use"),
        ("b > page 2", "second"),
        ("b > page 2", "third"),
        ("c", "words"),
    ]
    (hits,) = index.search(["page 2"], 5)  # the title line is searched
    assert {hit.title for hit in hits} == {"b > page 2"}
    text = Cutting().cut(open_source(str(docs / "a.md")).items().__next__().text)
    assert list(text) == [one.text for one in index.store.passages()][:3]  # which spans of answers count in
    (docs / "a.md").write_text(sections.replace("### Linux", "## Linux"))  # the same text in other sections
    assert made([docs], tmp_path / "index").done["replaced"] == 1


def test_an_index_from_before_there_were_sections_is_read_and_brought_up_to_date(tmp_path):
    (tmp_path / "a.md").write_text("# Guide\n\n## Setup\n\nwords")
    (tmp_path / "b.txt").write_text("other words")
    made([tmp_path], tmp_path / "index")
    with closing(sqlite3.connect(tmp_path / "index" / "passages.sqlite")) as file:
        file.execute("ALTER TABLE passages DROP COLUMN section")
    assert found(tmp_path / "index", "words") == ["b", "Guide"]
    (tmp_path / "a.md").write_text("# Guide\n\n## Setup\n\nnew words")
    made([tmp_path], tmp_path / "index")
    assert found(tmp_path / "index", "words") == ["b", "Guide > Setup"]


def test_a_document_that_cannot_be_cut_is_skipped_and_keeps_what_it_had(folder, tmp_path, monkeypatch):
    class Panic(BaseException):
        """As a library in Rust raises when it panics."""

    def fails(text):
        if "Rome" in text:
            raise Panic("unreachable code")
        return unicode_sentences(text)

    unicode_sentences = passages_module.unicode_sentences
    cutting = Cutting(sentences=True)
    build([str(folder)], tmp_path / "index", cutting)
    before = Index(tmp_path / "index").passages
    monkeypatch.setattr(passages_module, "unicode_sentences", fails)
    for path in folder.iterdir():
        path.write_text(path.read_text() + " More.")
    built = build([str(folder)], tmp_path / "index", cutting, prune=True)
    assert [(Path(one.place).name, one.reason) for one in built.skipped] == [
        ("Rome.txt", "it cannot be cut into passages (Panic: unreachable code)")
    ]
    assert (built.done["deleted"], Index(tmp_path / "index").passages) == (0, before)


def test_a_fingerprint_does_not_hang_on_the_clock(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "Rome has parks."}\n')
    build([str(tmp_path / "a.jsonl")], tmp_path / "index", Cutting())
    first = Index(tmp_path / "index").fingerprint
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    (tmp_path / "index" / "manifest.json").write_text(json.dumps({**manifest, "time": "2001-01-01T00:00:00+00:00"}))
    assert Index(tmp_path / "index").fingerprint == first
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "Oslo has parks."}\n')
    build([str(tmp_path / "a.jsonl")], tmp_path / "index", Cutting())
    assert Index(tmp_path / "index").fingerprint != first


FILES = {  # what may be in a folder, and whether it can be read
    "a.txt": (b"readable words", True),
    "b.txt": ("Müller, Größe".encode("latin-1"), False),
    "c.pdf": (b"%PDF-1.7\n1 0 obj <</Type/Catalog/Pages 1 0 R>>", False),
    "d.jsonl": (b'{"text": "readable words"}\n', True),
    "e.jsonl": (b'{"text": "cut', False),
    "f.tsv.gz": (b"no gzip", False),
    "g.html": ("<meta charset=koi8-r><p>readable words".encode("utf-16"), True),
    "h.html": (b"<meta charset=utf-8><p>\xff\xfe\xfd", False),
    "i.md": (bytes(range(256)), False),
    "j.tsv": (b"id\ttext\ttitle\n1\t\xff\t\n", False),
}


@settings(max_examples=12, deadline=None, database=None)
@given(st.lists(st.sampled_from(sorted(FILES)), min_size=1, unique=True), st.binary(max_size=80))
def test_any_mix_of_files_leaves_a_finished_index(tmp_path_factory, names, noise):
    folder = tmp_path_factory.mktemp("mix")
    (folder / "z.txt").write_text("some readable words")
    for kind in ("txt", "md", "html", "pdf", "jsonl", "jsonl.gz", "tsv"):
        (folder / f"noise.{kind}").write_bytes(noise)
    for name in names:
        (folder / name).write_bytes(FILES[name][0])
    built = made([folder], folder / "index")
    assert not Index(folder / "index").unfinished
    assert built.counts.documents >= 1 + sum(FILES[name][1] for name in names)
    named = " ".join(one.place for one in built.skipped)
    assert [name for name in names if not FILES[name][1] and name not in named] == []


def test_a_build_goes_on_in_the_process_that_it_was_interrupted_in(folder, tmp_path):
    """Though the traceback, which a notebook keeps, holds all that the build held."""

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        made([folder], tmp_path / "index", on_progress=stop)
    assert made([folder], tmp_path / "index").counts.documents == 10
    assert kept.tb is not None


def test_a_fingerprint_tells_texts_of_equal_counts_apart(tmp_path):
    seen = set()
    for city in ("Rome", "Bern"):
        (tmp_path / "a.txt").write_text(f"{city} is in Italy.")
        seen.add(Index.build(tmp_path / "a.txt", tmp_path / city).fingerprint)
    assert len(seen) == 2


def test_an_index_in_a_folder_that_cannot_be_written_is_read(folder, tmp_path, monkeypatch):
    made([folder], tmp_path / "index")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert found(tmp_path / "index", "Rome")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")} == before


def test_an_id_that_records_of_several_files_have_is_refused_without_the_file(tmp_path):
    for name, rows in (("cities", [{"id": "2", "text": "Bern is in Switzerland."}]), ("notes", [{"text": "a"}] * 2)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made([tmp_path / "cities.jsonl", tmp_path / "notes.jsonl"], tmp_path / "index")
    store = Index(tmp_path / "index").store
    with pytest.raises(UsageError, match=r"'2' is that of .*write it with the file's name"):
        store.of_documents(["2"])
    assert [one.text for one in store.of_documents(["cities.jsonl#2"])] == ["Bern is in Switzerland."]
    assert [one.text for one in store.of_documents(["1"])] == ["a"]
