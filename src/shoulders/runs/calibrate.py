"""Thresholds chosen by a recipe on the development part: of a cascade, and of a reader's 'no answer'."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from shoulders.answering import calibration
from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.calibration import (
    Judged,
    Outcome,
    Point,
    Threshold,
    average_passes,
    best_threshold,
    check_budget,
    outcome,
    stages_of,
)
from shoulders.answering.models import LoadedModel
from shoulders.answering.stages import (
    PROBABILITY,
    RULES,
    Adaptive,
    Calibration,
    Stage,
    check_count,
    check_rule,
    fingerprint,
)
from shoulders.answering.threshold import FORMAT, THRESHOLD
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.matching import has_span
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.metrics import exact_match, token_f1
from shoulders.evaluation.protocol import EvaluationPlan, OnDone, Scores, chosen_examples
from shoulders.evaluation.results import provenance, scaffold_measured, scores_as_json
from shoulders.evidence.choice import EvidenceChoice
from shoulders.records import Answer, Example
from shoulders.runs.build import answer_spec, evidence_measured
from shoulders.runs.jobs import measure, tasks_of
from shoulders.runs.recipe import Recipe
from shoulders.runs.run import trained_parameters
from shoulders.scaffolds.base import Bare
from shoulders.store.files import write_json


@final
class StagedScores:
    """What every stage made of the same examples, and what any thresholds make of that.

    An answer does not depend on what else was asked, so a cascade's answers are among its stages'.

    Args:
        stages: scores of each, of one plan.
        passes: of each.
        rule: what confidence is.
    """

    def __init__(self, stages: Sequence[Scores], passes: Sequence[int], rule: str) -> None:
        self.stages, self.passes = stages, passes
        self.confidences: Float[np.ndarray, "S N"] = np.array(
            [[RULES[rule](one.answer) for row in scores.wordings for one in row.predictions] for scores in stages]
        )

    def calibrated(self, budget: float) -> Point:
        """The best thresholds within the budget."""
        return calibration.calibrated(self.confidences, self.passes, budget, self._average)

    def curve(self) -> list[Point]:
        """From the cheapest to the dearest, over all thresholds of these very examples."""
        return calibration.curve(self.confidences, self.passes, self._average)

    def scores(self, stage_of: Sequence[int]) -> Scores:
        """As if each example had been asked at its stage. Counts as cut what any stage had to cut."""
        places: Iterator[int] = iter(stage_of)
        wordings = [
            replace(
                row,
                predictions=[
                    self.stages[next(places)].wordings[number].predictions[one] for one in range(len(row.predictions))
                ],
            )
            for number, row in enumerate(self.stages[0].wordings)
        ]
        return replace(self.stages[0], wordings=wordings, truncated=max(one.truncated for one in self.stages))

    def stops(self, thresholds: Sequence[float]) -> Int[np.ndarray, "N"]:
        """The stage at which each example stops."""
        return stages_of(self.confidences, thresholds)

    def spent(self, thresholds: Sequence[float]) -> Mapping[str, Any]:
        """Average passes, the share of examples that stopped at each stage, and the curve, as JSON."""
        stops = self.stops(thresholds)
        return {
            "average": average_passes(stops, self.passes),
            "stages": [
                {"passes": passes, "share": float((stops == number).mean())}
                for number, passes in enumerate(self.passes)
            ],
            "curve": [{"passes": point.passes, "score": point.score} for point in self.curve()],
        }

    def _average(self, stage_of: Sequence[int]) -> float:
        return self.scores(stage_of).average


def calibrate(
    recipe: Recipe,
    lm: FrozenLM,
    stages: Sequence[Stage],
    budget: float,
    rule: str = PROBABILITY,
    on_done: OnDone = lambda _done, _all: None,
) -> tuple[Adaptive, Calibration]:
    """A cascade of the stages, cheapest first, with the best thresholds within the budget on the development part.

    Raises:
        UsageError: the budget cannot be met, there is one stage only, or the rule is none.
    """
    check_rule(rule)
    check_count(len(stages))
    stages = sorted(stages, key=lambda stage: stage.passes)
    check_budget(budget, [stage.passes for stage in stages])
    measured = measure_stages(recipe, lm, stages, recipe.development, tasks_of(recipe), rule, on_done)
    chosen = measured.calibrated(budget)
    adaptive = Adaptive(tuple(stages), chosen.thresholds, rule)
    return adaptive, Calibration(
        rule, budget, chosen, measured.curve(), recipe.as_json(), answer_spec(recipe).as_json()
    )


def measure_stages(
    recipe: Recipe,
    lm: FrozenLM,
    stages: Sequence[Stage],
    plan: EvaluationPlan,
    tasks: Sequence[Task],
    rule: str,
    on_done: OnDone = lambda _done, _all: None,
) -> StagedScores:
    """Every stage on all examples of a plan: what any thresholds would make of them."""
    plain = replace(recipe, evidence=EvidenceChoice())  # each stage has its own
    found: list[Scores] = []
    for number, stage in enumerate(stages):

        def told(done: int, count: int, before: int = number) -> None:
            on_done(before * count + done, len(stages) * count)

        found.append(measure(plain, lm, stage.scaffold, plan, tasks, told, stage.evidence))
    return StagedScores(found, [stage.passes for stage in stages], rule)


def adaptive_result(
    recipe: Recipe, lm: FrozenLM, adaptive: Adaptive, measured: StagedScores, calibration: Calibration, name: str
) -> dict[str, Any]:
    """What `results.json` holds of a scaffold, and the passes that were spent.

    The curve in it is of the measured examples themselves, to be looked at; the thresholds were chosen on others.
    """
    scores = measured.scores(measured.stops(adaptive.thresholds).tolist())
    stages = [
        scaffold_measured(stage.scaffold, None if stage.scaffold.kind == Bare.kind else stage.name)
        for stage in adaptive.stages
    ]
    kept = {"budget": calibration.budget, "rule": adaptive.rule, "curve_split": recipe.test.split}
    return {
        **scores_as_json(scores),
        "passes": {**measured.spent(adaptive.thresholds), **kept},
        "trained": sum(trained_parameters(stage.scaffold) for stage in adaptive.stages),
        "scaffold": {
            "kind": "adaptive",
            "name": name,
            "fingerprint": fingerprint(adaptive),
            "encoder": None,
            "stages": stages,
        },
        **provenance(recipe.as_json(), lm),
    }


TOGETHER = 32  # questions between two reports of progress


@dataclass(frozen=True, slots=True)
class Chosen:
    """A threshold, and what it makes of the examples that it was chosen on.

    Attributes:
        before: as if every answer were given.
        answerable: percentage of questions with a gold answer in what was read.
    """

    threshold: Threshold
    examples: int
    answerable: float
    before: Outcome
    after: Outcome


def choose_threshold(judged: Sequence[Judged]) -> Chosen:
    """The threshold of the best F1 of answering or abstaining (`adaptive.abstaining`)."""
    return measured_with(best_threshold(judged), judged)


def measured_with(threshold: Threshold, judged: Sequence[Judged]) -> Chosen:
    """What a threshold that was chosen on other examples makes of these."""
    answerable = 100 * sum(one.answerable for one in judged) / len(judged)
    return Chosen(threshold, len(judged), answerable, outcome(judged, None), outcome(judged, threshold))


def judged_answers(
    reader: ModelAnswerer,
    recipe: Recipe,
    plan: EvaluationPlan,
    tasks: Sequence[Task],
    on_done: OnDone = lambda _done, _all: None,
) -> list[Judged]:
    """A reader's answers to the examples of a plan of some tasks, thresholds aside.

    Raises:
        UsageError: the examples have answers to choose from.
        UnknownName, DataError: no task has the plan's split, or it is empty.
    """
    suite = recipe.suite
    asked = chosen_examples(tasks, plan, suite.without(tasks), skip=suite.skip).asked
    examples = [example for one in asked for example in one.examples]
    if any(example.choices for example in examples):
        raise UsageError(
            f"{suite.source} has answers to choose from, and a threshold is for answers that are written: name "
            "questions, suite.source=qa:PATH/NAME"
        )
    judged: list[Judged] = []
    for start in range(0, len(examples), TOGETHER):
        some = examples[start : start + TOGETHER]
        answers = reader.ask_all([example.question for example in some])
        judged += [_judged(example, found) for example, found in zip(some, answers, strict=True)]
        on_done(len(judged), len(examples))
    return judged


def _judged(example: Example, found: Answer) -> Judged:
    golds = example.references
    return Judged(
        found.probability,
        stands=found.support is not None,
        answerable=any(has_span(golds, passage.text) for passage in found.read),
        exact_match=exact_match(found.text, golds),
        f1=token_f1(found.text, golds),
    )


def keep_threshold(
    folder: Path, reader: ModelAnswerer, recipe: Recipe, lm: FrozenLM, chosen: Chosen, others: Sequence[Chosen] = ()
) -> Path:
    """Keep a threshold in the scaffold's or rival's folder with where it comes from; returns the file.

    Args:
        recipe: that the reader reads by.
        lm: its backbone.
        others: what it makes of examples that had no part in the choice.

    Raises:
        SaveFailed: the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "threshold": chosen.threshold.as_json(),
        "chosen_on": _as_json(recipe.development.split, chosen),
        "measured_on": [_as_json(recipe.test.split, one) for one in others],
        "evidence": evidence_measured(recipe, lm, reader.evidence),
        "scaffold": {
            **scaffold_measured(reader.scaffold, str(folder)),
            "kind": recipe.rival.kind or reader.scaffold.kind,
            "fingerprint": LoadedModel(reader.lm, reader.scaffold).fingerprint(),
        },
        **provenance(recipe.as_json(), lm),
    }
    write_json(folder / THRESHOLD, content)
    return folder / THRESHOLD


def _as_json(split: str, chosen: Chosen) -> dict[str, Any]:
    numbers = asdict(chosen)
    del numbers["threshold"]
    return {"split": split, **numbers}
