"""`shoulders sweep`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from accelerate import PartialState

from shoulders.cli.common import find_recipe, weights_of
from shoulders.cli.scores import watching
from shoulders.cli.show import console, quiet_libraries
from shoulders.cli.train import default_folder, rivalled, train_and_measure
from shoulders.errors import UsageError
from shoulders.recipes.jobs import task_parts
from shoulders.recipes.paper import GRIDS
from shoulders.recipes.recipe import Recipe
from shoulders.recipes.running import Watch
from shoulders.recipes.sweep import Candidate, Grid, SweepPlan, parsed_grid, sweep


def run(
    name: str,
    overrides: Sequence[str],
    grid: Sequence[str],
    fraction: float,
    out: Path | None,
    *,
    resume: bool,
    rival: str,
) -> None:
    """Train a share of every candidate's steps, then the rest of the best one's, and measure that on the test part."""
    quiet_libraries()
    recipe = find_recipe(name, rivalled(overrides, rival))
    plan = SweepPlan(recipe, parsed_grid(grid) or _usual(recipe), fraction)
    every = plan.candidates()
    lm, parts = weights_of(recipe.backbone), task_parts(recipe)
    folder = out or default_folder(recipe).with_name(f"{default_folder(recipe).name}-sweep")

    def watch(candidate: Candidate) -> AbstractContextManager[Watch]:
        return watching(f"candidate {candidate.name} of {len(every)}", plan.until)

    found = sweep(plan, lm, parts, folder, watch, resume=resume)
    assert found.chosen is not None
    if PartialState().is_main_process:
        console.print(found.table(), markup=False, soft_wrap=True)
    train_and_measure(found.chosen.recipe, lm, parts, folder / found.chosen.name, resume=True)


def _usual(recipe: Recipe) -> Grid:
    """The paper's grid for what the recipe trains."""
    kind = recipe.rival.kind or recipe.scaffold.kind
    if kind not in GRIDS:
        rate = "rival.learning_rate" if recipe.rival.kind else "training.learning_rate"
        raise UsageError(f"the paper has no grid for {kind}: name one, --grid {rate}=1e-4,2e-4,5e-4")
    return GRIDS[kind]
