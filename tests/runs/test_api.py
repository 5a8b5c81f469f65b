"""Training and measuring from Python: whatever examples are given as, and whatever scaffold trains."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict

import shoulders
from commands import run as command
from shoulders import (
    Bare,
    FrozenLM,
    InputPrompt,
    InputPromptShape,
    Question,
    Recursion,
    RecursionShape,
    Scaffold,
    SoftPrompt,
)
from shoulders.data.pairs import CLOSED, NAME, given_tasks
from shoulders.data.readers import open_suite
from shoulders.errors import ContextFull, DataError, UnknownName, UsageError, WrongBackbone
from shoulders.records import Example
from shoulders.store.files import lock_folder
from shoulders.training.loop import checkpoints
from small_values import small_values
from toys import layered

PAIRS = [("Capital of France?", "Paris"), ("Capital of Italy?", "Rome"), ("Two plus two is", "four")]
QUICK = {"steps": 4, "batch_size": 4, "progress": False}
ASKED = "Capital of France?"


def prompt(lm, length=3, **how):
    return SoftPrompt.from_vocabulary(lm, length=length, **how)


def scaffolds(lm, tiny_encoder):
    """A scaffold of each kind, as it is made from Python."""
    shape = InputPromptShape(length=3, encoder_length=2, layers=1, head_width=8)
    torch.manual_seed(0)
    return {
        "soft_prompt": SoftPrompt.from_text(lm, "Answer in one word.", length=3),
        "suffix": prompt(lm, placement="suffix"),
        "input_prompt": InputPrompt(lm, lm, shape),
        "input_prompt with an encoder": InputPrompt(tiny_encoder("bert"), lm, shape),
        "recursion": Recursion(lm, RecursionShape(layers=1)),
        "recursion of a prompt": Recursion(lm, RecursionShape(layers=1), prompt(lm)),
        **{name: layered(lm, tiny_encoder)[name] for name in LAYERED},
    }


LAYERED = ("deep prefix", "low rank prefix", "scales", "input deep", "gated", "gated scales")
KINDS = (
    "soft_prompt", "suffix", "input_prompt", "input_prompt with an encoder", "recursion", "recursion of a prompt",
    *LAYERED,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_and_is_measured_saved_opened_and_asked(kind, lm, tiny_encoder, tmp_path):
    scaffold = scaffolds(lm, tiny_encoder)[kind]
    before, frozen = {name: weight.clone() for name, weight in scaffold.state_dict().items()}, lm.checksum()
    run = shoulders.train(scaffold, lm, PAIRS, **QUICK)
    assert run.scaffold is scaffold
    assert len(run.losses) == 4
    assert all(not torch.equal(weight, before[name]) for name, weight in scaffold.named_parameters())
    assert lm.checksum() == frozen
    assert not scaffold.training

    run.save(tmp_path / "kept")
    opened = shoulders.open(tmp_path / "kept", lm=lm)
    assert run.ask(ASKED) == opened.ask(ASKED) == opened.ask(Question(ASKED))
    assert run.ask(ASKED, ["Paris", "Rome"]) == opened.ask(ASKED, ["Paris", "Rome"])
    scores = shoulders.evaluate(run, PAIRS, progress=False)
    again = shoulders.evaluate(Scaffold.load(tmp_path / "kept", lm), PAIRS, progress=False)
    assert scores == again
    assert set(scores) == {"exact_match", "f1", "average"}


def taught(lm, pairs):
    """A run that has learned its pairs; a prompt alone moves a model of random weights too little."""
    scaffold = Recursion(lm, RecursionShape(passes=1, after=True, layers=1))
    return shoulders.train(scaffold, lm, pairs, steps=100, batch_size=3, learning_rate=0.1, progress=False)


def test_training_teaches_what_it_is_given(lm):
    run = taught(lm, PAIRS)
    assert run.losses[-1] < run.losses[0] / 10
    assert shoulders.evaluate(run, PAIRS, progress=False)["exact_match"] == 100
    assert shoulders.evaluate(Bare(), PAIRS, lm, progress=False)["exact_match"] == 0
    assert [run.ask(question).text for question, _ in PAIRS] == [answer for _, answer in PAIRS]


RECORDS = [{"question": question, "answer": answer} for question, answer in PAIRS]


@pytest.mark.parametrize(
    "examples",
    [
        [list(pair) for pair in PAIRS],
        RECORDS,
        [{"question": question, "answers": [answer, "another"]} for question, answer in PAIRS],
        [{"question": q, "answers": {"text": [a, a], "answer_start": [0, 0]}} for q, a in PAIRS],  # SQuAD's
        [{"question": q, "answer": a, "choices": None, "evidence": None, "id": 3} for q, a in PAIRS],
        [(Question(question), answer) for question, answer in PAIRS],
        [Example(NAME, "as given", "0", Question(q), a, (a,)) for q, a in PAIRS],
        Dataset.from_list(RECORDS),
        (pair for pair in PAIRS),
        given_tasks(PAIRS),
    ],
    ids=["lists", "records", "answers", "squad", "nulls", "questions", "examples", "dataset", "generator", "tasks"],
)
def test_examples_of_every_form_train_alike(examples, lm):
    assert shoulders.train(prompt(lm), lm, examples, **QUICK).losses == (
        shoulders.train(prompt(lm), lm, PAIRS, **QUICK).losses
    )


def test_all_answers_count_and_the_first_is_taught(lm):
    rows = [{"question": "Capital of France?", "answers": ["Paris", "Lutetia", "Paris"]}]
    (task,) = given_tasks(rows)
    example = task.example("test", "as given", 0)
    assert (example.target, example.references) == ("Paris", ("Paris", "Lutetia"))
    run = taught(lm, [("Capital of France?", "Lutetia")])
    assert shoulders.evaluate(run, rows, progress=False)["exact_match"] == 100


def test_choices_are_ranked_and_stand_beside_generated_answers(lm):
    closed = {"question": "Is four even or odd?", "answer": "even", "choices": ["even", "odd"]}
    tasks = given_tasks([*PAIRS, closed])
    assert [(task.name, task.rows("test", "as given")) for task in tasks] == [(NAME, 3), (CLOSED, 1)]
    run = shoulders.train(prompt(lm), lm, [*PAIRS, closed], **QUICK)
    scores = shoulders.evaluate(run, [*PAIRS, closed], progress=False)
    assert set(scores) == {"exact_match", "f1", "accuracy", "average"}
    assert scores["accuracy"] == shoulders.evaluate(run, [closed], progress=False)["accuracy"]
    assert scores["average"] == (scores["exact_match"] + scores["accuracy"]) / 2
    likeliest = run.ask(closed["question"], closed["choices"]).text
    assert scores["accuracy"] == (100 if likeliest == "even" else 0)


def test_evidence_is_read_before_the_question_and_an_infix_stands_between(lm):
    rows = [{"question": question, "answer": answer, "evidence": f"{answer}.\n"} for question, answer in PAIRS]
    (task,) = given_tasks(rows)
    assert task.example("train", "as given", 0).question.whole == "Paris.\n\nCapital of France?"
    infix = shoulders.train(prompt(lm, placement="infix"), lm, rows, **QUICK).losses
    assert infix != shoulders.train(prompt(lm), lm, rows, **QUICK).losses
    with pytest.raises(UsageError, match="infix puts the prompt between evidence and question"):
        shoulders.train(prompt(lm, placement="infix"), lm, PAIRS, **QUICK)


WRONG = [
    ("Capital of Italy?", "example 1, 'Capital of Italy?': it is neither a pair nor a record"),
    (("Capital of Italy?",), "neither a pair nor a record"),
    (("Capital of Italy?", "Rome", "Milan"), "neither a pair nor a record"),
    (("Capital of Italy?", None), "`answer` contains no answer"),
    (("Capital of Italy?", ""), "`answer` contains no answer"),
    (("Capital of Italy?", []), "`answer` contains no answer"),
    (("Capital of Italy?", True), "`answer` is true, neither text nor number"),
    ((" ", "Rome"), "`question` is empty"),
    ((3, "Rome"), "`question` is no text"),
    ({"text": "Capital of Italy?", "label": 3}, "`question` is missing"),
    ({"question": "Italy?", "answers": {"text": []}}, "`answers` contains no answer"),
    ({"question": "Italy?", "answer": "Rome", "choices": "Rome|Bern"}, "`choices` is a str, no list"),
    ({"question": "Italy?", "answer": "Rome", "choices": ["Bern", "Paris"]}, "'Rome' is none of the choices 'Bern', "),
    ({"question": "Italy?", "answer": "Rome", "evidence": ["Rome."]}, "`evidence` is a list, neither text nor number"),
    ({"question": "one\ntwo", "answer": torch.zeros(3)}, "`answer` is a Tensor"),
]


@pytest.mark.parametrize(("row", "said"), WRONG)
@pytest.mark.parametrize("call", ["train", "evaluate"])
def test_a_row_of_another_shape_is_refused_in_one_line_with_its_number(row, said, call, lm):
    scaffold = prompt(lm)
    use = {
        "train": lambda rows: shoulders.train(scaffold, lm, rows, **QUICK),
        "evaluate": lambda rows: shoulders.evaluate(scaffold, rows, progress=False),
    }
    with pytest.raises(DataError, match=re.escape(said)) as error:
        use[call]([PAIRS[0], row])
    assert str(error.value).startswith("example 1, ")
    assert "give (question, answer), or a record with question and answer" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([], "there are no examples"),
        (None, "the examples are a NoneType: give a list"),
        (DatasetDict(train=Dataset.from_list(RECORDS)), r"mapping of train: give rows, e\.g\. examples\['train'\]"),
        ("bundeld", "did you mean 'bundled'"),
    ],
)
def test_what_holds_no_rows_is_refused(examples, said, lm):
    with pytest.raises(UsageError, match=said) as error:
        shoulders.train(prompt(lm), lm, examples, **QUICK)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"learning_rte": 0.1}, UnknownName, "did you mean 'learning_rate'"),
        ({"evaluate_every": 3}, UnknownName, "no value of training called 'evaluate_every'"),
        ({"learning_rate": -1}, UsageError, "learning_rate is -1"),
        ({"steps": 0}, UsageError, "steps is 0: it must be at least 1"),
        ({"steps": 1.5}, UsageError, "steps is 1.5: it must be a whole number"),
        ({"batch_size": "8"}, UsageError, "batch_size is '8': it must be a whole number"),
        ({"seed": "a"}, UsageError, "seed is 'a': it must be a whole number"),
        ({"learning_rate": None}, UsageError, "learning_rate is None: it must be a number"),
        ({"betas": 0.9}, UsageError, "betas is 0.9: it must be two numbers"),
        ({"betas": "ab"}, UsageError, "betas is 'ab': it must be two numbers"),
        ({"first_pass": "states"}, UsageError, "first_pass"),
    ],
)
def test_values_of_a_training_are_checked(values, error, said, lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        shoulders.train(prompt(lm), lm, PAIRS, **{**QUICK, **values})


def test_values_of_a_training_count(lm, tmp_path):
    def losses(**values):
        return shoulders.train(prompt(lm), lm, PAIRS * 4, **{**QUICK, **values}).losses

    usual = losses()
    assert losses(learning_rate=SoftPrompt.usual_rate, decay="linear") == usual
    for values in ({"learning_rate": 1.0}, {"batch_size": 2}, {"seed": 1}, {"decay": "none"}):
        assert losses(**values) != usual, values
    assert len(losses(steps=2)) == 2
    stored = shoulders.train(Recursion(lm, RecursionShape(layers=1)), lm, PAIRS, first_pass=str(tmp_path), **QUICK)
    assert list(tmp_path.iterdir())
    assert len(stored.losses) == 4


@pytest.mark.parametrize("kind", ["soft_prompt", "recursion of a prompt", "input deep", "gated"])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(kind, lm, tiny_encoder, tmp_path):
    how = {**QUICK, "steps": 6, "save_every": 2}
    whole = shoulders.train(scaffolds(lm, tiny_encoder)[kind], lm, PAIRS, out=tmp_path / "whole", **how)

    def stop(step):
        if step.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shoulders.train(scaffolds(lm, tiny_encoder)[kind], lm, PAIRS, out=tmp_path / "run", on_step=stop, **how)
    assert not (tmp_path / "run" / "best").exists()
    seen = []
    other_start = scaffolds(lm, tiny_encoder)[kind]
    resumed = shoulders.train(
        other_start, lm, PAIRS, out=tmp_path / "run", on_step=lambda step: seen.append(step.number), **how
    )
    assert seen == [5, 6]
    assert resumed.losses == whole.losses
    for name, weight in whole.scaffold.state_dict().items():
        assert torch.equal(weight, resumed.scaffold.state_dict()[name])
    done = shoulders.train(scaffolds(lm, tiny_encoder)[kind], lm, PAIRS, out=tmp_path / "run", **how)
    assert done.losses == whole.losses  # nothing is left to train
    assert done.ask(ASKED) == whole.ask(ASKED)


def test_a_run_is_opened_by_its_folder(lm, tmp_path):
    run = shoulders.train(prompt(lm), lm, PAIRS, out=tmp_path / "run", **QUICK)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000004"]
    for name in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / "best"):
        assert shoulders.open(name, lm=lm).ask(ASKED) == run.ask(ASKED)
    assert shoulders.open(tmp_path / "run").lm.fingerprint() == lm.fingerprint()  # the backbone that it names
    kept = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert kept["recipe"]["training"]["steps"] == 4
    assert command("ask", tmp_path / "run", ASKED).strip() == run.ask(ASKED).text.strip()


def test_a_folder_of_another_run_is_refused_and_left_alone(lm, tmp_path):
    shoulders.train(prompt(lm), lm, PAIRS, out=tmp_path / "run", **QUICK)
    kept = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    for scaffold, examples, values, said in (
        (prompt(lm), PAIRS, {"learning_rate": 1.0}, r"\(learning_rate 0\.05, not 1\.0\)"),
        (prompt(lm, 4), PAIRS, {}, r"'length': 3, .*not .*'length': 4"),
        (prompt(lm), PAIRS[:2], {}, r"\(examples \w+, not \w+\): name another folder \(out=\)"),
    ):
        with pytest.raises(UsageError, match=said):
            shoulders.train(scaffold, lm, examples, out=tmp_path / "run", **{**QUICK, **values})
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == kept


def test_a_run_of_the_command_line_is_no_folder_to_train_in(lm, suite, tmp_path):
    command("train", "bundled_soft_prompt", *small_values(lm.name, suite), "--out", tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run of `shoulders train`: name another folder"):
        shoulders.train(prompt(lm), lm, PAIRS, out=tmp_path / "run", **QUICK)


def test_a_suite_is_trained_and_measured_by_its_name_as_on_the_command_line(lm, suite, tmp_path):
    by_name = shoulders.train(prompt(lm), lm, str(suite), out=tmp_path / "run", **QUICK)
    by_path = shoulders.train(prompt(lm), lm, suite, **QUICK)
    by_tasks = shoulders.train(prompt(lm), lm, open_suite(str(suite)), **QUICK)
    assert by_name.losses == by_path.losses == by_tasks.losses

    scores = shoulders.evaluate(by_name, str(suite), limit=6, longest=4, progress=False)
    values = [value for value in small_values(lm.name, suite) if not value.startswith("scaffold.")]
    measured = ["--recipe", "bundled_soft_prompt", *values, "test.wordings=0", "test.longest=4"]
    command("evaluate", tmp_path / "run", *measured, "--out", tmp_path / "scores.json")
    wanted = json.loads((tmp_path / "scores.json").read_text())
    assert scores["average"] == pytest.approx(wanted["average"])
    rows = [row["scores"] for row in wanted["wordings"]]
    for name in ("accuracy", "f1", "exact_match"):
        of_tasks = [row[name] for row in rows if name in row]  # one wording of each kind in each task
        assert scores[name] == pytest.approx(sum(of_tasks) / len(of_tasks))


def test_questions_of_a_file_are_asked_in_the_wording_that_was_trained(lm, tmp_path):
    lines = [json.dumps({"question": question, "answers": [answer]}) for question, answer in PAIRS]
    for part in ("train", "dev", "test"):
        (tmp_path / f"facts-{part}.jsonl").write_text("\n".join(lines))
    run = shoulders.train(prompt(lm), lm, f"qa:{tmp_path}/facts", **QUICK)
    run.save(tmp_path / "kept")
    worded = Question(f"Question: {ASKED}\nAnswer:")
    opened = shoulders.open(tmp_path / "kept", lm=lm)
    assert run.ask(ASKED) == run.ask(worded) == opened.ask(ASKED) == opened.ask(worded)


def test_what_does_not_fit_the_context_is_told(lm):
    with pytest.warns(UserWarning, match=r"\d+ discarded, of \d+ examples that were read: the model has 128 positions"):
        run = shoulders.train(prompt(lm), lm, [*PAIRS, ("Count!", "one two three " * 60)], **QUICK)
    assert len(run.losses) == 4
    near = next(text for n in range(200) if len(lm.ids(text := "word " * n)) >= lm.context - 3)
    with pytest.warns(UserWarning, match=r"truncated, of \d+ examples"):
        shoulders.train(prompt(lm), lm, [(near, "yes")], **QUICK)
    with pytest.raises(DataError, match="no example fits"):
        shoulders.train(prompt(lm), lm, [("word " * 200, "yes")], **QUICK)
    with pytest.warns(UserWarning, match="1 of 4 questions were cut"):
        shoulders.evaluate(run, [*PAIRS, ("word " * 200, "yes")], progress=False)
    with pytest.raises(ContextFull, match="a prompt of 127 vectors and a text needs 129 positions"):
        shoulders.train(prompt(lm, 127), lm, PAIRS, **QUICK)


def test_a_scaffold_without_anything_to_train_is_refused(lm):
    for scaffold in (Bare(), SoftPrompt(torch.zeros(0, lm.width))):
        with pytest.raises(UsageError, match=f"nothing to train in {type(scaffold).__name__}"):
            shoulders.train(scaffold, lm, PAIRS, **QUICK)


def test_arguments_of_another_kind_are_refused(lm, tiny_lm):
    for scaffold, model in ((lm, prompt(lm)), (prompt(lm), lm.model)):
        with pytest.raises(UsageError, match=r"a Scaffold and a FrozenLM are needed.*FrozenLM\(model, tokenizer\)"):
            shoulders.train(scaffold, model, PAIRS, **QUICK)
    with pytest.raises(UsageError, match=r"shoulders\.evaluate\(scaffold, examples, lm\)"):
        shoulders.evaluate(Bare(), PAIRS)
    other = tiny_lm("gpt2")
    with pytest.raises(WrongBackbone, match="has other weights"):
        shoulders.train(prompt(lm), other, PAIRS, **QUICK)
    run = shoulders.train(prompt(lm), lm, PAIRS, **QUICK)
    with pytest.raises(WrongBackbone):
        shoulders.evaluate(run, PAIRS, other)


def test_a_bar_is_shown_on_standard_error_and_only_if_asked_for(lm, capsys):
    run = shoulders.train(prompt(lm), lm, PAIRS, **{**QUICK, "progress": True})
    shoulders.evaluate(run, PAIRS)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "prompt tuning" in shown.err
    assert "4/4 loss" in shown.err
    assert "measuring" in shown.err
    assert "3/3" in shown.err
    shoulders.evaluate(shoulders.train(prompt(lm), lm, PAIRS, **QUICK), PAIRS, progress=False)
    assert capsys.readouterr() == ("", "")


def own_model(lm):
    """A model and a tokenizer that the caller has made, without a name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(lm.name)
    model.config.name_or_path = model.name_or_path = ""
    return model.train(), AutoTokenizer.from_pretrained(lm.name)


