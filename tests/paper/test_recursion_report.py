"""Tables of one pass against several, from results of the tiny model whose right answers are known."""

import json
from dataclasses import replace

import pytest

from shoulders.data.tasks import TemplatedTask
from shoulders.data.templates import Template
from shoulders.errors import CorruptFile, UsageError
from shoulders.evaluation import protocol
from shoulders.evaluation.protocol import EvaluationPlan, evaluate
from shoulders.evaluation.recall import read_samples
from shoulders.evaluation.results import Result, short_names
from shoulders.evaluation.statistics import difference_interval
from shoulders.paper.recursion_numbers import method_of
from shoulders.paper.recursion_report import write_recursion_report
from shoulders.records import Answer
from shoulders.runs.build import new_scaffold
from shoulders.runs.recipe import Recipe
from shoulders.runs.registry import recipe_named
from shoulders.runs.run import result
from shoulders.scaffolds.base import KINDS, Bare, BareConfig
from shoulders.scaffolds.recursion import RecursionConfig, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPromptConfig
from shoulders.training.plan import TrainPlan

PROMPT = SoftPromptConfig(length=3)
TWO_PASSES = RecursionConfig(recursion=RecursionShape(layers=1, residual=True), start="runs/text")
TRAINING = TrainPlan(steps=10, batch_size=4)
DASH = "\N{EN DASH}"
CHOOSE = Template("choose", "c", "{{q}} ||| {{answer_choices[0]}}", "yes ||| no", ("Accuracy",))


def questions(*, choices=False, rows=4) -> list[TemplatedTask]:
    ask = CHOOSE if choices else Template("ask", "a", "{{q}} ||| {{a}}", None, ("Accuracy",))
    splits = {split: [{"q": f"{split} {n}?", "a": f"{n}"} for n in range(rows)] for split in ("validation", "test")}
    return [TemplatedTask("quiz", "Closed-book QA", {ask.name: ask}, splits)]


@pytest.fixture
def measured(lm, monkeypatch):
    """A result through the real code; the model's answers to the four questions are right or wrong as told."""

    def make(name, right, choice=PROMPT, split="test", tasks=None, log=(), **more):
        said = [str(number) if hit else "wrong" for number, hit in enumerate(right)]
        monkeypatch.setattr(protocol, "answered", lambda *_: [Answer(text, 0.0, 0.0) for text in said])
        plan = EvaluationPlan(split=split)
        tasks = tasks or questions()
        scores = evaluate(tasks, lm, Bare(), plan)
        recipe = Recipe(name, scaffold=choice, training=TRAINING, test=plan)
        scaffold = Bare() if choice.kind == "bare" else new_scaffold(replace(choice, start=""), lm, 0, tasks)
        content = json.loads(json.dumps(result(recipe, lm, scaffold, scores, name)))
        return Result(name, {**content, **more}, log)

    return make


def samples_of(tmp_path, one, first, name="p1", **changes):
    content = {
        "kind": "samples", "recipe": {}, "examples": len(first), "examples_hash": one.content["examples_hash"],
        "split": "test", "recall": {"1": 25.0, "64": 50.0},
        "wordings": [{"task": "quiz", "wording": "ask", "first": first}],
        **changes,
    }  # fmt: skip
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return read_samples(path, name)


def rows_of(text, header):
    """The rows of the table under a heading, by column."""
    lines = text[text.index(header) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| "))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    end = next((number for number, line in enumerate(lines[start:]) if not line.startswith("|")), len(cells))
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:end]]


def scored(*values):
    return [
        {"number": 2 * number, "loss": 1.0, "score": value} for number, value in enumerate(values, start=1)
    ] + [{"number": 9, "loss": 1.0}]  # fmt: skip


def textual(one, count):
    recipe = {**one.content["recipe"], "evidence": {"kind": "candidates", "count": count}}
    return replace(one, content={**one.content, "recipe": recipe})


