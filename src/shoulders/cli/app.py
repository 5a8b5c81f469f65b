"""The command line's application, which the modules of commands add theirs to."""

from typing import Annotated, Optional

import typer

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads it)
    typer.Argument(
        metavar="[KEY=VALUE]...", help="recipe values to change, e.g. training.steps=200", show_default=False
    ),
]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""More out of one **frozen** language model: train what stands around it, measure it, keep it, ask it.

Start with `shoulders demo`. Then train a recipe of your own:

`shoulders recipes` · `shoulders train bundled_input_prompt --out runs/first` · `shoulders ask runs/first/best`

Every value of a recipe can be changed on the command line: `training.steps=200 scaffold.length=20`.
""",
)
