"""`shoulders upload`, and searching what it sent: from the command line and in recipes."""

import sys

import pytest

from shoulders.errors import UsageError
from shoulders.records import Question
from shoulders.retrieval.milvus import shared_connection
from shoulders.runs.build import new_evidence
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from tiny import save_encoder


@pytest.fixture
def index(folder, tmp_path, shoulders):
    assert shoulders("index", folder, "--out", tmp_path / "cities.index")[0] == 0
    return tmp_path / "cities.index"


def test_sending_searching_and_sending_what_changed(shoulders, index, folder, tmp_path):
    server = tmp_path / "server.db"
    code, said, _ = shoulders("upload", index, "--to", server)
    assert code == 0
    assert "passages: 10 added, 0 deleted, 0 unchanged" in said
    assert f"the collection 'cities_index' at {server}: 10 passages, BM25 with k1 = 0.9 and b = 0.4" in said
    code, said, _ = shoulders("search", index, "Who is proud of Oslo?", "-k", 2, "--engine", server)
    assert code == 0
    assert "Oslo is a capital." in said
    (folder / "Tokyo.txt").write_text("Tokyo is a capital. People of Tokyo are proud of it.")
    (folder / "Lima.txt").unlink()
    assert shoulders("index", folder, "--out", index, "--prune")[0] == 0
    said = shoulders("search", index, "Tokyo", "--engine", server, "--collection", "cities_index")[1]
    assert f"{server} does not hold all of {index} as it is now: run shoulders upload" in said
    assert "passages: 1 added, 1 deleted, 9 unchanged" in shoulders("upload", index, "--to", server)[1]
    said = shoulders("search", index, "Tokyo", "--engine", server)[1]
    assert "Tokyo is a capital" in said
    assert "shoulders upload" not in said


@pytest.mark.parametrize("kind", ["", "HNSW"])
def test_both_ways_together_on_a_server(shoulders, refused, index, tmp_path, kind):
    server, texts = tmp_path / "server.db", index
    save_encoder("bert", tmp_path / "tiny")
    assert shoulders("encode", texts, "--retriever", tmp_path / "tiny", "--name", "tiny")[0] == 0
    assert shoulders("upload", texts, "--to", server)[0] == 0
    on = ("--engine", server)
    assert f"upload {texts} --to {server} --dense NAME" in refused("search", texts, "Oslo", "--retriever", "rrf", *on)
    send = ("upload", texts, "--to", server, "--dense", "tiny")
    assert shoulders(*send, *(["--kind", kind] if kind else []))[0] == 0
    assert "passages: 0 added, 0 deleted, 10 unchanged" in shoulders(*send)[1]
    assert f"has engine {kind or 'FLAT'!r}, not 'IVF_SQ8'" in refused(*send, "--kind", "IVF_SQ8")
    for retriever in ("dense", "hybrid", "rrf"):
        asked = ("search", texts, "Who is proud of Oslo?", "--retriever", retriever)
        there, here = (shoulders(*asked, *where)[1].splitlines() for where in (on, ()))
        scores = [[float(line.split()[1]) for line in said[::2]] for said in (there, here)]
        assert len(scores[0]) == len(scores[1]) == 10
        if retriever != "hybrid":  # whose BM25 has another k1 and b
            assert scores[0] == pytest.approx(scores[1], abs=2e-3)
    weighed = ("search", texts, "Oslo", "--retriever", "hybrid", *on, "--weight", 100)
    assert "Oslo is a capital" in shoulders(*weighed)[1].splitlines()[1]
    assert "Oslo" in shoulders(*weighed, "--collection", "cities_index,cities_index_tiny")[1]
    said = refused(*weighed, "--collection", "cities_index")
    assert "hybrid searches two collections, and 'cities_index' names 1: name SPARSE,DENSE" in said


def test_a_kind_is_of_vectors(refused, index, tmp_path):
    assert "add --dense NAME" in refused("upload", index, "--to", tmp_path / "x.db", "--kind", "HNSW")


