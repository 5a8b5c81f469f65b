"""What an index is said to need, against files and an index that are really made."""

import faiss
import numpy as np
import pytest

from shoulders.errors import UsageError
from shoulders.retrieval.building import build
from shoulders.retrieval.index import Index
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.sizes import KINDS, POSTING_BYTES, TERMS, TEXT_BYTES, faiss_bytes, faiss_cells, needs

D = 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passages", [2_000])
def test_faiss_indexes_are_as_large_as_is_said(kind, passages, tmp_path):
    rows = np.random.default_rng(0).normal(size=(passages, D)).astype(np.float32)
    cells = faiss_cells(passages)
    recipe = {"flat": "Flat", "sq8": "SQ8", "ivf-sq8": "SQ8", "ivf-pq": f"PQ{D // 8}x8", "ivf-rabitq": "RaBitQ"}[kind]
    prefix = f"IVF{cells}," if kind.startswith("ivf") else ""
    turned = f"RR{D}," if kind == "ivf-rabitq" else ""
    inner = faiss.index_factory(D, f"{turned}{prefix}{recipe}", faiss.METRIC_INNER_PRODUCT)
    if prefix:
        faiss.extract_index_ivf(inner).cp.niter = 1
    if kind == "ivf-pq":
        inner.pq.cp.niter = 1
    inner.train(rows)
    index = faiss.IndexIDMap(inner)
    index.add_with_ids(rows, np.arange(passages))
    faiss.write_index(index, str(tmp_path / "index"))
    assert faiss_bytes(kind, passages, D) == pytest.approx((tmp_path / "index").stat().st_size, rel=0.02)


def real(records, length):
    """Passages of about so many words, made of the texts in their order."""
    words = [word for one in records for word in one["text"].split()]
    return [" ".join(words[start : start + length]) for start in range(0, len(words), length)]


def test_texts_and_postings_are_about_as_large_as_is_said(records, tmp_path):
    texts = real(records, 87)
    for number, text in enumerate(texts):
        (tmp_path / f"Some title {number}.txt").write_text(text)
    build([str(tmp_path)], tmp_path / "index", Cutting())
    index = Index(tmp_path / "index")
    characters = sum(len(text) for text in texts) / len(texts)
    size = (tmp_path / "index" / "passages.sqlite").stat().st_size / index.passages
    assert size == pytest.approx(TEXT_BYTES - 536 + characters, rel=0.15)
    different = np.mean([len(set(index.analyser.terms(one.searched))) for one in index.store.passages()])
    postings = sum(path.stat().st_size for path in (tmp_path / "index" / "tantivy").iterdir()) / index.passages
    assert postings == pytest.approx(POSTING_BYTES * different / TERMS, rel=0.5)


def test_parts_grow_with_passages_and_dimensions_as_they_must():
    small, large, wide = needs(10**6, 384, 1e4), needs(10**7, 384, 1e4), needs(10**6, 768, 1e4)
    for a, b, c in zip(small, large, wide, strict=True):
        assert a.part == b.part == c.part
        assert 9 < b.disk / a.disk <= 10.01
        assert c.disk >= a.disk
        assert (a.seconds is None) == (b.seconds is None)
        if a.seconds:
            assert b.seconds > 9 * a.seconds
    sizes = {one.part: one.memory for one in small}
    assert sizes["FAISS flat"] > 3 * sizes["FAISS sq8"] > 6 * sizes["FAISS ivf-pq"]
    vectors = {one.part: one.seconds for one in needs(1000, 8)}["vectors (float16)"]
    assert vectors is None


@pytest.mark.parametrize("numbers", [(0, 8, 0), (10, 0, 0), (10, 8, -1)])
def test_numbers_that_make_no_index(numbers):
    with pytest.raises(UsageError, match="at least 1 passage"):
        needs(*numbers)


def test_the_plan_of_wikipedia(shoulders):
    code, said, _ = shoulders("plan", "index", "--passages", 21_015_324, "--dimension", 768)
    assert code == 0
    rows = {line.split("  ")[0].strip(): line for line in said.splitlines()}
    assert " 64.73 " in rows["FAISS flat"]
    assert "21,015,324 passages, vectors of 768 numbers" in said
    assert "--tokens-per-second gives its hours" in said
    assert "2.54 billion tokens" in said
    assert "-tokens" not in shoulders("plan", "index", "--tokens-per-second", 9_000)[1]


def test_bad_numbers_in_a_plan(refused):
    assert "got 0, 768 and 0.0" in refused("plan", "index", "--passages", 0)
