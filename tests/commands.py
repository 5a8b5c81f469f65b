"""The command line as tests call it."""

from typer.testing import CliRunner

from shoulders.cli.main import app


def run(*arguments: object, typed: str = "") -> str:
    """What a command prints; errors come through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output
