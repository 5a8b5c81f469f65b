"""Scaffolds that are trained in a conversation are measured, saved, opened and compared in one."""

import json

import pytest

import chats
import shoulders
from commands import run as command
from shoulders import FrozenLM, SoftPrompt
from shoulders.answering.models import INSTRUCTION, model_info
from shoulders.answering.spec import AnswerSpec, spec_from_json
from shoulders.engine.inference import Answering, Sampling, answered, sample
from shoulders.errors import UsageError
from shoulders.evaluation.results import read_result
from shoulders.evidence.candidates import Candidates
from shoulders.evidence.choice import EvidenceChoice
from shoulders.paper.suite_numbers import method_names
from shoulders.records import Chat, Message, Question
from shoulders.runs.build import answer_spec, as_asked, new_evidence
from shoulders.runs.recipe import Recipe, recipe_from_json, with_overrides
from shoulders.runs.registry import bundled_soft_prompt
from small_values import small_values

PAIRS = [("Capital of France?", "Paris"), ("Capital of Italy?", "Rome"), ("Two plus two is", "four")]
CLOSED = [{"question": "Is 2 even?", "answer": "even", "choices": ["even", "odd"]}]
QUICK = {"steps": 4, "batch_size": 2, "progress": False}
SYSTEM = "Be brief."


