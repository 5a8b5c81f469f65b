"""The invariants of the design: each scaffold, around each backbone family."""

from dataclasses import replace

import pytest
import torch

from shoulders.backbone.caches import Memory
from shoulders.engine.batches import encode, question_batch, training_batch
from shoulders.engine.inference import Answering, answer, rank
from shoulders.records import Placement, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import FAMILIES, TEXTS
from toys import layered, moved

SMALL = InputPromptShape(length=5, encoder_length=3, head_width=8)
TARGETS = ["Paris", "the planet Mars", "good", "four"]
CHOICES = [["Paris", "London is large"], ["Mars", "Venus", "the Moon"], ["good", "bad"], ["4", "5", "6", "22"]]


def scaffolds(lm, tiny_encoder):
    """Every scaffold in every placement."""
    yield Bare()
    for placement in Placement:
        yield SoftPrompt(from_vocabulary(lm)(6), placement)
        yield InputPrompt(tiny_encoder("bert"), lm, SMALL, norm=1.0, placement=placement)
    yield InputPrompt(tiny_encoder("t5"), lm, SMALL)
    yield InputPrompt(lm, lm, SMALL)
    yield from recursions(lm)
    every = layered(lm, tiny_encoder)
    # All of them share batches in every family (tests/engine/test_together.py); here some, and all around two.
    names = every if lm.config.model_type in ("gpt2", "mistral") else ("deep infix", "low rank suffix", "gated")
    yield from (moved(every[name]) for name in names)


def recursions(lm):
    """Orders of passes and Connectors."""
    yield Recursion(lm, RecursionShape(layers=1))
    yield Recursion(lm, RecursionShape(passes=1, layers=2, before=True, after=True))
    prompt = SoftPrompt(from_vocabulary(lm)(4), Placement.SUFFIX)
    yield Recursion(lm, RecursionShape(passes=3, layers=2, shared=True), prompt)
    opened = Recursion(lm, RecursionShape(layers=0, residual=True), SoftPrompt(from_vocabulary(lm)(2)))
    torch.nn.init.ones_(opened.connectors[0].gate)
    yield opened


def evidenced(questions):
    """The questions with evidence before some of them, so that an infix has a place of its own."""
    return [
        Question(question.text, evidence="France is in Europe. " if number % 2 else "")
        for number, question in enumerate(questions)
    ]


def two(number, *columns):
    """Two of the four rows, one of them with evidence: the next scaffold has others."""
    rows = list(zip(*columns, strict=True))
    return rows[number % 4], rows[(number + 1) % 4]


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours_in_training(any_lm, tiny_encoder, questions):
    for number, scaffold in enumerate(scaffolds(any_lm, tiny_encoder)):
        rows = [encode(q, any_lm, target) for q, target in zip(evidenced(questions), TARGETS, strict=True)]
        batch = training_batch(rows, any_lm, scaffold)
        together = any_lm.nll(scaffold.states(any_lm, batch.given), batch.labels)
        for row, value in two(number, rows, together):
            alone = training_batch([row], any_lm, scaffold)
            single = any_lm.nll(scaffold.states(any_lm, alone.given), alone.labels)
            assert single.item() == pytest.approx(value.item(), rel=2e-5)


@torch.no_grad()
def test_cached_decoding_equals_uncached(any_lm, tiny_encoder, questions):
    """Reading a question into a memory and continuing it gives what reading the whole gives."""
    for number, scaffold in enumerate(scaffolds(any_lm, tiny_encoder)):
        for question, target in two(number, evidenced(questions), TARGETS):
            row = encode(question, any_lm, target)
            batch = training_batch([row], any_lm, scaffold)
            whole = scaffold.states(any_lm, batch.given)[:, len(row.ids) - 1 :]
            memory = Memory()
            given = question_batch([row], any_lm, scaffold)
            parts = [scaffold.states(any_lm, given, memory)[:, -1:]]
            for token in row.target[:-1]:
                step = given.continued(any_lm.embed(torch.tensor([[token]])))
                parts.append(scaffold.states(any_lm, step, memory))
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_scores_of_choices_are_those_of_training(any_lm, tiny_encoder, questions):
    """Shared prefill, left padding and branches give the log-likelihood that each choice has alone."""
    asked = evidenced(questions)
    for number, scaffold in enumerate(scaffolds(any_lm, tiny_encoder)):
        found = rank(asked, CHOICES, any_lm, scaffold)
        for question, options, scores in two(number, asked, CHOICES, found):
            for option, value in zip(options, scores, strict=True):
                batch = training_batch([encode(question, any_lm, option)], any_lm, scaffold)
                alone = any_lm.nll(scaffold.states(any_lm, batch.given), batch.labels)
                assert -alone.item() == pytest.approx(value, rel=2e-5)


