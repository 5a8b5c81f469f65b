"""`shoulders report reader`: tables 2 and 3 of the paper from results."""

import json
from dataclasses import replace

import pytest

from shoulders.data.tasks import TemplatedTask
from shoulders.data.templates import Template
from shoulders.errors import UsageError
from shoulders.evaluation import protocol
from shoulders.evaluation.protocol import EvaluationPlan, evaluate
from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import average_interval, difference_interval
from shoulders.paper.reader_report import method_of, open_retriever, write_reader_report
from shoulders.records import Answer
from shoulders.runs.recipe import Recipe
from shoulders.runs.run import result
from shoulders.scaffolds.base import KINDS, Bare

DASH = "\N{EN DASH}"
ASK = Template("ask", "a", "{{q}} ||| {{a}}", None, ("Accuracy",))
COUNTED = Template("ask", "a", "{{q}} ||| {{a}}", None, ("Squad",))


@pytest.fixture
def measured(lm, monkeypatch):
    """A result through the real code, of answers to four questions whose answers are "red 0" and so on."""

    def make(name, answers, evidence=None, retrieval=None, kind="soft_prompt", split="test", template=ASK, **more):
        monkeypatch.setattr(protocol, "answered", lambda *_: [Answer(text, 0.0, 0.0) for text in answers])
        rows = [{"q": f"{split} {n}?", "a": f"red {n}"} for n in range(len(answers))]
        plan = EvaluationPlan(split=split)
        scores = evaluate([TemplatedTask("quiz", "QA", {"ask": template}, {split: rows})], lm, Bare(), plan)
        recipe = Recipe(name, scaffold=KINDS[kind].Config(), test=plan)
        content = json.loads(json.dumps(result(recipe, lm, Bare(), scores, name)))
        content["recipe"]["evidence"].update({"kind": "retrieved", **(evidence or {})})
        found = {"recall_at_input": retrieval[0], "packed": retrieval[1]} if retrieval else None
        scaffold = {**content["scaffold"], "kind": kind}
        return Result(name, {**content, "retrieval": found, "scaffold": scaffold, "trained": 9216, **more})

    return make


def rows_of(text, header):
    lines = text[text.index(header) :].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_tables_2_and_3(measured, tmp_path):
    right = [f"red {n}" for n in range(4)]
    plain = measured("plain", [*right[:1], "red", "x", "x"], {"retriever": "hybrid", "dense": "dpr"}, (50.0, 3.25))
    again = measured(
        "again", [*right[:3], "x"], {"retriever": "hybrid", "dense": "dpr", "reranker": "runs/re"}, (75.0, 3.0)
    )
    closed = measured("closed", ["x"] * 4, {"kind": ""}, kind="bare", trained=0)
    page, told = write_reader_report([plain, again, closed], tmp_path / "r")
    text = page.read_text()
    rows = rows_of(text, "## Readers on test: 4 examples")
    assert [row["method"] for row in rows] == ["frozen LM, prompt-tuned"] * 2 + ["frozen LM, bare"]
    assert [row["retriever"] for row in rows] == ["dpr + BM25", "dpr + BM25", DASH]
    assert [row["re-ranker"] for row in rows] == ["no", "yes", DASH]
    assert [row["recall @ input"] for row in rows] == ["50.0", "75.0", DASH]
    assert [row["passages"] for row in rows] == ["3.2", "3.0", DASH]
    assert [row["trained parameters"] for row in rows] == ["9,216", "9,216", "0"]
    assert [row["EM [95% interval]"].split()[0] for row in rows] == ["25.0", "75.0", "0.0"]
    f1 = plain.measured_by("f1")
    assert rows[0]["F1 [95% interval]"] == str(average_interval(f1))
    assert average_interval(f1).value == pytest.approx(100 * (1 + 2 / 3) / 4)
    gap = difference_interval(again.measured, plain.measured)
    assert [row["EM over plain, paired"].split()[0] for row in rows] == [DASH, "+50.0", "-25.0"]
    assert "On test: again is ahead with 75.0." in told
    assert f"Re-ranking what dpr + BM25 finds: EM +50.0 [{gap.low:+.1f}, {gap.high:+.1f}]" in told
    assert "recall at the reader's input from 50.0 to 75.0" in told
    kept = json.loads((tmp_path / "r" / "reader.json").read_text())
    assert kept["tables"][0]["reranking"] == [
        {"run": "again", "over": "plain", "gap": {"value": 50.0, "low": gap.low, "high": gap.high}}
    ]
    assert kept["tables"][0]["rows"][1]["recall_at_input"] == 75.0
    assert kept["runs"]["plain"]["backbone"] == plain.content["backbone"]
    assert (tmp_path / "r" / "reader.png").read_bytes().startswith(b"\x89PNG")


