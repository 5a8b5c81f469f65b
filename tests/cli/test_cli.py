"""The command line, from text to files, on a tiny model and a small suite."""

import json
import os
import re
import shlex
import subprocess
import sys
import time

import pytest
import typer

from commands import fitting, run
from processes import COMMAND, process
from shoulders.backbone.fingerprint import identity
from shoulders.cli.common import find_recipe
from shoulders.cli.main import app, main
from shoulders.cli.main import command as command_named
from shoulders.engine.inference import Answering, answer
from shoulders.errors import UsageError
from shoulders.records import Question
from shoulders.scaffolds.base import Scaffold
from tiny import save_numbers


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_numbers(tmp_path_factory.mktemp("suite") / "numbers", range(40), range(40, 50), range(50, 62))


@pytest.fixture
def values(lm, suite):
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "training.steps=6",
        "training.batch_size=4", "training.save_every=2", "training.evaluate_every=3", "scaffold.length=4",
        "development.limit=4", "test.limit=6", "test.wordings=0", "test.longest=4", "development.longest=4",
    ]  # fmt: skip


def curves(folder):
    """The scalars that TensorBoard shows, by name; the speed is not the same in any two runs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    names = events.Tags()["scalars"]
    assert "train/positions_per_second" in names
    return {
        name: [(one.step, one.value) for one in events.Scalars(name)]
        for name in names
        if name != "train/positions_per_second"
    }


def test_train_evaluate_ask_report(values, lm, tiny_encoder, tmp_path):
    encoder = [f"scaffold.encoder={tiny_encoder('bert').name}", "scaffold.encoder_length=3", "scaffold.head_width=8"]
    for recipe in ("bundled_soft_prompt", "bundled_input_prompt"):
        printed = run("train", recipe, *values, *fitting(recipe, encoder), "--out", tmp_path / recipe)
        assert "numbers" in printed
        assert "kept in" in printed
        files = {path.name for path in (tmp_path / recipe).iterdir()}
        assert {"recipe.json", "log.jsonl", "tensorboard", "checkpoints", "best", "results.json"} <= files
        log = [json.loads(line) for line in (tmp_path / recipe / "log.jsonl").read_text().splitlines()]
        assert [line["number"] for line in log] == [1, 2, 3, 4, 5, 6]
        assert [line["number"] for line in log if "score" in line] == [3, 6]
        best = max((line for line in log if "score" in line), key=lambda line: line["score"])
        assert f"best development score {best['score']:.1f} at step {best['number']}" in " ".join(printed.split())
        assert re.search(rf"loss {log[-1]['loss']:.3f}, \d+ tokens/s, dev {log[-1]['score']:.1f}", printed)
        assert curves(tmp_path / recipe / "tensorboard") == {
            f"train/{name}": [(line["number"], pytest.approx(line[name])) for line in log if name in line]
            for name in ("loss", "rate", "norm", "score")
        }
    results = json.loads((tmp_path / "bundled_input_prompt" / "results.json").read_text())
    assert results["examples"] == 12
    assert results["backbone"]["fingerprint"] == lm.fingerprint()
    assert results["recipe"]["training"]["steps"] == 6
    best = tmp_path / "bundled_input_prompt" / "best"
    found = Scaffold.load(best, lm)
    assert results["scaffold"] == {
        "kind": "input_prompt", "passes": 1, "name": str(best), "fingerprint": identity(found),
        "encoder": {"name": found.encoder.name, "fingerprint": found.encoder.fingerprint()},
    }  # fmt: skip
    assert {"tokenizers", "datasets", "sacrebleu", "rouge-score"} <= set(results["versions"])
    kept = json.loads((best / "config.json").read_text())["scores"]
    assert kept["test"]["average"] == results["average"]
    assert kept["test"]["tasks"] == results["tasks"]
    assert kept["development"]["step"] in {3, 6}
    assert {row["wording"]: row["metric"] for row in results["wordings"]} == {"choose": "accuracy", "count": "f1"}

    run("evaluate", tmp_path / "bundled_soft_prompt", "--out", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    trained = json.loads((tmp_path / "bundled_soft_prompt" / "results.json").read_text())
    assert again["tasks"] == trained["tasks"]
    assert again["examples_hash"] == trained["examples_hash"] == results["examples_hash"]
    run("evaluate", "bare", *values, "--recipe", "bundled_soft_prompt", "--out", tmp_path / "bare.json")
    bare = json.loads((tmp_path / "bare.json").read_text())["scaffold"]
    assert (bare["kind"], bare["name"], bare["encoder"]) == ("bare", None, None)

    folders = [tmp_path / "bare.json", tmp_path / "bundled_soft_prompt", tmp_path / "bundled_input_prompt"]
    printed = run("report", *folders, "--out", tmp_path / "report")
    assert "is ahead with" in printed
    compared = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert set(compared) == {"bare", "bundled_soft_prompt", "bundled_input_prompt"}
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"report.html", "scores.md", "scores.json"}

    question = Question("Is 3 even or odd?")
    assert run("ask", best, question.text, "--longest", 4) == answer([question], lm, found, Answering(4))[0] + "\n"
    answered = run(
        "ask", tmp_path / "bundled_input_prompt", "--choices", "even|odd", typed="Is 3 even or odd?\n\nIs 4?\n"
    )
    assert len(answered.splitlines()) == 2
    assert set(answered.split()) <= {"even", "odd"}


def test_a_run_is_resumed_only_on_demand_and_by_its_own_recipe(values, tmp_path):
    out = ["--out", tmp_path / "run"]
    run("train", "bundled_soft_prompt", *values, *out)
    with pytest.raises(UsageError, match="holds a run at step 6: go on with --resume"):
        run("train", "bundled_soft_prompt", *values, *out)
    with pytest.raises(UsageError, match="another recipe"):
        run("train", "bundled_soft_prompt", *values, "training.seed=5", *out, "--resume")
    run("train", "bundled_soft_prompt", *values, *out, "--resume")


def test_a_killed_command_goes_on_with_resume(values, tmp_path):
    """kill -9 of `shoulders train`, then the same command with --resume; the same log as an uninterrupted run."""
    long = [*values, "training.steps=20", "training.save_every=4", "training.evaluate_every=0"]
    command = ["train", "bundled_soft_prompt", *long, "--out"]
    run(*command, tmp_path / "whole")
    log = tmp_path / "killed" / "log.jsonl"
    with process(COMMAND, *command, tmp_path / "killed") as (running, _):
        while running.is_alive() and not (log.exists() and len(log.read_text().splitlines()) >= 6):
            time.sleep(0.002)
    run(*command, tmp_path / "killed", "--resume")
    losses = [
        [
            (line["number"], line["loss"])
            for line in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        ]
        for name in ("whole", "killed")
    ]
    assert losses[0] == losses[1]
    weights = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_errors_are_one_line_without_a_trace(capsys, monkeypatch, tmp_path):
    for arguments in (["train", "no_recipe"], ["ask", str(tmp_path / "nothing"), "q"], ["plan", "paper_idpt", "x=1"]):
        monkeypatch.setattr(sys, "argv", ["shoulders", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "Traceback" not in error


def test_without_a_network_the_command_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["shoulders", "train", "bundled_soft_prompt", "backbone.name=nobody/nothing"])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert "the Hugging Face hub does not answer" in error.replace("\n", " ")
    assert "Traceback" not in error


def test_recipes_are_listed_and_shown():
    assert "paper_idpt" in run("recipes")
    shown = run("recipes", "paper_idpt")
    assert "training.learning_rate=7.5e-05" in shown
    assert "scaffold.length=400" in shown


def test_a_plan_is_printed():
    printed = run("plan", "paper_idpt")
    assert "25,049,856" in printed
    assert "0.334%" in printed


def test_prompts_are_converted_both_ways(values, tmp_path):
    run("train", "bundled_soft_prompt", *values, "training.steps=1", "--out", tmp_path / "run")
    run("convert", tmp_path / "run", tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    run("convert", tmp_path / "adapter", tmp_path / "back")
    old, new = (tmp_path / name / "model.safetensors" for name in ("run/best", "back"))
    assert old.read_bytes() == new.read_bytes()
    with pytest.raises(UsageError, match="neither a scaffold"):
        run("convert", tmp_path, tmp_path / "x")


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ("", ["shoulders recipes", "training.steps=200", "convert"]),
        ("demo", ["--quick", "--out", "piped in one a line"]),
        ("train", ["--resume", "accelerate launch -m shoulders train", "torchrun --nproc_per_node 2", "results.json"]),
        ("evaluate", ["--recipe", "--out", "median over templates", "test.split=validation"]),
        ("ask", ["--choices", "--context", "--truncate", "--longest", "--backbone"]),
        ("report", ["results.json", "scores.md", "--out"]),
        ("recipes", ["show every value of one"]),
        ("plan", ["--input-length", "--output-length", "without loading a weight"]),
        ("convert", ["PEFT", "--backbone", "folder to write"]),
    ],
)
def test_help_teaches(command, taught, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    printed = " ".join(run(*[part for part in (command, "--help") if part]).split())
    assert [part for part in taught if part not in printed] == []


def test_every_command_has_an_example_of_its_own():
    """One that the command line accepts, with recipes and values that exist."""
    for name, listed in typer.main.get_command(app).commands.items():
        command = command_named(name)
        assert command.help.split("\n\n")[0].replace("\n", " ") == listed.help, "the list of all commands has its line"
        example = re.search(r"^Example: `shoulders (.+)`$", command.help, re.MULTILINE)
        assert example, name
        called, *arguments = shlex.split(example[1])
        assert called == name
        given = command.make_context(name, arguments).params
        if name in {"train", "sweep", "plan"}:
            find_recipe(given["recipe"], given["overrides"] or [])


def test_help_is_fast():
    """Nothing heavy is imported before a command runs."""
    code = (
        "import sys\nimport shoulders.cli.main\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
