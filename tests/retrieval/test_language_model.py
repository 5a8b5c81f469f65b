"""The frozen model as a ranker of passages: the likelihoods are those of the whole text, read one pair at a time."""

from dataclasses import replace

import pytest
import torch

from rankers import PASSAGES
from shoulders.errors import ContextFull, UnknownName, UsageError
from shoulders.retrieval.language_model import ANSWER, ASKED, LanguageModelRanker
from shoulders.retrieval.scoring import Pair
from shoulders.scaffolds.soft_prompt import SoftPrompt

PAIRS = [Pair("who was king", title, text[:40], "Harald I") for title, text in PASSAGES]  # short enough for the model


def by_hand(lm, likelihood, pair):
    """The likelihood of one pair, from transformers' own logits over the whole text."""
    before = f"{pair.title}\n{pair.text}".strip() + "\n\n" + ASKED[likelihood].format(question=pair.question)
    target = {"question": pair.question, "yes": "yes", "answer": pair.answer}[likelihood]
    ids, rest = lm.ids(before), lm.continuation_ids(before, target)
    with torch.no_grad():
        logs = lm.model(torch.tensor([ids + rest])).logits[0].float().log_softmax(-1)
    if likelihood == "yes":
        no = lm.continuation_ids(before, "no")
        at = next(place for place, (one, other) in enumerate(zip(rest, no, strict=False)) if one != other)
        return (logs[len(ids) + at - 1, rest[at]] - logs[len(ids) + at - 1, no[at]]).item()
    found = [logs[len(ids) + place - 1, token].item() for place, token in enumerate(rest)]
    return sum(found) / len(found) if likelihood == "question" else sum(found)


@pytest.mark.parametrize("likelihood", [*ASKED])
def test_scores_are_the_likelihoods_of_the_text_one_pair_at_a_time(lm, likelihood):
    ranker = LanguageModelRanker(lm, likelihood)
    wanted = [by_hand(lm, likelihood, pair) for pair in PAIRS]
    assert ranker.scores(PAIRS) == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert len(set(wanted)) == len(wanted)
    assert ranker.tokens(PAIRS) > sum(len(lm.ids(pair.text)) for pair in PAIRS)


def test_a_scaffold_and_the_likelihood_are_part_of_its_identity(lm):
    plain = LanguageModelRanker(lm, ANSWER)
    prompt = SoftPrompt(torch.randn(3, lm.width, generator=torch.Generator().manual_seed(0)))
    prompted = LanguageModelRanker(lm, ANSWER, prompt)
    assert prompted.scores(PAIRS) != plain.scores(PAIRS)
    assert len({plain.fingerprint, prompted.fingerprint, LanguageModelRanker(lm, "question").fingerprint}) == 3


def test_a_passage_that_does_not_fit_is_cut_at_its_end(lm):
    ranker = LanguageModelRanker(lm, "question")
    long = replace(PAIRS[0], text=f"{PAIRS[0].text} {'fish ' * lm.context}")
    longer = replace(long, text=f"{long.text} and kings")
    assert ranker.scores([long]) == ranker.scores([longer]) != ranker.scores(PAIRS[:1])
    assert ranker.tokens([long]) == lm.context
    with pytest.raises(ContextFull, match="instruction to rate a passage"):
        ranker.scores([Pair("why " * lm.context, "", "a passage")])


def test_what_cannot_rank(lm, monkeypatch):
    with pytest.raises(UnknownName, match="likelihood of the language model"):
        LanguageModelRanker(lm, "maybe")
    monkeypatch.setattr(type(lm), "continuation_ids", lambda *_: [7])
    with pytest.raises(UsageError, match="lm:question"):
        LanguageModelRanker(lm, "yes")
