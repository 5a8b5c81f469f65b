"""The demo's open-book part on the bundled facts, around a tiny model."""

import re
from dataclasses import replace

import pytest

import chats
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli import demo
from shoulders.engine.batches import Lengths
from shoulders.records import Answer
from shoulders.retrieval.index import Index
from shoulders.runs.build import load_tasks
from shoulders.runs.jobs import measure
from shoulders.runs.registry import bundled_soft_prompt
from shoulders.scaffolds.base import Bare


@pytest.fixture
def recipe():
    base = bundled_soft_prompt()
    plan = replace(base.test, limit=3, longest=4)
    return replace(base, suite=replace(base.suite, lengths=Lengths(100, 4)), test=plan, development=plan)


def test_the_facts_answer_the_questions(tmp_path):
    index = Index(demo.facts_index(tmp_path))
    assert index.passages == 2000
    assert "Euro" in index.search(["What is the currency of Ireland?"], 5)[0][0].text.title()


def test_the_same_questions_are_asked_with_and_without_passages(lm, recipe, tmp_path, monkeypatch, capsys):
    """A model that knows nothing copies a right answer from what it reads, wherever one is there."""
    monkeypatch.setattr(demo, "TOKENS", 500)
    monkeypatch.setattr(lm, "context", 600)  # nothing is computed
    plain = replace(recipe, suite=replace(recipe.suite, tasks=(demo.ASKED,)))
    right: dict[str, str] = {}

    def copied(questions, lm, scaffold, how):
        said = [next((gold for end, gold in right.items() if one.text.endswith(end)), "?") for one in questions]
        return [
            Answer(gold if gold in one.evidence else "?", -1.0, 0.0) for gold, one in zip(said, questions, strict=True)
        ]

    for module in ("evaluation.protocol", "answering.answerer"):
        monkeypatch.setattr(f"shoulders.{module}.answered", copied)
    closed = {"bare": measure(plain, lm, Bare(), plain.test)}
    for prediction in closed["bare"].wordings[0].predictions:
        right[prediction.example.question.text] = prediction.example.references[-1]
    demo.open_book({"bare": Bare()}, closed, recipe, lm, tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "bare 0.0% 100.0%" in printed
    assert "recall of the passages found, at 1:" in printed
    assert re.search(r"in passage \d of \d read, \w+, characters \d+ to \d+; probability 0.368", printed)


def test_the_model_alone_is_told_what_to_do_in_the_usual_ways(lm, recipe, monkeypatch, capsys):
    """Each on the same examples; what a chat template and worked examples change is how a question is read."""
    told = FrozenLM(lm.model, chats.tokenizer("chatml"), "chatml")
    monkeypatch.setattr(told, "context", 2000)  # nothing is computed
    asked = []

    def kept(questions, lm, scaffold, how):
        asked.extend(questions)
        return [Answer("?", -1.0, 0.0) for _ in questions]

    monkeypatch.setattr("shoulders.evaluation.protocol.answered", kept)
    recipe = replace(recipe, suite=replace(recipe.suite, tasks=(demo.ASKED,), lengths=Lengths(1000, 4)))
    tasks = load_tasks(recipe.suite)
    demo.told_what_to_do({demo.BARE: measure(recipe, told, Bare(), recipe.test, tasks)}, recipe, told, tasks)
    plain, instructed, few_shot = asked[:3], asked[3:6], asked[6:]
    assert [one.text for one in plain] == [one.text for one in instructed] == [one.text for one in few_shot]
    assert all(one.chat is not None and one.chat.system and not one.evidence for one in instructed)
    assert all(one.chat is None and one.evidence.count("Answer:") == 4 for one in few_shot)
    printed = " ".join(capsys.readouterr().out.split())
    assert "The model with an instruction or worked examples: 3 of these examples" in printed
    assert all(f"{name} 0.0 0.0 to 0.0" in printed for name in ("bare model", "instructed", "few-shot"))
