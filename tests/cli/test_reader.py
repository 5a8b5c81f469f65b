"""The frozen reader from the command line: an index, a reader trained on it, measured, asked."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import run
from shoulders.answering import open as open_model
from shoulders.answering.models import model_info
from shoulders.backbone.fingerprint import identity
from shoulders.cli.main import app
from shoulders.cli.scores import print_retrieval
from shoulders.data.matching import NOT_FOUND
from shoulders.engine import inference
from shoulders.errors import ContextFull, SourceNotFound, UsageError
from shoulders.evaluation import protocol
from shoulders.evaluation.recall import retrieval
from shoulders.evidence.base import SOURCES
from shoulders.evidence.candidates import FirstPass
from shoulders.evidence.packing import Packer
from shoulders.records import Example, Passage, Question
from shoulders.retrieval.building import build
from shoulders.retrieval.passages import Cutting
from shoulders.runs.build import answer_spec, new_evidence
from shoulders.runs.recipe import recipe_from_json, with_overrides
from shoulders.runs.registry import recipe_named

CITIES = ("Paris", "Rome", "Oslo", "Quito", "Lima", "Bern")


@pytest.fixture
def index(tmp_path) -> Path:
    """Short texts of cities; what each is known for stands in no other."""
    rows = [{"title": f"On {city}", "text": f"{city} has {n} parks."} for n, city in enumerate(CITIES, start=11)]
    (tmp_path / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([str(tmp_path / "cities.jsonl")], tmp_path / "index", Cutting())
    return tmp_path / "index"


@pytest.fixture
def values(lm, index, tmp_path) -> list[str]:
    """What makes the recipe small enough for a tiny model of 128 positions."""
    rows = [
        {"question": f"How many parks has {city}?", "answers": [str(number)]} for number, city in enumerate(CITIES, 11)
    ]
    for part, some in (("train", rows), ("dev", rows[:2]), ("test", rows[2:])):
        (tmp_path / f"parks.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", "scaffold.length=3", f"suite.source=qa:{tmp_path}/parks",
        "suite.lengths.input=100", "suite.lengths.target=8", "training.batch_size=2", "training.steps=2",
        "training.save_every=2", "training.evaluate_every=2", "development.longest=3", "test.longest=3",
        "evidence.passages=3",
    ]  # fmt: skip


@pytest.mark.parametrize("placement", ["prefix", "infix", "suffix"])
def test_a_reader_is_trained_measured_and_asked(values, index, tmp_path, placement):
    own = [*values, f"evidence.index={index}", f"scaffold.placement={placement}"]
    told = run("train", "reader", *own, "--out", tmp_path / "run")
    assert "examples left out: none" in " ".join(told.split())
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["retrieval"]["recall"] == {"1": 100.0, "3": 100.0}  # the question names the city
    assert result["retrieval"]["recall_at_input"] == 100.0
    assert 1 <= result["retrieval"]["packed"] < 3
    assert result["truncated"] == 0
    assert result["evidence"]["kind"] == "retrieved"
    assert result["evidence"]["index"] == str(index)
    assert f"read ({result['retrieval']['packed']:.1f} on average): 100.0%" in " ".join(told.split())
    kept = recipe_from_json(json.loads((tmp_path / "run" / "recipe.json").read_text()))
    assert model_info(str(tmp_path / "run")).spec == answer_spec(kept)
    if placement == "prefix":
        told = run("evaluate", tmp_path / "run", "--out", tmp_path / "again.json")
        again = json.loads((tmp_path / "again.json").read_text())
        for key in ("retrieval", "evidence", "examples_hash"):
            assert again[key] == result[key]
        assert again["wordings"][0]["measured"] == result["wordings"][0]["measured"]
        run("evaluate", "bare", "--recipe", "reader", *own, "--out", tmp_path / "bare.json")
        bare = json.loads((tmp_path / "bare.json").read_text())
        assert bare["retrieval"] == result["retrieval"]  # the same passages are read without a prompt
        asked = CliRunner().invoke(
            app, ["ask", str(tmp_path / "run"), "Question: How many parks has Oslo?\nAnswer:", "--longest", "3"]
        )
        assert asked.exit_code == 0, asked.output
        assert asked.stderr.split()[2:5] == ["read", "On", "Oslo"]
        assert "the answer is not in the evidence" in asked.stderr


def test_evidence_is_loaded_once(values, index, tmp_path, monkeypatch):
    loaded = []
    found = SOURCES["retrieved"]
    counting = replace(found, new=lambda *given: loaded.append(given) or found.new(*given))
    monkeypatch.setitem(SOURCES._known, "retrieved", counting)
    own = [*values, f"evidence.index={index}"]
    run("train", "reader", *own, "--out", tmp_path / "run")
    assert len(loaded) == 1
    run("train", "reader", *own, "--rival", "lora", "--out", tmp_path / "lora")
    assert len(loaded) == 2
    for count, name in enumerate(("run", "lora"), start=3):
        run("evaluate", tmp_path / name)
        assert len(loaded) == count


@pytest.mark.parametrize("kind", ["lora", "prefix_tuning", "full"])
def test_a_rival_reads_and_has_a_threshold(values, index, lm, tmp_path, kind):
    own = [*values, f"evidence.index={index}", "rival.learning_rate=0.1"]
    run("train", "reader", *own, "--rival", kind, "--out", tmp_path / "run")
    reader = open_model(str(tmp_path / "run"), lm=lm)
    assert (identity(reader.lm.model) == identity(lm.model)) == (kind == "prefix_tuning")
    question = "How many parks has Lima?"
    found = reader.ask(question)
    assert any(passage.title == "On Lima" for passage in found.read)
    told = json.loads(run("ask", tmp_path / "run", question, "--json").splitlines()[-1])
    assert (told["said"], told["probability"]) == (found.text, pytest.approx(found.probability, rel=0.05))
    run("threshold", tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "best" / "threshold.json").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert kept["scaffold"]["fingerprint"] == results["scaffold"]["fingerprint"]
    assert kept["scaffold"]["kind"] == kind
    assert kept["backbone"]["fingerprint"] == lm.fingerprint()
    assert open_model(str(tmp_path / "run"), lm=lm).spec.threshold is not None


def test_answers_are_sampled_after_the_passages_that_are_measured_with(values, index, tmp_path, monkeypatch):
    own = [*values, f"evidence.index={index}"]
    run("train", "reader", *own, "--out", tmp_path / "run")
    measured, sampled = [], []
    answered, samples = inference.answered, FirstPass.samples
    monkeypatch.setattr(protocol, "answered", lambda some, *rest: measured.extend(some) or answered(some, *rest))
    monkeypatch.setattr(
        FirstPass, "samples", lambda self, some, count: sampled.extend(some) or samples(self, some, count)
    )
    run("evaluate", tmp_path / "run", "--out", tmp_path / "scores.json")
    run("sample", tmp_path / "run", "--samples", "2", "--out", tmp_path / "samples.json")
    assert [question.whole for question in sampled] == [question.whole for question in measured]
    assert all("parks." in question.evidence for question in sampled)
    scores, kept = (json.loads((tmp_path / name).read_text()) for name in ("scores.json", "samples.json"))
    assert kept["evidence"] == scores["evidence"]
    assert kept["examples_hash"] == scores["examples_hash"]


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("evidence.index=", UsageError, r"evidence\.index=FOLDER"),
        ("evidence.index=nowhere", SourceNotFound, "nowhere is not an index"),
        ("evidence.passages=0", UsageError, r"evidence\.passages is 0"),
        ("suite.lengths.target=128", ContextFull, "an answer of 128 tokens"),
    ],
)
def test_what_cannot_be_read_is_refused_before_training(values, index, tmp_path, override, error, message):
    with pytest.raises(error, match=message):
        run("train", "reader", *values, f"evidence.index={index}", override, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_oracle_passages_are_measured_like_others(values, index, tmp_path):
    """Annotated passages only: each question reads one, its own."""
    rows = [
        {"question": "How many parks?", "answers": [str(n)], "gold_passage_ids": [str(n - 10)]}
        for n in range(11, 11 + len(CITIES))
    ]
    for part in ("train", "dev", "test"):
        (tmp_path / f"parks.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [*values, f"evidence.index={index}", "evidence.kind=oracle"]
    run("evaluate", "bare", "--recipe", "reader", *own, "--out", tmp_path / "bare.json")
    result = json.loads((tmp_path / "bare.json").read_text())
    assert (result["retrieval"]["recall_at_input"], result["retrieval"]["packed"]) == (100.0, 1.0)
    assert result["retrieval"]["supported"] == 0.0
    assert result["evidence"]["kind"] == "oracle"
    with pytest.raises(UsageError, match=r"evidence\.distractors is 4: it must be from 0"):
        run("evaluate", "bare", "--recipe", "reader", *own, "evidence.distractors=4")
    (tmp_path / "parks.test.jsonl").write_text(json.dumps({"question": "Who?", "answers": ["I"]}) + "\n")
    with pytest.raises(UsageError, match="no passage is annotated"):
        run("evaluate", "bare", "--recipe", "reader", *own)


def test_without_the_search_libraries_it_is_said_how_to_get_them(lm, values, index, monkeypatch):
    recipe = with_overrides(recipe_named("reader"), [*values, f"evidence.index={index}"])
    for module in [name for name in sys.modules if name.startswith("shoulders.retrieval.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tantivy", None)
    with pytest.raises(SourceNotFound, match=r"needs tantivy: pip install 'shoulders\[search\]'"):
        new_evidence(recipe, lm, 3)


def test_a_question_is_searched_for_without_the_words_around_it(lm, values, index, tmp_path):
    (tmp_path / "answers.jsonl").write_text(json.dumps({"text": "Answer this question: which answer?"}) + "\n")
    build([str(tmp_path / "answers.jsonl")], index, Cutting())
    recipe = with_overrides(recipe_named("reader"), [*values, f"evidence.index={index}"])
    source = new_evidence(recipe, lm, 3)
    assert source is not None
    (found,) = source.find([Question("Question: How many parks has Lima?\nAnswer:", query="How many parks has Lima?")])
    assert found[0].title == "On Lima"
    assert all(passage.title for passage in found)


def test_a_passage_is_cut_only_where_the_recipe_says_so(lm, values, index):
    own = [*values, f"evidence.index={index}", "suite.lengths.input=60"]
    sources = [
        new_evidence(with_overrides(recipe_named("reader"), [*own, f"evidence.truncate={cut}"]), lm, 3)
        for cut in ("no", "yes")
    ]
    assert sources[0] is not None
    assert sources[1] is not None
    assert sources[0].fingerprint != sources[1].fingerprint
    question = Question("Question: How many parks has Rome?\nAnswer:")
    whole, cut = (source.write(question, source.find([question])[0]) for source in sources if source)
    assert len(lm.ids(whole.whole)) <= len(lm.ids(cut.whole)) <= 60


class Found:
    """Passages that are the same for every question; the packer is a real one."""

    passes, fingerprint = 0, ""

    def __init__(self, lm, room, passages):
        self.packer, self.passages = Packer(lm, room), passages

    def find(self, questions, fold=""):
        return [self.passages for _ in questions]

    def packed(self, question, passages):
        return self.packer.pack(question, passages)

    def write(self, question, passages):
        return self.packed(question, passages).question


def test_recall_counts_only_what_is_read(lm):
    """The third passage is found, and not read; titles do not count."""
    passages = [Passage("one", 3.0, "ten"), Passage("two", 2.0), Passage("three", 1.0)]
    question = Question("?")
    room = len(lm.ids("ten\none\n\ntwo\n\n?"))
    examples = [
        Example("task", "wording", answer, question, answer, (answer,)) for answer in ("one", "two", "three", "ten")
    ]
    found = retrieval(examples, Found(lm, room, passages), 3, ["One", "three", "", "two"])
    assert found.recall == {1: 25.0, 3: 75.0}
    assert found.supported == 50.0
    assert found.recall_at_input == 50.0
    assert found.first_at_input == (0, 1, NOT_FOUND, NOT_FOUND)
    assert found.packed == 2
    assert found.without == found.too_long == 0
    endless = [Passage("word " * 200, 1.0)]
    found = retrieval(examples, Found(lm, room, endless), 1)
    assert (found.recall_at_input, found.packed, found.without, found.too_long) == (0.0, 0, 4, 4)
    with pytest.raises(UsageError, match="0 questions"):
        retrieval([], Found(lm, room, passages), 3)


def test_dprs_own_rule_is_named_beside_ours(lm, capsys):
    passages = [Passage("日本の首都は東京です。", 1.0), Passage("in Ocean\u2019s Eleven", 1.0)]
    examples = [Example("task", "wording", gold, Question("?"), gold, (gold,)) for gold in ("東京", "Ocean's Eleven")]
    found = retrieval(examples, Found(lm, 500, passages), 2, ["東京", "twelve"]).as_json()
    assert (found["recall"], found["recall_at_input"]) == ({"1": 50.0, "2": 100.0}, 100.0)
    assert (found["recall_by_dpr"], found["recall_at_input_by_dpr"]) == ({"1": 0.0, "2": 0.0}, 0.0)
    assert found["supported"] == 50.0
    print_retrieval({"retrieval": found})
    assert "by DPR's rule, recall of the passages found, at 1: 0.0%, 2: 0.0%;" in capsys.readouterr().out
