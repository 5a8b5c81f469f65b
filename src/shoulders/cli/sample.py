"""`shoulders sample`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shoulders.cli.common import load_both, recipe_of
from shoulders.cli.show import console, measuring, quiet_libraries
from shoulders.data.evidence import with_evidence
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import chosen_examples
from shoulders.evaluation.provenance import provenance, scaffold_measured
from shoulders.evaluation.recall import recall
from shoulders.evidence.store import AnswerStore
from shoulders.files import write_json
from shoulders.recipes.evidence import evidence_measured, new_evidence, sampler_of
from shoulders.recipes.folders import BARE
from shoulders.recipes.jobs import task_parts
from shoulders.recipes.named import Named
from shoulders.recipes.recipe import PASSAGES
from shoulders.records import Answer, Question


def run(name: str, overrides: Sequence[str], recipe_name: str | None, counts: str, out: Path | None) -> None:
    """Sample answers to the questions of a recipe's `test` plan, and say how often a right one is among them."""
    quiet_libraries()
    named = Named.of(name)
    if named.rival:
        raise UsageError(
            f"{name} holds a rival ({named.rival.recipe.rival.kind}), and answers are sampled from the frozen model "
            "under a scaffold: name one, or bare"
        )
    folder = named.name
    wanted = parsed_counts(counts)
    recipe = recipe_of(folder, recipe_name, overrides)
    lm, scaffold = load_both(folder, recipe)
    suite = recipe.suite
    tasks = task_parts(recipe).tested
    chosen = chosen_examples(tasks, recipe.test, suite.without(tasks), skip=suite.skip).asked
    choice = replace(recipe.evidence, count=max(wanted))
    sampler = sampler_of(choice, lm, folder, AnswerStore(choice.store))
    passages = new_evidence(recipe, lm, scaffold.length) if choice.kind in PASSAGES else None

    def samples(questions: Sequence[Question], count: int) -> list[list[Answer]]:
        return sampler.samples(with_evidence(questions, passages), count)

    with measuring(f"sampling {max(wanted)} answers") as watch:
        found = recall(chosen, samples, wanted, watch.on_done)
    for count in found.counts:
        console.print(f"recall at {count}: {found.at(count):.1f}%", highlight=False)
    if out:
        about = {
            "split": recipe.test.split,
            "scaffold": scaffold_measured(scaffold, None if name == BARE else name),
            "evidence": evidence_measured(recipe, lm, passages),
        }
        write_json(out, {**found.as_json(), **about, **provenance(recipe.as_json(), lm)})
        console.print(f"written to {out}", markup=False)


def parsed_counts(text: str) -> list[int]:
    """Numbers of samples, from "1,8,16"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--samples {text!r} holds no numbers: e.g. 1,8,16,64") from None
