"""A reader's threshold for "no answer": chosen on the development part, and kept beside its scaffold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoulders.adaptive.abstaining import Judged, Outcome, Threshold, best_threshold, outcome
from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.models import LoadedModel
from shoulders.answering.threshold import FORMAT, THRESHOLD
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.matching import has_span
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.metrics import exact_match, token_f1
from shoulders.evaluation.protocol import EvaluationPlan, OnDone, chosen_examples
from shoulders.evaluation.provenance import provenance, scaffold_measured
from shoulders.files import write_json
from shoulders.recipes.evidence import evidence_measured
from shoulders.recipes.recipe import Recipe
from shoulders.records import Answer, Example

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
        em=exact_match(found.text, golds),
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
