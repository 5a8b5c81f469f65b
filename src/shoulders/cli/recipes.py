"""`shoulders recipes`."""

from rich.table import Table

from shoulders.cli.show import console, say
from shoulders.recipes.ranking import ranking_recipes
from shoulders.recipes.recipe import flat
from shoulders.recipes.registry import recipe_named, recipes


def run(name: str | None) -> None:
    """List the recipes, or show one as `key=value` lines that the command line takes back."""
    if name is None:
        table = Table("recipe", "what it is", box=None, header_style="bold")
        for recipe in [*recipes().values(), *ranking_recipes().values()]:
            table.add_row(recipe.name, recipe.about)
        console.print(table)
        console.print("shoulders recipes NAME shows the values of one", style="dim")
        return
    chosen = ranking_recipes().get(name) or recipe_named(name)
    for key, value in flat(chosen.as_json()).items():
        say(f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}")
