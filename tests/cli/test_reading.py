"""Answers with their passages from the command line: any index, shown, as JSON, typed in; and "no answer"."""

import json
import math

import pytest
from rich.console import Console

from shoulders.answering import open as open_model
from shoulders.answering.spec import LONGEST
from shoulders.cli import ask as ask_module
from shoulders.cli.show import harmless
from shoulders.errors import UsageError
from shoulders.records import Answer, Passage, Question, Support
from shoulders.retrieval.building import build
from shoulders.retrieval.passages import Cutting
from shoulders.runs.build import answer_spec
from shoulders.runs.recipe import Recipe, recipe_from_json, with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

ODD = "\x1b[31mRed\x1b[0m <script>alert(1)</script> [bold]\u202epark"
TEXTS = {"Oslo": "Oslo has 13 parks.", "Rome": "Rome has 12 parks and 13 hills.", "Odd": ODD}


@pytest.fixture
def index(tmp_path):
    rows = [{"id": title, "title": title, "text": text} for title, text in TEXTS.items()]
    (tmp_path / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([str(tmp_path / "cities.jsonl")], tmp_path / "index", Cutting(), as_is=True)
    return tmp_path / "index"


@pytest.fixture
def says(monkeypatch):
    """What the model says, with what log-probability, to questions in turn or with a word; gives what it was asked."""

    def say(*answers, **by_word):
        asked = []

        def one(question):
            asked.append(question.whole)
            known = [answer for word, answer in by_word.items() if word in question.text]
            return Answer(*(known or [answers[len(asked) - 1]])[0], 0.0)

        monkeypatch.setattr(
            "shoulders.answering.answerer.answered", lambda some, *_: [one(question) for question in some]
        )
        return asked

    return say


@pytest.fixture
def prompt(lm, tmp_path):
    """A soft prompt that was trained without passages."""
    scaffold = SoftPrompt(from_vocabulary(lm)(2))
    scaffold.made_for(lm, Recipe("x").as_json()).save_pretrained(tmp_path / "run" / "best")
    return tmp_path / "run"


@pytest.fixture
def ask(lm, index, shoulders):
    """Asks over the index with room for little; gives output and what is told beside it."""

    def run(name, *arguments):
        backbone = ["--backbone", lm.name] if name == "bare" else []
        code, out, error = shoulders("ask", name, *arguments, "--longest", 8, "--index", index, *backbone)
        assert code == 0, error
        return out, error

    return run


def test_the_answer_is_shown_in_the_first_passage_that_has_it(ask, says, index):
    asked = says(("13\nQuestion: more?", math.log(0.5)))
    out, error = ask("bare", "How many parks has Oslo?")
    assert out == "13\n"  # the first line: a bare model goes on
    assert asked[0].endswith("Question: How many parks has Oslo?\nAnswer:")
    assert "Oslo has 13 parks." in asked[0]
    lines = error.splitlines()
    assert lines[0].split()[0] == "1"
    assert lines[0].split()[2:] == ["read", "Oslo"]
    assert lines[1].strip() == "Oslo has 13 parks."
    told = " ".join(error.split())
    assert "in passage 1 of 2 read, Oslo, characters 9 to 11; probability 0.500" in told


def test_what_is_in_no_passage_is_said_plainly(ask, says):
    says(("Lima", -1.0))
    out, error = ask("bare", "How many parks has Oslo?")
    assert out == "Lima\n"
    assert "the answer is not in the evidence (in none of the 2 passages that were read)" in " ".join(error.split())
    says(("", -1.0))
    assert ask("bare", "How many parks has Oslo?")[0] == "no answer\n"


def test_a_scaffold_that_never_read_takes_any_index_too(ask, says, prompt):
    asked = says(("12", -1.0), ("13", -1.0))
    out, _ = ask(prompt, "Parks of Rome?", "Parks of Oslo?")
    assert out == "Parks of Rome?\n  12\nParks of Oslo?\n  13\n"
    assert all("parks" in text for text in asked)


def test_typed_in_and_as_json(ask, says, monkeypatch):
    import io

    says(("12", math.log(0.25)), ("none", -1.0))
    monkeypatch.setattr("sys.stdin", io.StringIO("Parks of Rome?\n\nParks of Lima?\n"))
    out, error = ask("bare", "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert error == ""
    assert (first["question"], first["answer"], first["probability"]) == ("Parks of Rome?", "12", pytest.approx(0.25))
    assert first["passage"]["title"] == "Rome"
    assert first["passage"]["text"][slice(*first["span"])] == "12"
    assert [passage["read"] for passage in first["passages"]] == [True, True, False]
    assert second["passage"] is second["span"] is None


def test_choices_are_made_after_reading(ask):
    out, error = ask("bare", "Parks of Oslo?", "--choices", "13 parks|14 parks")
    assert out.strip() in {"13 parks", "14 parks"}
    assert ("in passage" in error) is (out.strip() == "13 parks")


def test_what_passages_hold_is_shown_and_not_obeyed(ask, says, shoulders, index):
    says(("park \x1b[2J", -1.0))
    out, error = ask("bare", "Red script")
    assert out == "park \N{REPLACEMENT CHARACTER}[2J\n"
    shown = shoulders("search", index, "Red script")[1]
    for text in (error, shown):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "<script>alert(1)</script> [bold]" in shown
    assert harmless("a\tb\nc\x07é") == "a b c\N{REPLACEMENT CHARACTER}é"


def test_the_answer_is_highlighted():
    found = Answer(
        "13", -1.0, 0.0, (Passage("\tOslo has 13 parks", 1.0),), (Passage("\tOslo has 13", 1.0),), Support(0, 10, 12)
    )
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as capture:
        for line in ask_module.passage_lines(found):
            console.print(line)
    assert "Oslo has \x1b[1;32m13\x1b[0m" in capture.get()


def test_in_a_notebook_markup_of_passages_is_text():
    passage = Passage("<i>Oslo</i> has 13", 1.0, "<b>")
    shown = Answer("13", -1.0, 0.0, (passage,), (passage,), Support(0, 16, 18))._repr_html_()
    assert "&lt;i&gt;Oslo&lt;/i&gt; has <mark>13</mark>" in shown
    assert "<b>&lt;b&gt;</b>" in shown


def test_from_python(lm, index, says, prompt):
    says(("12", -1.0), ("13", -1.0), ("13", -1.0))
    reader = open_model(str(prompt), index=str(index), lm=lm)
    one = reader.ask("Parks of Rome?")
    assert one.passage is not None
    assert one.span is not None
    assert one.passage.text[slice(*one.span)] == one.answer == "12"
    assert 0 < len(one.read) <= len(one.passages)
    assert [two.text for two in reader.ask_all(["Parks of Oslo?", "Parks of Rome?"])] == ["13", "13"]
    with pytest.raises(UsageError, match="bare model has no scaffold to name its backbone"):
        open_model("bare", index=str(index))


def test_bad_indexes_are_refused(refused, prompt, tmp_path, index, lm):
    assert "nowhere is not an index" in refused("ask", prompt, "hi", "--index", "nowhere")
    assert "add --backbone NAME" in refused("ask", "bare", "hi", "--index", index)
    many = refused("ask", prompt, "hi", "--index", index, "--longest", 128)
    assert "no room" in many or "needs" in many


@pytest.fixture
def reader(lm, index, tmp_path):
    """A run that reads the index, on questions with an answer in it and without."""
    rows = [
        {"question": f"Parks of {city}?", "answers": [answer]}
        for city, answer in (("Rome", "12"), ("Oslo", "13"), ("Lima", "99"), ("Bern", "98"))
    ]
    for part in ("train", "dev", "test"):
        (tmp_path / f"parks.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = with_overrides(
        recipe_named("reader"),
        [
            f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source=qa:{tmp_path}/parks",
            f"evidence.index={index}", "suite.lengths.input=100", "suite.lengths.target=8", "development.longest=3",
            "test.longest=3",
        ],
    )  # fmt: skip
    SoftPrompt(from_vocabulary(lm)(2)).made_for(
        lm, recipe.as_json(), answering=answer_spec(recipe).as_json()
    ).save_pretrained(tmp_path / "reader" / "best")
    return tmp_path / "reader"


SAID = {
    "Rome": ("12", math.log(0.9)),
    "Oslo": ("13", math.log(0.6)),
    "Lima": ("12 parks", math.log(0.2)),
    "Bern": ("Lima", math.log(0.8)),
}


def test_no_answer_under_a_threshold_that_was_chosen(reader, says, shoulders, lm):
    """Rome and Oslo are read and answered; of Lima and Bern nothing is."""
    says(**SAID)
    code, out, error = shoulders("threshold", reader, "--test")
    assert code == 0, error
    told = " ".join(out.split())
    assert "one was for 50.0% of 4 questions" in told
    assert "that stands in the passages read is given from a probability of 0.400" in told
    assert "an answer that does not is given never" in told
    kept = json.loads((reader / "best" / "threshold.json").read_text())
    assert kept["threshold"] == {"standing": pytest.approx(0.4), "elsewhere": "inf"}
    chosen = kept["chosen_on"]
    assert chosen["before"] == {"coverage": 100.0, "exact_match_answered": 50.0, "exact_match": 50.0, "f1": 50.0}
    assert chosen["after"] == {"coverage": 50.0, "exact_match_answered": 100.0, "exact_match": 100.0, "f1": 100.0}
    assert (chosen["split"], chosen["examples"]) == ("validation", 4)
    assert kept["measured_on"][0]["after"] == chosen["after"]
    assert kept["backbone"]["fingerprint"] == lm.fingerprint()
    says(("12", math.log(0.3)), ("Lima", math.log(0.9)), ("12", math.log(0.5)))
    answers = [shoulders("ask", reader, "Parks of Rome?") for _ in range(3)]
    assert [out for _, out, _ in answers] == ["no answer\n", "no answer\n", "12\n"]
    told = [" ".join(error.split()) for _, _, error in answers]
    assert "'12' is not sure enough: probability 0.300, it must be at least 0.400" in told[0]
    assert "'Lima' is not sure enough: probability 0.900, such answers are never given" in told[1]
    assert "the answer is not in the evidence" in told[1]
    says(("12", math.log(0.3)), ("Lima", math.log(0.9)))
    said = [json.loads(shoulders("ask", reader, "Parks of Rome?", "--json")[1]) for _ in range(2)]
    assert [(one["answer"], one["said"]) for one in said] == [(None, "12"), (None, "Lima")]
    assert said[1]["least"] is None


def test_a_threshold_of_another_scaffold_is_refused(reader, says, shoulders, refused, lm):
    says(**SAID)
    assert shoulders("threshold", reader)[0] == 0
    path = reader / "best" / "threshold.json"
    kept = json.loads(path.read_text())
    for change, said in (
        ({"scaffold": {"fingerprint": "other"}}, "was chosen for another scaffold"),
        ({"format": 1}, "has format 1, this version reads 2"),
        ({"threshold": {}}, "holds no threshold"),
    ):
        path.write_text(json.dumps({**kept, **change}))
        assert said in refused("ask", reader, "Parks of Rome?")
    says(**SAID)
    assert shoulders("threshold", reader)[0] == 0  # what is broken is chosen again
    fresh = SoftPrompt(from_vocabulary(lm)(2))
    fresh.made_for(lm, kept["recipe"]).save_pretrained(reader / "best")  # trained again: what was chosen is gone
    assert not path.exists()


def test_a_threshold_says_what_it_was_chosen_over(reader, says, shoulders, tmp_path, index):
    """Values of the command line are those that are read by; asked over other passages, a note names both."""
    says(**SAID)
    assert shoulders("threshold", reader, "evidence.passages=1")[0] == 0
    kept = json.loads((reader / "best" / "threshold.json").read_text())
    assert kept["recipe"]["evidence"]["passages"] == 1
    assert kept["chosen_on"]["answerable"] == 50.0
    few = kept["evidence"]["fingerprint"]
    says(("12", -1.0))
    told = " ".join(shoulders("ask", reader, "Parks of Rome?")[2].split())
    assert f"was chosen over {index} ({few[:12]}), and what is read now is {index} (" in told
    says(**SAID)
    assert shoulders("threshold", reader)[0] == 0
    assert json.loads((reader / "best" / "threshold.json").read_text())["evidence"]["fingerprint"] != few
    says(("12", -1.0))
    assert "note:" not in shoulders("ask", reader, "Parks of Rome?")[2]
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "Bern", "title": "Bern", "text": "Bern has 14 parks."}))
    build([str(tmp_path / name) for name in ("cities.jsonl", "more.jsonl")], tmp_path / "other", Cutting())
    says(("12", -1.0))
    told = " ".join(shoulders("ask", reader, "Parks of Rome?", "--index", tmp_path / "other")[2].split())
    assert f"and what is read now is {tmp_path / 'other'} (" in told


