"""Decoding and scoring through scaffolds, and the choice of each token."""

import pytest
import torch
from transformers import GenerationConfig

from shoulders.backbone.caches import PassMemory
from shoulders.backbone.choosing import Choice, two_best
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import encode, question_batch
from shoulders.engine.decode import (
    Decode,
    decode,
    generate,
    generate_with_transformers,
    likeliest,
    sampled,
    score,
    stream,
)
from shoulders.engine.inference import Answering, Sampling, answered, sample
from shoulders.errors import UsageError
from shoulders.records import Question, ScaffoldInput
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import save_lm


def given(lm, scaffold, questions):
    return question_batch([encode(question, lm) for question in questions], lm, scaffold)


def test_beams_are_those_of_the_model_itself(any_lm, questions):
    for question in questions[:2]:
        ids = torch.tensor([any_lm.ids(question.text)])
        settings = {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True}
        found = generate_with_transformers(any_lm, Bare(), given(any_lm, Bare(), [question]), longest=5, **settings)
        own = any_lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, pad_token_id=any_lm.end,
            eos_token_id=any_lm.end, do_sample=False, **settings,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        assert found[0] == own[: own.index(any_lm.end)] if any_lm.end in own else found[0] == own


@pytest.mark.parametrize("room", [1, 3])
def test_steps_write_into_the_room_of_their_memory(any_lm, questions, monkeypatch, room):
    """Rooms that are used up, rows that end and leave, two passes with a Connector: all as with copies."""
    monkeypatch.setattr("shoulders.engine.decode.ROOM", room)
    scaffolds = [Bare(), Recursion(any_lm, RecursionShape(layers=1)), SoftPrompt(from_vocabulary(any_lm)(3))]

    def answers():
        return [generate(any_lm, one, given(any_lm, one, questions), longest=9, stops=["a", "e"]) for one in scaffolds]

    with_room = answers()
    monkeypatch.setattr(PassMemory, "make_room", lambda *_: None)
    assert with_room == answers()


def test_a_step_copies_no_keys(lm, questions):
    rows = Decode(lm, Bare(), given(lm, Bare(), questions), longest=20, shortest=20)
    steps, places = decode([rows], lm), []
    for _ in range(20):
        next(steps)
        assert rows._memory.single.cache is not None
        places.append([layer.keys.data_ptr() for layer in rows._memory.single.cache.layers])
    assert places[1:] == [places[1]] * 19


def test_any_of_a_models_end_tokens_ends_an_answer(folders, questions):
    """Chat models have several; transformers' own generation stops at each, and so does ours."""
    save_lm("llama", folders / "several-ends")
    lm = FrozenLM.load(str(folders / "several-ends"), dtype="float32", device="cpu")
    (plain,) = generate(lm, Bare(), given(lm, Bare(), questions[:1]), longest=8)
    config = GenerationConfig(eos_token_id=[2, plain[3]])
    config.save_pretrained(folders / "several-ends")
    lm = FrozenLM.load(str(folders / "several-ends"), dtype="float32", device="cpu")
    assert lm.ends == (2, plain[3])
    assert lm.end == 2
    stopped = plain[: plain.index(plain[3])]
    ids = torch.tensor([lm.ids(questions[0].text)])
    own = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, pad_token_id=0)
    assert own[0, ids.shape[1] :].tolist() == plain[: plain.index(plain[3]) + 1]
    assert generate(lm, Bare(), given(lm, Bare(), questions[:1]), longest=8) == [stopped]


def test_samples_share_one_reading_of_the_question(lm, questions, monkeypatch):
    """Sixteen samples of four questions: four rows are read, once."""
    prompt = SoftPrompt(from_vocabulary(lm)(4))
    rows_read = []
    states = type(lm).states

    def counting(self, embeds, *rest):
        if embeds.shape[1] > 1:
            rows_read.append(embeds.shape[0])
        return states(self, embeds, *rest)

    monkeypatch.setattr(type(lm), "states", counting)
    draws = Choice(lm.ends, torch.rand(64, 5))
    found = generate(lm, prompt, given(lm, prompt, questions), longest=5, branches=16, choice=draws)
    assert len(found) == 64
    assert rows_read == [4]
    assert len({tuple(ids) for ids in found[:16]}) > 1


