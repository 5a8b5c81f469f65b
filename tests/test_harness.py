"""Inside lm-evaluation-harness: as its own model of the same weights, and as our own protocol."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("lm_eval")

from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from shoulders.data.readers import open_suite
from shoulders.engine.decode import generate
from shoulders.engine.inference import Answering, answer, rank
from shoulders.errors import ContextFull, UsageError
from shoulders.evaluation.protocol import EvaluationPlan, evaluate
from shoulders.harness import ShouldersLM
from shoulders.paper.rivals import train_rival
from shoulders.records import Question, ScaffoldInput
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from small_values import small_values
from tiny import TEXTS, save_numbers

PAIRS = [
    *((text, f" {choice}") for text in TEXTS for choice in ("yes", "no", "not at all", "Paris")),
    ("", "A text without a context."),
    ("ends with a space ", "word"),
    ("long " * 150, " and cut"),
    ("long " * 150, " and cut by more"),
]
LIKE_TOKENS = ["</s>", "<s>", "<pad>", " four", "a", " ", ">"]
of_pieces = st.lists(st.sampled_from(LIKE_TOKENS), min_size=1, max_size=4).map("".join)


def asked(kind, *arguments):
    return [Instance(kind, {}, some, number) for number, some in enumerate(arguments)]


@pytest.fixture(scope="module")
def theirs(tiny_lm):
    return HFLM(pretrained=tiny_lm("llama").name, device="cpu", dtype="float32", batch_size=4)


@pytest.fixture
def prompt(lm):
    return SoftPrompt(from_vocabulary(lm)(5))


def test_log_likelihoods_are_the_harness_own_without_a_scaffold(lm, theirs):
    found = ShouldersLM(backbone=lm).loglikelihood(asked("loglikelihood", *PAIRS))
    wanted = theirs.loglikelihood(asked("loglikelihood", *PAIRS))
    assert [one for one, _ in found] == pytest.approx([one for one, _ in wanted], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    contexts = [lm.ids(text) for text in TEXTS]
    likeliest = [
        (("", ""), ids, generate(lm, Bare(), ScaffoldInput(lm.embed(torch.tensor([ids])), None, (0,)), longest=3)[0])
        for ids in contexts
    ]
    assert all(greedy for _, greedy in ShouldersLM(backbone=lm)._loglikelihood_tokens(likeliest))


def test_rolling_log_likelihoods_are_the_harness_own(lm, theirs):
    texts = [(TEXTS[2],), (" ".join(TEXTS * 12),), ("a",)]
    found = ShouldersLM(backbone=lm).loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
    wanted = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
    assert found == pytest.approx(wanted, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(context=of_pieces.filter(str.strip), continuation=of_pieces)
def test_texts_with_special_tokens_have_the_harness_own_numbers(tiny_lm, theirs, context, continuation):
    ours = ShouldersLM(backbone=tiny_lm("llama"))
    pairs = asked("loglikelihood", (context, continuation), ("", f"a{continuation}"))
    # One by one: theirs confuses two of them that read the same tokens, such as "<s>a" + "b" and "" + "ab".
    wanted = [value for pair in pairs for value in theirs.loglikelihood([pair])[0]]
    assert [value for pair in ours.loglikelihood(pairs) for value in pair] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    whole = asked("loglikelihood_rolling", (context,), (f"{context}{continuation}",))
    assert ours.loglikelihood_rolling(whole) == pytest.approx(theirs.loglikelihood_rolling(whole), rel=1e-4)


def test_nothing_said_has_log_likelihood_nought(lm):
    pairs = [(TEXTS[0], ""), (TEXTS[1], " Mars"), ("", ""), ("", "Mars")]
    found = ShouldersLM(backbone=lm).loglikelihood(asked("loglikelihood", *pairs))
    assert found[0] == found[2] == (0.0, True)
    others = ShouldersLM(backbone=lm).loglikelihood(asked("loglikelihood", pairs[1], pairs[3]))
    assert [found[1][0], found[3][0]] == pytest.approx([one for one, _ in others], rel=1e-5)
    assert found[1][0] < 0
    with_end = ShouldersLM(backbone=lm, end=True).loglikelihood(asked("loglikelihood", *pairs))
    assert with_end[0][0] < 0 > with_end[2][0]
    with pytest.raises(UsageError, match="not a whole character"):
        ShouldersLM(backbone=lm).loglikelihood(asked("loglikelihood", (TEXTS[0], "\ud83d")))


@pytest.mark.parametrize("until", [[], ["e"], ["\n", " t"]])
def test_answers_are_the_harness_own(lm, theirs, until):
    texts = [(text, {"until": until, "max_gen_toks": 8}) for text in (*TEXTS, "long " * 150)]
    found = ShouldersLM(backbone=lm).generate_until(asked("generate_until", *texts))
    assert found == theirs.generate_until(asked("generate_until", *texts))
    assert not any(stop in text for stop in until for text in found)


def test_samples_and_defaults(lm):
    model = ShouldersLM(backbone=lm)
    sampled = [(TEXTS[0], {"do_sample": True, "temperature": 5.0, "max_gen_toks": 12})] * 2
    one, other = model.generate_until(asked("generate_until", *sampled))
    assert one != other
    with pytest.raises(
        ContextFull, match=r"an answer with a prompt of 0 .* needs 257 positions"
    ):  # the model has 128 positions
        model.generate_until(asked("generate_until", (TEXTS[0], {})))


def separately(lm, prompt, context, ids):
    """The log-likelihood of the last tokens by one pass over vectors put together by hand."""
    embeds = torch.cat([prompt.prompt[None], lm.embed(torch.tensor([context + ids]))], dim=1)
    logits = lm.logits(lm.states(embeds))[0].log_softmax(-1)
    return sum(logits[embeds.shape[1] - len(ids) + place - 1, token].item() for place, token in enumerate(ids))


@torch.no_grad()
def test_no_position_of_a_prompt_is_scored_and_the_context_makes_room_for_it(lm, prompt):
    model = ShouldersLM(prompt, lm)
    assert model.max_length == 123
    found = model.loglikelihood(asked("loglikelihood", *PAIRS[:5], PAIRS[-1]))
    for (context, continuation), (value, _) in zip([*PAIRS[:5], PAIRS[-1]], found, strict=True):
        before, ids = model._encode_pair(context, continuation)
        assert value == pytest.approx(separately(lm, prompt, before[-(124 - len(ids)) :], ids), rel=1e-4)
    (whole,) = model.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXTS[2],)))
    assert whole == pytest.approx(separately(lm, prompt, [1], lm.ids(TEXTS[2])), rel=1e-4)
    texts = [(text, {"max_gen_toks": 6}) for text in TEXTS]
    said = [text.strip() for text in model.generate_until(asked("generate_until", *texts))]
    assert said == answer([Question(text) for text in TEXTS], lm, prompt, Answering(6))


def test_choices_of_a_context_share_its_reading(lm, prompt, monkeypatch):
    rows = []
    states = SoftPrompt.states
    monkeypatch.setattr(
        SoftPrompt, "states",
        lambda self, lm, given, memory=None: rows.append(given.embeds.shape[:2]) or states(self, lm, given, memory),
    )  # fmt: skip
    pairs = [(TEXTS[2], f" {choice}") for choice in ("one two", "three four", "five six", "seven eight")]
    ShouldersLM(prompt, lm).loglikelihood(asked("loglikelihood", *pairs))
    assert [row[0] for row in rows] == [1, 4]
    assert rows[1][1] < rows[0][1]


@pytest.fixture
def parity(tmp_path):
    """One task, as a suite of ours and as a task of the harness."""
    folder = save_numbers(tmp_path / "numbers", range(4), range(4, 6), range(20, 40))
    task = {
        "task": "numbers", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "Is {{n}} even or odd?",
        "doc_to_choice": ["even", "odd"], "doc_to_target": "{{n % 2}}",
        "metric_list": [{"metric": "acc"}], "metadata": {"version": 1},
    }  # fmt: skip
    return folder, task


def scored(model, task, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(model, tasks=[task], task_manager=manager, bootstrap_iters=0)
    return found["results"]["numbers"]["acc,none"], found["samples"]["numbers"], found["config"]


@pytest.mark.parametrize("kind", ["bare", "soft_prompt", "recursion"])
def test_a_task_scores_there_as_here(lm, prompt, parity, tmp_path, monkeypatch, kind):
    folder, task = parity
    scaffold = {"bare": Bare(), "soft_prompt": prompt, "recursion": Recursion(lm, RecursionShape(layers=1))}[kind]
    accuracy, samples, config = scored(ShouldersLM(scaffold, lm, end=True), task, tmp_path, monkeypatch)
    (ours,) = [
        row for row in evaluate(open_suite(str(folder), ()), lm, scaffold, EvaluationPlan("test", longest=4)).wordings
        if row.wording == "choose"
    ]  # fmt: skip
    assert 100 * accuracy == pytest.approx(ours.primary)
    assert 0 < accuracy < 1
    questions = [prediction.example.question for prediction in ours.predictions]
    wanted = rank(questions, [("even", "odd")] * len(questions), lm, scaffold)
    for sample, likelihoods in zip(samples, wanted, strict=True):
        assert [float(one[0][0]) for one in sample["resps"]] == pytest.approx(likelihoods, rel=1e-4)
    assert config["backbone_fingerprint"] == lm.fingerprint()


def test_a_model_is_found_by_the_folder_of_its_scaffold(lm, prompt, tmp_path):
    prompt.made_for(lm).save_pretrained(tmp_path / "prompt")
    made = get_model("shoulders").create_from_arg_string(
        f"scaffold={tmp_path / 'prompt'},dtype=float32", {"batch_size": 1, "device": "cuda:0"}
    )
    pairs = asked("loglikelihood", *PAIRS)
    assert made.loglikelihood(pairs) == ShouldersLM(prompt, lm).loglikelihood(pairs)
    with pytest.raises(UsageError, match="backbone=NAME"):
        ShouldersLM()
    with pytest.raises(UsageError, match="name no backbone: add one"):
        ShouldersLM(SoftPrompt(from_vocabulary(lm)(5)))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_rival_of_a_scaffold_says_what_its_own_library_reads_it_to_say(lm, tmp_path, kind):
    save_numbers(tmp_path / "suite" / "numbers", range(40), range(40, 50), range(50, 62))
    values = [*small_values(lm.name, tmp_path / "suite"), f"rival.kind={kind}", "rival.learning_rate=0.01"]
    recipe = with_overrides(recipe_named("bundled_soft_prompt"), values)
    train_rival(recipe, lm, tmp_path / "run")
    found = ShouldersLM(str(tmp_path / "run"), dtype="float32", device="cpu")
    best = str(tmp_path / "run" / "best")
    kept = AutoModelForCausalLM if kind == "full" else AutoPeftModelForCausalLM
    model = kept.from_pretrained(best, dtype=torch.float32)
    model = model.merge_and_unload() if kind == "lora" else model
    pairs = asked("loglikelihood", *[pair for pair in PAIRS if len(pair[0]) < 100])  # a prompt's room is left free
    wanted = HFLM(pretrained=model, tokenizer=lm.tokenizer, device="cpu", batch_size=4).loglikelihood(pairs)
    said = [one for one, _ in found.loglikelihood(pairs)]
    assert said == pytest.approx([one for one, _ in wanted], rel=1e-4)
    assert said != pytest.approx([one for one, _ in ShouldersLM(backbone=lm).loglikelihood(pairs)], rel=1e-2)
    assert found.get_model_info()["scaffold_kind"] == kind
    assert found.get_model_info()["backbone_fingerprint"] == lm.fingerprint()


def test_without_the_harness_its_command_line_says_what_to_install():
    code = "import runpy, sys; sys.modules['lm_eval'] = None; runpy.run_module('shoulders.harness', None, '__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: lm-evaluation-harness is missing")
    assert "pip install 'shoulders[harness]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # the harness reads all of its own tasks first
def test_the_harness_own_command_line(lm, prompt, parity, tmp_path):
    prompt.made_for(lm).save_pretrained(tmp_path / "prompt")
    (tmp_path / "numbers.yaml").write_text(json.dumps(parity[1]))
    command = [sys.executable, "-m", "shoulders.harness", "run", "--model", "shoulders", "--model_args",
               f"scaffold={tmp_path / 'prompt'},dtype=float32", "--tasks", str(tmp_path / "numbers.yaml")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|numbers|" in done.stdout