def test_bad_input(refused, shoulders, index, folder, tmp_path):
    server = tmp_path / "server.db"
    assert "no Milvus answers at http://localhost:1" in refused("upload", index, "--to", "http://localhost:1")
    assert "is not an address of Milvus" in refused("upload", index, "--to", "wiki")
    assert "holds a password" in refused("search", index, "Oslo", "--engine", "http://me:secret@localhost:1")
    assert "no variable NO_SUCH_TOKEN" in refused("upload", index, "--to", server, "--token-env", "NO_SUCH_TOKEN")
    assert f"was not sent to {server} (bm25)" in refused("search", index, "Oslo", "--engine", server)
    assert "is not an index" in refused("upload", folder, "--to", server)
    assert "k1 must be at least 0" in refused("upload", index, "--to", server, "--k1", -1)
    assert shoulders("upload", index, "--to", server)[0] == 0
    assert "at most 16,384 on Milvus, got 16,385" in refused("search", index, "Oslo", "-k", 16_385, "--engine", server)
    assert "has b 0.4, not 0.75" in refused("upload", index, "--to", server, "--b", 0.75)
    assert "there is no collection 'x'" in refused("search", index, "Oslo", "--engine", server, "--collection", "x")
    assert "no passage has a word of 'xyzzy'" in shoulders("search", index, "xyzzy", "--engine", server)[1]


def test_the_token_goes_to_the_server_and_nowhere_else(shoulders, index, tmp_path, monkeypatch):
    from shoulders.retrieval import milvus

    given, client = [], milvus.MilvusClient

    class Watched(client):
        def __init__(self, **how):
            given.append(how["token"])
            super().__init__(**how)

    monkeypatch.setattr(milvus, "MilvusClient", Watched)
    monkeypatch.setenv("MILVUS_TOKEN", "the-usual")
    monkeypatch.setenv("OTHER", "hush-hush")
    assert shoulders("upload", index, "--to", tmp_path / "server.db", "--token-env", "OTHER")[0] == 0
    assert shoulders("search", index, "Oslo", "--engine", tmp_path / "server.db")[0] == 0
    assert shoulders("search", index, "Oslo", "--engine", tmp_path / "server.db", "--token-env", "OTHER")[0] == 0
    assert given == ["hush-hush", "the-usual", "hush-hush"]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hush-hush" not in written


def test_a_full_disk_is_said_and_nothing_is_lost(shoulders, refused, index, tmp_path, monkeypatch):
    from shoulders.retrieval import milvus

    def full(*_, **__):
        raise milvus.MilvusException(code=1, message="[Errno 28] No space left on device: 'wal'")

    server = tmp_path / "server.db"
    with monkeypatch.context() as patched:
        patched.setattr(milvus.MilvusClient, "upsert", full)
        said = refused("upload", index, "--to", server)
    assert f"{server} is full ([Errno 28] No space left on device: 'wal'): free space there" in said
    assert "passages: 10 added" in shoulders("upload", index, "--to", server)[1]


def test_without_the_distributed_extra(refused, index, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)  # importing it fails
    assert "pip install 'shoulders[distributed]'" in refused("upload", index, "--to", "x.db")
    assert "pip install 'shoulders[distributed]'" in refused("search", index, "Oslo", "--engine", "x.db")


def test_a_recipe_reads_what_is_found_on_the_server(lm, shoulders, index, folder, tmp_path):
    server = tmp_path / "server.db"
    assert shoulders("upload", index, "--to", server)[0] == 0
    values = [
        f"backbone.name={lm.name}", "scaffold.length=3", "suite.lengths.input=100", "suite.lengths.target=8",
        "development.longest=3", "test.longest=3", "evidence.passages=3", f"evidence.index={index}",
    ]  # fmt: skip
    here, there = (
        with_overrides(recipe_named("reader"), [*values, *more]) for more in ([], [f"evidence.engine={server}"])
    )
    questions = [Question("Who is proud of Oslo?"), Question("Is Riga a capital?")]
    try:
        source = new_evidence(there, lm, 3)
        again = new_evidence(there, lm, 3)  # as measuring does beside training
        found = [[passage.title for passage in some] for some in source.find(questions)]
        assert found == [[passage.title for passage in some] for some in again.find(questions)]
        assert [some[0] for some in found] == ["Oslo", "Riga"]
        assert source.fingerprint == again.fingerprint != new_evidence(here, lm, 3).fingerprint
        (folder / "Lima.txt").unlink()
        assert shoulders("index", folder, "--out", index, "--prune")[0] == 0
        with pytest.raises(UsageError, match=r"lacks changes of .*: run shoulders upload .* --to"):
            new_evidence(there, lm, 3)
    finally:
        shared_connection(str(server)).close()
        shared_connection.cache_clear()
