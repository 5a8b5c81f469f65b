"""The scripts of `examples/` run as a reader runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# The last lines that each prints, as a pattern.
PRINTED = {
    "ask_a_folder": r"What is an input-dependent prompt\?\n.+",
    "compare_with_lora": r"bare model .*\nprompt tuning .*\ndeep prompt .*\nLoRA .*",
    "train_on_your_data": r"accuracy on 6 other messages: .*after\nI paid too much\. -> (billing|shipping|account) .*",
    "two_passes": r"bare LM .*\nrecursion .*\nloss .* after",
    "your_own_scaffold": r"loss .* after\n4 \+ 4 = .*",
}


def test_every_example_is_listed_and_short():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTED)
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"]({path.name})" in listed
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 65, path


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("name", PRINTED)
def test_an_example_runs(name, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTED[name] + r"\n?\Z", done.stdout, re.DOTALL), done.stdout