def test_sampling_follows_the_models_own_distribution(lm, questions):
    """First tokens of many samples against the softmax of the logits."""
    prompt = SoftPrompt(from_vocabulary(lm)(4))
    one = given(lm, prompt, questions[:1])
    with torch.no_grad():
        wanted = (lm.logits(prompt.states(lm, one)[0, -1])).softmax(-1)
    found = generate(lm, prompt, one, longest=1, branches=4000, choice=Choice(lm.ends, torch.rand(4000, 1)))
    counts = torch.zeros(lm.vocabulary)
    for ids in found:
        counts[ids[0] if ids else lm.end] += 1
    for half in wanted.argsort().chunk(2):  # the unlikely tokens, and the likely ones
        share = wanted[half].sum().item()
        assert counts[half].sum().item() / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
    assert counts[wanted.argmax()] > 4000 * wanted.mean()


def test_tokens_are_streamed_as_they_come(lm, questions):
    longest = 0
    for question in questions:
        asked = given(lm, Bare(), [question])
        (ids,) = generate(lm, Bare(), asked, longest=9)
        rows = Decode(lm, Bare(), asked, longest=9)
        lengths = [len(rows.ids[0]) for _ in decode([rows], lm)]
        assert lengths[: len(ids)] == list(range(1, len(ids) + 1))
        pieces = list(stream(lm, Bare(), asked, longest=9))
        assert "".join(pieces) == lm.text(ids)
        longest = max(longest, len(pieces))
    assert longest > 1


def test_a_stop_text_ends_a_row(lm, questions):
    asked = given(lm, Bare(), questions)
    whole = generate(lm, Bare(), asked, longest=9)
    stop = next(lm.text(ids)[2:4] for ids in whole if len(lm.text(ids)) > 5)
    stopped = generate(lm, Bare(), asked, longest=9, stops=[stop])
    assert stopped != whole
    for found, ids in zip(stopped, whole, strict=True):
        assert found == ids[: len(found)]
        assert found == ids or stop in lm.text(found)
        assert stop not in lm.text(found[:-1])


class Scripted(Choice):
    """Chooses given tokens, whatever the model says."""

    def __init__(self, ends, script):
        super().__init__(ends)
        self.script = script

    def choose(self, logits, rows, **rest):
        super().choose(logits, rows, **rest)
        return torch.tensor([self.script[self.step - 1]] * len(rows))


@pytest.mark.parametrize(
    ("said", "stop"),
    [
        (["one", " t", "wo", " three"], "e tw"),  # over three tokens
        (["caf", "\u00e9", "!", "?"], "\u00e9!"),  # a character of two tokens
        (["a", *[None] * 9, "b", "c"], "ab"),  # special tokens, which are no text, within it
        (["one", " two"], "three"),  # never generated
    ],
)
def test_a_stop_text_is_found_over_the_borders_of_tokens(lm, questions, said, stop):
    ids: list[int] = []
    for part in said:
        special = [lm.tokenizer.pad_token_id]
        ids += special if part is None else lm.tokenizer(part, add_special_tokens=False).input_ids
    complete = [number for number in range(1, len(ids) + 1) if stop in lm.text(ids[:number])]
    row = given(lm, Bare(), questions[:1])
    (found,) = generate(lm, Bare(), row, longest=len(ids), stops=["never", stop], choice=Scripted(lm.ends, ids))
    assert found == ids[: complete[0] if complete else len(ids)]
    assert bool(complete) == (stop != "three")


def test_a_shortest_length_keeps_the_probabilities_of_the_model(lm, questions):
    """An end token may not be chosen yet, and what is chosen instead is as likely as the model says."""
    asked = given(lm, Bare(), questions)
    lm.__dict__["ends"] = tuple(range(0, lm.vocabulary, 2))  # half of all tokens end a text
    try:
        choice = Choice(lm.ends)
        ids = generate(lm, Bare(), asked, longest=5, shortest=5, choice=choice)
        found = choice.generated(ids)
        assert all(len(one.ids) == 5 and one.margin > 0 for one in found)
        for one, (wanted,) in zip(found, score(lm, Bare(), asked, [[row] for row in ids]), strict=True):
            assert one.log_probability == pytest.approx(wanted.log_likelihood, rel=1e-4)
    finally:
        del lm.__dict__["ends"]