def test_each_split_has_a_table_and_older_results_no_f1(measured, tmp_path):
    dev = measured("dev", ["red 0"], split="validation")
    old = measured("old", ["red 0"])
    wordings = [{key: value for key, value in row.items() if key != "others"} for row in old.content["wordings"]]
    old = replace(old, content={**old.content, "wordings": wordings})
    page, _ = write_reader_report([dev, old], tmp_path)
    text = page.read_text()
    assert text.index("## Readers on validation") < text.index("## Readers on test")
    assert "F1" not in text[text.index("## Readers on test") :]
    assert "paired" not in text


def test_what_cannot_be_compared_is_refused(measured, tmp_path):
    one, other = measured("a", ["x"] * 4), measured("b", ["x"] * 3)
    with pytest.raises(UsageError, match="b and a were measured on different examples"):
        write_reader_report([one, other], tmp_path)
    with pytest.raises(UsageError, match="b is scored by f1 and a by exact_match"):
        write_reader_report([one, measured("b", ["x"] * 4, template=COUNTED)], tmp_path)
    with pytest.raises(UsageError, match="at least one measured run"):
        write_reader_report([], tmp_path)


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        ({}, DASH),
        ({"kind": "candidates"}, "candidates"),
        ({"kind": "oracle"}, "oracle"),
        ({"kind": "oracle", "distractors": 3}, "oracle, 3 distractors"),
        ({"kind": "retrieved"}, "BM25"),
        ({"kind": "retrieved", "retriever": "sparse", "weight": 1.0}, "BM25"),
        ({"kind": "retrieved", "retriever": "dense", "weight": 1.0}, "dense"),
        ({"kind": "retrieved", "retriever": "hybrid", "dense": "dpr", "weight": 1.5}, "dpr + BM25"),
        ({"kind": "retrieved", "retriever": "rrf", "weight": 1.0}, "dense + BM25 (ranks)"),
    ],
)
def test_retrievers_by_name(evidence, name):
    assert open_retriever(evidence) == name


@pytest.mark.parametrize(
    ("kind", "rival", "trained", "name"),
    [
        ("bare", "lora", 100, "LoRA"),
        ("bare", "full", 100, "fine-tuned"),
        ("bare", "lora", 0, "frozen LM, bare"),
        ("extractive", "", 100, "extractive reader"),
        ("bare", "fid", 100, "FiD, fine-tuned"),
        ("another", "", 100, "another"),
    ],
)
def test_methods_by_name(kind, rival, trained, name):
    content = {"recipe": {"rival": {"kind": rival}}, "scaffold": {"kind": kind}, "trained": trained}
    assert method_of(content) == name


def test_the_retrievers_scores_beside_the_re_rankers_are_told(measured, tmp_path):
    right = [f"red {n}" for n in range(4)]
    plain = measured("plain", [*right[:2], "x", "x"], retrieval=(50.0, 3.0))
    both = measured("both", right, {"reranker": "runs/re", "retriever_weight": 2.0}, (75.0, 3.0))
    page, told = write_reader_report([plain, both], tmp_path / "r")
    rows = rows_of(page.read_text(), "## Readers on test: 4 examples")
    assert [row["re-ranker"] for row in rows] == ["no", "yes, with 2 x the retriever's"]
    assert "Re-ranking what BM25 finds: EM +50.0" in told