def test_the_table_of_methods(measured, tmp_path):
    """Right on 1, 3 and 2 of four questions; prompt tuning is what the others are over."""
    bare = measured("bare", [0, 0, 0, 0], BareConfig())
    prompt = measured("prompt", [1, 0, 0, 0], log=scored(10.0, 20.0, 20.0))
    twice = measured("twice", [1, 1, 0, 1], TWO_PASSES)
    again = textual(measured("again", [1, 1, 0, 0]), 16)
    page, told = write_recursion_report([bare, prompt, twice, again], [], tmp_path / "r")
    rows = rows_of(page.read_text(), "## Methods on test: 4 examples")
    gap = difference_interval(twice.measured, prompt.measured)
    assert gap.value == 50.0
    assert [row["EM on test [95% interval]"].split()[0] for row in rows] == ["0.0", "25.0", "75.0", "50.0"]
    assert [row["over prompt, paired"].split()[0] for row in rows] == ["-25.0", DASH, "+50.0", "+25.0"]
    assert rows[2]["over prompt, paired"] == f"+50.0 [{gap.low:+.1f}, {gap.high:+.1f}]"
    assert [row["method"] for row in rows] == [
        "bare", "Prompt-tuned", f"LM{DASH}Connector{DASH}LM", "Textual-recursive (n=16)",
    ]  # fmt: skip
    assert [row["LM passes"] for row in rows] == ["1", "1", "2", "2"]
    assert [row["Connector layers"] for row in rows] == [DASH, DASH, "1", DASH]
    assert [row["pretrain init?"] for row in rows] == [DASH, "No", "Yes", "No"]
    assert [row["variant"] for row in rows] == [DASH, DASH, "residual", DASH]
    assert [row["trained parameters"] for row in rows][:2] == ["0", "96"]  # 3 vectors of 32
    assert [row["examples seen"] for row in rows] == [DASH, "36", "40", "40"]  # by the log, else by the recipe
    assert [row["best EM on dev"] for row in rows] == [DASH, "20.0 (step 4)", DASH, DASH]
    assert told.startswith("On test: twice is ahead with 75.0.")
    assert told in page.read_text()
    assert "sample" not in page.read_text().split("## Sampled candidates")[0]
    kept = json.loads((tmp_path / "r" / "recursion.json").read_text())
    assert kept["tables"][0]["rows"][2]["gap"] == {"value": 50.0, "low": gap.low, "high": gap.high}
    assert kept["tables"][0]["rows"][1]["development"] == {"score": 20.0, "step": 4}
    assert kept["runs"]["twice"]["backbone"] == twice.content["backbone"]
    assert (tmp_path / "r" / "dev.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "r" / "passes.png").exists()


def test_without_a_prompt_tuned_row_there_is_nothing_to_be_over(measured, tmp_path):
    page, _ = write_recursion_report([measured("twice", [1, 1, 0, 1], TWO_PASSES)], [], tmp_path)
    assert "paired" not in page.read_text()
    assert "EM on dev" not in page.read_text()
    assert not (tmp_path / "dev.png").exists()


@pytest.mark.parametrize(
    ("shape", "inner", "name", "passes", "layers"),
    [
        (RecursionShape(passes=1, before=True), "bare", "Connector-LM", 1, 2),
        (RecursionShape(passes=1, after=True, layers=1), "bare", "LM-Connector", 1, 1),
        (RecursionShape(passes=1), "bare", "LM", 1, None),
        (RecursionShape(passes=3), "soft_prompt", "LM-Connector-LM-Connector-LM under a soft prompt", 3, 2),
        (RecursionShape(after=True), "input_prompt", "LM-Connector-LM-Connector under ID-PT", 2, 2),
    ],
)  # fmt: skip
def test_methods_are_called_as_the_paper_does(shape, inner, name, passes, layers):
    recipe = Recipe("x", scaffold=RecursionConfig(recursion=shape, inner=KINDS[inner].Config())).as_json()
    one = Result("x", {"recipe": recipe, "scaffold": {"kind": "recursion"}})
    method = method_of(one)
    assert method.name == name.replace("-", DASH).replace(f"ID{DASH}PT", "ID-PT")
    assert (method.passes, method.layers, method.pretrained) == (passes, layers, False)
    after = method_of(textual(one, 8))
    assert after.name.replace(DASH, "-") == f"Textual-recursive (n=8), {name}"
    assert (after.passes, after.candidates) == (passes + 1, 8)


def test_the_kind_is_that_of_what_was_measured():
    """`shoulders evaluate bare --recipe lm_connector_lm` measures the bare model."""
    recipe = Recipe("x", scaffold=TWO_PASSES).as_json()
    bare = method_of(Result("x", {"recipe": recipe, "scaffold": {"kind": "bare"}}))
    assert (bare.name, bare.passes, bare.layers, bare.pretrained, bare.variant) == ("bare", 1, None, None, "")
    older = [method_of(Result("x", {"recipe": recipe, "trained": trained})).name for trained in (7, 0)]
    assert older == [f"LM{DASH}Connector{DASH}LM", "bare"]
    written = RecursionConfig(recursion=RecursionShape(rank=4, keys_values=True))
    one = method_of(Result("x", {"recipe": Recipe("x", scaffold=written).as_json(), "trained": 7}))
    assert (one.name, one.layers, one.variant) == (f"LM{DASH}Connector{DASH}LM", None, "keys and values of rank 4")
    recipe_of_own = recipe_named("lm_deep_prompt_lm").as_json()
    own = Result("x", {"recipe": recipe_of_own, "scaffold": {"kind": "input_deep_prompt", "passes": 2}})
    assert (method_of(own).name, method_of(own).passes) == (f"LM{DASH}ID deep prompt{DASH}LM", 2)
    with pytest.raises(UsageError, match=r"x is a scaffold of kind soft_prompt .* scaffold\.kind=recursion"):
        method_of(Result("x", {"recipe": recipe, "scaffold": {"kind": "soft_prompt"}}))


def test_what_no_sample_answers(measured, tmp_path):
    """The second and third question. Prompt tuning is right on none of them, two passes on one; on the rest 1 and 2."""
    prompt, twice = measured("prompt", [1, 0, 0, 0]), measured("twice", [1, 1, 0, 1], TWO_PASSES)
    dev = measured("dev", [1, 1, 1, 1], split="validation")
    old = replace(twice, name="old", content={k: v for k, v in twice.content.items() if k != "examples_hash"})
    samples = samples_of(tmp_path, prompt, [0, -1, -1, 17])
    page, told = write_recursion_report([prompt, twice, dev, old], [samples], tmp_path)
    text = page.read_text()
    assert "2 of 4 questions (50.0%) have no right answer among 64 samples (p1, test)." in text
    rows = rows_of(text, "## Questions beyond a single pass")
    assert [(row["run"], *[value.split()[0] for value in list(row.values())[1:]]) for row in rows] == [
        ("prompt", "0.0", "50.0"), ("twice", "50.0", "100.0"),
    ]  # fmt: skip
    assert list(rows[0])[1:] == ["EM on the 2 no sample answers", "EM on the other 2"]
    assert "dev is left out: it was measured on other examples (validation, 4) than were sampled for (test, 4)." in text
    assert "old is left out: its results do not say which examples they are of." in text
    assert "Ahead on these is twice: EM 50.0 [0.0, 100.0]." in told
    kept = json.loads((tmp_path / "recursion.json").read_text())["beyond"][0]
    assert kept["scores"]["twice"]["others"] == {"value": 100.0, "low": 100.0, "high": 100.0}
    assert (kept["unanswered"], kept["questions"]) == (2, 4)


def test_all_or_none_of_the_questions_may_be_beyond(measured, tmp_path):
    prompt = measured("prompt", [1, 0, 0, 0])
    for first, values in (([0, 1, 2, 3], [DASH, "25.0"]), ([-1] * 4, ["25.0", DASH])):
        page, _ = write_recursion_report([prompt], [samples_of(tmp_path, prompt, first)], tmp_path)
        (row,) = rows_of(page.read_text(), "## Questions beyond")
        assert [value.split()[0] for value in list(row.values())[1:]] == values


def test_scores_of_textual_recursion_stand_beside_the_recall_of_as_many_samples(measured, tmp_path):
    runs = [
        measured("prompt", [1, 0, 0, 0]),
        textual(measured("a", [1, 0, 0, 0]), 1),
        textual(measured("b", [1, 1, 1, 0]), 16),
        textual(measured("c", [1, 1, 0, 0]), 1),
        textual(measured("d", [1, 1, 1, 1], split="validation"), 64),
    ]
    samples = samples_of(tmp_path, runs[0], [0, -1, -1, 17])
    page, _ = write_recursion_report(runs, [samples], tmp_path)
    rows = rows_of(page.read_text(), "## Sampled candidates")
    assert [(row["candidates"], row["recall of p1 on test"]) for row in rows] == [
        ("1", "25.0"), ("16", DASH), ("64", "50.0"),
    ]  # fmt: skip
    on_test = [row["EM on test [95% interval]"] for row in rows]
    assert on_test[0].startswith("25.0 [")
    assert "(a); 50.0 [" in on_test[0]
    assert on_test[1].startswith("75.0 [")
    assert on_test[2] == DASH
    assert rows[2]["EM on validation [95% interval]"] == "100.0 [100.0, 100.0] (d)"
    assert rows[0]["EM on validation [95% interval]"] == DASH


def test_what_is_not_scored_by_exact_match_is_not_called_so(measured, tmp_path):
    chosen = measured("prompt", [1, 0, 0, 0], tasks=questions(choices=True), log=scored(90.0))
    page, _ = write_recursion_report([chosen], [], tmp_path)
    (row,) = rows_of(page.read_text(), "## Methods on test")
    assert "accuracy on test [95% interval]" in row
    assert "best EM on dev" not in row
    assert "Scored by accuracy, not by exact match (EM)" in page.read_text()


def test_development_scores_over_more_wordings_than_were_measured_are_not_called_em(measured, tmp_path):
    prompt = measured("prompt", [1, 0, 0, 0], log=scored(90.0))
    for development, test, known in ((0, 0, True), (1, 0, True), (0, 1, False), (2, 1, False), (1, 1, True)):
        plans = {"development": {"wordings": development}, "test": {"wordings": test, "split": "test"}}
        content = {**prompt.content, "recipe": {**prompt.content["recipe"], **plans}}
        page, _ = write_recursion_report([replace(prompt, content=content)], [], tmp_path)
        assert ("EM on dev" in page.read_text()) == known


def test_adaptive_passes_are_drawn_over_what_they_cost(measured, tmp_path):
    curve = [{"passes": 1.0, "score": 25.0}, {"passes": 1.4, "score": 50.0}, {"passes": 2.0, "score": 75.0}]
    passes = {"average": 1.43, "budget": 1.5, "rule": "probability", "curve": curve}
    adaptive = measured("adaptive", [1, 1, 0, 0], TWO_PASSES, passes=passes)
    page, _ = write_recursion_report([measured("prompt", [1, 0, 0, 0]), adaptive], [], tmp_path)
    row = rows_of(page.read_text(), "## Methods on test")[1]
    assert (row["method"], row["LM passes"]) == ("Adaptive (budget 1.5)", "1.43")
    assert row["variant"] == "decided by probability"
    assert (tmp_path / "passes.png").read_bytes().startswith(b"\x89PNG")
    assert "(passes.png)" in page.read_text()
    broken = replace(adaptive, content={**adaptive.content, "passes": {"average": 1.43}})
    with pytest.raises(CorruptFile, match="adaptive lack some of `passes`: average, budget, curve, rule"):
        write_recursion_report([broken], [], tmp_path)


def test_runs_of_one_split_share_their_examples_and_metric(measured, tmp_path):
    one, other = measured("a", [1, 0, 0, 0]), measured("b", [1, 0, 0], tasks=questions(rows=3))
    with pytest.raises(UsageError, match="b and a were measured on different examples"):
        write_recursion_report([one, other], [], tmp_path)
    wordings = [{**row, "metric": "f1"} for row in one.content["wordings"]]
    with pytest.raises(UsageError, match="b is scored by f1 and a by exact_match"):
        write_recursion_report(
            [one, replace(one, name="b", content={**one.content, "wordings": wordings})], [], tmp_path
        )
    with pytest.raises(UsageError, match="at least one measured run"):
        write_recursion_report([], [], tmp_path)
    assert short_names([]) == []


def test_samples_of_other_questions_or_broken_ones_are_refused(measured, tmp_path):
    prompt = measured("prompt", [1, 0, 0, 0])
    with pytest.raises(UsageError, match=r"p1 was sampled for other examples than any of the runs .*split=test --out"):
        write_recursion_report([prompt], [samples_of(tmp_path, prompt, [0], examples_hash="other")], tmp_path)
    with pytest.raises(CorruptFile, match="p1 hold 3 examples of quiz/ask, the results prompt 4"):
        write_recursion_report([prompt], [samples_of(tmp_path, prompt, [0, 0, 0])], tmp_path)
    for changes, said in (
        ({"recall": None, "split": None}, "it lacks recall, split"),
        ({"recall": {}}, "`recall` is empty"),
        ({"recall": {"many": 1}}, "`recall` or `wordings` is broken"),
        ({"wordings": [{"task": "quiz"}]}, "`recall` or `wordings` is broken"),
    ):
        with pytest.raises(CorruptFile, match=f"p1.json holds no samples of shoulders: {said}"):
            samples_of(tmp_path, prompt, [0, 0, 0, 0], **changes)
    assert samples_of(tmp_path, prompt, [0, 0, 0, 0], kind="else") is None
    assert read_samples(tmp_path, "folder") is None
