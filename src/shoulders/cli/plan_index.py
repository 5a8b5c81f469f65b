"""`shoulders plan index`."""

from rich.table import Table

from shoulders.cli.show import console
from shoulders.corpus.sizes import TOKENS, needs

NAME = "index"  # in the place of a recipe's


def run(passages: int, dimension: int, tokens_per_second: float) -> None:
    """Print what an index of so many passages needs, by engine."""
    table = Table("part", "disk GB", "memory GB", "hours", "", box=None, header_style="bold")
    for need in needs(passages, dimension, tokens_per_second):
        hours = "" if need.seconds is None else f"{need.seconds / 3600:,.2f}"
        table.add_row(need.part, f"{need.disk / 1e9:,.2f}", f"{need.memory / 1e9:,.2f}", hours, need.note)
    console.print(f"[bold]{passages:,} passages[/bold], vectors of {dimension:,} numbers")
    console.print(table)
    told = f"an encoder reads about {passages * TOKENS / 1e9:,.2f} billion tokens"
    told += "" if tokens_per_second else ": --tokens-per-second gives its hours"
    console.print(told, soft_wrap=True)
