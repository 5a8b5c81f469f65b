"""Printing that all commands share: consoles, safe and short texts, progress bars."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from shoulders.errors import SourceNotFound

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False, style="red")
notes = Console(stderr=True, highlight=False, style="dim")

SHOWN = 100  # characters of a query or passage that messages repeat


def say(text: str) -> None:
    """Print a line unchanged: rich would wrap it, expand its tabs and turn `:heart:` into an emoji."""
    console.file.write(f"{text}\n")
    console.file.flush()


def warn(text: str) -> None:
    """Print a line in yellow."""
    console.print(text, style="yellow", markup=False, emoji=False, soft_wrap=True)


def inform(text: str) -> None:
    """Print a line of plain text, which may hold names of files."""
    console.print(text, markup=False, emoji=False, soft_wrap=True)


def titled(title: str, table: Table) -> Group:
    """Return a table below its title; rich's own would be wrapped at the width of the table."""
    return Group(Text(title, style="table.title"), table)


def short(text: str) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def harmless(text: str) -> str:
    """Return a text from outside on one line: white space as spaces, control characters as a replacement character.

    A terminal would obey control characters, and those that change the direction of writing, instead of showing them.
    The length stays the same, so that places in the text do.
    """
    import regex

    return regex.sub(
        r"[\p{Cc}\p{Cs}\u200e\u200f\u2028-\u202e\u2066-\u2069]",
        lambda match: " " if match[0].isspace() else "\N{REPLACEMENT CHARACTER}",
        text,
    )


def counted_passes(count: int) -> str:
    """Return a number of passes through the frozen model in words."""
    return f"{count} pass" if count == 1 else f"{count} passes"


def quiet_libraries() -> None:
    """Turn off the progress bars and warnings of other libraries."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="transformers|huggingface_hub")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def progress_bars(*columns: "str | ProgressColumn", time_left: bool = True) -> "Progress":
    """Return progress bars with a title, these columns and, unless said otherwise, the time left."""
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    left = [TimeRemainingColumn(compact=True), "left"] if time_left else []
    shown = ("{task.description}", BarColumn(bar_width=16), *columns, *left)
    return Progress(*shown, console=console, speed_estimate_period=300)


@contextmanager
def reading(title: str) -> Iterator[Callable[[int, int, int], None]]:
    """Show the progress of reading documents; yield a function of bytes read, of all bytes (or 0) and of documents."""
    from rich.progress import DownloadColumn

    with progress_bars(DownloadColumn(), "{task.fields[note]}") as bars:
        bar = bars.add_task(title, total=None, note="")

        def on_progress(done: int, total: int, documents: int) -> None:
            rate = documents / (bars.tasks[0].elapsed or 1)
            note = f"{documents:,} documents, {rate:,.0f}/s"
            bars.update(bar, completed=done, total=total or None, note=note)

        yield on_progress


@contextmanager
def counting(title: str, things: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of work on many things; yield a function of how many are done, and of how many there are."""
    with progress_bars("{task.fields[note]}") as bars:
        bar = bars.add_task(title, total=None, note="")

        def on_progress(done: int, total: int) -> None:
            rate = done / (bars.tasks[0].elapsed or 1)
            bars.update(bar, completed=done, total=total, note=f"{done:,}/{total:,} {things}, {rate:,.0f}/s")

        yield on_progress


def need(module: str, extra: str) -> Any:
    """Import and return an optional library.

    Raises:
        SourceNotFound: it is not installed; the message says how to install it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise SourceNotFound(f"this needs {module.split('.')[0]}: pip install 'shoulders[{extra}]'") from None