def test_a_model_of_ones_own_is_used_as_it_is(lm, tmp_path):
    model, tokenizer = own_model(lm)
    own = FrozenLM(model, tokenizer)
    assert own.model is model
    assert (own.name, own.fingerprint(), own.context) == ("", lm.fingerprint(), lm.context)
    assert not model.training
    assert own.ids("a </s> b") == lm.ids("a </s> b")
    assert not tokenizer.split_special_tokens  # the caller's own is left alone
    run = shoulders.train(prompt(own), own, PAIRS, **QUICK)
    assert run.losses == pytest.approx(shoulders.train(prompt(lm), lm, PAIRS, **QUICK).losses)
    run.save(tmp_path / "kept")
    assert shoulders.open(tmp_path / "kept", lm=own).ask(ASKED) == run.ask(ASKED)
    assert shoulders.open(tmp_path / "kept", backbone=lm.name).ask(ASKED).text == run.ask(ASKED).text
    with pytest.raises(UsageError, match=r"without a name: give the model \(in Python shoulders\.open\(NAME, lm=lm"):
        shoulders.open(tmp_path / "kept")
    deep = shoulders.DeepPrompt.from_vocabulary(own, length=2)
    shoulders.train(deep, own, PAIRS, **QUICK).save(tmp_path / "deep")
    assert shoulders.open(tmp_path / "deep", lm=own).ask(ASKED).passes == 1


