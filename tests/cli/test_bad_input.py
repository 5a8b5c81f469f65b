"""Bad input at the command line: one clear line, the exit code of a usage error, no trace, nothing lost."""

import io
import json
import os
import sys

import pytest
import torch

from shoulders.cli.main import main
from shoulders.cli.scores import print_skipped
from shoulders.evaluation.protocol import Scores, Skipped
from shoulders.records import Answer
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import save_lm, save_numbers, tokenizer


@pytest.fixture
def suite(tmp_path):
    return save_numbers(tmp_path / "suite" / "numbers", range(12), range(12, 18), range(18, 24))


@pytest.fixture
def prompt(lm, tmp_path):
    """A saved soft prompt."""
    SoftPrompt(from_vocabulary(lm)(3)).made_for(lm).save_pretrained(tmp_path / "prompt")
    return tmp_path / "prompt"


def values(lm, suite):
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", f"suite.source={suite}", "training.steps=2",
        "training.batch_size=4", "scaffold.length=4", "development.limit=2", "test.limit=2", "test.longest=4",
        "development.longest=4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([""], "a question is empty"),
        (["hi", "--longest", "0"], "length of the answer must be at least 1, got 0"),
        (["hi", "--choices", "|"], "names no answer"),
        (["hi", "--choices", ""], "names no answer"),
        (["hi", "--longest", "200", "--truncate"], "ask for a shorter answer"),
    ],
)
def test_asking(refused, prompt, arguments, said):
    error = refused("ask", prompt, *arguments)
    assert said in error
    assert ("allow truncation" in error) is False


def test_answers_are_printed_as_they_are(shoulders, prompt, monkeypatch):
    odd = ":heart: [bold]x[/bold]\tend " + "word " * 40 + "https://x.y"
    monkeypatch.setattr("shoulders.answering.answerer.answered", lambda *_: [Answer(odd, -1.0, 1.0)])
    assert shoulders("ask", prompt, "hi")[1] == odd + "\n"
    assert shoulders("ask", prompt, "[red]a :heart:", "b")[1] == f"[red]a :heart:\n  {odd}\nb\n  {odd}\n"


def test_standard_input_that_holds_no_question(refused, prompt, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed: type one" in refused("ask", prompt)
    for how in ("strict", "surrogateescape"):
        latin = io.TextIOWrapper(io.BytesIO("Où est Orléans?\n".encode("latin-1")), encoding="utf-8", errors=how)
        monkeypatch.setattr(sys, "stdin", latin)
        assert "standard input is not UTF-8" in refused("ask", prompt)


def test_questions_and_names_that_are_no_utf_8(refused, shoulders, prompt, tmp_path):
    """As Python passes such bytes on from the command line."""
    odd = os.fsdecode(b"caf\xe9")
    assert "'\\udce9' as character 4" in refused("ask", prompt, odd)
    code, out, error = shoulders("ask", prompt, odd, "Name a planet.", "--longest", 3)
    assert (code, "Name a planet." in out, "not answered: 1 of the questions" in error) == (2, True, True)
    (tmp_path / odd).mkdir()
    for arguments in (["ask", tmp_path / odd, "hi"], ["ask", "bare", "hi", "--backbone", tmp_path / odd],
                      ["convert", tmp_path / odd, tmp_path / "new"], ["search", tmp_path / odd, "hi"]):  # fmt: skip
        assert "caf" in refused(*arguments).encode().decode()
    os.rename(prompt, tmp_path / odd / "prompt")
    assert "caf\\xe9/prompt/model.safetensors is not UTF-8" in refused("ask", tmp_path / odd / "prompt", "hi")


def test_results_of_a_folder_whose_name_is_no_utf_8(shoulders, lm, suite, tmp_path):
    odd = tmp_path / os.fsdecode(b"su\xefte") / "numbers"
    odd.parent.mkdir()
    os.rename(suite, odd)
    asked = ["evaluate", "bare", "--recipe", "bundled_soft_prompt", *values(lm, odd)]
    code, _, error = shoulders(*asked, "--out", tmp_path / "results.json")
    assert (code, error) == (0, ""), error
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["recipe"]["suite"]["source"] == str(odd)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_a_character_shows_a_sign_in_its_place(prompt, monkeypatch, encoding):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "argv", ["shoulders", "ask", str(prompt), "hi"])
    answer = Answer("Zoë, 北京 \ud83d", -1.0, 1.0)
    monkeypatch.setattr("shoulders.answering.answerer.answered", lambda *_: [answer])
    with pytest.raises(SystemExit):
        main()
    screen.flush()
    shown = {"ascii": "Zo?, ?? ?", "latin-1": "Zoë, ?? ?", "utf-8": "Zoë, 北京 ?"}[encoding]
    assert screen.buffer.getvalue().decode(encoding) == f"{shown}\n"


