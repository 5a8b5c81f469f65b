import json
import re
import subprocess
from dataclasses import replace
from io import StringIO
from statistics import mean, median

import pytest
from rich.console import Console

from shoulders.cli.scores import print_skipped, scores_table
from shoulders.data.tasks import RenderedTask, SkipPolicy, TemplatedTask
from shoulders.data.templates import Template
from shoulders.engine.inference import rank
from shoulders.errors import DataError, TemplateFailed, UnknownName, UsageError
from shoulders.evaluation import protocol
from shoulders.evaluation import results as results_module
from shoulders.evaluation.metrics import ACCURACY
from shoulders.evaluation.protocol import EvaluationPlan, Prediction, Scores, WordingScore, chosen_examples, evaluate
from shoulders.evaluation.report import gains, headline, results_table, write_report
from shoulders.evaluation.results import Result, circumstances, read_result, scores_as_json, short_names
from shoulders.evaluation.statistics import Measured, average_interval, difference_interval
from shoulders.records import Answer, Example, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

PLAN = EvaluationPlan(split="test", longest=4)


def tasks() -> list[TemplatedTask]:
    records = [{"t": f"what is {n}?", "k": n % 2} for n in range(12)]

    def choose(name):
        return Template(name, name, "{{t}} " + name + " ||| {{answer_choices[k]}}", "even ||| odd", ("Accuracy",))

    wordings = {name: choose(name) for name in ("plain", "short", "long")}
    wordings["backwards"] = Template("backwards", "b", "{{k}} ||| {{t}}", None, (), original_task=False)
    asked = {"ask": Template("ask", "a", "{{t}} ||| {{k}}", None, ("Squad",))}
    return [
        TemplatedTask("parity", "Sums", wordings, {"test": records}),
        TemplatedTask("answer", "Closed-book QA", asked, {"test": records}),
    ]


def test_scores_follow_the_protocol(lm):
    """Rank classification by summed log-likelihood; median over wordings; mean over tasks; only the original task."""
    scores = evaluate(tasks(), lm, Bare(), PLAN)
    assert [(row.task, row.wording) for row in scores.wordings] == [
        ("parity", "plain"), ("parity", "short"), ("parity", "long"), ("answer", "ask"),
    ]  # fmt: skip
    for row in scores.wordings[:3]:
        examples = [prediction.example for prediction in row.predictions]
        found = rank([e.question for e in examples], [e.choices for e in examples], lm, Bare())
        right = [
            values.index(max(values)) == e.choices.index(e.target) for values, e in zip(found, examples, strict=True)
        ]
        assert row.primary == pytest.approx(100 * mean(right))
    by_task = {"parity": median(row.primary for row in scores.wordings[:3]), "answer": scores.wordings[3].primary}
    assert scores.tasks == by_task
    assert scores.clusters == {"Sums": by_task["parity"], "Closed-book QA": by_task["answer"]}
    assert scores.average == pytest.approx(mean(by_task.values()))
    assert scores.examples == 48


def wording_score(wording, *, right, of=10):
    example = Example("t", wording, "test:0", Question("q"), "yes", ("yes",), ("yes", "no"))
    rows = [
        Prediction(example, Answer("yes", -0.1, 1.0), {"accuracy": (float(number < right),)}) for number in range(of)
    ]
    return WordingScore("t", "c", wording, (ACCURACY,), rows)


def test_a_task_scores_the_median_of_unequal_wordings():
    scores = Scores([wording_score(name, right=right) for name, right in (("a", 0), ("b", 1), ("c", 10))])
    assert scores.tasks == {"t": 10.0}  # the mean would be 36.7
    assert scores.clusters == {"c": 10.0}
    assert scores.average == 10.0
    assert average_interval(scores.measured).value == 10.0
    assert scores_as_json(scores)["tasks"] == {"t": 10.0}


def test_every_reference_counts_as_right(lm, monkeypatch):
    template = Template("ask", "a", "{{q}} ||| {{answers[0]}}", None, ("Accuracy",))
    records = [{"q": "Who sang Let it be?", "answers": ["The Beatles", "Fab Four"]}]
    monkeypatch.setattr(protocol, "answered", lambda questions, *_: [Answer("fab four", -0.1, 1.0)] * len(questions))
    scores = evaluate([TemplatedTask("t", "c", {"ask": template}, {"test": records})], lm, Bare(), PLAN)
    assert scores.wordings[0].scores == {"exact_match": 100.0, "f1": 100.0}


