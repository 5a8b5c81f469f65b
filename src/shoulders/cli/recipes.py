"""`shoulders recipes`."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from shoulders.cli.show import console
from shoulders.recipes.registry import recipe_named, recipes


def run(name: str | None) -> None:
    """List the recipes, or show one as `key=value` lines that the command line takes back."""
    if name is None:
        table = Table("recipe", "what it is", box=None, header_style="bold")
        for recipe in recipes().values():
            table.add_row(recipe.name, recipe.about)
        console.print(table)
        console.print("shoulders recipes NAME shows the values of one", style="dim")
        return
    for key, value in _flat(recipe_named(name).as_json()):
        console.print(f"{key}={value}", markup=False, soft_wrap=True)


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            found.extend(_flat(value, f"{prefix}{key}."))
        else:
            found.append((f"{prefix}{key}", ",".join(map(str, value)) if isinstance(value, list) else value))
    return found