def test_prompts_start_from_texts_and_from_the_vocabulary(lm):
    ids = lm.tokenizer("Answer in one word.", add_special_tokens=False).input_ids
    text = SoftPrompt.from_text(lm, "Answer in one word.", length=len(ids) + 2, placement="suffix")
    assert torch.equal(text.prompt, lm.embed(torch.tensor(ids + ids[:2])))
    assert text.placement == "suffix"
    rows = lm.embed(torch.arange(lm.vocabulary))
    drawn = prompt(lm, seed=1)
    assert all(any(torch.equal(vector, row) for row in rows) for vector in drawn.prompt)
    assert torch.equal(drawn.prompt, prompt(lm, seed=1).prompt)
    assert not torch.equal(drawn.prompt, prompt(lm, seed=2).prompt)
    with pytest.raises(ValueError, match="middle"):
        SoftPrompt.from_text(lm, "hi", placement="middle")


def test_trainable_parameters_are_printed_as_peft_does(lm, capsys):
    every = 3 * lm.width + sum(weight.numel() for weight in lm.model.parameters())
    prompt(lm).print_trainable_parameters()
    said = f"trainable params: 96 || all params: {every:,} || trainable%: {9600 / every:.4f}\n"
    assert capsys.readouterr().out == said
    SoftPrompt(torch.zeros(3, lm.width)).print_trainable_parameters()
    assert capsys.readouterr().out == "trainable params: 96\n"
    SoftPrompt(torch.zeros(3, lm.width)).around(lm).print_trainable_parameters()
    assert capsys.readouterr().out == said