@pytest.fixture(scope="module")
def model(tiny_lm, tmp_path_factory):
    """The folder of a tiny chat model."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    tiny_lm("llama").model.save_pretrained(folder)
    chats.tokenizer("chatml").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_lm(model):
    return FrozenLM.load(str(model), dtype="float32", device="cpu")


@pytest.mark.parametrize("placement", ["prefix", "infix", "suffix"])
def test_what_is_trained_in_a_conversation_is_asked_in_it(chat_lm, tmp_path, placement):
    prompt = SoftPrompt.from_vocabulary(chat_lm, length=3, placement=placement)
    run = shoulders.train(prompt, chat_lm, [*PAIRS, *CLOSED], chat=SYSTEM, out=tmp_path / "run", **QUICK)
    opened = shoulders.open(tmp_path / "run", lm=chat_lm, longest=9)
    asked = [question for question, _ in PAIRS]
    in_chat = [Question(one, chat=Chat.of(SYSTEM)) for one in asked]
    wanted = answered(in_chat, chat_lm, run.scaffold, Answering(9))
    plain = answered(asked, chat_lm, run.scaffold, Answering(9))
    assert [one.log_probability for one in wanted] != pytest.approx([one.log_probability for one in plain])
    assert [one.log_probability for one in opened.ask_all(asked)] == pytest.approx(
        [one.log_probability for one in wanted]
    )
    assert opened.rank(asked[0], ["a", "b"]) == pytest.approx(run.answerer.rank(asked[0], ["a", "b"]))
    other = shoulders.open(tmp_path / "run", lm=chat_lm, chat=False, longest=9).ask(asked[0])
    assert other.log_probability == pytest.approx(plain[0].log_probability)
    known = opened.ask(Question(asked[0], chat=Chat((Message("user", "a"), Message("assistant", "b")))))
    assert known.log_probability != pytest.approx(wanted[0].log_probability)
    told = shoulders.evaluate(run, [*PAIRS, *CLOSED], chat_lm, longest=4, progress=False)
    assert told == shoulders.evaluate(run.scaffold, [*PAIRS, *CLOSED], chat_lm, longest=4, progress=False)
    again = shoulders.train(run.scaffold, chat_lm, PAIRS, **QUICK)
    assert again.spec.chat == Chat.of(SYSTEM)
    resumed = shoulders.train(
        SoftPrompt.from_vocabulary(chat_lm, length=3, placement=placement), chat_lm, [*PAIRS, *CLOSED],
        chat=SYSTEM, out=tmp_path / "run", **QUICK,
    )  # fmt: skip
    assert resumed.losses == run.losses
    with pytest.raises(UsageError, match=r"holds another run|puts the prompt between"):
        shoulders.train(prompt, chat_lm, [*PAIRS, *CLOSED], out=tmp_path / "run", chat=False, **QUICK)


def test_a_folder_that_says_nothing_of_a_conversation_is_asked_in_plain_text(chat_lm, lm):
    assert spec_from_json({}, "folder").chat is None
    spec = AnswerSpec(chat=Chat((Message("system", SYSTEM), Message("user", "a"), Message("assistant", "b"))))
    assert spec_from_json(spec.as_json(), "folder") == spec
    assert spec.in_chat(None) is spec.in_chat(True) is spec
    assert spec.in_chat(chat=False).chat is None
    bare = shoulders.open("bare", lm=chat_lm)
    assert bare.ask("Capital of France?") == shoulders.open("bare", lm=chat_lm, chat=False).ask("Capital of France?")
    with pytest.raises(UsageError, match="has no chat template"):
        shoulders.open("bare", lm=lm, chat=True)
    with pytest.raises(UsageError, match="has no chat template"):
        shoulders.train(SoftPrompt.from_vocabulary(lm, length=2), lm, PAIRS, chat=True, **QUICK)


def test_recipes_train_measure_and_compare_in_a_conversation(model, suite, tmp_path, chat_lm):
    values = small_values(str(model), suite, **{"suite.tasks": "parity"})
    in_chat = [*values, "backbone.chat=true", f"backbone.system={SYSTEM}"]
    command("train", "bundled_soft_prompt", *in_chat, "--out", tmp_path / "run")
    assert Chat.of(SYSTEM) == answer_spec(recipe_from_json(model_info(str(tmp_path / "run")).recipe)).chat
    assert shoulders.open(tmp_path / "run", lm=chat_lm).spec.chat == Chat.of(SYSTEM)
    command("evaluate", tmp_path / "run", "--out", tmp_path / "again.json")
    trained, again = read_result(tmp_path / "run"), read_result(tmp_path / "again.json")
    assert trained.content["wordings"] == again.content["wordings"]
    command("evaluate", tmp_path / "run", "backbone.chat=false", "backbone.system=", "--out", tmp_path / "plain.json")
    command("evaluate", "bare", "--recipe", "bundled_soft_prompt", *values, "--out", tmp_path / "bare.json")
    command("evaluate", "instructed", "--recipe", "bundled_soft_prompt", *values, "--out", tmp_path / "told.json")
    command("evaluate", "few-shot", "--recipe", "bundled_soft_prompt", *values, "--out", tmp_path / "few.json")
    results = [read_result(tmp_path / f"{name}.json", name) for name in ("bare", "told", "few")]
    assert method_names(results) == {"bare": "bare LM", "told": "instructed LM", "few": "few-shot LM"}
    assert results[1].content["recipe"]["backbone"]["system"] == INSTRUCTION
    assert results[2].content["demonstrations"]["asked"] == 4
    assert len({result.content["examples_hash"] for result in results}) == 1
    command("report", "suite", *(tmp_path / f"{name}.json" for name in ("bare", "told", "few")), "--out", tmp_path)
    assert "instructed LM" in (tmp_path / "suite.md").read_text()
    asked = command("ask", "instructed", "--backbone", model, "--longest", 3, "--json", "Name a planet.")
    told = shoulders.open("bare", backbone=str(model), chat=INSTRUCTION, longest=3).ask("Name a planet.")
    assert json.loads(asked)["probability"] == pytest.approx(told.probability, rel=1e-3)


def test_auto_is_how_the_scaffold_was_trained_that_is_started_from(chat_lm, tmp_path):
    prompt = SoftPrompt.from_vocabulary(chat_lm, length=2)
    spec = AnswerSpec(chat=Chat.of(SYSTEM))
    prompt.made_for(chat_lm, answering=spec.as_json()).save_pretrained(tmp_path / "p")
    recipe = bundled_soft_prompt()
    assert recipe.backbone.conversation is None
    assert as_asked(recipe, "bare") == as_asked(recipe, "") == recipe
    found = as_asked(recipe, str(tmp_path / "p"))
    assert (found.backbone.chat, found.backbone.system) == ("true", SYSTEM)
    plain = with_overrides(recipe, ["backbone.chat=false"])
    assert as_asked(plain, str(tmp_path / "p")) == plain
    assert recipe_from_json(found.as_json()) == found
    for values, told in (
        (["backbone.chat=yes"], "backbone.chat"),
        (["backbone.system=a"], "stands in a conversation, and backbone.chat is auto"),
    ):
        with pytest.raises(UsageError, match=told):
            with_overrides(recipe, values)


def test_candidates_are_sampled_in_the_conversation_that_their_prompt_was_trained_in(chat_lm, tmp_path):
    prompt = SoftPrompt.from_vocabulary(chat_lm, length=2)
    prompt.made_for(chat_lm, answering=AnswerSpec(chat=Chat.of(SYSTEM)).as_json()).save_pretrained(tmp_path / "p1")
    question = Question("Name a planet.")
    drawn = {}
    for name, chat in ((str(tmp_path / "p1"), None), ("bare", None), ("bare", Chat())):
        choice = EvidenceChoice("candidates", name, count=2, longest=4)
        source = new_evidence(Recipe("r", evidence=choice), chat_lm, 0)
        assert isinstance(source, Candidates)
        (some,) = source.sampler.samples([Question(question.text, chat=chat)], 2)
        drawn[name, chat] = [one.log_probability for one in some]
    in_chat = Question(question.text, chat=Chat.of(SYSTEM))
    (wanted,) = sample([in_chat], chat_lm, prompt, Sampling(2), Answering(4))
    assert drawn[str(tmp_path / "p1"), None] == pytest.approx([one.log_probability for one in wanted])
    assert drawn["bare", None] != pytest.approx(drawn["bare", Chat()])


def test_what_goes_wrong_on_the_command_line_is_one_line(refused, folders, tiny_lm, chat_lm, model, suite, tmp_path):
    tiny_lm("llama")
    values = small_values(str(folders / "llama"), suite)
    told = refused("train", "bundled_soft_prompt", *values, "backbone.chat=true", "--out", tmp_path / "none")
    assert "has no chat template" in told
    assert not (tmp_path / "none" / "best").exists()
    assert "has no chat template" in refused("ask", "bare", "--backbone", folders / "llama", "--chat", "a")
    assert "leave --no-chat out" in refused("ask", "bare", "--backbone", model, "--no-chat", "--system", "a", "b")
    values = small_values(str(model), suite, **{"suite.lengths.input": 9})
    told = refused("evaluate", "few-shot", "--recipe", "bundled_soft_prompt", *values)
    assert "none of the 4 demonstrations fits: the shortest has" in told
    told = refused("evaluate", "few-shot", "--recipe", "reader", *values, "evidence.index=x")
    assert "where evidence.kind=retrieved of the recipe stands" in told
    assert "name its suite (evidence.source=NAME)" in refused("ask", "few-shot", "--backbone", model, "a")
