"""Evidence in a re-ranker's order: who ranks what, what is refused, and what is scored only once."""

import json
from dataclasses import replace

import pytest

from rankers import save_bert
from shoulders.engine.batches import Lengths
from shoulders.errors import SourceNotFound, UnknownName, UsageError
from shoulders.evidence.choice import EvidenceChoice
from shoulders.evidence.packing import Packed
from shoulders.evidence.reranked import CROSS_FITTED, Rankers, Reranked
from shoulders.records import Passage, Question
from shoulders.retrieval.building import build
from shoulders.retrieval.language_model import LanguageModelRanker
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.reranker import Reranker
from shoulders.retrieval.scoring import Pair, SeenQuestions
from shoulders.runs.build import new_evidence
from shoulders.runs.recipe import Recipe, SuiteChoice, with_overrides
from shoulders.store.cache import ValueCache

PASSAGES = [Passage("one", 3.0), Passage("two two", 2.0), Passage("three three three", 1.0, "T")]
ASKED = [Question("Question: what is it\nAnswer:", query="what is it"), Question("who is it?")]


class Finds:
    """Finds the same passages for every question."""

    passes = 0
    fingerprint = "finds"

    def __init__(self, passages=PASSAGES):
        self.passages = passages

    def find(self, questions, fold=""):
        return [list(self.passages) for _ in questions]

    def packed(self, question, passages):
        return Packed(self.write(question, passages), tuple(passages[:1]))

    def write(self, question, passages):
        return replace(question, evidence=passages[0].text)


class Ranks:
    """A ranker that remembers what it scored."""

    def __init__(self, fingerprint, score=lambda pair: len(pair.text), seen=()):
        self.fingerprint, self.score, self.seen = fingerprint, score, SeenQuestions.of(seen)
        self.scored, self.order_weight = [], 0.0

    def scores(self, pairs, on_scored=lambda _done, _all: None):
        self.scored += pairs
        return [float(self.score(pair)) for pair in pairs]


@pytest.fixture
def store(tmp_path):
    return ValueCache(tmp_path / "kept" / "scores.sqlite")


def texts(found):
    return [[passage.text for passage in some] for some in found]


def test_passages_come_in_the_order_of_their_scores(store):
    source = Reranked(Finds(), Rankers("r", Ranks("r")), store)
    found = source.find(ASKED)
    assert texts(found) == [["three three three", "two two", "one"]] * 2
    assert [passage.score for passage in found[0]] == [17.0, 7.0, 3.0]
    assert found[0][0].title == "T"
    assert source.write(ASKED[0], found[0]).evidence == "three three three"
    assert source.packed(ASKED[0], found[0]).passages == tuple(found[0][:1])
    assert source.passes == 0


def test_equal_scores_leave_the_retrievers_order(store):
    source = Reranked(Finds(), Rankers("r", Ranks("r", lambda _: 1.0)), store)
    assert texts(source.find(ASKED)) == [["one", "two two", "three three three"]] * 2


def test_the_question_is_ranked_without_its_wording(store):
    ranker = Ranks("r")
    Reranked(Finds(), Rankers("r", ranker), store).find(ASKED)
    assert [pair.question for pair in ranker.scored] == ["what is it"] * 3 + ["who is it?"] * 3


def test_each_half_is_ranked_by_the_ranker_of_the_other(store):
    a, b, every = Ranks("a"), Ranks("b"), Ranks("all")
    source = Reranked(Finds(), Rankers("r", every, {"a": b, "b": a}), store)
    source.find(ASKED[:1], "a")
    assert (len(a.scored), len(b.scored), len(every.scored)) == (0, 3, 0)
    source.find(ASKED[:1], "b")
    source.find(ASKED[:1])
    assert (len(a.scored), len(b.scored), len(every.scored)) == (3, 3, 3)


def test_a_training_question_is_never_ranked_by_a_ranker_that_saw_it(store):
    ranker = Ranks("r", seen=["WHO is  it"])
    single = Reranked(Finds(), Rankers("my/run", ranker), store)
    with pytest.raises(UsageError, match=r"my/run was trained on 'who is it\?'.*evidence.reranker"):
        single.find(ASKED, "a")
    assert ranker.scored == []
    assert single.find(ASKED)  # measured or asked
    assert single.find(ASKED[:1], "a")  # another question
    across = Reranked(Finds(), Rankers("r", ranker, {"a": Ranks("b"), "b": ranker}), store)
    assert across.find(ASKED, "a")
    with pytest.raises(UsageError, match="have both seen"):
        across.find(ASKED, "b")


