"""Worked examples before a question: which ones, how many fit, and that they come along with a scaffold."""

import json
import shutil
from collections import Counter

import pytest

import shoulders
from commands import run as command
from shoulders.answering.spec import AnswerSpec, spec_from_json
from shoulders.engine.batches import Lengths
from shoulders.engine.inference import Answering, answered, before_stop
from shoulders.errors import UnknownName, UsageError
from shoulders.evidence.base import with_evidence
from shoulders.evidence.demonstrations import (
    Demonstration,
    Demonstrations,
    DemonstrationsConfig,
    balanced,
    count_demonstrations,
    stops_of,
)
from shoulders.evidence.kinds import new_source
from shoulders.records import Chat, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.soft_prompt import SoftPrompt
from small_values import CLUSTERS, save_suite, small_values

ROOM = Lengths(120, 4)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_suite(tmp_path_factory.mktemp("suite"), CLUSTERS)


@pytest.fixture
def cities(tmp_path):
    """A file of questions, some of which are alike."""
    rows = [
        *({"question": f"What is the capital of {land}?", "answer": [city]} for land, city in
          (("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima"), ("Chad", "N'Djamena"))),
        *({"question": f"Which river runs through {city}?", "answer": [river]} for city, river in
          (("Paris", "Seine"), ("Rome", "Tiber"), ("Bonn", "Rhine"))),
    ]  # fmt: skip
    (tmp_path / "cities.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"qa:{tmp_path / 'cities'}"


def source(lm, lengths=ROOM, prompt=0, **values) -> Demonstrations:
    made = new_source(DemonstrationsConfig(**values), lm, prompt, lengths)
    assert isinstance(made, Demonstrations)
    return made


def test_fixed_examples_are_of_the_task_balanced_and_never_the_question(lm, suite):
    made = source(lm, count=4, source=str(suite))
    asked = [Question("Is 6 even or odd?", task="parity/choose"), Question("After 6 comes", task="counting/count")]
    even, counted = made.find(asked)
    assert len(even) == len(counted) == 4
    assert Counter(one.text.rpartition("?")[2] for one in even) == {" parity even": 2, " parity odd": 2}
    assert all(one.text.startswith("After 1") for one in counted)
    assert made.find(asked) == [even, counted]
    assert source(lm, count=4, source=str(suite), seed=1).find(asked) != [even, counted]
    text, _, answer = counted[0].text.rpartition(" ")
    (others,) = made.find([Question(text, task="counting/count")])
    assert others[:3] == counted[1:]
    assert len({one.text for one in others}) == 4
    (mixed,) = made.find([Question("typed in")])
    assert len(mixed) == 4
    assert len({one.text.split()[0] for one in mixed} | {answer}) > 1
    assert made.find([]) == []


def test_labels_take_turns():
    some = [Demonstration("t", str(n), label, str(n), label=True) for n, label in enumerate("aaabac")]
    assert [one.answer for one in balanced(iter(some), 5)] == ["a", "b", "c", "a", "a"]
    open_ended = [Demonstration("t", str(n), answer, str(n)) for n, answer in enumerate("aab")]
    assert [one.answer for one in balanced(iter(open_ended), 2)] == ["a", "a"]


@pytest.mark.parametrize("choice", ["sparse", "dense"])
def test_the_nearest_examples_are_of_questions_alike(lm, cities, choice, folders, tiny_encoder):
    tiny_encoder("bert")
    made = source(lm, count=3, choice=choice, source=cities, encoder=str(folders / "encoder-bert"))
    asked = Question("Question: What is the capital of Spain?\nAnswer:", query="What is the capital of Spain?")
    (found,) = made.find([asked])
    assert len(found) == 3
    if choice == "sparse":
        assert all("capital of" in one.text for one in found)
        (rivers,) = made.find([Question("x", query="Which river runs through Bern?")])
        assert all("river" in one.text for one in rivers)
    known = Question("Question: What is the capital of Italy?\nAnswer:", query="What is the capital of Italy?")
    assert all("Italy" not in one.text for one in made.find([known])[0])
    assert made.find([asked, known])[0] == found


def test_as_many_are_packed_as_fit_and_counted(lm, cities):
    made = source(lm, count=6, source=cities)
    asked = [Question("Question: Who?\nAnswer:"), Question("Question: Who is it? " * 5)]
    (short, _), found = with_evidence(asked, made), made.find(asked)
    assert short.whole == "".join(f"{one.text}\n\n" for one in found[0][: short.whole.count("\n\n")]) + asked[0].text
    counts = [len(made.with_examples(one, some).passages) for one, some in zip(asked, found, strict=True)]
    assert 6 > counts[0] > counts[1]
    assert len(lm.ids(short.whole)) <= 120
    told = count_demonstrations(asked, made)
    assert (told.asked, told.packed, told.without) == (6, sum(counts) / 2, counts.count(0))
    with pytest.raises(UsageError, match=r"none of the 6 demonstrations fits: the shortest has \d+ tokens, and 9 are"):
        source(lm, Lengths(9, 4), count=6, source=cities)
    with pytest.raises(UsageError, match="none of the 2 demonstrations fits"):
        source(lm, Lengths(9, 4), count=2, choice="sparse", source=cities).find(asked)


def test_bad_values_are_named():
    for values, told in (
        ({"count": 0}, "evidence.count is 0"),
        ({"pool": 1}, "evidence.pool is 1: it must be at least 4"),
        ({"choice": "best"}, "evidence.choice"),
    ):
        with pytest.raises((UsageError, UnknownName), match=told):
            DemonstrationsConfig(**values)


def test_an_answer_after_worked_ones_ends_with_its_line(lm, cities):
    assert before_stop("Paris\n\nQuestion: more", ("\n",)) == "Paris"
    assert before_stop("Paris", ("\n",)) == before_stop("Paris", ()) == "Paris"
    made = source(lm, count=2, source=cities)
    assert stops_of(made) == ("\n",)
    assert stops_of(None) == ()
    poem = DemonstrationsConfig(examples=(Demonstration("t", "Sing!", "la\nla", "Sing!"),))
    assert stops_of(new_source(poem, lm, 0, ROOM)) == ("\n\n",)
    text = answered(["Name a planet."], lm, Bare(), Answering(12))[0].text
    middle = text[len(text) // 2]
    (cut,) = answered(["Name a planet."], lm, Bare(), Answering(12, stops=(middle,)))
    assert cut.text == text[: text.index(middle)].strip()


def test_a_scaffold_brings_its_examples_and_needs_no_suite_to_be_asked(lm, folders, tmp_path):
    suite = save_suite(tmp_path / "suite", {"parity": "Classes"})
    values = small_values(str(folders / "llama"), suite, **{"evidence.kind": "demonstrations", "evidence.count": 2})
    printed = command("train", "bundled_soft_prompt", *values, "--out", tmp_path / "run")
    assert "demonstrations that fit before a question: 2.0 of 2 on average" in printed
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["demonstrations"] == {"asked": 2, "packed": 2.0, "without": 0}
    assert (result["evidence"]["kind"], result["evidence"]["choice"]) == ("demonstrations", "fixed")
    asked = Question("Is 6 even or odd?", task="parity/choose")
    choices = ["parity even", "parity odd"]
    before = shoulders.open(tmp_path / "run", lm=lm).rank(asked, choices)
    shutil.rmtree(suite)
    opened = shoulders.open(tmp_path / "run", lm=lm)
    assert opened.rank(asked, choices) == before
    assert opened.ask("Is 6 even or odd?").candidates == ()
    assert not opened.reads_passages
    spec = opened.spec
    assert len(spec.evidence.examples) == 6  # three of each template
    assert spec_from_json(spec.as_json(), "x") == spec
    plain = AnswerSpec(lengths=spec.lengths)
    bare = shoulders.answering.ModelAnswerer(lm, opened.scaffold, Answering(), plain).rank(asked, choices)
    assert bare != pytest.approx(before)


def test_examples_stand_in_the_conversation_and_before_an_infix_prompt(lm, cities):
    made = source(lm, count=1, source=cities)
    question = Question("Question: Who?\nAnswer:", evidence="A text. ")
    (written,) = with_evidence([question], made)
    assert written.evidence.endswith("\n\nA text. ")
    prompt = SoftPrompt.from_vocabulary(lm, length=2, placement="infix")
    one, other = answered([written, question], lm, prompt, Answering(3))
    assert one.log_probability != other.log_probability
    assert made.write(question, []) == question
    assert with_evidence([Question("a")], source(lm, count=1, source=cities))[0].chat is None
    assert Chat().before == ()
