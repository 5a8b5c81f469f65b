"""Deep prompts: what a text, demonstrations and PEFT's adapters give, windows, and what does not fit."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft import PrefixTuningConfig as PeftPrefix
from peft.tuners.cartridge import CartridgeConfig
from transformers import AutoModelForCausalLM

from shoulders.backbone.caches import Memory
from shoulders.backbone.shapes import meta_backbone
from shoulders.engine.batches import encode, question_batch, training_batch
from shoulders.engine.inference import Answering, answer
from shoulders.errors import ContextFull, SourceNotFound, UsageError
from shoulders.records import Example, Placement, Question, ScaffoldInput
from shoulders.runs.build import new_scaffold
from shoulders.runs.cost import meta_scaffold, parts
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.base import TrainingData
from shoulders.scaffolds.deep_prompt import DeepPrompt, InputDeepPrompt
from shoulders.scaffolds.input_prompt import InputPromptShape
from shoulders.scaffolds.peft import from_peft, to_peft
from tiny import TEXTS
from toys import moved, toy_task

SHAPE = InputPromptShape(length=4, encoder_length=3, head_width=8)
PAIRS = [("Capital of France?", "Paris"), ("Capital of Italy?", "Rome")]


def states(lm, scaffold, ids):
    with torch.no_grad():
        return scaffold.states(lm, ScaffoldInput(lm.embed(ids), None, (0,) * len(ids)))


def test_a_prompt_that_starts_from_a_text_is_the_text(any_lm):
    """The prompt's positions, in all layers, are those of the text before the question."""
    text = "Answer with one word."
    known = any_lm.ids(text)
    prompt = DeepPrompt.new(DeepPrompt.Config(length=len(known), init="text", init_text=text), any_lm)
    ids = torch.tensor([any_lm.ids("What is the capital of France?")])
    with torch.no_grad():
        whole = any_lm.states(any_lm.embed(torch.cat([torch.tensor([known]), ids], dim=1)))
    torch.testing.assert_close(states(any_lm, prompt, ids), whole[:, len(known) :], rtol=1e-4, atol=1e-4)


def test_training_starts_at_few_shot_performance(lm):
    """The first examples that fit, with an empty line after each, read before the question."""
    prompt = DeepPrompt.from_demonstrations(lm, PAIRS, length=100)
    known = lm.ids("".join(f"{question} {answer}\n\n" for question, answer in PAIRS))
    assert prompt.length == len(known)
    ids = torch.tensor([lm.ids("Capital of Peru?")])
    with torch.no_grad():
        whole = lm.states(lm.embed(torch.cat([torch.tensor([known]), ids], dim=1)))
    torch.testing.assert_close(states(lm, prompt, ids), whole[:, len(known) :], rtol=1e-4, atol=1e-4)
    assert DeepPrompt.from_demonstrations(lm, PAIRS, length=len(known) - 1).length < len(known) - 1


def test_a_recipe_takes_its_demonstrations_from_the_tasks(lm):
    config = DeepPrompt.Config(length=40, init="demonstrations")
    made = new_scaffold(config, lm, 0, [toy_task()])
    again = new_scaffold(config, lm, 1, [toy_task()])
    assert 8 < made.length <= 40
    assert not torch.equal(made.keys[0](), again.keys[0]()[:, : made.length])
    with pytest.raises(UsageError, match=r"none of \d+ demonstrations fits the 3 positions.* raise scaffold.length"):
        new_scaffold(DeepPrompt.Config(length=3, init="demonstrations"), lm, 0, [toy_task()])
    with pytest.raises(UsageError, match="there are no training examples to start from"):
        DeepPrompt.new(config, lm)
    one = Example("t", "w", "0", Question("Two?"), "2", ("2",))
    data = TrainingData(examples=lambda: [one])
    assert DeepPrompt.new(config, lm, data=data).length == len(lm.ids("Two? 2\n\n"))


def test_a_longer_text_is_cut_and_that_is_said_and_a_document_gives_its_beginning(lm, tmp_path):
    config = DeepPrompt.Config(length=5, init="text", init_text=TEXTS[2])
    with pytest.warns(UserWarning, match=r"has \d+ tokens and is cut to its 5 positions \(scaffold.length\)"):
        cut = DeepPrompt.new(config, lm)
    (tmp_path / "text").write_text(TEXTS[2])
    document = {"init": "document", "init_text": str(tmp_path / "text")}
    read = DeepPrompt.new(DeepPrompt.Config(length=5, **document), lm)
    assert torch.equal(read.keys[1](), cut.keys[1]())
    with pytest.raises(UsageError, match=r"has \d+ tokens, and a prompt of scaffold.length=99 starts from them"):
        DeepPrompt.new(DeepPrompt.Config(length=99, **document), lm)
    with pytest.raises(SourceNotFound, match=r"scaffold.init_text=nowhere cannot be read"):
        DeepPrompt.new(DeepPrompt.Config(length=5, init="document", init_text="nowhere"), lm)


