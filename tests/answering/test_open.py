"""Answerers of all kinds are opened by name and asked in the same way."""

import json
import subprocess
import sys

import pytest

import shoulders
from shoulders.answering.calibration import Point
from shoulders.answering.models import RivalInfo, model_info
from shoulders.answering.spec import AnswerSpec
from shoulders.answering.stages import Calibration, Cascade, Stage, save
from shoulders.data.readers import QUESTION_WORDING
from shoulders.engine.batches import Lengths
from shoulders.engine.inference import Answering, Sampling, answered, rank, sample
from shoulders.errors import ContextFull, CorruptFile, UsageError
from shoulders.evidence.choice import EvidenceChoice
from shoulders.paper.rivals import new_rival
from shoulders.records import Question
from shoulders.retrieval.building import build
from shoulders.retrieval.passages import Cutting
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.scaffolds.storage import Origin
from shoulders.training.plan import RivalChoice
from tiny import save_lm

ASKED = "Who lives in Rome?"
LONGEST = 5
CHOICES = ("a cat", "the emperor of all the cats", "nobody")
WORDED = AnswerSpec(wording=QUESTION_WORDING, longest=LONGEST)


@pytest.fixture
def index(tmp_path):
    rows = [{"title": city, "text": f"In {city} lives a {pet}."} for city, pet in (("Rome", "cat"), ("Bern", "bear"))]
    (tmp_path / "pets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([str(tmp_path / "pets.jsonl")], tmp_path / "index", Cutting(), as_is=True)
    return tmp_path / "index"


def kept(scaffold, lm, folder, spec):
    """Save a scaffold as a run leaves it; returns the folder of the run."""
    scaffold.made_for(lm, answering=spec.as_json()).save_pretrained(folder / "best")
    return folder


def prompt(lm, length=2, seed=0):
    return SoftPrompt(from_vocabulary(lm, seed)(length))


@pytest.fixture
def named(lm, index, tmp_path, request):
    """The name of something that answers, of each kind."""
    reading = EvidenceChoice("retrieved", index=str(index), passages=2)
    sampled = EvidenceChoice("candidates", "bare", count=2, longest=3)
    lengths = Lengths(100, 8)
    specs = {
        "scaffold": WORDED,
        "reader": AnswerSpec(QUESTION_WORDING, reading, lengths, LONGEST),
        "textual recursion": AnswerSpec(QUESTION_WORDING, sampled, lengths, LONGEST),
    }
    if request.param in specs:
        return str(kept(prompt(lm), lm, tmp_path / "run", specs[request.param]))
    if request.param == "cascade":
        folder = kept(Recursion(lm, RecursionShape(layers=1)), lm, tmp_path / "twice", WORDED)
        stages = (Stage.of(Bare()), Stage.of(Scaffold.load(folder / "best", lm), str(folder)))
        point = Point((-1e-9,), 2.0, 1.0)  # the first stage is never as sure
        calibration = Calibration("probability", 2.0, point, [point], {}, WORDED.as_json())
        save(tmp_path / "cascade", Cascade(stages, point.thresholds), lm, calibration, {})
        return str(tmp_path / "cascade")
    if request.param in ("lora", "full"):
        (tmp_path / "rival").mkdir()
        new_rival(RivalChoice(request.param), lm, 3, 0).write(tmp_path / "rival")
        origin = Origin(lm.name, lm.fingerprint(), lm.width, answering=WORDED.as_json())
        RivalInfo(tmp_path / "rival", request.param, 3, 1, origin).write()
        return str(tmp_path / "rival")
    return request.param


KINDS = ["bare", "scaffold", "reader", "textual recursion", "cascade", "lora", "full"]
kinds = pytest.mark.parametrize("named", KINDS, indirect=True)


@kinds
def test_each_kind_is_opened_and_asked(named, lm):
    """A string and a question give the same, one by one and together, generated, chosen, sampled and in pieces."""
    answerer = shoulders.open(named, lm=lm, longest=LONGEST)
    one = answerer.ask(ASKED)
    assert one == answerer.ask(Question(ASKED))
    two = answerer.ask_all([Question("Who lives in Bern?"), ASKED])
    assert (two[1].text, two[1].log_probability) == (one.text, pytest.approx(one.log_probability, abs=1e-4))
    assert "".join(answerer.stream(ASKED)) == one.text
    scores = answerer.rank(ASKED, CHOICES)
    chosen = answerer.ask(ASKED, CHOICES)
    assert chosen.text == CHOICES[scores.index(max(scores))]
    assert answerer.ask_all([ASKED], [CHOICES]) == [chosen]
    assert [drawn.text for drawn in answerer.sample(ASKED, Sampling(3))][:2] == [
        drawn.text for drawn in answerer.sample(Question(ASKED), Sampling(2))
    ]
    assert json.loads(json.dumps(one.as_json(), allow_nan=False))["said"] == one.text


@pytest.mark.parametrize("named", ["scaffold", "lora"], indirect=True)
def test_what_is_asked_is_the_pipelines_answer_in_the_wording_of_training(named, lm):
    answerer = shoulders.open(named, lm=lm)
    assert answerer.how == Answering(LONGEST, on_cut=answerer.how.on_cut)
    question = Question(f"Question: {ASKED}\nAnswer:")
    scaffold = answerer.scaffold
    (wanted,) = answered([question], answerer.lm, scaffold, Answering(LONGEST))
    found = answerer.ask(ASKED)
    assert (found.text, found.log_probability, found.margin) == (wanted.text, wanted.log_probability, wanted.margin)
    assert answerer.ask(question) == answerer.ask(question.text) == found  # worded already
    assert answerer.rank(ASKED, CHOICES) == rank([question], [CHOICES], answerer.lm, scaffold)[0]
    drawn = sample([question], answerer.lm, scaffold, Sampling(2), Answering(LONGEST))[0]
    assert [one.text for one in answerer.sample(ASKED, Sampling(2))] == [one.text for one in drawn]


@pytest.mark.parametrize("named", ["reader", "textual recursion", "cascade"], indirect=True)
def test_one_record_says_what_an_answer_comes_from(named, lm, request):
    kind = request.node.callspec.params["named"]
    found = shoulders.open(named, lm=lm).ask(ASKED)
    assert found.passes == {"reader": 1, "textual recursion": 2, "cascade": 3}[kind]
    assert bool(found.passages) == bool(found.read) == (kind == "reader")
    assert bool(found.candidates) == (kind == "textual recursion")
    if kind == "reader":
        assert found.passages[0].title == "Rome"
        assert found.read == found.passages[: len(found.read)]
        assert found.as_json()["passages"][0] == {
            "title": "Rome", "text": "In Rome lives a cat.", "score": found.passages[0].score, "read": True
        }  # fmt: skip


def test_a_failure_while_an_answer_is_streamed_reaches_its_reader(lm, monkeypatch):
    answerer = shoulders.open("bare", lm=lm)
    with pytest.raises(ContextFull):
        next(answerer.stream("word " * 300))

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("shoulders.engine.decode.decode", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(answerer.stream("Hi"))


def test_the_functions_of_the_pipeline_take_strings(lm):
    how, asked = Answering(3), ["Hi", "Name a planet."]
    questions = [Question(text) for text in asked]
    for call in (
        lambda some: answered(some, lm, Bare(), how),
        lambda some: rank(some, [CHOICES] * 2, lm, Bare(), how),
        lambda some: sample(some, lm, Bare(), Sampling(2), how),
    ):
        assert call(asked) == call(questions)


def test_another_index_and_another_length(lm, index, tmp_path):
    folder = kept(prompt(lm), lm, tmp_path / "run", AnswerSpec(longest=LONGEST))
    plain, reading = (shoulders.open(str(folder), lm=lm, index=place, longest=7) for place in ("", str(index)))
    assert (plain.how.longest, plain.evidence, plain.spec.wording) == (7, None, "{query}")
    assert (reading.how.longest, reading.spec.wording) == (7, QUESTION_WORDING)
    assert reading.ask(ASKED).passages[0].title == "Rome"


def test_the_backbone_is_the_one_that_the_scaffold_names(lm, tmp_path):
    folder = kept(prompt(lm), lm, tmp_path / "run", WORDED)
    assert shoulders.open(str(folder)).lm.fingerprint() == lm.fingerprint()
    assert shoulders.open("bare", backbone=lm.name).ask("Hi").passes == 1
    with pytest.raises(UsageError, match="the bare model has no scaffold to name its backbone"):
        shoulders.open("bare")


def test_a_folders_weights_are_not_read_to_learn_its_name(lm, tmp_path):
    folder = kept(prompt(lm), lm, tmp_path / "run", WORDED)
    (folder / "best" / "model.safetensors").write_bytes(b"no weights at all")
    info = model_info(str(folder))
    assert (info.backbone, info.origin.fingerprint, info.spec) == (lm.name, lm.fingerprint(), WORDED)
    with pytest.raises(CorruptFile):
        shoulders.open(str(folder), lm=lm)


@pytest.mark.parametrize("file", ["scaffold", "rival"])
def test_folders_of_an_older_format_are_refused_with_how_to_make_them_anew(lm, tmp_path, refused, file):
    if file == "scaffold":
        place = kept(prompt(lm), lm, tmp_path / "run", WORDED) / "best" / "config.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "format": 1}))
    else:
        (tmp_path / "run").mkdir()
        place = tmp_path / "run" / "rival.json"
        place.write_text(json.dumps({"origin": {}, "trained": 1}))
    told = refused("ask", tmp_path / "run", "hi")
    assert "has format 1, this version reads 2: train it anew (shoulders train" in told


def test_a_fresh_process_opens_a_recursion_as_its_card_says_and_imports_nothing_that_trains(lm, tmp_path):
    folder = kept(Recursion(lm, RecursionShape(layers=1)), lm, tmp_path / "run", WORDED)
    card = (folder / "best" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("THIS_REPOSITORY", str(folder))
    code += "\nimport sys; print(*[name for name in sys.modules if name.startswith('shoulders.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, imported = done.stdout.rstrip().rsplit("\n", 1)
    assert said == shoulders.open(str(folder), lm=lm).ask("...").text
    loaded = {name.split(".")[1] for name in imported.split()}
    assert "answering" in loaded
    assert not loaded & {"training", "runs", "evaluation", "cli"}


def test_json_has_the_same_keys_whatever_answers(lm, index, tmp_path, shoulders):
    folder = kept(prompt(lm), lm, tmp_path / "run", WORDED)
    said = [
        json.loads(shoulders("ask", folder, ASKED, "--json", *more)[1])
        for more in ((), ("--index", index, "--longest", 5))
    ]
    assert said[0].keys() == said[1].keys()
    assert [bool(one["passages"]) for one in said] == [False, True]


def test_what_cannot_be_opened_is_refused_with_what_it_is(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Rome is in Italy.")
    save_lm("llama", tmp_path / "model")
    for name, options, said in (
        (None, {}, "got None: name one"),
        (" ", {}, "got ' ': name one"),
        (prompt(lm), {}, "got a SoftPrompt: name one"),
        ("notes.txt", {}, "'notes.txt' is a file, and a scaffold is a folder"),
        ("model", {}, r"model holds a model and no scaffold.*open\('bare', backbone='model'\)"),
        ("bare", {"lm": "model"}, r"lm is a str: give a FrozenLM \(lm=\), or the name of a model \(backbone=\)"),
        ("bare", {"longest": "8"}, "longest is '8': give a whole number"),
    ):
        with pytest.raises(UsageError, match=said):
            shoulders.open(name, **{"lm": lm, **options})


def test_what_is_no_question_is_refused(lm):
    bare = shoulders.open("bare", lm=lm, longest=2)
    for wrong, kind in ((None, "NoneType"), (["Who?"], "list"), (3, "int")):
        with pytest.raises(UsageError, match=f"a question is a {kind}: give a string or a Question"):
            bare.ask(wrong)
    with pytest.raises(UsageError, match="there are 2 questions and choices of 1: give a list for each"):
        bare.ask_all(["Who?", "Where?"], [["a", "b"]])


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, None) for key in ("description", "backbone", "recipe", "scores", "answering")), ("answering", []),
     ("kind", None), ("kind", ["soft_prompt"])],
)  # fmt: skip
def test_a_configuration_of_other_types_is_refused_as_broken(key, value, lm, tmp_path):
    folder = kept(prompt(lm), lm, tmp_path / "run", WORDED) / "best"
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, key: value}))
    for name in (folder, folder.parent):
        with pytest.raises(CorruptFile, match=r"config\.json is not a scaffold's configuration"):
            shoulders.open(name, lm=lm)