def test_the_retrievers_scores_count_by_their_weight(store):
    ranker = Ranks("r", {"one": 0.9, "two two": 1.0, "three three three": -4.0}.__getitem__)
    ranker.scores = lambda pairs, on_scored=None: [ranker.score(pair.text) for pair in pairs]
    orders = {}
    for weight in (0.0, 0.5, 100.0):
        source = Reranked(Finds(), Rankers("r", ranker), store, weight)
        (found,) = source.find(ASKED[:1])
        orders[weight] = [passage.text for passage in found]
    assert orders[0.0] == ["two two", "one", "three three three"]  # the re-ranker's
    assert orders[0.5] == ["one", "two two", "three three three"]  # a small gap of its is outvoted
    assert orders[100.0] == [passage.text for passage in PASSAGES]  # the retriever's
    prints = {Reranked(Finds(), Rankers("r", ranker), store, weight).fingerprint for weight in (0.0, 0.5, 1.0)}
    assert len(prints) == 3
    assert [one.score for one in Reranked(Finds(), Rankers("r", ranker), store).find(ASKED[:1])[0]] == [1.0, 0.9, -4.0]


def test_a_correction_is_added_to_the_retrievers_scores(store):
    ranker = Ranks("r", lambda pair: 10.0 if pair.text == "two two" else 0.0)
    ranker.order_weight = 2.0
    (found,) = Reranked(Finds(), Rankers("r", ranker), store).find(ASKED[:1])
    order = [passage.text for passage in PASSAGES if passage.text != "two two"]
    assert [passage.text for passage in found] == ["two two", *order]
    ranker.score = lambda pair: 0.0
    (found,) = Reranked(Finds(), Rankers("r", ranker), ValueCache("")).find(ASKED[:1])
    assert [passage.text for passage in found] == [passage.text for passage in PASSAGES]
    with pytest.raises(
        UsageError, match=r"retriever_weight=0\.5: the re-ranker r was trained to correct .* weight of 2"
    ):
        Reranked(Finds(), Rankers("r", ranker), store, 0.5)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["evidence.retriever_weight=0.5"], "evidence.reranker"),
        (["evidence.reranker=x", "evidence.retriever_weight=-1"], "at least 0"),
        (["evidence.reranker=x", "evidence.retriever_weight=nan"], "at least 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(values, told):
    with pytest.raises(UsageError, match=told):
        with_overrides(Recipe("r"), ["evidence.kind=retrieved", *values])


def test_no_pair_is_scored_twice(store, tmp_path):
    ranker = Ranks("r")
    Reranked(Finds(PASSAGES * 2), Rankers("r", ranker), store).find(ASKED * 2)
    assert len(ranker.scored) == 6
    again = Reranked(Finds(), Rankers("r", ranker), ValueCache(store.path))
    assert texts(again.find(ASKED)) == [["three three three", "two two", "one"]] * 2
    assert len(ranker.scored) == 6
    other = Ranks("s", lambda pair: -len(pair.text))
    assert texts(Reranked(Finds(), Rankers("s", other), store).find(ASKED[:1])) == [[one.text for one in PASSAGES]]
    assert len(other.scored) == 3
    Reranked(Finds([replace(PASSAGES[0], title="new")]), Rankers("r", ranker), store).find(ASKED[:1])
    assert len(ranker.scored) == 7


def test_what_was_scored_is_kept_when_the_next_fails(store, monkeypatch):
    monkeypatch.setattr("shoulders.evidence.reranked.AT_ONCE", 2)

    def score(pair):
        if pair.title:
            raise KeyboardInterrupt
        return 1.0

    ranker = Ranks("r", score)
    with pytest.raises(KeyboardInterrupt):
        Reranked(Finds(), Rankers("r", ranker), store).find(ASKED[:1])
    ranker.score = lambda pair: 2.0
    assert [one.score for one in Reranked(Finds(), Rankers("r", ranker), store).find(ASKED[:1])[0]] == [2.0, 1.0, 1.0]


def test_fingerprints_tell_rankers_and_sources_apart(store):
    a, b, c = Ranks("a"), Ranks("b"), Ranks("c")
    sources = [
        Reranked(Finds(), Rankers("r", c), store),
        Reranked(Finds(), Rankers("r", b), store),
        Reranked(Finds(), Rankers("r", c, {"a": b, "b": a}), store),
        Reranked(Finds(), Rankers("r", c, {"a": a, "b": b}), store),
    ]
    other = Finds()
    other.fingerprint = "others"
    sources.append(Reranked(other, Rankers("r", c), store))
    assert len({source.fingerprint for source in sources}) == 5
    assert Reranked(Finds(), Rankers("elsewhere", Ranks("c")), store).fingerprint == sources[0].fingerprint


@pytest.fixture
def across(tmp_path):
    """Three tiny re-rankers, each trained on a half or on all; only what they have seen differs, and the heads."""
    bert = save_bert(tmp_path / "bert")
    asked = {"a": ["what is a"], "b": ["what is b"], "all": ["what is a", "what is b"]}
    for number, part in enumerate(CROSS_FITTED):
        made = Reranker.start(bert, dtype="float32", seed=number)
        made.save(tmp_path / "across" / part, replace(made.about, seen=SeenQuestions.of(asked[part])))
    return tmp_path / "across"


def test_a_folder_of_three_is_cross_fitted(across):
    rankers = Rankers.load(str(across))
    assert "what is b" in rankers.ranker_of("a").seen
    assert "what is a" not in rankers.ranker_of("a").seen
    assert "what is a" in rankers.ranker_of("b").seen
    assert len(rankers.ranker_of("").seen) == 2
    single = Rankers.load(str(across / "a"))
    assert single.ranker_of("a").fingerprint == single.ranker_of("").fingerprint == rankers.ranker_of("b").fingerprint


def test_a_folder_with_one_missing_is_refused(across):
    (across / "all" / "reranker.json").unlink()
    with pytest.raises(SourceNotFound, match="no re-ranker in all"):
        Rankers.load(str(across))
    with pytest.raises(SourceNotFound, match="nowhere"):
        Rankers.load(str(across / "nowhere"))


def test_a_recipe_names_its_re_rankers(lm, across, tmp_path):
    rows = [{"title": f"T{n}", "text": f"Oslo has {n} parks and {'many ' * n} trees."} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([str(tmp_path / "rows.jsonl")], tmp_path / "index", Cutting())
    choice = EvidenceChoice("retrieved", index=str(tmp_path / "index"), store=str(tmp_path / "scores.sqlite"))
    recipe = Recipe("r", evidence=choice, suite=SuiteChoice(lengths=Lengths(100, 8)))
    recipe = with_overrides(recipe, ["development.longest=3", "test.longest=3"])
    plain = new_evidence(recipe, lm, 0)
    source = new_evidence(with_overrides(recipe, [f"evidence.reranker={across}"]), lm, 0)
    question = Question("Question: what is a in Oslo\nAnswer:", query="what is a in Oslo")
    assert source.fingerprint != plain.fingerprint
    weighed = new_evidence(
        with_overrides(recipe, [f"evidence.reranker={across}", "evidence.retriever_weight=0.3"]), lm, 0
    )
    assert (source.weight, weighed.weight) == (0.0, 0.3)
    found = source.find([question], "a")[0]
    assert {passage.text for passage in found} == {passage.text for passage in plain.find([question])[0]}
    assert [passage.score for passage in found] == sorted((passage.score for passage in found), reverse=True)
    assert source.find([question])[0][0].score != found[0].score
    assert source.find([Question("what is a")], "a")
    with pytest.raises(UsageError, match="have both seen"):
        source.find([Question("what is a")], "b")
    with pytest.raises(UsageError, match="training question 'what is a'"):  # whatever its wording
        source.find([Question("Question: what is a\nAnswer:", query="what is a")], "b")
    own = new_evidence(with_overrides(recipe, ["evidence.reranker=lm:question"]), lm, 0)  # the model itself
    (ranked,) = own.find([question], "a")
    pairs = [Pair(question.query, passage.title, passage.text) for passage in ranked]
    assert [one.score for one in ranked] == pytest.approx(LanguageModelRanker(lm, "question").scores(pairs), abs=1e-4)
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    with pytest.raises(UnknownName, match=r"lm:answer.*lm:yes"):
        new_evidence(with_overrides(recipe, ["evidence.reranker=lm:answer"]), lm, 0)
