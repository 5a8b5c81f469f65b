"""The command line: its commands in the order of the help, and errors as one line."""

import sys
from io import TextIOWrapper

import typer

from shoulders.cli.ask import ask
from shoulders.cli.bench import bench_serve
from shoulders.cli.calibrate import calibrate, threshold
from shoulders.cli.corpus import encode, index, search, upload
from shoulders.cli.demo import demo
from shoulders.cli.evaluate import evaluate, forget, sample
from shoulders.cli.report import report
from shoulders.cli.serve import serve, serve_key
from shoulders.cli.show import error_console
from shoulders.cli.tools import check, convert, export, plan, recipes
from shoulders.cli.train import sweep, train
from shoulders.errors import UsageError

COMMANDS = {  # by panel of the help
    None: (demo, train, sweep, evaluate, forget, ask, serve, calibrate, threshold, report, sample),
    "Evidence corpus": (index, encode, search, upload),
    "Tools": (recipes, check, plan, convert, export, serve_key, bench_serve),
}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""More out of one **frozen** language model: train a scaffold around it, measure it, save it, ask it.

Start with `shoulders demo`. Then train a recipe of your own:

`shoulders recipes` · `shoulders train bundled_input_prompt --out runs/first` · `shoulders ask runs/first`

Every value of a recipe can be changed on the command line: `training.steps=200 scaffold.length=20`.
""",
)
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line; print an error that the user can mend as one line instead of a stack trace."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):  # for terminals that cannot show every character
            stream.reconfigure(errors=errors)
    try:
        app()
    except UsageError as error:
        error_console.print(f"error: {error}", markup=False, emoji=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