def test_an_adapter_that_does_not_name_its_model(refused, shoulders, prompt, lm, tmp_path):
    assert shoulders("convert", prompt, tmp_path / "adapter")[0] == 0
    config = tmp_path / "adapter" / "adapter_config.json"
    nameless = {**json.loads(config.read_text()), "base_model_name_or_path": None}
    config.write_text(json.dumps(nameless))
    assert "name it with --backbone" in refused("convert", tmp_path / "adapter", tmp_path / "back")
    assert shoulders("convert", tmp_path / "adapter", tmp_path / "back", "--backbone", lm.name)[0] == 0
    assert torch.equal(Scaffold.load(tmp_path / "back", lm).prompt, Scaffold.load(prompt, lm).prompt)


def test_an_empty_question_to_a_tokenizer_that_adds_nothing(refused, tmp_path):
    save_lm("gpt2", tmp_path / "lm")
    made = tokenizer()
    assert made("").input_ids == []
    assert "a question is empty" in refused("ask", "bare", "", "--backbone", tmp_path / "lm")


def test_one_question_that_does_not_fit_does_not_cost_the_others(shoulders, prompt):
    long = "word " * 300
    code, out, error = shoulders("ask", prompt, "What is this?", long, "Name a planet.", "--longest", 3)
    assert code == 2
    assert "What is this?" in out
    assert "Name a planet." in out
    assert "word" not in out
    assert "word word" in error
    assert "the model has room for 128: shorten it, allow truncation, or ask for a shorter answer" in error
    assert "not answered: 1 of the questions" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("suite.source=hub:a/b@/nope.yaml", "cannot read the templates /nope.yaml"),
        ("suite.source=bundle", "did you mean 'bundled'?"),
        ("suite.tasks=numberz", "did you mean 'numbers'?"),
        ("suite.without_templates=numbers/cuont", "did you mean 'numbers/count'?"),
        ("suite.cap=0", "suite.cap is 0: it must be at least 1"),
        ("suite.cap=-5", "suite.cap is -5"),
        ("suite.cap=1", "suite.cap 1 is less than the 2 templates of task 'numbers'"),
        ("suite.lengths.input=0", "suite.lengths.input is 0"),
        ("suite.lengths.target=-1", "suite.lengths.target -1"),
        ("scaffold.kind=bare", "nothing to train with scaffold.kind=bare"),
        ("scaffold.length=0", "nothing to train with scaffold.length=0"),
        (
            "scaffold.kind=recursion scaffold.recursion.passes=0",
            "scaffold.recursion.passes must be at least 1, got 0",
        ),
        ("scaffold.kind=bare scaffold.length=4", "value of scaffold.kind=bare (it has scaffold.kind, scaffold.start)"),
        ("scaffold.kind=recursion scaffold.inner=recursion", "a recursion cannot be the inner scaffold"),
        ("scaffold.kind=recursion scaffold.inner.start=x", "only the whole recursion can start from a trained one"),
        ("suite.fold=c", "suite.fold='c' is no half of the training examples"),
        ("evidence.kind=candidate", "did you mean 'candidates'?"),
        ("evidence.kind=candidates", "candidates are sampled under a first prompt: set evidence.scaffold=RUN"),
        ("evidence.count=0", "number of sampled answers must be at least 1, got 0"),
        ("evidence.temperature=0", "temperature must be above 0, got 0.0"),
        ("evidence.longest=0", "evidence.longest is 0"),
        ("training.first_pass=states", "scaffold.kind=soft_prompt trains before the first pass ends"),
        ("scaffold.kind=input_prompt scaffold.head_width=0", "scaffold.head_width must be at least 1, got 0"),
        ("scaffold.kind=input_prompt scaffold.query_std=nan", "scaffold.query_std must be at least 0, got nan"),
        ("scaffold.placement=sufix", "did you mean 'suffix'?"),
        ("training.decay=liner", "did you mean 'linear'?"),
        ("training.learning_rate=nan", "training.learning_rate is nan"),
        ("training.learning_rate=1e38", "training.learning_rate is 1e+38"),
        ("training.base_learning_rate=inf", "training.base_learning_rate is inf"),
        ("training.betas=0.9,1", "training.betas is (0.9, 1.0)"),
        ("training.eps=nan", "training.eps is nan"),
        ("training.weight_decay=-1", "training.weight_decay is -1"),
        ("training.clip=-1", "training.clip is -1"),
        ("training.evaluate_every=-1", "training.evaluate_every is -1"),
        ("training.save_every=-2", "training.save_every is -2"),
        ("test.longest=-1", "test.longest or development.longest is -1"),
        ("test.limit=-1", "test.limit or development.limit is -1"),
        ("development.wordings=-1", "test.wordings or development.wordings is -1"),
        ("test.positions_at_once=0", "test.positions_at_once or development.positions_at_once is 0"),
    ],
)
def test_training(refused, lm, suite, tmp_path, override, said):
    out = tmp_path / "run"
    own = [value for value in values(lm, suite) if not value.startswith("scaffold.")]
    assert said in refused("train", "bundled_soft_prompt", *own, *override.split(), "--out", out)
    assert not (out / "best").exists()


