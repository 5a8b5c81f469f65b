"""Calibrating and measuring a cascade by a recipe."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shoulders.adaptive.calibration import check_budget
from shoulders.adaptive.stages import PROBABILITY, Adaptive, Stage, check_count, check_rule
from shoulders.adaptive.storage import Calibration, fingerprint
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task
from shoulders.evaluation.adaptive import StagedScores
from shoulders.evaluation.protocol import EvaluationPlan, OnDone, Scores
from shoulders.evaluation.provenance import provenance, scaffold_measured
from shoulders.evaluation.results import scores_as_json
from shoulders.evidence.choice import EvidenceChoice
from shoulders.recipes.evidence import answer_spec
from shoulders.recipes.jobs import measure, tasks_of
from shoulders.recipes.recipe import Recipe
from shoulders.recipes.run import trained_parameters
from shoulders.scaffolds.base import Bare


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
