"""The commands that neither train nor measure."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from shoulders.cli.app import Overrides, app


@app.command(rich_help_panel="Tools")
def recipes(
    name: Annotated[Optional[str], typer.Argument(help="show all values of this one", show_default=False)] = None,  # noqa: UP045
) -> None:
    """List the named recipes, or show every value of one."""
    from shoulders.cli.recipes import run

    run(name)


@app.command(rich_help_panel="Tools")
def check(
    suite: Annotated[str, typer.Argument(help="a suite, as suite.source names it: a folder, qa:..., p3:..., hub:...")],
    tasks: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="look at these tasks only", show_default=False),
    ] = None,
) -> None:
    """Look through a suite before it is trained on: broken lines, failing templates, repeated ids.

    Every record is read and rendered in every template. Ids are the records' `id` fields, compared within a split.
    """
    from shoulders.cli.check import run

    run(suite, tasks or [])


@app.command(rich_help_panel="Tools")
def plan(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or a recipe.json; or 'index' for an evidence corpus")],
    overrides: Overrides = None,
    input_length: Annotated[int, typer.Option(help="tokens of an input")] = 256,
    output_length: Annotated[int, typer.Option(help="tokens of an answer")] = 16,
    passages: Annotated[int, typer.Option(help="of an index; 21,015,324 are DPR's Wikipedia")] = 21_015_324,
    dimension: Annotated[int, typer.Option(help="of an index's dense vectors")] = 768,
    tokens_per_second: Annotated[float, typer.Option(help="that the encoder of an index reads")] = 0,
) -> None:
    """What a recipe costs at any scale, without loading a weight: parameters, memory, floating-point work.

    The step and the answer are run on PyTorch's meta device, which has shapes but no values, and counted.

    `shoulders plan index --passages N --dimension D`: what an evidence corpus of that size needs on disk, in memory and
    in time, by engine.
    """
    from shoulders.cli import plan, plan_index

    if recipe == plan_index.NAME:
        plan_index.run(passages, dimension, tokens_per_second)
    else:
        plan.run(recipe, overrides or [], input_length, output_length)


@app.command(rich_help_panel="Tools")
def convert(
    source: Annotated[Path, typer.Argument(help="a soft prompt's folder, or a PEFT prompt-tuning adapter's")],
    target: Annotated[Path, typer.Argument(help="folder to write")],
    backbone: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the language model it belongs to [default: the name in the folder]"),
    ] = None,
) -> None:
    """Convert a soft prompt to PEFT's prompt-tuning format, or such an adapter to a soft prompt."""
    from shoulders.cli.convert import run

    run(source, target, backbone)