def test_a_scaffold_is_saved_without_a_step_before(lm, tiny_encoder, tmp_path):
    for kind, scaffold in scaffolds(lm, tiny_encoder).items():
        scaffold.eval().save_pretrained(tmp_path / kind)
        loaded = Scaffold.load(tmp_path / kind, lm)
        assert loaded.backbone is lm
        assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in scaffold.state_dict().items())
    with pytest.raises(UsageError, match=r"call scaffold\.around\(lm\) first"):
        SoftPrompt(torch.zeros(3, lm.width)).save_pretrained(tmp_path / "alone")


def test_one_string_is_no_list_of_questions(lm):
    answerer = shoulders.open("bare", lm=lm)
    for call in (
        lambda: shoulders.answer("Hi", lm, Bare()),
        lambda: shoulders.rank("Hi", [["a", "b"]], lm, Bare()),
        lambda: shoulders.sample("Hi", lm, Bare(), shoulders.Sampling(2)),
        lambda: answerer.ask_all("Hi"),
    ):
        with pytest.raises(UsageError, match=r"the questions are one string \('Hi'\): give a list"):
            call()
    with pytest.raises(UsageError, match=r"the choices of a question are one string \('yes\|no'\)"):
        answerer.ask("Hi", "yes|no")


def test_an_empty_text_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.txt").write_text("What nobody named.")
    with pytest.warns(UserWarning, match="the first: text 0 of texts: it is empty"):
        assert shoulders.Index.build(["", "Rome is in Italy."]).passages == 1
    with pytest.raises(DataError, match="text 0 of texts: it is empty"):
        shoulders.Index.build("")


