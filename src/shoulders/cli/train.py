"""`shoulders train`."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from shoulders.cli.common import find_recipe, weights_of
from shoulders.cli.show import console, measuring, print_skipped, quiet_libraries, scores_table, watching
from shoulders.evaluation.results import RESULTS
from shoulders.files import write_json
from shoulders.recipes.build import load_tasks
from shoulders.recipes.run import BEST, check_measurable, keep_test_scores, measure, result, train, trained_parameters


def run(name: str, overrides: Sequence[str], out: Path | None, *, resume: bool) -> None:
    """Train, then measure the best scaffold on the test part."""
    quiet_libraries()
    recipe = find_recipe(name, overrides)
    recipe.check_trainable()
    folder = out or Path("runs") / recipe.name
    lm = weights_of(recipe.backbone)
    tasks = load_tasks(recipe.suite)
    check_measurable(recipe, recipe.test, lm, tasks)
    with watching(recipe.name, recipe.training.steps) as watch:
        scaffold, progress = train(recipe, lm, folder, tasks=tasks, resume=resume, watch=watch)
    if not PartialState().is_main_process:
        return
    best = (
        f"best development score {progress.best_score:.1f} at step {progress.best_step}" if progress.best_step else ""
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in progress.counts.items() if count)
    console.print(
        f"{trained_parameters(scaffold):,} trained parameters; {best}; examples left out: {left_out or 'none'}"
    )
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores = measure(recipe, lm, scaffold, recipe.test, tasks, watch.on_done)
    console.print(scores_table(recipe.name, {"score": scores}))
    print_skipped(scores)
    write_json(folder / RESULTS, result(recipe, lm, scaffold, scores, str(folder / BEST)))
    keep_test_scores(scaffold, lm, folder / BEST, recipe.test.split, scores)
    console.print(f"kept in {folder / BEST}; try: shoulders ask {folder / BEST}")
