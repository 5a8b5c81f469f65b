"""What all commands print with: one console, texts as they are, progress bars."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import regex
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from shoulders.errors import SourceNotFound

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, style="red")
notes = Console(stderr=True, highlight=False, style="dim")

SHOWN = 100  # characters of a query or passage that messages repeat
# What a terminal would obey instead of showing it: control characters, and those that turn the direction of writing.
OBEYED = regex.compile(r"[\p{Cc}\p{Cs}\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def say(text: str) -> None:
    """A line as it is: rich would wrap it, widen its tabs and turn `:heart:` into a picture."""
    console.file.write(f"{text}\n")
    console.file.flush()


def short(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def harmless(text: str) -> str:
    """A text from elsewhere on one line, each character in its place: white space as spaces, controls as a sign."""
    return OBEYED.sub(lambda found: " " if found[0].isspace() else "\N{REPLACEMENT CHARACTER}", text)


def counted_passes(count: int) -> str:
    """Passes through the frozen model, in words."""
    return f"{count} pass" if count == 1 else f"{count} passes"


def quiet_libraries() -> None:
    """Only our own progress on the screen."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="transformers|huggingface_hub")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@contextmanager
def reading(title: str) -> Iterator[Callable[[int, int, int], None]]:
    """Progress of reading documents, with rate and time left: bytes read, bytes in all (0: unknown), documents."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        DownloadColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, speed_estimate_period=300) as bars:
        bar = bars.add_task(title, total=None, note="")

        def on_done(done: int, total: int, documents: int) -> None:
            rate = documents / (bars.tasks[0].elapsed or 1)
            note = f"{documents:,} documents, {rate:,.0f}/s"
            bars.update(bar, completed=done, total=total or None, note=note)

        yield on_done


@contextmanager
def counting(title: str, what: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of work on so many things, with rate and time left: done, in all."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, speed_estimate_period=300) as bars:
        bar = bars.add_task(title, total=None, note="")

        def on_done(done: int, total: int) -> None:
            rate = done / (bars.tasks[0].elapsed or 1)
            bars.update(bar, completed=done, total=total, note=f"{done:,}/{total:,} {what}, {rate:,.0f}/s")

        yield on_done


def need(module: str, extra: str) -> Any:
    """An optional library, or how to get it.

    Raises:
        SourceNotFound: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise SourceNotFound(f"this needs {module.split('.')[0]}: pip install 'shoulders[{extra}]'") from None
