"""Scores of a cascade are those of its own answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from shoulders.answering.cascade import CascadeAnswerer
from shoulders.answering.stages import Cascade, Stage
from shoulders.data.readers import open_suite
from shoulders.data.tasks import TemplatedTask
from shoulders.data.templates import Template
from shoulders.engine.inference import Answering
from shoulders.evaluation.perplexity import perplexity, token_changes
from shoulders.evaluation.protocol import EvaluationPlan, evaluate, scored
from shoulders.records import Answer, ScaffoldInput
from shoulders.runs.calibrate import StagedScores
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import save_numbers
from toys import Fact, moved

PLAN = EvaluationPlan(longest=4)
HOW = Answering(longest=4, truncate=True)


@pytest.fixture
def stages(lm):
    made = [SoftPrompt(from_vocabulary(lm)(3)), *(Recursion(lm, RecursionShape(passes=n, layers=1)) for n in (2, 3))]
    return tuple(Stage.of(one) for one in made)


@pytest.fixture
def tasks(tmp_path):
    save_numbers(tmp_path / "suite" / "numbers", range(4), range(40, 60), range(4))
    return open_suite(str(tmp_path / "suite"))


@pytest.fixture
def measured(lm, stages, tasks):
    return StagedScores([evaluate(tasks, lm, one.scaffold, PLAN) for one in stages], [1, 2, 3], "probability")


def test_scores_are_those_of_the_cascades_own_answers(lm, stages, measured):
    """Asked for real, with the thresholds that were calibrated: the same answers, passes and score."""
    chosen = measured.best_within_budget(2.0)
    cascade = CascadeAnswerer(lm, Cascade(stages, chosen.thresholds), HOW)
    scores = measured.scores(measured.stops(chosen.thresholds).tolist())
    passes = []
    for row in scores.wordings:
        examples = [prediction.example for prediction in row.predictions]
        questions = [example.question for example in examples]
        choices = () if examples[0].choices is None else [example.choices for example in examples]
        found = cascade.decide(questions, choices)
        assert [one.answer.text for one in found] == [prediction.text for prediction in row.predictions]
        passes += [one.passes for one in found]
    assert sum(passes) / len(passes) == pytest.approx(chosen.passes)
    assert chosen.passes <= 2.0
    assert scores.average == chosen.score
    assert measured.spent(chosen.thresholds)["average"] == chosen.passes


def test_what_later_stages_change_is_counted(lm, tasks):
    """Answers that are made right and wrong by hand, one of each, in three of four questions that go on."""

    def answered(*texts):
        answers = iter([Answer(text, 0.0, 0.0) for text in texts])
        return scored(asked, EvaluationPlan(limit=4), lambda examples: [next(answers) for _ in examples])

    (one, *_) = tasks
    asked = [replace(one, templates={name: some for name, some in one.templates.items() if name != "choose"})]
    golds = [row.example.target for row in answered("", "", "", "").wordings[0].predictions]
    staged = StagedScores(
        [answered("", golds[1], golds[2], ""), answered(golds[0], "", golds[2], golds[3])], [1, 2], "probability"
    )
    assert staged.changes(np.array([1, 1, 1, 0])) == {"fixed": 25.0, "broken": 25.0}
    assert staged.changes(np.array([0, 0, 0, 0])) == {"fixed": 0.0, "broken": 0.0}
    assert staged.spent((math.inf,))["always"] == {"fixed": 50.0, "broken": 25.0}


def test_what_a_second_pass_changes_of_tokens_is_counted(lm):
    sequences = torch.randint(3, 300, (3, 20), generator=torch.Generator().manual_seed(0)).tolist()
    second = moved(Recursion(lm, RecursionShape(layers=1)))
    none, *_, every = token_changes(lm, Bare(), second, sequences)
    assert (none.share, none.fixed, none.broken) == (0.0, 0.0, 0.0)
    assert none.nats == pytest.approx(math.log(perplexity(lm, Bare(), sequences).perplexity), rel=1e-5)
    assert every.share == 100.0
    assert every.nats == pytest.approx(math.log(perplexity(lm, second, sequences).perplexity), rel=1e-5)
    same = token_changes(lm, Bare(), Bare(), sequences)
    assert all((one.fixed, one.broken, one.nats) == (0.0, 0.0, pytest.approx(none.nats)) for one in same)
    right = [_right(lm, scaffold, sequences) for scaffold in (Bare(), second)]
    assert every.fixed - every.broken == pytest.approx(100 * (right[1] - right[0]), abs=1e-3)


@torch.no_grad()
def _right(lm, scaffold, sequences):
    ids = torch.tensor(sequences)
    given = ScaffoldInput(lm.embed(ids[:, :-1]), None, (0,) * len(ids))
    return (lm.logits(scaffold.states(lm, given)).argmax(-1) == ids[:, 1:]).float().mean().item()


def test_the_ends_are_the_first_and_the_last_stage(measured):
    for thresholds, stage in (((-math.inf, -math.inf), 0), ((math.inf, math.inf), 2)):
        found = measured.scores(measured.stops(thresholds).tolist())
        assert found.wordings == measured.stages[stage].wordings
        assert found.average == measured.stages[stage].average
    curve = measured.spent((0.0, 0.0))["curve"]
    assert (curve[0]["passes"], curve[0]["score"]) == (1.0, measured.stages[0].average)
    assert (curve[-1]["passes"], curve[-1]["score"]) == (6.0, measured.stages[2].average)


def test_shares_add_up_to_the_average(measured):
    spent = measured.spent(measured.best_within_budget(3.0).thresholds)
    shares = [stage["share"] for stage in spent["stages"]]
    assert sum(shares) == pytest.approx(1)
    assert spent["average"] == pytest.approx(sum(share * cost for share, cost in zip(shares, (1, 3, 6), strict=True)))


def test_questions_are_read_with_evidence_and_examples_stay_what_they_are(lm, stages, tasks):
    fact = Fact("A fact. ")
    scores = evaluate(tasks, lm, stages[0].scaffold, PLAN, evidence=fact)
    wanted = [prediction.example.question for row in scores.wordings for prediction in row.predictions]
    assert [question for some in fact.asked for question in some] == wanted


def test_inputs_that_any_stage_cuts_are_counted(lm):
    """A prompt of 60 leaves too little of 128 positions for the middle one."""
    template = Template("ask", "a", "{{t}} ||| x", None, ("Squad",))
    records = [{"t": " ".join(["word"] * count)} for count in (1, 80, 300)]
    task = TemplatedTask("t", "c", {"ask": template}, {"validation": records})
    scaffolds = (Bare(), SoftPrompt(from_vocabulary(lm)(60)))
    stages = [evaluate([task], lm, one, PLAN) for one in scaffolds]
    assert [one.truncated for one in stages] == [1, 2]
    measured = StagedScores(stages, [1, 1], "margin")
    assert measured.scores([0, 1, 0]).truncated == 2