def test_inputs_that_do_not_fit_are_cut_and_counted(lm):
    """Both by rank classification and by generation; the model has 128 positions."""
    long, short = {"t": "word " * 300, "k": 0}, {"t": "word", "k": 1}
    cut = [replace(task, splits={"test": [long, short]}) for task in tasks()]
    scores = evaluate(cut, lm, Bare(), PLAN)
    assert scores.examples == 8
    assert scores.truncated == 4  # the long one, in three wordings and in one
    assert scores_as_json(scores)["truncated"] == 4
    assert evaluate(tasks(), lm, Bare(), PLAN).truncated == 0


def test_scores_do_not_depend_on_the_batch(lm):
    prompt = SoftPrompt(from_vocabulary(lm)(3))
    wide = evaluate(tasks(), lm, prompt, PLAN)
    narrow = evaluate(tasks(), lm, prompt, EvaluationPlan(split="test", longest=4, positions_at_once=1))
    for one, other in zip(wide.wordings, narrow.wordings, strict=True):
        assert [p.text for p in one.predictions] == [p.text for p in other.predictions]


def test_the_first_of_many_examples_score_as_if_they_were_all(lm):
    few, many = (
        evaluate(tasks(), lm, Bare(), EvaluationPlan(split="test", limit=limit, longest=4)) for limit in (2, 4)
    )
    assert many.examples > few.examples
    assert many.first(2).tasks == few.tasks
    assert many.first(2).examples == few.examples


def test_a_limit_takes_the_same_random_examples_for_everyone(lm):
    plan = EvaluationPlan(split="test", limit=5, wordings=2, seed=3)
    chosen = chosen_examples(tasks(), plan).asked
    assert [(one.task.name, one.wording, len(one.examples)) for one in chosen] == [
        ("parity", "plain", 5), ("parity", "short", 5), ("answer", "ask", 5),
    ]  # fmt: skip
    rows = [[example.id for example in one.examples] for one in chosen]
    assert rows[0] == rows[1]
    again = chosen_examples(tasks(), plan).asked
    assert [[e.id for e in one.examples] for one in again] == rows
    other = chosen_examples(tasks(), EvaluationPlan(split="test", limit=5, wordings=2, seed=4)).asked
    assert [e.id for e in other[0].examples] != rows[0]


def test_a_task_without_the_split_is_named_and_not_measured(lm, tmp_path):
    """The paper, section 2.2: 7 sets have no dev part, 9 no test part; scores only where the splits exist."""
    parity, asked = tasks()
    without = replace(asked, name="no test part", splits={"train": asked.splits["test"]})
    scores = evaluate([parity, without], lm, Bare(), PLAN)
    assert scores.tasks.keys() == {"parity"}
    assert scores.unmeasured == ("no test part",)
    assert scores_as_json(scores)["unmeasured"] == ["no test part"]
    told = "nmeasured, because there is no such split: no test part"
    assert told in results_table([result(scores, "a")])
    assert told in write_report([result(scores, "a")], tmp_path).read_text()
    console = Console(file=StringIO(), width=80)
    console.print(scores_table("t", {"score": scores}))
    assert re.search(r"no test part\s+unmeasured\s+-", console.file.getvalue())


def test_a_wording_without_the_split_is_named_where_others_have_it():
    row = {"inputs_pretokenized": "q", "targets_pretokenized": "a"}
    tables = {"one": {"train": [row], "test": [row]}, "other": {"train": [row]}}
    chosen = chosen_examples([RenderedTask("set", "c", tables)], PLAN)
    assert [one.wording for one in chosen.asked] == ["one"]
    assert chosen.unmeasured == ("set/other",)


def test_nothing_left_to_measure_is_refused():
    parity, asked = tasks()
    with pytest.raises(UnknownName, match=r"no split .* 'tset': did you mean 'test'"):
        chosen_examples(tasks(), EvaluationPlan(split="tset"))
    with pytest.raises(UnknownName, match="'validation': known: test, train"):
        chosen_examples([parity, replace(asked, splits={"train": []})], EvaluationPlan())
    with pytest.raises(DataError, match="nothing is left to measure in 'test'"):
        chosen_examples([asked], PLAN, ["answer/ask"])
    with pytest.raises(DataError, match="split 'test' of task 'answer' is empty"):
        chosen_examples([parity, replace(asked, splits={"test": []})], PLAN)


def test_failing_templates_stop_or_are_counted(lm):
    task = tasks()[1]
    half = TemplatedTask("x", "y", {"ask": Template("ask", "a", "{{t}} ||| {{ k if k else missing }}")}, task.splits)
    with pytest.raises(TemplateFailed, match=r"template 'ask' of task 'x' on example test:0: .*'missing' is undefined"):
        evaluate([half], lm, Bare(), PLAN)
    scores = evaluate([half], lm, Bare(), PLAN, skip=SkipPolicy(failing=True))
    assert scores.examples == 6
    skipped = scores.skipped["x/ask"]
    assert skipped.count == 6
    assert "on example test:0" in skipped.reason
    assert scores_as_json(scores)["skipped"] == {"x/ask": {"count": 6, "reason": skipped.reason, "bad_rows": 0}}


