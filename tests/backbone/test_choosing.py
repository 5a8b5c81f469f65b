import pytest
import torch

from shoulders.engine.batches import encode, question_batch
from shoulders.engine.decode import generate, likeliest, sampled, score
from shoulders.engine.inference import Answering, Sampling, answered, sample
from shoulders.errors import UsageError
from shoulders.records import Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary


def given(lm, scaffold, questions):
    return question_batch([encode(question, lm) for question in questions], lm, scaffold)


def scaffolds(lm):
    return [SoftPrompt(from_vocabulary(lm)(4)), Recursion(lm, RecursionShape(layers=1))]


def test_the_likeliest_tokens_are_the_greedy_ones_with_their_own_probability(any_lm, questions):
    for scaffold in scaffolds(any_lm):
        read = given(any_lm, scaffold, questions)
        found = likeliest(any_lm, scaffold, read, longest=6)
        assert [one.ids for one in found] == generate(any_lm, scaffold, read, longest=6)
        wanted = score(any_lm, scaffold, read, [[one.ids + [any_lm.end] * (len(one.ids) < 6)] for one in found])
        for one, (value,) in zip(found, wanted, strict=True):
            assert one.log_probability == pytest.approx(value.log_likelihood, rel=1e-3, abs=1e-3)
            assert one.margin > 0
            assert value.greedy


@torch.no_grad()
def test_the_margin_is_the_smallest_lead_over_the_best_other_token(lm, questions):
    scaffold = Bare()
    read = given(lm, scaffold, questions[:1])
    (one,) = likeliest(lm, scaffold, read, longest=3)
    ids = torch.tensor([lm.ids(questions[0].text) + one.ids])
    tops = lm.logits(lm.states(lm.embed(ids)))[0, -len(one.ids) - 1 :].log_softmax(-1).topk(2).values
    leads = (tops[:, 0] - tops[:, 1])[:3]
    assert one.margin == pytest.approx(leads.min().item(), rel=1e-3)


def test_samples_follow_the_models_own_distribution(lm, questions):
    """First tokens of many samples against the softmax of the logits, at two temperatures."""
    prompt = SoftPrompt(from_vocabulary(lm)(4))
    read = given(lm, prompt, questions[:1])
    draws = torch.rand(1, 4000, 1)
    for temperature in (1.0, 0.5):
        with torch.no_grad():
            wanted = (lm.logits(prompt.states(lm, read)[0, -1]) / temperature).softmax(-1)
        (found,) = sampled(lm, prompt, read, draws, temperature=temperature)
        counts = torch.zeros(lm.vocabulary)
        for one in found:
            counts[one.ids[0] if one.ids else lm.end] += 1
        for half in wanted.argsort().chunk(2):
            share = wanted[half].sum().item()
            assert counts[half].sum().item() / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
        assert counts[wanted.argmax()] > 4000 * wanted.mean()


def test_what_is_sampled_for_a_question_depends_on_no_other(any_lm, questions):
    for scaffold in scaffolds(any_lm):
        how = Answering(longest=5)
        together = sample(questions, any_lm, scaffold, Sampling(6), how)
        for question, wanted in zip(questions, together, strict=True):
            (alone,) = sample([question], any_lm, scaffold, Sampling(6), how)
            (few,) = sample([question], any_lm, scaffold, Sampling(2), how)
            assert [one.text for one in alone] == [one.text for one in wanted]
            assert [one.text for one in few] == [one.text for one in wanted[:2]]
        other = sample(questions, any_lm, scaffold, Sampling(6, seed=1), how)
        assert [[one.text for one in some] for some in other] != [[one.text for one in some] for some in together]


def test_a_sample_has_the_probability_that_the_model_gives_it(any_lm, questions):
    scaffold = SoftPrompt(from_vocabulary(any_lm)(4))
    read = given(any_lm, scaffold, questions)
    found = sampled(any_lm, scaffold, read, torch.rand(len(questions), 5, 4), temperature=0.7)
    ids = [[one.ids + [any_lm.end] * (len(one.ids) < 4) for one in some] for some in found]
    for some, wanted in zip(found, score(any_lm, scaffold, read, ids), strict=True):
        likelihoods = [one.log_likelihood for one in wanted]
        assert [one.log_probability for one in some] == pytest.approx(likelihoods, rel=1e-3, abs=1e-3)
        assert [one.margin > 0 for one in some] == [one.greedy for one in wanted]


def test_a_sample_that_is_not_the_likeliest_has_a_negative_margin(lm, questions):
    scaffold = SoftPrompt(from_vocabulary(lm)(4))
    (some,) = sampled(lm, scaffold, given(lm, scaffold, questions[:1]), torch.rand(1, 50, 3))
    (best,) = likeliest(lm, scaffold, given(lm, scaffold, questions[:1]), longest=3)
    assert all((one.margin > 0) == (one.ids == best.ids) for one in some)
    assert any(one.margin < 0 for one in some)


def test_a_low_temperature_is_the_greedy_answer(lm, questions):
    scaffold = SoftPrompt(from_vocabulary(lm)(4))
    greedy = answered(questions, lm, scaffold, Answering(longest=4))
    cold = sample(questions, lm, scaffold, Sampling(3, temperature=1e-4), Answering(longest=4))
    assert [[one.text for one in some] for some in cold] == [[one.text] * 3 for one in greedy]


@pytest.mark.parametrize(
    ("wrong", "message"), [({"count": 0}, "0 candidates are none"), ({"temperature": 0.0}, "temperature of 0.0")]
)
def test_sampling_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        Sampling(**wrong)


def test_no_question_no_answer(lm):
    assert sample([], lm, Bare(), Sampling(2)) == []
    assert answered([Question("Two plus two is")], lm, Bare(), Answering(longest=1))[0].log_probability < 0


def test_what_has_ended_is_not_decoded_any_further(lm, questions, monkeypatch):
    """Of many samples most end early: only those that go on cost anything, and nothing else changes."""
    scaffold = Recursion(lm, RecursionShape(layers=1))
    read = given(lm, scaffold, questions)
    draws = torch.rand(len(questions), 8, 12)
    lm.__dict__["ends"] = tuple(range(0, lm.vocabulary, 6))  # so that every sixth token ends a text
    try:
        whole = sampled(lm, scaffold, read, draws)
        rows = []
        states = type(lm).states

        def counting(self, embeds, *rest):
            rows.append(embeds.shape[0])
            return states(self, embeds, *rest)

        monkeypatch.setattr(type(lm), "states", counting)
        found = sampled(lm, scaffold, read, draws)
        monkeypatch.setattr("shoulders.engine.decode.WORTH_MOVING", -1)
        kept = sampled(lm, scaffold, read, draws)
    finally:
        del lm.__dict__["ends"]
    assert found == whole
    lengths = [len(one.ids) for some in found for one in some]
    assert len(set(lengths)) > 3
    assert rows[2:4] == [32, 32]
    assert rows[2 * max(lengths) + 1] < 8  # two passes a step
    for some, wanted in zip(found, kept, strict=True):
        assert [one.ids for one in some] == [one.ids for one in wanted]
        assert [one.log_probability for one in some] == pytest.approx([one.log_probability for one in wanted], rel=1e-3)