def test_files_that_are_left_out_of_an_index_are_named_in_a_warning(tmp_path):
    (tmp_path / "rome.txt").write_text("Rome is in Italy.")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and nothing more")
    with pytest.warns(UserWarning, match=r"1 parts of the sources are not in the index; the first: .*broken\.pdf"):
        assert shoulders.Index.build(tmp_path).passages == 1


def test_what_is_no_source_of_an_index_is_refused():
    for wrong, said in (
        (None, "the sources of an index are a NoneType: give texts"),
        ({"text": "Rome"}, "the sources of an index are a dict: give texts"),
        ([], "there are no sources to index: give texts"),
        (["Rome is in Italy.", ("a", "b")], "source 1 of the index is a tuple: give texts"),
        ([b"Rome is in Italy."], "source 0 of the index is a bytes: give texts"),
        (["Rome \udce4 Italy"], "is not UTF-8"),
    ):
        with pytest.raises(UsageError, match=said):
            shoulders.Index.build(wrong)


def test_an_index_is_built_of_texts_files_and_folders(lm, tmp_path):
    texts = ["Rome is the capital of Italy.", "Bern is the capital of Switzerland."]
    index = shoulders.Index.build(texts)
    (hit,) = index.search("Italy", 3)
    assert hit.text == texts[0]
    assert index.search(["Italy", "Bern", "zebra"], 1) == [[hit], index.search("Bern"), []]
    assert shoulders.Index.build(texts[0]).passages == 1
    scratch = index.folder
    answerer = shoulders.open("bare", lm=lm, index=index, longest=3)
    del index
    assert scratch.exists()
    assert answerer.ask("What is the capital of Italy?").passages[0].text == texts[0]

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "paris.txt").write_text("Paris is the capital of France.")
    mixed = shoulders.Index.build([tmp_path / "docs", *texts], tmp_path / "index")
    assert mixed.passages == 3
    assert shoulders.open("bare", lm=lm, index=tmp_path / "index").ask("France?").passages[0].text.startswith("Paris")
    assert shoulders.Index.build(str(tmp_path / "docs")).passages == 1
    for wrong in ("no/such/folder", "notes.txt", Path("nowhere")):
        with pytest.raises(UsageError, match="there is no file or folder"):
            shoulders.Index.build([wrong])
    with pytest.raises(DataError, match="there is no text in texts"):
        shoulders.Index.build([" "])