def test_wordings_of_which_nothing_is_left_are_refused_with_the_reason():
    splits = tasks()[1].splits
    nothing = Template("ask", "a", "{% if false %}a ||| b{% endif %}")
    with pytest.raises(DataError, match=r"wording 'ask' of task 'x' renders nothing in 'test'$"):
        chosen_examples([TemplatedTask("x", "y", {"ask": nothing}, splits)], PLAN)
    failing = Template("ask", "a", "{{missing}} ||| b")
    with pytest.raises(
        DataError, match=r"renders nothing in 'test': none can be used; the first: .* on example test:0"
    ):
        chosen_examples([TemplatedTask("x", "y", {"ask": failing}, splits)], PLAN, skip=SkipPolicy(failing=True))


def test_a_wording_that_is_not_there_cannot_be_left_out():
    with pytest.raises(UnknownName, match="'parity/lang': did you mean 'parity/long'"):
        chosen_examples(tasks(), PLAN, ["parity/lang"])


def test_a_misspelt_metric_is_refused_before_anything_is_answered():
    _, asked = tasks()
    for name, near in (("Acuracy", "Accuracy"), ("rouge", "ROUGE"), ("Pearson Corelation", "Pearson Correlation")):
        wrong = replace(asked, templates={"ask": replace(asked.templates["ask"], metrics=("Squad", name))})
        said = f"no metric \\(of template 'ask' of task 'answer'\\) called '{name}': did you mean '{near}'"
        with pytest.raises(UnknownName, match=said):
            chosen_examples([wrong], PLAN)


def test_metrics_that_only_promptsource_has_are_told_once(lm, capsys):
    """Its files name them, and `Pearson correlation` for `Pearson Correlation`; accuracy is scored with choices."""
    parity, asked = tasks()
    other = replace(asked, templates={"ask": replace(asked.templates["ask"], metrics=("Pearson correlation", "AUC"))})
    plain = replace(parity.templates["plain"], metrics=("Other",))
    scores = evaluate([other, replace(parity, templates={"plain": plain})], lm, Bare(), PLAN)
    assert [row.metrics[0].name for row in scores.wordings] == ["exact_match", "accuracy"]
    assert scores.uncomputed == ("AUC", "Pearson correlation")
    print_skipped(scores)
    assert capsys.readouterr().out.count("no metric here: AUC, Pearson correlation; where") == 1
    assert not evaluate(tasks(), lm, Bare(), PLAN).uncomputed


def measured(values, task="t"):
    return [Measured(task, "w", ACCURACY, [(float(value),) for value in values])]


def test_a_median_over_several_metrics_names_them_all(lm):
    """`Squad` is scored by F1, choices by accuracy; the table says so."""
    parity, asked = tasks()
    both = replace(parity, templates={**parity.templates, **asked.templates})
    scores = evaluate([both], lm, Bare(), PLAN)
    assert "| parity | Sums | accuracy, f1 |" in results_table([result(scores, "a")])
    console = Console(file=StringIO(), width=80)
    console.print(scores_table("t", {"score": scores}))
    assert "accuracy, f1" in console.file.getvalue()


def test_intervals_are_those_of_a_mean():
    """A share of one half of 400: the normal approximation is +- 4.9."""
    interval = average_interval(measured([0, 1] * 200))
    assert interval.value == 50.0
    assert interval.low == pytest.approx(45.1, abs=0.8)
    assert interval.high == pytest.approx(54.9, abs=0.8)


def test_paired_differences_are_sharper_than_two_intervals():
    base = [0, 1] * 100
    better = [1, 1, *base[2:]]
    gap = difference_interval(measured(better), measured(base))
    assert gap.value == pytest.approx(0.5)
    assert gap.high - gap.low < 2.5
    with pytest.raises(ValueError, match="same examples"):
        difference_interval(measured(base), measured(base[1:]))


def result(scores, name):
    origin = {
        "recipe": {"name": name, "training": {"batch_size": 8}}, "trained": 12, "commit": None, "dirty": False,
        "versions": {"torch": "x"}, "machine": {"processor": "p", "cores": 2, "threads": 2}, "time": "now",
        "backbone": {"name": "tiny", "dtype": "float32", "fingerprint": "f" * 64},
    }  # fmt: skip
    log = [{"number": n, "loss": 3 - n / 10} for n in range(1, 11)]
    return Result(name, {**json.loads(json.dumps(scores_as_json(scores))), **origin}, log)


