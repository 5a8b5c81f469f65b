"""`shoulders train`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from shoulders.answering.models import rival_info
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.common import find_recipe, weights_of
from shoulders.cli.rivals import measured
from shoulders.cli.scores import counts_table, measuring, print_retrieval, print_skipped, scores_table, watching
from shoulders.cli.show import console, quiet_libraries
from shoulders.data.counts import left_out
from shoulders.data.evidence import Evidence
from shoulders.data.tasks import Task
from shoulders.evaluation.results import RESULTS
from shoulders.files import write_json
from shoulders.recipes.build import TaskParts
from shoulders.recipes.evidence import new_evidence
from shoulders.recipes.jobs import check_tested, measure, measure_text, task_parts
from shoulders.recipes.recipe import Recipe
from shoulders.recipes.rivals import train_rival
from shoulders.recipes.run import BEST, keep_test_scores, result, text_result, train, trained_parameters, training_told
from shoulders.scaffolds.base import Scaffold
from shoulders.training.checkpoint import Progress


def run(name: str, overrides: Sequence[str], out: Path | None, *, resume: bool, rival: str = "") -> None:
    """Train, then measure the best scaffold on the test part."""
    quiet_libraries()
    recipe = find_recipe(name, rivalled(overrides, rival))
    recipe.check_trainable()
    lm, parts = weights_of(recipe.backbone), task_parts(recipe)
    check_tested(recipe, lm, parts)
    train_and_measure(recipe, lm, parts, out or default_folder(recipe), resume=resume)


def rivalled(overrides: Sequence[str], rival: str) -> list[str]:
    """Recipe values with what `--rival` says."""
    return [*([f"rival.kind={rival}"] if rival else []), *overrides]


def default_folder(recipe: Recipe) -> Path:
    """Where a run goes if nothing is said."""
    return Path("runs") / "-".join(filter(None, [recipe.name, recipe.rival.kind]))


def train_and_measure(recipe: Recipe, lm: FrozenLM, parts: TaskParts, folder: Path, *, resume: bool) -> None:
    """A recipe's run with loaded weights and tasks, and its results."""
    evidence = new_evidence(recipe, lm, recipe.scaffold.taken) if parts.tested else None
    if recipe.rival.kind:
        _run_rival(recipe, lm, parts, evidence, folder, resume=resume)
        return
    with watching(recipe.name, recipe.training.steps) as watch:
        scaffold, progress = train(
            recipe, lm, folder, tasks=parts.trained, evidence=evidence, resume=resume, watch=watch
        )
    if not PartialState().is_main_process:
        return
    _print_training(trained_parameters(scaffold), progress)
    told = training_told(folder, lm, progress)
    if parts.tested:
        _measure_tasks(recipe, lm, scaffold, parts.tested, evidence, folder, told)
    else:
        numbers = measure_text(recipe, lm, scaffold)
        console.print(f"perplexity {numbers.perplexity:.2f} on {numbers.tokens:,} held-out tokens")
        write_json(folder / RESULTS, {**text_result(recipe, lm, scaffold, numbers, str(folder / BEST)), **told})
    console.print(f"kept in {folder / BEST}; try: shoulders ask {folder / BEST}")


def _run_rival(
    recipe: Recipe, lm: FrozenLM, parts: TaskParts, evidence: Evidence | None, folder: Path, *, resume: bool
) -> None:
    """Likewise for what is trained in the place of the recipe's scaffold."""
    with watching(f"{recipe.name}, {recipe.rival.kind}", recipe.training.steps) as watch:
        progress = train_rival(recipe, lm, folder, tasks=parts.trained, evidence=evidence, resume=resume, watch=watch)
    if not PartialState().is_main_process:
        return
    told = training_told(folder, lm, progress)
    content = measured(rival_info(folder / BEST), recipe, lm, parts.tested, evidence)
    _print_training(content["trained"], progress)
    write_json(folder / RESULTS, {**content, **told})
    console.print(f"kept in {folder / BEST}; try: shoulders ask {folder}")


def _print_training(parameters: int, progress: Progress) -> None:
    best = (
        f"best development score {progress.best_score:.1f} at step {progress.best_step}" if progress.best_step else ""
    )
    told = left_out(progress.counts)
    console.print(f"{parameters:,} trained parameters; {best}; examples left out: {told}")
    if told != "none":
        console.print(counts_table(progress.counts))


def _measure_tasks(
    recipe: Recipe,
    lm: FrozenLM,
    scaffold: Scaffold,
    tasks: Sequence[Task],
    evidence: Evidence | None,
    folder: Path,
    told: Mapping[str, Any],
) -> None:
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores = measure(recipe, lm, scaffold, recipe.test, tasks, watch.on_done, evidence)
    console.print(scores_table(recipe.name, {"score": scores}))
    print_skipped(scores)
    content = {**result(recipe, lm, scaffold, scores, str(folder / BEST), evidence), **told}
    print_retrieval(content)
    write_json(folder / RESULTS, content)
    keep_test_scores(scaffold, lm, folder / BEST, recipe.test.split, scores)
