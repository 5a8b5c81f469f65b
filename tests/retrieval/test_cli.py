"""`shoulders index` and `shoulders search`, and bad input to them: one clear line, nothing lost."""

import json
import sys

import pytest

from shoulders.store.files import lock_folder


@pytest.fixture
def index(folder, tmp_path, shoulders):
    assert shoulders("index", folder, "--out", tmp_path / "index")[0] == 0
    return tmp_path / "index"


def test_building_says_what_was_done(shoulders, folder, tmp_path):
    (folder / "[bold]odd.txt").write_text("")
    out = tmp_path / "index"
    code, said, _ = shoulders("index", folder, "--out", out, "--sentences")
    assert code == 0
    assert f"skipped {folder}/[bold]odd.txt: there is no text in it" in said
    assert "documents: 10 added, 0 replaced, 0 deleted, 0 unchanged, 1 skipped" in said
    assert f"{out}: 10 passages of 10 documents" in said
    (folder / "Copy.txt").write_text((folder / "Rome.txt").read_text())
    (folder / "Lima.txt").unlink()
    said = shoulders("index", folder, "--out", out, "--sentences", "--prune")[1]
    assert "documents: 1 added, 0 replaced, 1 deleted, 9 unchanged, 1 skipped" in said
    assert "9 passages of 10 documents, 1 more are copies of these" in said


def test_many_skipped_files_are_counted_and_the_first_named(shoulders, folder, tmp_path):
    for number in range(25):
        (folder / f"a{number}.txt").write_text("")
    said = shoulders("index", folder, "--out", tmp_path / "index")[1]
    assert said.count("there is no text in it") == 20
    assert "and 5 more" in said
    assert "25 skipped" in said


def test_searching(shoulders, index):
    code, said, error = shoulders("search", index, "Who is proud of Oslo?", "-k", 2)
    assert (code, error) == (0, "")
    first, text = said.splitlines()[:2]
    assert first.split()[0] == "1"
    assert float(first.split()[1]) > 0
    assert first.split()[2] == "Oslo"
    assert text.strip() == "Oslo is a capital. People of Oslo are proud of it."
    assert len(said.splitlines()) == 4


def test_the_words_of_the_query_are_highlighted(index, monkeypatch):
    from rich.console import Console

    from shoulders.cli import corpus

    console = Console(force_terminal=True, color_system="standard", width=200)
    monkeypatch.setattr(corpus, "console", console)
    with console.capture() as capture:
        corpus.search(index, ["the capitals near OSLO"], 1)
    marked = "\x1b[1;32m{}\x1b[0m"
    text = capture.get().splitlines()[1]
    assert text.strip() == f"{marked.format('Oslo')} is a {marked.format('capital')}. " + (
        f"People of {marked.format('Oslo')} are proud of it."
    )


def test_several_queries(shoulders, index):
    said = shoulders("search", index, "Rome", "Riga", "-k", 1)[1].splitlines()
    assert [said[0], said[3]] == ["Rome", "Riga"]


def test_a_query_of_no_known_word(shoulders, index):
    code, said, _ = shoulders("search", index, "xyzzy plugh")
    assert (code, said) == (0, "no passage has a word of 'xyzzy plugh'\n")


def test_more_passages_than_there_are(shoulders, index):
    said = shoulders("search", index, "capital", "-k", 1_000)[1]
    assert said.count("is a capital") == 10
    assert "10 of 10 passages have a word of the query, 1,000 were asked for" in said


def test_an_endless_query_is_answered(shoulders, index):
    query = " ".join(f"word{number}" for number in range(9_999)) + " Oslo"
    code, said, _ = shoulders("search", index, query, "-k", 1)
    assert code == 0
    assert "People of Oslo" in said
    said = shoulders("search", index, "nothing " * 10_000)[1]
    assert len(said) < 200


@pytest.mark.parametrize(("query", "said"), [("", "'' has no word"), ("the of and", "'the of and' has no word")])
def test_a_query_without_a_word(refused, index, query, said):
    assert said in refused("search", index, query)


def test_bad_input_to_search(refused, index, folder, tmp_path):
    assert "number of passages must be at least 1, got -3" in refused("search", index, "Rome", "-k", -3)
    assert "is not an index" in refused("search", folder, "Rome")
    assert "is not an index" in refused("search", tmp_path / "nowhere", "Rome")
    manifest = json.loads((index / "manifest.json").read_text())
    older = {"analyser": {**manifest["analyser"], "version": 1}}
    for change, said in (
        ({"format": "faiss"}, "is of format 'faiss'"),
        ({"analyser": {}}, "was analysed by None"),
        (
            older,
            "was analysed by 'english' version 1, this version of shoulders analyses by 'english' version 2: build",
        ),
    ):
        (index / "manifest.json").write_text(json.dumps({**manifest, **change}))
        assert said in refused("search", index, "Rome")


def test_bad_input_to_index(refused, index, folder, tmp_path):
    assert "there is no file or folder 'nowhere'" in refused("index", "nowhere", "--out", tmp_path / "x")
    assert "holds other files" in refused("index", folder, "--out", folder)
    assert "a source has an empty name" in refused("index", "", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with lock_folder(index):
        assert "is being written by process" in refused("index", folder, "--out", index)


@pytest.mark.parametrize("command", [["index", "x", "--out", "y"], ["search", "x", "y"]])
def test_without_the_search_extra(refused, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "tantivy", None)  # importing it fails
    assert "pip install 'shoulders[search]'" in refused(*command)


def test_an_interrupted_update_is_said(shoulders, index):
    from shoulders.retrieval.passages import PassageStore

    store = PassageStore(index / "passages.sqlite", write=True)
    store.set_state("unfinished", "since noon")
    store.close()
    code, said, _ = shoulders("search", index, "Rome", "-k", 1)
    assert code == 0
    assert "is being brought up to date, or that was interrupted" in said
