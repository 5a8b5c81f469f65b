"""A cascade of stages: who answers, and what it costs."""

import math
from dataclasses import replace

import pytest

from shoulders.answering.cascade import CascadeAnswerer
from shoulders.answering.stages import RULES, Cascade, Stage
from shoulders.engine.inference import Answering, answered, choose, rank
from shoulders.errors import UnknownName, UsageError
from shoulders.records import Answer, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from toys import Fact

HOW = Answering(longest=4)
ASKED = [Question(f"What comes after {'the number ' * (n % 3)}{n}?") for n in range(12)]
CHOICES = [("yes", "no", "it depends")] * len(ASKED)


def recursion(lm, passes):
    return Recursion(lm, RecursionShape(passes=passes, layers=1))


@pytest.fixture
def stages(lm):
    return tuple(Stage.of(one) for one in (SoftPrompt(from_vocabulary(lm)(3)), recursion(lm, 2), recursion(lm, 3)))


def cascade(lm, stages, thresholds, rule="probability"):
    return CascadeAnswerer(lm, Cascade(stages, thresholds, rule), HOW)


def alone(stage, lm):
    """What a stage says by itself: generated answers, and choices."""
    return answered(ASKED, lm, stage.scaffold, HOW), choose(ASKED, CHOICES, lm, stage.scaffold, HOW)


def middle(stage, lm, rule="probability"):
    """A threshold that half of the generated answers of a stage reach."""
    found = sorted(RULES[rule](one) for one in alone(stage, lm)[0])
    return (found[5] + found[6]) / 2


def told(answers):
    """Text and confidence: tiny random models often give the same text."""
    return [(one.text, pytest.approx(one.log_probability, abs=1e-4)) for one in answers]


def said(decided):
    return [(one.answer.text, one.answer.log_probability) for one in decided]


def test_passes_count_the_frozen_model_also_as_its_own_encoder(lm, tiny_encoder):
    shape = InputPromptShape(length=2, encoder_length=2, layers=1, head_width=8)
    own, other = (InputPrompt(encoder, lm, shape) for encoder in (lm, tiny_encoder("bert")))
    assert [one.passes for one in (Bare(), SoftPrompt(from_vocabulary(lm)(3)), other, own)] == [1, 1, 1, 2]
    assert [recursion(lm, passes).passes for passes in (1, 2, 3)] == [1, 2, 3]
    assert Recursion(lm, RecursionShape(passes=2, layers=1), own).passes == 4


@pytest.mark.parametrize(("threshold", "stage", "spent"), [(-math.inf, 0, 1), (math.inf, 2, 6)])
def test_with_infinite_thresholds_one_stage_answers_everything(lm, stages, threshold, stage, spent):
    asked = cascade(lm, stages, (threshold, threshold))
    generated, chosen = asked.decide(ASKED), asked.decide(ASKED, CHOICES)
    assert (said(generated), said(chosen)) == tuple(told(some) for some in alone(stages[stage], lm))
    assert {(one.stage, one.passes) for one in [*generated, *chosen]} == {(stage, spent)}


@pytest.mark.parametrize("rule", RULES)
def test_each_input_stops_where_its_confidence_reaches_the_threshold(lm, stages, rule):
    thresholds = (middle(stages[0], lm, rule), middle(stages[1], lm, rule))
    found = cascade(lm, stages, thresholds, rule).decide(ASKED)
    assert {one.stage for one in found} == {0, 1, 2}
    by_stage = [alone(stage, lm)[0] for stage in stages]
    for number, one in enumerate(found):
        sure = [RULES[rule](by_stage[stage][number]) >= thresholds[stage] for stage in (0, 1)]
        assert one.stage == [*sure, True].index(True)
        assert said([one]) == told([by_stage[one.stage][number]])
        assert one.passes == sum(stage.passes for stage in stages[: one.stage + 1])


def test_only_those_that_are_not_sure_are_asked_again(lm, stages):
    watched = Stage(stages[1].scaffold, 2, evidence=(fact := Fact("")))
    found = cascade(lm, (stages[0], watched), (middle(stages[0], lm),)).decide(ASKED)
    assert fact.asked == [[question for question, one in zip(ASKED, found, strict=True) if one.stage == 1]]
    assert 0 < len(fact.asked[0]) < len(ASKED)
    cascade(lm, (stages[0], watched), (-math.inf,)).decide(ASKED)
    assert len(fact.asked) == 1


def test_what_is_put_before_a_question_is_read_in_its_stage_only(lm, stages):
    with_fact = [Question(question.text, evidence="A fact. ") for question in ASKED]
    reading = Stage.of(stages[0].scaffold, "reading", Fact("A fact. "))
    assert reading.passes == stages[0].passes + 1
    found = cascade(lm, (stages[0], reading), (math.inf,)).decide(ASKED)
    assert said(found) == told(answered(with_fact, lm, stages[0].scaffold, HOW))
    assert said(found) != told(answered(ASKED, lm, stages[0].scaffold, HOW))


def test_the_batch_decides_nothing(lm, stages):
    asked = cascade(lm, stages, (middle(stages[0], lm), middle(stages[1], lm)))
    narrow = replace(asked, how=Answering(HOW.longest, positions_at_once=1))
    together = asked.decide(ASKED)
    single = [narrow.decide([question])[0] for question in ASKED]
    assert [(one.stage, one.passes) for one in together] == [(one.stage, one.passes) for one in single]
    assert said(together) == told(one.answer for one in single)
    assert asked.decide([]) == []


def test_the_confidence_of_a_choice_is_its_share_among_the_choices(lm):
    found = choose(ASKED, CHOICES, lm, Bare())
    for one, scores in zip(found, rank(ASKED, CHOICES, lm, Bare()), strict=True):
        shares = [math.exp(score - max(scores)) for score in scores]
        best, second, _ = sorted(scores, reverse=True)
        assert math.exp(one.log_probability) == pytest.approx(max(shares) / sum(shares))
        assert one.margin == pytest.approx(best - second)
        assert one.text == CHOICES[0][scores.index(best)]
    assert choose(ASKED[:1], [["only"]], lm, Bare()) == [Answer("only", 0.0, math.inf)]


def test_one_stage_by_itself(lm, stages):
    asked = cascade(lm, stages, (0.0, 0.0))
    for passes, stage in ((1, 0), (2, 1), (3, 2), (9, 2)):
        found = asked.only(passes).decide(ASKED)
        assert said(found) == told(alone(stages[stage], lm)[0])
        assert {one.passes for one in found} == {stages[stage].passes}
    with pytest.raises(UsageError, match="no stage answers with 1 passes, they cost 2, 3"):
        Cascade(stages[1:], (0.0,)).only(1)


def test_cascades_that_make_no_sense_are_refused(stages):
    with pytest.raises(UnknownName, match="no rule 'probabilty': did you mean 'probability'"):
        Cascade(stages, (0.0, 0.0), "probabilty")
    with pytest.raises(UsageError, match="3 stages and 1 thresholds"):
        Cascade(stages, (0.0,))
    with pytest.raises(UsageError, match="costs 3 passes and the one after it, 'recursion', 2: put the cheaper"):
        Cascade((stages[2], stages[1]), (0.0,))