def test_fixed_positions_and_layers_do_not_train(lm):
    prompt = DeepPrompt.new(DeepPrompt.Config(length=4, trained_layers=(1,), sinks=1), lm)
    assert [name for name, _ in prompt.named_parameters()] == ["keys.1.trained", "values.1.trained"]
    assert [one().shape for one in prompt.keys] == [(2, 4, 8)] * 3
    assert prompt.keys[1].trained.shape == (2, 3, 8)
    whole = DeepPrompt.from_vocabulary(lm, length=4)
    assert all(torch.equal(one(), other()) for one, other in zip(prompt.keys, whole.keys, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
@pytest.mark.parametrize("placement", Placement)
def test_padding_does_not_push_a_prompt_out_of_a_window(tiny_lm, questions, family, placement):
    """Windows of 16 positions, texts of 3 to 26 tokens: each row sees as much of the prompt as it does alone."""
    lm = tiny_lm(family)
    prompt = moved(DeepPrompt.from_vocabulary(lm, length=6, placement=placement))
    asked = [Question(one.text, evidence="The sun is a star. " * (n % 3)) for n, one in enumerate(questions)]
    told = answer(asked, lm, prompt, Answering(6))
    assert told == [answer([question], lm, prompt, Answering(6))[0] for question in asked]
    batch = question_batch([encode(question, lm) for question in asked], lm, prompt)
    together = prompt.states(lm, batch)
    for number, question in enumerate(asked):
        alone = prompt.states(lm, question_batch([encode(question, lm)], lm, prompt))
        torch.testing.assert_close(together[number, -alone.shape[1] :], alone[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_text_before_a_suffix_is_read_by_the_bare_model(lm, questions):
    """All but the last token: its keys and values are those of any other scaffold."""
    prompt = moved(DeepPrompt.from_vocabulary(lm, length=4, placement="suffix"))
    given = question_batch([encode(questions[0], lm)], lm, prompt)
    memory = Memory()
    found = prompt.states(lm, given, memory)
    bare = lm.states(given.embeds)
    assert torch.equal(found[:, :-1], lm.states(given.embeds[:, :-1]))
    assert not torch.allclose(found[:, -1], bare[:, -1], atol=1e-2)
    read = lm.keys_values(torch.tensor([lm.ids(questions[0].text)[:-1]])).layers
    kept = memory.single.cache_for(lm.config).layers
    for (keys, _), layer in zip(read, kept, strict=True):
        torch.testing.assert_close(layer.keys[:, :, : keys.shape[2]], keys)


@pytest.mark.parametrize("placement", [Placement.INFIX, Placement.SUFFIX])
def test_stored_contexts_change_no_gradient(any_lm, questions, placement):
    prompt = DeepPrompt.from_vocabulary(any_lm, length=4, placement=placement)
    asked = [Question(one.text, evidence="France is in Europe. ") for one in questions]
    batch = training_batch([encode(one, any_lm, "Paris") for one in asked], any_lm, prompt)
    from dataclasses import replace

    from shoulders.engine.precomputed import Contexts

    before = Contexts(any_lm).read([encode(one, any_lm).ids[: encode(one, any_lm).slot(placement)] for one in asked])
    losses = []
    for given in (batch.given, replace(batch.given, before=before)):
        loss = any_lm.loss(prompt.states(any_lm, given), batch.labels)
        losses.append((loss, *torch.autograd.grad(loss, list(prompt.parameters()))))
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_what_is_written_for_an_input_starts_at_zero_on_the_scale_of_each_layer(lm, tiny_encoder, questions):
    base = DeepPrompt.from_vocabulary(lm, length=4)
    prompt = InputDeepPrompt(tiny_encoder("bert"), lm, SHAPE, base)
    given = question_batch([encode(one, lm) for one in questions], lm, prompt)
    with torch.no_grad():
        assert torch.equal(prompt.states(lm, given), base.states(lm, given))
        moved(prompt.project)
        assert not torch.allclose(prompt.states(lm, given), base.states(lm, given), atol=1e-3)
    deviations = [one().std() for pair in zip(base.keys, base.values, strict=True) for one in pair]
    torch.testing.assert_close(prompt.spread, 0.1 * torch.stack(deviations))


def test_an_input_dependent_one_starts_from_a_trained_shared_one(lm, tiny_encoder):
    base = moved(DeepPrompt.from_vocabulary(lm, length=4))
    new = InputDeepPrompt(tiny_encoder("bert"), lm, SHAPE, DeepPrompt.from_vocabulary(lm, length=4))
    started = new.started_from(base, "runs/deep")
    assert all(torch.equal(one(), other()) for one, other in zip(started.base.keys, base.keys, strict=True))
    with pytest.raises(UsageError, match=r"scaffold.start=runs/deep has length 3, the recipe asks for 4"):
        new.started_from(DeepPrompt.from_vocabulary(lm, length=3), "runs/deep")


PEFT_FAMILIES = ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "opt", "bloom", "gemma2"]


def logits_of_both(lm, scaffold, adapted):
    ids = torch.tensor([lm.ids("What is the capital of France?")[:5]])
    with torch.no_grad():
        theirs = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return lm.logits(states(lm, scaffold, ids)), theirs


def own_model(lm):
    return AutoModelForCausalLM.from_pretrained(lm.name).eval()


@pytest.mark.parametrize("family", PEFT_FAMILIES)
@pytest.mark.parametrize("config", [PeftPrefix, CartridgeConfig], ids=["prefix tuning", "cartridge"])
def test_peft_adapters_have_the_same_logits_here_and_there(tiny_lm, tmp_path, family, config):
    lm = tiny_lm(family)
    adapted = get_peft_model(own_model(lm), config(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    prompt = from_peft(tmp_path / "theirs", lm)
    assert (prompt.length, prompt.sinks) == (4, int(config is CartridgeConfig))
    ours, theirs = logits_of_both(lm, prompt, adapted)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    moved(prompt)
    to_peft(prompt, lm, tmp_path / "ours")
    ours, theirs = logits_of_both(lm, prompt, PeftModel.from_pretrained(own_model(lm), tmp_path / "ours").eval())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    again = from_peft(tmp_path / "ours", lm)
    assert all(
        torch.equal(one, other)
        for one, other in zip(again.state_dict().values(), prompt.state_dict().values(), strict=True)
    )


def test_an_adapter_of_another_model_is_refused(tiny_lm, tmp_path):
    to_peft(DeepPrompt.from_vocabulary(tiny_lm("llama"), length=3), tiny_lm("llama"), tmp_path / "adapter")
    with pytest.raises(UsageError, match=r"96 numbers for each position, and .* needs 192 .*name the adapter's own"):
        from_peft(tmp_path / "adapter", tiny_lm("gpt2"))
    with pytest.raises(UsageError, match="placement must be prefix, this one's is suffix"):
        to_peft(DeepPrompt.from_vocabulary(tiny_lm("llama"), placement="suffix"), tiny_lm("llama"), tmp_path / "other")


def test_what_a_prompt_does_not_fit_is_refused(tiny_lm, lm):
    for family, length, error, said in (
        ("mistral", 16, UsageError, r"deep prompt of 16 positions .*window of 16 .*scaffold.length to 15 at most"),
        (
            "qwen3_5",
            4,
            UsageError,
            r"\(qwen3_5_text\) has layers that keep no keys and values.*soft_prompt or low_rank",
        ),
        ("llama", 127, ContextFull, r"a deep prompt of 127 positions and a text needs 129 positions.*room for 128"),
    ):
        with pytest.raises(error, match=said):
            DeepPrompt.from_vocabulary(tiny_lm(family), length=length)
    with pytest.raises(UsageError, match=r"scaffold.trained_layers has 3: .* has layers 0 to 2"):
        DeepPrompt.new(DeepPrompt.Config(length=4, trained_layers=(3,)), lm)
    for values, said in (
        (["scaffold.length=0"], r"scaffold.length must be at least 1 for a deep prompt, got 0"),
        (["scaffold.sinks=16"], r"scaffold.sinks is 16: from 0 to 15"),
        (["scaffold.init=labels"], "vocabulary"),
        (["scaffold.init=document"], r"scaffold.init=document needs scaffold.init_text"),
    ):
        with pytest.raises(UsageError, match=said):
            with_overrides(recipe_named("bundled_soft_prompt"), ["scaffold.kind=deep_prompt", *values])


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["deep_prompt", "input_deep_prompt", "low_rank", "gated_low_rank", "scales", "gated_scales"]
)
@pytest.mark.parametrize("under", ["scaffold", "scaffold.inner"])
def test_a_recipe_makes_each_kind_and_plans_it_also_under_a_recursion(lm, kind, under):
    values = [f"{under}.kind={kind}"]
    values += ["scaffold.kind=recursion"] if under != "scaffold" else []
    if "input" in kind or "gated" in kind:
        values += [f"{under}.encoder=self", f"{under}.encoder_length=3", f"{under}.head_width=8"]
    config = with_overrides(recipe_named("bundled_soft_prompt"), values).scaffold
    made = new_scaffold(config, lm, seed=0)
    assert made.length == config.taken
    assert parts(meta_scaffold(config, meta_backbone(lm.name, lm.dtype))) == parts(made)
