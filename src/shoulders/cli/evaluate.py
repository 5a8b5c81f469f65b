"""`shoulders evaluate`."""

from collections.abc import Sequence
from pathlib import Path

from shoulders.cli.common import BARE, load_both, recipe_of
from shoulders.cli.show import console, measuring, print_skipped, quiet_libraries, scores_table
from shoulders.files import write_json
from shoulders.recipes.folders import scaffold_folder
from shoulders.recipes.jobs import measure
from shoulders.recipes.run import result


def run(name: str, overrides: Sequence[str], recipe_name: str | None, out: Path | None) -> None:
    """Measure a scaffold, or the bare model, by a recipe's `test` plan."""
    quiet_libraries()
    name = scaffold_folder(name)
    recipe = recipe_of(name, recipe_name, overrides)
    lm, scaffold = load_both(name, recipe)
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores = measure(recipe, lm, scaffold, recipe.test, on_done=watch.on_done)
    console.print(scores_table(f"{name} on {recipe.suite.source} ({recipe.test.split})", {"score": scores}))
    print_skipped(scores)
    if out:
        write_json(out, result(recipe, lm, scaffold, scores, None if name == BARE else name))
        console.print(f"written to {out}")
