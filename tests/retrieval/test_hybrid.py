"""Dense and sparse retrieval together, by hand-made lists and through the command line."""

import pytest

from shoulders.errors import UsageError
from shoulders.retrieval.hybrid import WEIGHTS, HybridSearcher, ReciprocalRankFusion, choose_weight
from shoulders.retrieval.index import Index
from shoulders.retrieval.search import ScoredPassage
from tiny import save_encoder


class Fixed:
    """The same list for every query; notes how deep it was searched."""

    def __init__(self, *found):
        self.found, self.depths = [ScoredPassage(*one) for one in found], []

    def search(self, queries, k):
        self.depths.append(k)
        return [self.found[:k] for _ in queries]


DENSE = ((1, 9.0), (2, 7.0), (3, 4.0))
SPARSE = ((3, 3.0), (4, 2.0), (1, 1.5))


def test_the_sum_of_raw_scores_with_the_lowest_where_one_is_missing():
    (found,) = HybridSearcher(Fixed(*DENSE), Fixed(*SPARSE), 2.0).search(["q"], 10)
    # 1: 9 + 2 * 1.5; 2: 7 + 2 * 1.5 (lowest sparse); 3: 4 + 2 * 3; 4: 4 (lowest dense) + 2 * 2
    assert found == [ScoredPassage(1, 12.0), ScoredPassage(2, 10.0), ScoredPassage(3, 10.0), ScoredPassage(4, 8.0)]


def test_a_list_without_anything_adds_nothing():
    (found,) = HybridSearcher(Fixed(*DENSE), Fixed(), 2.0).search(["q"], 2)
    assert found == [ScoredPassage(1, 9.0), ScoredPassage(2, 7.0)]
    assert HybridSearcher(Fixed(), Fixed(), 1.0).search(["q", "r"], 2) == [[], []]


def test_a_thousand_candidates_of_each_are_looked_at_or_as_many_as_asked_for():
    dense, sparse = Fixed(*DENSE), Fixed(*SPARSE)
    for searcher in (HybridSearcher(dense, sparse, 1.0), ReciprocalRankFusion(dense, sparse)):
        assert len(searcher.search(["q"], 2)[0]) == 2
        searcher.search(["q"], 2000)
    assert dense.depths == sparse.depths == [1000, 2000, 1000, 2000]


def test_reciprocal_ranks():
    (found,) = ReciprocalRankFusion(Fixed(*DENSE), Fixed(*SPARSE)).search(["q"], 10)
    expected = {1: 1 / 61 + 1 / 63, 2: 1 / 62, 3: 1 / 63 + 1 / 61, 4: 1 / 62}
    assert [one.passage for one in found] == [1, 3, 2, 4]
    assert dict(found) == pytest.approx(expected)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none(weight):
    with pytest.raises(UsageError, match="weight"):
        HybridSearcher(Fixed(), Fixed(), weight)


def test_the_weight_is_chosen_by_the_score_of_the_first_hundred():
    dense = Fixed(*((number, 0.0) for number in range(100)), (500, -7.5))
    sparse = Fixed((500, 2.0), (0, 0.0))

    def found(lists):
        assert all(len(some) == 100 for some in lists)
        return float(all(500 in dict(some) for some in lists))

    chosen = choose_weight(dense, sparse, ["q", "r"], found)
    assert chosen.scores == {weight: float(weight >= 4) for weight in WEIGHTS}
    assert chosen.weight == 4  # the smallest of the best
    assert dense.depths == sparse.depths == [1000]
    with pytest.raises(UsageError, match="1 question, got 10 and 0"):
        choose_weight(dense, sparse, [], found)


@pytest.fixture
def encoded(folder, tmp_path, shoulders):
    """An index with vectors of a tiny encoder."""
    save_encoder("bert", tmp_path / "tiny")
    assert shoulders("index", folder, "--out", tmp_path / "index")[0] == 0
    code, said, error = shoulders("encode", tmp_path / "index", "--retriever", tmp_path / "tiny", "--name", "tiny")
    assert (code, error) == (0, "")
    assert "10/10 passages" in said
    assert f"{tmp_path}/index/dense/tiny: 10 vectors of 24 numbers (float16), in sq8" in said
    return tmp_path / "index"


def test_encoding_and_searching_on_the_command_line(encoded, shoulders):
    index, query = Index(encoded), "Who is proud of Oslo?"
    for retriever in ("dense", "hybrid", "rrf"):
        weight = ["--weight", 1000] if retriever == "hybrid" else []
        code, said, error = shoulders("search", encoded, query, "-k", 3, "--retriever", retriever, *weight)
        assert (code, error) == (0, "")
        assert len(said.splitlines()) == 6
        if retriever == "hybrid":
            assert said.split()[2] == index.search([query], 1)[0][0].title == "Oslo"
    said = shoulders("search", encoded, "the of", "-k", 12, "--retriever", "dense")[1]
    assert "10 of 10 passages were found, 12 were asked for" in said
    assert shoulders("search", encoded, "word " * 10_000, "--retriever", "dense")[0] == 0


def test_bad_input_on_the_command_line(encoded, folder, tmp_path, refused, shoulders):
    tiny = tmp_path / "tiny"
    assert "did you mean 'dense'" in refused("search", encoded, "Oslo", "--retriever", "dens")
    assert "has no word" in refused("search", encoded, " ", "--retriever", "dense")
    assert "tiny" in refused("search", encoded, "Oslo", "--retriever", "dense", "--dense", "tinny")
    assert "weight" in refused("search", encoded, "Oslo", "--retriever", "hybrid", "--weight", -1)
    assert "did you mean 'sq8'" in refused("encode", encoded, "--retriever", tiny, "--kind", "sq9")
    assert "mean" in refused("encode", encoded, "--retriever", tiny, "--pooling", "mea")
    assert "--name" in refused("encode", encoded, "--retriever", tiny, "--name", "tiny", "--pooling", "cls")
    assert "no model folder" in refused("encode", encoded, "--retriever", tmp_path / "none")
    (folder / "Oslo.txt").unlink()
    assert shoulders("index", folder, "--out", encoded, "--prune")[0] == 0
    assert "1 are gone" in refused("search", encoded, "Oslo", "--retriever", "dense")
    assert shoulders("index", folder, "--out", tmp_path / "other")[0] == 0
    assert "shoulders encode" in refused("search", tmp_path / "other", "Rome", "--retriever", "rrf")
