"""`shoulders demo` with the real weights, whole: what the README promises of it."""

import json
import os
import subprocess
import sys

import pytest

from shoulders.evaluation.results import read_result
from shoulders.evaluation.statistics import difference_interval

QUESTIONS = "What is the capital of Peru?\nWhich metal has the symbol Fe?\n"


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
