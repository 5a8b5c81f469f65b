"""BM25 on tantivy against bm25s, on the bundled suite's texts and, where they are at hand, on real passages."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bm25_scores import ExactBM25
from shoulders.data.lines import read_json_lines
from shoulders.errors import CorruptFile, UsageError
from shoulders.retrieval.bm25 import K1, Analyser, B, SparseSearcher, SparseWriter, check_bm25
from shoulders.retrieval.passages import StoredPassage
from shoulders.retrieval.search import ScoredPassage, best_first

REAL = Path(os.environ.get("SHOULDERS_ODQA") or Path(__file__).parents[3] / "shared" / "data" / "odqa")
ANALYSER = Analyser()
K = 10


@pytest.fixture(params=["bundled", "real"])
def corpus(request, records, asked):
    """Passages and queries."""
    if request.param == "real":
        if not REAL.is_dir():
            pytest.skip("no folder of real passages at hand")
        records = list(islice(read_json_lines(REAL / "passages.jsonl.gz"), 10_000))
        asked = [row["question"] for row in islice(read_json_lines(REAL / "nq.dev.jsonl.gz"), 200)]
    return [StoredPassage(number, one["title"], one["text"]) for number, one in enumerate(records, start=1)], asked


def tantivy(passages, folder):
    writer = SparseWriter(folder)
    for passage in passages:
        writer.add(passage.id, " ".join(ANALYSER.terms(passage.searched)))
    writer.commit()
    writer.close()
    return SparseSearcher(folder, ANALYSER)


def overlap(found, scores, k=K):
    """The part of the k best that an engine found; of passages that tie for the last place any will do."""
    rates = []
    for some, wanted in zip(found, scores, strict=True):
        count = min(k, int((wanted > 0).sum()))
        if count:
            last = np.sort(wanted)[-count]
            rates.append(sum(wanted[one.passage - 1] >= last * (1 - 1e-5) for one in some[:count]) / count)
    assert len(rates) > 0.9 * len(found)
    return sum(rates) / len(rates)


def test_tantivy_finds_what_bm25s_finds(corpus, tmp_path):
    passages, queries = corpus
    found = tantivy(passages, tmp_path / "sparse").search(queries, K)
    assert overlap(found, map(ExactBM25(passages, ANALYSER, K1, B).scores, queries)) >= 0.97


def test_equal_scores_come_by_number_wherever_the_list_is_cut(tmp_path):
    passages = [StoredPassage(number, "", "the same words in all") for number in range(1, 400)]
    engine = tantivy(passages[::-1], tmp_path / "sparse")
    for k in (1, 7, 398, 399, 1000):
        (found,) = engine.search(["words"], k)
        assert [one.passage for one in found] == list(range(1, min(k, 399) + 1))


def test_queries_do_not_depend_on_each_other(corpus, tmp_path):
    passages, queries = corpus
    engine = tantivy(passages[:1000], tmp_path / "sparse")
    together = engine.search(queries[:20], 5)
    assert together == [engine.search([query], 5)[0] for query in queries[:20]]


def test_a_word_said_twice_counts_twice(tmp_path):
    passages = [StoredPassage(1, "", "apple pear"), StoredPassage(2, "", "pear plum"), StoredPassage(3, "", "fig fig")]
    once, twice = tantivy(passages, tmp_path / "sparse").search(["plum", "plum plum"], 3)
    assert twice[0].score == pytest.approx(2 * once[0].score)


def test_queries_without_an_answer_and_endless_ones(tmp_path):
    passages = [StoredPassage(number, "", f"number {number} of many") for number in range(1, 50)]
    long = " ".join(f"word{number}" for number in range(9_999)) + " 17"
    engine = tantivy(passages, tmp_path / "sparse")
    assert engine.search(["", "the of", "unheard", "!?"], 5) == [[], [], [], []]
    assert [one.passage for one in engine.search([long], 5)[0]] == [17]
    assert engine.search([], 5) == []


def test_removed_passages_are_not_found(tmp_path):
    passages = [StoredPassage(number, "", f"number {number} of many") for number in range(1, 50)]
    tantivy(passages, tmp_path)
    writer = SparseWriter(tmp_path)
    writer.remove(17)
    writer.remove(1000)
    assert SparseSearcher(tmp_path, ANALYSER).search(["17"], 5)[0]  # nothing is visible before the commit
    writer.commit()
    writer.close()
    searcher = SparseSearcher(tmp_path, ANALYSER)
    assert searcher.search(["17"], 5) == [[]]
    assert len(searcher.search(["number"], 100)[0]) == 48


def test_an_empty_corpus_finds_nothing(tmp_path):
    assert tantivy([], tmp_path / "sparse").search(["x"], 3) == [[]]


@pytest.mark.parametrize(("k1", "b"), [(-1, 0.5), (1, 1.5), (float("nan"), 0.5), (float("inf"), 0.5)])
def test_bad_parameters(k1, b):
    with pytest.raises(UsageError, match="k1 must be at least 0 and b between 0 and 1"):
        check_bm25(k1, b)


def test_what_is_no_index_of_the_engine(tmp_path):
    with pytest.raises(CorruptFile, match="build the index again"):
        SparseSearcher(tmp_path, ANALYSER)


def test_best_first():
    fifth, second = ScoredPassage(5, 1.0), ScoredPassage(2, 1.0)
    assert best_first([fifth, second, ScoredPassage(9, 0.5)], 2) == [second, fifth]
