"""The command line as tests call it."""

from typer.testing import CliRunner

from shoulders.cli.main import app
from shoulders.runs.registry import recipe_named
from shoulders.store.files import flatten


def run(*arguments: object, typed: str = "") -> str:
    """What a command prints; errors come through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fitting(recipe: str, values: list[str]) -> list[str]:
    """Those of the values that a recipe has: each kind of scaffold has its own."""
    known = flatten(recipe_named(recipe).as_json())
    return [value for value in values if not value.startswith("scaffold.") or value.partition("=")[0] in known]