def test_a_report_says_what_was_measured(lm, tmp_path):
    bare = evaluate(tasks(), lm, Bare(), PLAN)
    prompt = evaluate(tasks(), lm, SoftPrompt(from_vocabulary(lm)(3)), PLAN)
    results = [result(bare, "bare <model>"), result(prompt, "prompt")]
    page = write_report(results, tmp_path / "report")
    text = page.read_text()
    assert "bare &lt;model&gt;" in text
    assert text.count("data:image/png;base64,") == 3
    assert f"{bare.average:.1f}" in text
    assert "http" not in text.replace("http-equiv", "")  # needs nothing from elsewhere
    table = results_table(results)
    assert table.count("\n| ") >= 5
    assert (tmp_path / "report" / "scores.md").read_text() == table
    best = max(results, key=lambda one: one.content["average"])
    assert headline(results).startswith(f"{best.name} is ahead with {best.content['average']:.1f}.")
    gap = difference_interval(results[1].measured, results[0].measured)
    assert gains(results, results[0]) == (
        f"Over bare <model>, with 95% intervals: prompt {gap.value:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})."
    )
    stored = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert stored["prompt"]["average"] == pytest.approx(prompt.average)


def test_results_of_different_examples_are_not_compared(lm, tmp_path):
    one = result(evaluate(tasks(), lm, Bare(), PLAN), "a")
    other = result(evaluate(tasks()[:1], lm, Bare(), PLAN), "b")
    with pytest.raises(UsageError, match="b and a were measured on different examples"):
        write_report([one, other], tmp_path)
    few, many = (EvaluationPlan(split="test", limit=5, longest=4, seed=seed) for seed in (1, 2))
    one, other = (result(evaluate(tasks(), lm, Bare(), plan), name) for plan, name in ((few, "a"), (many, "b")))
    with pytest.raises(UsageError, match="b and a were measured on different examples"):
        write_report([one, other], tmp_path)
    with pytest.raises(UsageError, match="'a' is named twice"):
        write_report([one, one], tmp_path)


def test_results_are_named_by_the_shortest_path_that_tells_them_apart(tmp_path):
    def named(*paths):
        return short_names([tmp_path / path for path in paths])

    assert named("r/bare.json", "r/a", "other/v1.5", "x/results.json") == ["bare", "a", "v1.5", "x"]
    assert named("r/soft", "s/soft", "s/bare.json") == ["r/soft", "s/soft", "bare"]
    assert named("a/r/soft", "b/r/soft") == ["a/r/soft", "b/r/soft"]
    assert named("r/a.json", "r/a") == [str(tmp_path / "r/a.json"), str(tmp_path / "r/a")]


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path, monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{40}", circumstances()["commit"] or "0" * 40)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    commit = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "--allow-empty", "-m", "theirs"]
    subprocess.run(commit, cwd=tmp_path, check=True)
    for place, own in ((".venv/lib/shoulders", False), ("src/shoulders", True)):
        (tmp_path / place).mkdir(parents=True)
        monkeypatch.setattr(results_module, "PACKAGE", tmp_path / place)
        assert (circumstances()["commit"] is not None) == own


def test_prose_and_earlier_results_are_no_change_of_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments], cwd=tmp_path, check=True)

    written = {name: tmp_path / name for name in ("src/shoulders/code.py", "grid/results/a.json", "grid/summary.md")}
    for path in written.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    monkeypatch.setattr(results_module, "PACKAGE", tmp_path / "src/shoulders")
    for name, path in reversed(written.items()):
        path.write_text("after")
        assert circumstances()["dirty"] == (name == "src/shoulders/code.py")


def test_results_are_read_from_runs(tmp_path):
    with pytest.raises(UsageError, match="no results at"):
        read_result(tmp_path)
    (tmp_path / "results.json").write_text('{"average": 1}')
    with pytest.raises(UsageError, match="no results of shoulders"):
        read_result(tmp_path)


def test_nothing_of_a_scaffold_is_left_in_the_model(lm):
    before = lm.checksum()
    protocol.evaluate(tasks(), lm, SoftPrompt(from_vocabulary(lm)(3)), PLAN)
    assert lm.checksum() == before


def test_other_wordings_of_the_same_examples_are_no_further_evidence():
    rows, better = ([(float(number % every == 0),) for number in range(200)] for every in (2, 3))
    one, several = ([Measured("t", word, ACCURACY, rows) for word in words] for words in ("a", "abc"))
    assert average_interval(several) == average_interval(one)
    other = [replace(row, rows=better) for row in several]
    assert difference_interval(other, several) == difference_interval(other[:1], one)