@pytest.mark.parametrize("longest", [None, 50])
def test_passages_leave_room_for_as_much_as_is_answered(reader, lm, longest):
    """At the limit of the context, and with no more than the recipe measures unless it is asked for."""
    scaffold = Scaffold.load(str(reader / "best"), lm)
    recipe = with_overrides(recipe_from_json(scaffold.origin.recipe), ["suite.lengths.input=1000"])
    scaffold.made_for(lm, recipe.as_json(), answering=answer_spec(recipe).as_json()).save_pretrained(reader / "best")
    found = open_model(str(reader), lm=lm, longest=longest)
    assert found.how.longest == (longest or recipe.test.longest)
    room = max(found.how.longest, recipe.suite.lengths.target, recipe.evidence.longest)
    assert found.evidence.packer.room == lm.context - scaffold.length - room
    question = Question("Parks of Rome?")
    read = found.ask(question)
    assert 0 < len(read.read) < len(read.passages)  # one more would not fit
    if longest is None:  # the answer takes the room that is left; 64 tokens would not fit
        whole = found.evidence.packed(found.spec.question(question), read.passages).question.whole
        assert len(lm.ids(whole)) > lm.context - scaffold.length - LONGEST


def test_what_no_threshold_can_be_chosen_for(refused, prompt, index):
    assert "'bare' has none" in refused("threshold", "bare")
    assert "no index is named" in refused("threshold", prompt)


def test_a_reader_of_annotated_passages_is_asked_over_its_index(reader, says, lm):
    scaffold = Scaffold.load(str(reader / "best"), lm)
    recipe = recipe_from_json({**scaffold.origin.recipe})
    recipe = with_overrides(recipe, ["evidence.kind=oracle"])
    scaffold.made_for(lm, recipe.as_json(), answering=answer_spec(recipe).as_json()).save_pretrained(reader / "best")
    says(("12", -1.0))
    found = open_model(str(reader), lm=lm).ask("Parks of Rome?")
    assert found.passage is not None
    assert found.passage.title == "Rome"