def test_answers_in_a_batch_are_those_alone(any_lm, tiny_encoder, questions):
    how = Answering(longest=6)
    asked = evidenced(questions)
    for number, scaffold in enumerate(scaffolds(any_lm, tiny_encoder)):
        together = answer(asked, any_lm, scaffold, how)
        assert any(together)
        for question, text in two(number, asked, together):
            assert answer([question], any_lm, scaffold, how) == [text]


def test_bare_generation_is_transformers_own(any_lm, questions):
    found = answer(questions, any_lm, Bare(), Answering(longest=6))
    for question, text in zip(questions, found, strict=True):
        ids = torch.tensor([any_lm.ids(question.text)])
        own = any_lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=any_lm.end
        )
        assert text == any_lm.text(own[0, ids.shape[1] :].tolist()).strip()


@torch.no_grad()
def test_an_empty_prompt_is_the_bare_model(any_lm, questions):
    empty = SoftPrompt(torch.zeros(0, any_lm.width))
    rows = [encode(q, any_lm, target) for q, target in zip(questions, TARGETS, strict=True)]
    batch = training_batch(rows, any_lm, empty)
    states = empty.states(any_lm, batch.given)
    assert torch.equal(states, Bare().states(any_lm, batch.given))
    assert answer(questions, any_lm, empty, Answering(longest=4)) == answer(
        questions, any_lm, Bare(), Answering(longest=4)
    )


def test_the_bare_model_is_the_model(any_lm):
    """Same logits as the Hugging Face model itself: nothing is lost between states and vocabulary."""
    ids = torch.tensor([any_lm.ids(TEXTS[2])])
    with torch.no_grad():
        own = any_lm.model(ids).logits
        ours = any_lm.logits(any_lm.states(any_lm.embed(ids)))
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("placement", Placement)
@torch.no_grad()
def test_causality(lm, tiny_encoder, placement):
    """Changing a token changes nothing before it."""
    row = encode(Question("Name a planet.", evidence="The sun is a star. "), lm, "Mars or the Earth")
    for scaffold in (SoftPrompt(from_vocabulary(lm)(4), placement), Bare()):
        given = training_batch([row], lm, scaffold).given
        before = scaffold.states(lm, given)
        for changed in range(given.embeds.shape[1]):
            embeds = given.embeds.clone()
            embeds[:, changed] += 1.0
            after = scaffold.states(lm, replace(given, embeds=embeds))
            torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(after[:, changed:], before[:, changed:], atol=1e-3)


@pytest.mark.parametrize("placement", Placement)
def test_states_that_are_changed_in_place_train_too(tiny_lm, questions, placement):
    """Linear attention keeps no keys that a text read without gradients could leave behind."""
    lm = tiny_lm("qwen3_5")
    assert lm.recurrent
    assert not tiny_lm("llama").recurrent
    prompt = SoftPrompt(from_vocabulary(lm)(4), placement)
    rows = [encode(q, lm, target) for q, target in zip(questions, TARGETS, strict=True)]
    batch = training_batch(rows, lm, prompt)
    together = lm.nll(prompt.states(lm, batch.given), batch.labels)
    together.sum().backward()
    assert prompt.prompt.grad.abs().sum() > 0
    alone = training_batch(rows[:1], lm, prompt)
    assert lm.nll(prompt.states(lm, alone.given), alone.labels).item() == pytest.approx(together[0].item(), rel=1e-4)


@pytest.mark.parametrize("placement", [Placement.INFIX, Placement.SUFFIX])
def test_reading_the_text_without_gradients_changes_no_gradient(any_lm, questions, placement):
    """The training path of suffix and infix (text read once, no activations) against weaving the whole."""
    prompt = SoftPrompt(from_vocabulary(any_lm)(4), placement)
    asked = [Question(q.text, evidence="France is in Europe. ") for q in questions]
    rows = [encode(q, any_lm, target) for q, target in zip(asked, TARGETS, strict=True)]
    batch = training_batch(rows, any_lm, prompt)
    loss = any_lm.loss(prompt.states(any_lm, batch.given), batch.labels)
    (fast,) = torch.autograd.grad(loss, prompt.parameters())
    # Rows with slots of their own columns (as decoding lays them out) take the woven path.
    total, count = torch.zeros(()), 0
    for row in rows:
        given = replace(question_batch([row], any_lm, prompt), slot=(0,))
        text = torch.cat([given.embeds, any_lm.embed(torch.tensor([row.target[:-1]]))], dim=1)
        slot = row.slot(placement)
        woven = torch.cat([text[:, :slot], prompt.prompt[None].to(text.dtype), text[:, slot:]], dim=1)
        states = any_lm.states(woven)
        logits = any_lm.logits(states[0, len(row.ids) + prompt.length - 1 :])
        target = torch.tensor(row.target)
        total = total + torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        count += len(target)
    (plain,) = torch.autograd.grad(total / count, prompt.parameters())
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-5)
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-6)


def test_every_family_is_tested():
    assert {"llama", "gpt2", "gpt_neox", "qwen2", "opt", "gemma"} <= set(FAMILIES)
