"""Calibration on the development set: thresholds of a cascade, and of a reader's 'no answer'."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from shoulders.answering import calibration
from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.calibration import (
    AbstentionScores,
    GradedAnswer,
    Point,
    Threshold,
    abstention_scores,
    average_passes,
    best_threshold,
    check_budget,
    stopping_stages,
)
from shoulders.answering.models import LoadedModel
from shoulders.answering.stages import (
    PROBABILITY,
    RULES,
    Calibration,
    Cascade,
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
from shoulders.evaluation.protocol import EvaluationPlan, OnDone, Scores, WordingScore, chosen_examples
from shoulders.evaluation.results import describe_scaffold, provenance, scores_as_json
from shoulders.evidence.choice import EvidenceChoice
from shoulders.records import Answer, Example
from shoulders.runs.build import answer_spec, describe_evidence
from shoulders.runs.jobs import measure, tasks_of
from shoulders.runs.recipe import Recipe, in_chat
from shoulders.runs.run import trained_parameters
from shoulders.scaffolds.base import Bare
from shoulders.store.files import write_json


@final
class StagedScores:
    """The scores of every stage on the same examples, from which those of any thresholds follow.

    An answer does not depend on other questions, so the answers of a cascade are among those of its stages.

    Args:
        stages: scores of each stage, by one plan.
        passes: of each stage alone.
        rule: measure of confidence.
    """

    def __init__(self, stages: Sequence[Scores], passes: Sequence[int], rule: str) -> None:
        self.stages, self.passes = stages, passes
        self.confidences: Float[np.ndarray, "S N"] = np.array(
            [[RULES[rule](one.answer) for row in scores.wordings for one in row.predictions] for scores in stages]
        )

    def best_within_budget(self, budget: float) -> Point:
        """Return the best thresholds within a budget of average passes."""
        return calibration.best_within_budget(self.confidences, self.passes, budget, self._average)

    def curve(self) -> list[Point]:
        """Return cost and score on these examples, from the cheapest thresholds to the most expensive."""
        return calibration.curve(self.confidences, self.passes, self._average)

    def scores(self, stage_of: Sequence[int]) -> Scores:
        """Return the scores if each example is answered at a given stage; inputs cut in any stage count as cut."""
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
        """Return the stage at which each example stops."""
        return stopping_stages(self.confidences, thresholds)

    def spent(self, thresholds: Sequence[float]) -> Mapping[str, Any]:
        """Return average passes, what they change, the share of examples that stop at each stage, and the curve."""
        stops = self.stops(thresholds)
        return {
            "average": average_passes(stops, self.passes),
            **self.changes(stops),
            "always": self.changes(np.full_like(stops, len(self.stages) - 1)),
            "stages": [
                {"passes": passes, "share": float((stops == number).mean())}
                for number, passes in enumerate(self.passes)
            ],
            "curve": [{"passes": point.passes, "score": point.score} for point in self.curve()],
        }

    def changes(self, stage_of: Int[np.ndarray, "N"]) -> Mapping[str, float]:
        """Return the percentages of examples whose answer is better (fixed) and worse (broken) than the first stage's.

        Answers are compared by the metric that decides on the score of their task.
        """
        scores = np.array([[one for row in scores.wordings for one in _values(row)] for scores in self.stages])
        gained = scores[stage_of, np.arange(scores.shape[1])] - scores[0]
        return {"fixed": 100 * float((gained > 0).mean()), "broken": 100 * float((gained < 0).mean())}

    def _average(self, stage_of: Sequence[int]) -> float:
        return self.scores(stage_of).average


def _values(row: WordingScore) -> Iterator[float]:
    """Yield the number of each example by the metric that decides on the score."""
    metric = row.metrics[0]
    for one in row.predictions:
        yield metric.total(one.measured[metric.name], 1)


def calibrate(
    recipe: Recipe,
    lm: FrozenLM,
    stages: Sequence[Stage],
    budget: float,
    rule: str = PROBABILITY,
    on_done: OnDone = lambda _done, _all: None,
) -> tuple[Cascade, Calibration]:
    """Return the cascade of some stages, cheapest first, with the best thresholds within a budget of average passes.

    Thresholds are chosen on the development set of the recipe.

    Raises:
        UsageError: the budget cannot be met, or there is only one stage.
        UnknownName: the rule is unknown.
    """
    check_rule(rule)
    check_count(len(stages))
    stages = sorted(stages, key=lambda stage: stage.passes)
    check_budget(budget, [stage.passes for stage in stages])
    measured = measure_stages(recipe, lm, stages, recipe.development, tasks_of(recipe), rule, on_done)
    chosen = measured.best_within_budget(budget)
    adaptive = Cascade(tuple(stages), chosen.thresholds, rule)
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
    """Return the scores of every stage on all examples of a plan."""
    plain = replace(recipe, evidence=EvidenceChoice())  # each stage has its own evidence
    found: list[Scores] = []
    for number, stage in enumerate(stages):

        def report(done: int, count: int, before: int = number) -> None:
            on_done(before * count + done, len(stages) * count)

        own = in_chat(plain, stage.chat)
        found.append(measure(own, lm, stage.scaffold, plan, tasks, report, stage.evidence))
    return StagedScores(found, [stage.passes for stage in stages], rule)


def cascade_result(
    recipe: Recipe, lm: FrozenLM, adaptive: Cascade, measured: StagedScores, calibration: Calibration, name: str
) -> dict[str, Any]:
    """Return the content of `results.json` for a cascade: that of a scaffold, and the passes.

    Its curve is measured on the test examples; the thresholds were chosen on the development set.
    """
    scores = measured.scores(measured.stops(adaptive.thresholds).tolist())
    stages = [
        describe_scaffold(stage.scaffold, None if stage.scaffold.kind == Bare.kind else stage.name)
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


PROGRESS_EVERY = 32  # questions between two reports of progress


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """A threshold with its scores on some examples.

    Attributes:
        before: scores if every answer is given.
        after: scores under the threshold.
        answerable: percentage of questions with a gold answer in a passage that was read.
    """

    threshold: Threshold
    examples: int
    answerable: float
    before: AbstentionScores
    after: AbstentionScores


def choose_threshold(judged: Sequence[GradedAnswer]) -> ChosenThreshold:
    """Return the threshold with the best F1 of answering or abstaining (`best_threshold`)."""
    return threshold_scores(best_threshold(judged), judged)


def threshold_scores(threshold: Threshold, judged: Sequence[GradedAnswer]) -> ChosenThreshold:
    """Return the scores of a given threshold on some answers."""
    answerable = 100 * sum(one.answerable for one in judged) / len(judged)
    return ChosenThreshold(
        threshold, len(judged), answerable, abstention_scores(judged, None), abstention_scores(judged, threshold)
    )


def graded_answers(
    reader: ModelAnswerer,
    recipe: Recipe,
    plan: EvaluationPlan,
    tasks: Sequence[Task],
    on_done: OnDone = lambda _done, _all: None,
) -> list[GradedAnswer]:
    """Return a reader's answers to the examples of a plan, without a threshold, compared with the gold answers.

    Raises:
        UsageError: the examples have answer choices.
        UnknownName, DataError: no task has the plan's split, or it is empty.
    """
    suite = recipe.suite
    asked = chosen_examples(tasks, plan, suite.without(tasks), skip=suite.skip).asked
    examples = [example for one in asked for example in one.examples]
    if any(example.choices for example in examples):
        raise UsageError(
            f"{suite.source} has answer choices, and a threshold is for generated answers: name a data set of "
            "questions, suite.source=qa:PATH/NAME"
        )
    judged: list[GradedAnswer] = []
    for start in range(0, len(examples), PROGRESS_EVERY):
        some = examples[start : start + PROGRESS_EVERY]
        answers = reader.ask_all([example.question for example in some])
        judged += [_judged(example, found) for example, found in zip(some, answers, strict=True)]
        on_done(len(judged), len(examples))
    return judged


def _judged(example: Example, found: Answer) -> GradedAnswer:
    golds = example.references
    return GradedAnswer(
        found.probability,
        stands=found.support is not None,
        answerable=any(has_span(golds, passage.text) for passage in found.read),
        exact_match=exact_match(found.text, golds),
        f1=token_f1(found.text, golds),
    )


def save_threshold(
    folder: Path,
    reader: ModelAnswerer,
    recipe: Recipe,
    lm: FrozenLM,
    chosen: ChosenThreshold,
    others: Sequence[ChosenThreshold] = (),
) -> Path:
    """Write a threshold with its provenance into the folder of the scaffold or rival, and return the file.

    Args:
        recipe: of the reader.
        lm: its backbone.
        others: scores on examples that had no part in the choice.

    Raises:
        SaveFailed: the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "threshold": chosen.threshold.as_json(),
        "chosen_on": _as_json(recipe.development.split, chosen),
        "measured_on": [_as_json(recipe.test.split, one) for one in others],
        "evidence": describe_evidence(recipe, lm, reader.evidence),
        "scaffold": {
            **describe_scaffold(reader.scaffold, str(folder)),
            "kind": recipe.rival.kind or reader.scaffold.kind,
            "fingerprint": LoadedModel(reader.lm, reader.scaffold).fingerprint(),
        },
        **provenance(recipe.as_json(), lm),
    }
    write_json(folder / THRESHOLD, content)
    return folder / THRESHOLD


def _as_json(split: str, chosen: ChosenThreshold) -> dict[str, Any]:
    numbers = asdict(chosen)
    del numbers["threshold"]
    return {"split": split, **numbers}
