import pytest
import torch
from transformers import GenerationConfig

from shoulders.backbone.choosing import Choice
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import encode, question_batch
from shoulders.engine.decode import Decode, decode, generate, generate_with_transformers, score, stream
from shoulders.scaffolds.base import Bare
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
