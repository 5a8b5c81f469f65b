"""`shoulders sample`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.models import model_info
from shoulders.cli.common import recipe_of, weights_of
from shoulders.cli.scores import measuring
from shoulders.cli.show import console, quiet_libraries
from shoulders.data.evidence import with_evidence
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import chosen_examples
from shoulders.evaluation.provenance import provenance, scaffold_measured
from shoulders.evaluation.recall import recall
from shoulders.evidence.choice import CANDIDATES, EvidenceChoice
from shoulders.evidence.sources import sampler_of
from shoulders.evidence.store import AnswerStore
from shoulders.files import write_json
from shoulders.recipes.evidence import answer_spec, evidence_measured
from shoulders.recipes.jobs import task_parts
from shoulders.records import Answer, Question
from shoulders.scaffolds.base import BARE


def run(name: str, overrides: Sequence[str], recipe_name: str | None, counts: str, out: Path | None) -> None:
    """Sample answers to the questions of a recipe's `test` plan, and say how often a right one is among them."""
    quiet_libraries()
    info = model_info(name)
    if info.rival:
        raise UsageError(
            f"{name} holds a rival ({info.rival.kind}), and answers are sampled from the frozen model "
            "under a scaffold: name one, or bare"
        )
    wanted = parsed_counts(counts)
    recipe = recipe_of(info.name, recipe_name, overrides)
    lm = weights_of(recipe.backbone)
    spec = answer_spec(recipe)
    if spec.evidence.kind == CANDIDATES:  # they are what is sampled here
        spec = replace(spec, evidence=EvidenceChoice())
    answerer = ModelAnswerer.load(info, lm, spec)
    suite = recipe.suite
    tasks = task_parts(recipe).tested
    chosen = chosen_examples(tasks, recipe.test, suite.without(tasks), skip=suite.skip).asked
    sampled = recipe.evidence if isinstance(recipe.evidence, EvidenceChoice) else EvidenceChoice()
    choice = replace(sampled, count=max(wanted))
    sampler = sampler_of(choice, lm, info.name, AnswerStore(choice.store))

    def samples(questions: Sequence[Question], count: int) -> list[list[Answer]]:
        return sampler.samples(with_evidence(questions, answerer.evidence), count)

    with measuring(f"sampling {max(wanted)} answers") as watch:
        found = recall(chosen, samples, wanted, watch.on_done)
    for count in found.counts:
        console.print(f"recall at {count}: {found.at(count):.1f}%", highlight=False)
    if out:
        about = {
            "split": recipe.test.split,
            "scaffold": scaffold_measured(answerer.scaffold, None if name == BARE else name),
            "evidence": evidence_measured(recipe, lm, answerer.evidence),
        }
        write_json(out, {**found.as_json(), **about, **provenance(recipe.as_json(), lm)})
        console.print(f"written to {out}", markup=False)


def parsed_counts(text: str) -> list[int]:
    """Numbers of samples, from "1,8,16"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--samples {text!r} holds no numbers: e.g. 1,8,16,64") from None