def test_textual_recursion_whose_first_prompt_is_gone_or_says_nothing(refused, lm, suite, prompt, tmp_path):
    out, longest = tmp_path / "run", "evidence.longest=1"
    asked = ["train", "bundled_soft_prompt", *values(lm, suite), "evidence.kind=candidates", longest, "--out", out]
    said = refused(*asked, f"evidence.scaffold={tmp_path}/gone")
    assert "gone', and candidates are to be sampled under it: put it back" in said
    (tmp_path / "store").write_text("no database" * 100)
    with_store = refused(*asked, f"evidence.scaffold={prompt}", f"evidence.store={tmp_path}/store")
    assert "is no cache (file is not a database): name another (evidence.store)" in with_store
    assert not (out / "best").exists()


def test_recall_of_no_samples_or_of_what_is_no_number(refused, lm, suite, prompt):
    asked = ["sample", prompt, *values(lm, suite), "--recipe", "bundled_soft_prompt", "--samples"]
    assert "the number must be at least 1" in refused(*asked, "0,4")
    assert "'four' are not whole numbers" in refused(*asked, "four")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("templates.yaml", b"\xff\xfe\x00", "is not a PromptSource template file"),
        ("card.json", b"{", "card.json is not JSON"),
        ("card.json", b"[]", "card.json is not a JSON object"),
        ("card.json", b'{"evidence": "m"}', "field of task 'numbers' (evidence in its card.json) called 'm'"),
    ],
)
def test_broken_task_folders(refused, lm, suite, tmp_path, file, content, said):
    (suite / file).write_bytes(content)
    assert said in refused("train", "bundled_soft_prompt", *values(lm, suite), "--out", tmp_path / "run")


@pytest.mark.parametrize("source", ["p3:ag_news", "hub:a/b@{templates}"])
def test_hub_data_without_the_datasets_library(refused, monkeypatch, lm, suite, tmp_path, source):
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it fails
    place = source.format(templates=suite / "templates.yaml")
    error = refused(
        "train", "bundled_soft_prompt", *values(lm, suite), f"suite.source={place}", "--out", tmp_path / "r"
    )
    assert "pip install 'shoulders[hub]'" in error