def test_an_index_that_is_built_again_holds_what_its_sources_hold_now(tmp_path):
    shoulders.Index.build(["Rome is old.", "Bern is cold."], tmp_path / "index")
    again = shoulders.Index.build(["Rome is new."], tmp_path / "index")
    assert (again.passages, [hit.text for hit in again.search("Rome")]) == (1, ["Rome is new."])
    assert shoulders.Index(tmp_path / "index").search("Bern") == []


def test_a_temporary_index_goes_with_the_process(tmp_path):
    import subprocess
    import sys

    code = "import shoulders; print(shoulders.Index.build(['Rome is old.']).folder)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not Path(done.stdout.strip()).parent.exists()


def test_no_warning_is_given_where_everything_fits(lm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shoulders.evaluate(shoulders.train(prompt(lm), lm, PAIRS, **QUICK), PAIRS, progress=False)


def test_the_folder_of_a_run_from_python_is_no_recipes(lm, suite, tmp_path):
    shoulders.train(prompt(lm), lm, PAIRS, **QUICK, out=tmp_path / "run")
    values = small_values(lm.name, suite)
    for resume in ([], ["--resume"]):
        with pytest.raises(UsageError, match="holds checkpoints of another run"):
            command("train", "bundled_soft_prompt", *values, "--out", tmp_path / "run", *resume)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_one_process_at_a_time_writes_a_run(lm, suite, tmp_path):
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"):
        with pytest.raises(UsageError, match="is being written by process"):
            shoulders.train(prompt(lm), lm, PAIRS, **QUICK, out=tmp_path / "run")
        with pytest.raises(UsageError, match="is being written by process"):
            command("train", "bundled_soft_prompt", *small_values(lm.name, suite), "--out", tmp_path / "run")
    shoulders.train(prompt(lm), lm, PAIRS, **QUICK, out=tmp_path / "run")


def test_a_scaffold_from_python_is_measured_by_no_recipe_but_a_named_one(lm, suite, tmp_path):
    shoulders.train(prompt(lm), lm, PAIRS, **QUICK).save(tmp_path / "kept")
    other = [
        "--tasks",
        suite,
        "suite.tasks=adding",
        "test.limit=2",
        f"backbone.name={lm.name}",
        "backbone.dtype=float32",
    ]
    for asked in (["evaluate", tmp_path / "kept"], ["forget", tmp_path / "kept", *other]):
        with pytest.raises(UsageError, match="holds no recipe"):
            command(*asked)
    with pytest.raises(UsageError, match="holds no recipe"):
        command("threshold", tmp_path / "kept", "--index", tmp_path)
    assert "adding" in command("forget", tmp_path / "kept", *other, "--recipe", "bundled_soft_prompt")


def test_texts_in_scripts_without_spaces_are_no_paths():
    assert shoulders.Index.build(["\u6210\u7acb\u4e8e2003/04,\u5317\u4eac\u3002", "\u6771\u4eac"]).passages == 2
    for path in ("\u6587\u6863/", "\u6587\u6863/\u7b14\u8bb0.txt"):
        with pytest.raises(UsageError, match="there is no file or folder"):
            shoulders.Index.build([path])
