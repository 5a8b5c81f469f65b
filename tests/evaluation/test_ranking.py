"""Orders of passages: what is measured of them, and the retriever's weight that does best."""

import json

import pytest

from shoulders.data.readers import open_suite
from shoulders.errors import DataError
from shoulders.evaluation.recall import RankedQuestion, ranking
from shoulders.evaluation.recall import answerable_questions as found_for
from shoulders.retrieval.building import build
from shoulders.retrieval.index import Hit, Index
from shoulders.retrieval.passages import Cutting
from shoulders.training.rankers import RankingSampler


def asked(place, scores):
    """A question with as many passages as scores, the answer in the one of that place."""
    hits = [Hit(n, "", "gold" if n == place else "other", score) for n, score in enumerate(scores)]
    return RankedQuestion("q", ("gold",), hits)


QUESTIONS = [asked(0, [9.0, 5.0, 1.0, 0.0]), asked(3, [9.0, 5.0, 4.0, 0.0])]
SCORES = [[0.8, 0.9, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]]  # nearly right, and wholly


def test_the_found_order_and_the_new_one():
    measured = ranking(QUESTIONS, lambda *_: SCORES)
    assert measured.found.reciprocal_rank == pytest.approx(100 * (1 + 1 / 4) / 2)
    assert measured.ordered.reciprocal_rank == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert (measured.found.recall[1], measured.ordered.recall[1]) == (50, 50)
    told = measured.as_json()
    assert told["found_recall"]["1"] == told["recall"]["1"] == 50
    assert "best_retriever_weight" not in told


def test_the_weight_that_does_best_is_told_with_all_others():
    measured = ranking(QUESTIONS, lambda *_: SCORES, (10.0, 0.5, 0.3, 0.0))
    assert measured.interpolated[0.0] == measured.ordered
    assert measured.interpolated[10.0] == measured.found
    assert measured.interpolated[0.5].reciprocal_rank == measured.interpolated[0.3].reciprocal_rank == 100
    assert measured.best_weight == 0.3  # of equal ones the smallest
    told = json.loads(json.dumps(measured.as_json()))
    assert told["best_retriever_weight"] == 0.3
    assert told["retriever_weights"]["0.5"]["recall"]["1"] == 100


def test_judged_documents_stand_for_answers_where_none_is_known(tmp_path):
    """A folder as BEIR has it, corpus and questions: measured by, and learnt from, the documents that qrels name."""
    cities = ["Rome", "Oslo", "Lima", "Bern"]
    rows = [{"_id": n, "title": city, "text": f"{city} has many old parks."} for n, city in enumerate(cities)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{n}", "text": f"parks of {city}"} for n, city in enumerate([*cities, "Kyoto"])]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (tmp_path / "qrels").mkdir()
    judged = [(0, 0, 1), (1, 1, 1), (1, 2, 1), (2, 2, 0), (3, 0, 2), (4, 77, 1)]
    lines = ["query-id\tcorpus-id\tscore", *(f"q{query}\t{document}\t{score}" for query, document, score in judged)]
    (tmp_path / "qrels" / "dev.tsv").write_text("\n".join(lines))
    build([str(tmp_path / "corpus.jsonl")], tmp_path / "index", Cutting())
    index = Index(tmp_path / "index")
    (task,) = open_suite(f"qa:{tmp_path}")
    examples = [task.example("validation", "question", row) for row in range(4)]
    some = found_for(examples, index, 4)
    assert [one.question for one in some] == ["parks of Rome", "parks of Oslo", "parks of Bern"]
    last_first = ranking(some, lambda _, hits: [[float(hit.title == "Bern") for hit in found] for found in hits])
    assert last_first.found.recall[1] == pytest.approx(200 / 3)
    assert last_first.ordered.recall[1] == 0
    drawn = RankingSampler(index, 4, 3).of(examples, range(4))
    assert [sorted(title for title, _ in one.passages[1:]) if one else None for one in drawn] == [
        ["Bern", "Lima", "Oslo"], ["Bern", "Rome"], ["Bern", "Lima", "Oslo"], None
    ]  # fmt: skip
    assert drawn[1].passages[0][0] in {"Oslo", "Lima"}
    with pytest.raises(
        DataError, match="of 1 questions none has an answer, or a document judged relevant, in the first"
    ):
        found_for(examples[3:], index, 4)
