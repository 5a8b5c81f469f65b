"""`shoulders demo` with the real weights, whole: what the README promises of it."""

import json
import os
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from shoulders.cli.demo import ASKED, BARE, GATED, SOFT, averages_table, books_table
from shoulders.cli.scores import scores_table
from shoulders.data.readers import open_suite
from shoulders.evaluation.metrics import metrics_for
from shoulders.evaluation.protocol import Prediction, Scores, WordingScore
from shoulders.evaluation.results import read_result
from shoulders.evaluation.statistics import difference_interval
from shoulders.records import Answer

QUESTIONS = "What is the capital of Peru?\nWhich metal has the symbol Fe?\n"


def made_up(wrong: int, examples: int = 25) -> Scores:
    """Scores of the bundled suite with so many wrong answers in its first task, all others being right."""
    rows = []
    for task in open_suite("bundled"):
        wording = next(name for name in task.wordings if task.original(name))
        one = task.example("test", wording, 0)
        metrics = metrics_for(task.metrics(wording), choices=one.choices is not None)
        golds = (one.target,) if one.choices else one.references
        right, other = (
            Prediction(one, Answer(text, 0.0, 0.0), {metric.name: metric.measure(text, golds) for metric in metrics})
            for text in (one.target, "")
        )
        predictions = [*[other] * (0 if rows else wrong), *[right] * examples][:examples]
        rows.append(WordingScore(task.name, task.cluster, wording, metrics, predictions))
    return Scores(rows)


def test_its_tables_fit_a_terminal_of_80_columns():
    """With the widest intervals, which end at 100: nothing is wrapped or cut off."""
    scores = dict.fromkeys((BARE, SOFT, GATED), made_up(2))
    few = dict.fromkeys((BARE, "instructed", "few-shot", SOFT, GATED), made_up(2))
    title = "The model with an instruction or worked examples: 300 of these examples"
    for table, rows, first in (
        (scores_table("Held-out test part", scores), 12 + 2, "Held-out test part: 300 examples"),
        (averages_table(few), len(few), title),
        (books_table(scores, scores), len(scores), f"Answers that contain a correct one: {ASKED}"),
    ):
        console = Console(file=StringIO(), width=80)
        console.print(table)
        lines = [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
        assert lines[0] == first
        assert len(lines) == len(("title", "head", "rule")) + rows
        assert "…" not in "".join(lines)


@pytest.mark.slow
@pytest.mark.weights
def test_both_trained_prompts_beat_the_bare_model(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "shoulders", "demo", "--out", tmp_path],
        input=QUESTIONS, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "001"
    bare, soft, generated = (
        read_result(run / name) for name in ("bare", "bundled_soft_prompt", "bundled_gated_low_rank")
    )
    first, second = sorted((soft, generated), key=lambda result: result.content["average"], reverse=True)
    assert difference_interval(first.measured, bare.measured).low > 0
    assert second.content["average"] > bare.content["average"]
    ahead = "soft prompt" if soft.content["average"] > generated.content["average"] else "gated low rank"
    printed = " ".join(done.stdout.split())
    assert f"{ahead} is ahead with {max(r.content['average'] for r in (soft, generated)):.1f}" in printed
    gap = difference_interval(generated.measured, bare.measured)
    assert f"gated low rank {gap.value:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})" in printed
    assert "The model with an instruction or worked examples: 60 of these examples" in printed
    assert "The backbone is bit for bit what it was" in printed
    answers = printed.split("Now you:")[1]
    assert all(question in answers for question in QUESTIONS.splitlines())
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64") == 3
    scores = json.loads((run / "report" / "scores.json").read_text(encoding="utf-8"))
    assert scores["gated low rank"]["average"] == generated.content["average"]