def test_top_k_and_top_p_sample_among_the_likeliest_tokens():
    """Shares 0.5, 0.3, 0.15, 0.05: those that stay keep their ratio."""
    shares = torch.tensor([0.15, 0.5, 0.05, 0.3])
    logits, draws = shares.log().repeat(2000, 1), torch.rand(2000, 1, dtype=torch.float64)

    def counts(**cuts):
        return Choice([9], draws, **cuts).choose(logits, torch.arange(2000)).bincount(minlength=4) / 2000

    for found, kept in (
        (counts(), [0, 1, 2, 3]),
        (counts(top_k=2), [1, 3]),
        (counts(top_p=0.7), [1, 3]),
        (counts(top_p=0.9), [0, 1, 3]),
        (counts(top_k=3, top_p=0.4), [1]),
        (counts(top_k=9), [0, 1, 2, 3]),
    ):
        wanted = torch.zeros(4).index_copy(0, torch.tensor(kept), shares[kept] / shares[kept].sum())
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)
        assert (found[wanted == 0] == 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"top_k": -2}, "top_k must be at least 0, got -2"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_a_choice_that_cannot_be_sampled_with_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        Choice([2], **wrong)


def test_many_choices_are_scored_in_slices_that_fit(any_lm, questions):
    """The memory of branches is bounded; the scores are the same, and the questions are still read once."""
    prompt = SoftPrompt(from_vocabulary(any_lm)(4))
    read = given(any_lm, prompt, questions)
    options = [[[3 + n, 5, 9][: 1 + n % 3] for n in range(4 * row + 1)] for row in range(4)]
    whole = score(any_lm, prompt, read, options)
    one_by_one = score(any_lm, prompt, read, options, positions_at_once=1)
    some = score(any_lm, prompt, read, options, positions_at_once=400)
    for found in (one_by_one, some):
        assert [len(row) for row in found] == [1, 5, 9, 13]
        for row, wanted in zip(found, whole, strict=True):
            likelihoods = [one.log_likelihood for one in wanted]
            assert [one.log_likelihood for one in row] == pytest.approx(likelihoods, rel=1e-4)


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
    ("wrong", "message"),
    [({"count": 0}, "at least 1, got 0"), ({"temperature": 0.0}, "temperature must be above 0, got 0.0")],
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


def test_what_cannot_be_decoded_is_refused(lm, questions):
    rows = Decode(lm, Bare(), given(lm, Bare(), questions[:1]), longest=4)
    with pytest.raises(UsageError, match="the same Decode is decoded twice at once"):
        next(decode([rows, rows], lm))
    for _ in decode([rows], lm):
        pass
    assert rows.ids == generate(lm, Bare(), given(lm, Bare(), questions[:1]), longest=4)
    with pytest.raises(UsageError, match=r"the stop texts are one string \('abc'\): give a list"):
        generate(lm, Bare(), given(lm, Bare(), questions[:1]), longest=4, stops="abc")
    nothing = ScaffoldInput(torch.zeros(1, 0, lm.width), slot=(0,))
    for scaffold in (Bare(), SoftPrompt(from_vocabulary(lm)(2))):
        with pytest.raises(UsageError, match="there is no token to continue"):
            generate(lm, scaffold, nothing, longest=4)


@pytest.mark.parametrize("size", [2, 63, 64, 65, 400])
def test_the_two_best_are_those_of_the_whole_vocabulary(size):
    scores = torch.randn(9, size).bfloat16().float()  # with ties
    scores[0, size // 2] = torch.inf
    values, tokens = two_best(scores)
    assert torch.equal(values, scores.topk(2).values)
    assert torch.equal(scores.gather(1, tokens), values)
    assert (tokens[:, 0] != tokens[:, 1]).all()