def test_a_recipe_file_that_is_not_there(refused):
    assert "cannot read /nope/recipe.json: No such file" in refused("train", "/nope/recipe.json")


def test_a_shape_is_not_trained(refused, tmp_path):
    error = refused("train", "paper_idpt", "--out", tmp_path / "run")
    assert "'shape:j1-large' is a shape without weights, for `shoulders plan` only" in error
    assert "backbone.name=" in error


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({}, "config.json is not that of a soft_prompt"),
        ({"length": 3, "placement": "sufix"}, "config.json is not that of a soft_prompt"),
        ({"length": "x", "placement": "prefix"}, "config.json is not that of a soft_prompt"),
        ([], "config.json is not a scaffold's configuration: TypeError('description is no object')"),
    ],
)
def test_a_scaffold_with_a_broken_description(refused, prompt, description, said):
    config = json.loads((prompt / "config.json").read_text())
    (prompt / "config.json").write_text(json.dumps({**config, "description": description}))
    assert said in refused("ask", prompt, "hi")


def test_plans(refused, shoulders, tmp_path, lm, tiny_encoder, tiny_lm):
    plan = ["plan", "bundled_soft_prompt", "scaffold.length=4"]
    encoder = tiny_encoder("t5").name
    assert "is a t5 model, not a causal language model" in refused(*plan, f"backbone.name={encoder}")
    small = f"backbone.name={lm.name}"
    assert "the input has 0 and the answer 16 tokens" in refused(*plan, small, "--input-length", 0)
    assert "the input has 8 and the answer 0 tokens" in refused(*plan, small, "--input-length", 8, "--output-length", 0)
    code, out, error = shoulders(*plan, f"backbone.name={tiny_lm('bloom').name}", "--input-length", 8)
    assert (code, error) == (0, "")
    assert "trained in all" in out


def test_bad_places_to_write_to(refused, lm, suite, prompt, tmp_path):
    (tmp_path / "file").write_text("kept")
    train = ["train", "bundled_soft_prompt", *values(lm, suite), "--out"]
    assert "name another place (--out)" in refused(*train, tmp_path / "file")
    assert "name another place (--out)" in refused(*train, tmp_path / "file" / "below")
    (tmp_path / "adapter").write_text("kept")
    assert "is a file: name a new folder" in refused("convert", prompt, tmp_path / "adapter")
    assert {(tmp_path / name).read_text() for name in ("file", "adapter")} == {"kept"}


def test_a_run_killed_between_two_renames_is_found(shoulders, lm, prompt, tmp_path):
    """The best scaffold lies under its backup name only: the run is not empty."""
    run = tmp_path / "run"
    run.mkdir()
    os.rename(prompt, run / ".best.old")
    code, _, error = shoulders("ask", run, "hi", "--longest", 2)
    assert (code, error) == (0, "")
    assert Scaffold.load(run / "best", lm).length == 3


def test_what_was_not_measured_is_said_with_the_reason(capsys):
    print_skipped(
        Scores([], {"numbers/count": Skipped(3, "template 'count' of task 'numbers' on example test:1: [x]")})
    )
    printed = capsys.readouterr().out
    assert "left out of numbers/count: 3 examples whose template fails" in printed
    assert "on example test:1: [x]" in printed


@pytest.mark.parametrize(
    "command", [["plan"], ["evaluate", "bare", "--recipe"], ["sample", "bare", "--recipe"], ["train", "--rival=lora"]]
)
def test_recipes_that_order_passages_where_a_language_model_s_belongs(refused, command):
    assert "reranker orders passages and has no" in refused(*command, "reranker").replace("the recipe ", "")


def test_a_reranker_of_annotated_passages(refused):
    said = refused("plan", "reader", "evidence.kind=oracle", "evidence.reranker=mine")
    assert "evidence.reranker=mine has no effect" in said
