"""`shoulders upload`, and opening what it sent for searching."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import regex
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shoulders.cli.show import console, need
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.corpus.milvus import Milvus


@dataclass(frozen=True, slots=True)
class Engine:
    """A server, its collection and the variable that holds its token, as options name them."""

    address: str
    collection: str = ""
    token_variable: str = ""


def run(folder: Path, engine: Engine, k1: float, b: float) -> None:
    """Send an index to a server, or what changed of it, and say what was done."""
    need("tantivy", "search")
    with connected(engine) as server:
        from shoulders.corpus.index import Index
        from shoulders.corpus.uploading import Target, upload_weights

        index = Index(folder)
        target = Target(server, engine.collection or _name(folder))
        with _sending("sending") as on_sent:
            sent = upload_weights(index, target, k1, b, on_sent)
    renewed = f", {sent.renewed:,} sent anew (their mean length moved)" if sent.renewed else ""
    console.print(
        f"passages: {sent.added:,} added, {sent.deleted:,} deleted, {sent.unchanged:,} unchanged{renewed}\n"
        f"{target}: {sent.passages:,} passages, BM25 with k1 = {k1} and b = {b}",
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def connected(engine: Engine) -> Iterator["Milvus"]:
    """The server, while within.

    Raises:
        UsageError: the token's variable is not set.
    """
    need("pymilvus", "distributed")
    from shoulders.corpus.milvus import TOKEN_VARIABLE, Milvus

    variable = engine.token_variable
    if variable and variable not in os.environ:
        raise UsageError(f"the environment has no variable {variable}: put the server's token into it (--token-env)")
    with Milvus(engine.address, os.environ.get(variable or TOKEN_VARIABLE, "")) as server:
        yield server


def _name(folder: Path) -> str:
    """A name that Milvus takes: letters, digits and underscores, a letter first."""
    name = regex.sub(r"[^A-Za-z0-9_]+", "_", folder.resolve().name)[:200]
    return name if name[:1].isalpha() else f"index_{name}"


@contextmanager
def _sending(title: str) -> Iterator[Callable[[int, int], None]]:
    """Progress in passages, with rate and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, speed_estimate_period=300) as bars:
        bar = bars.add_task(title, total=None, rate="")

        def on_sent(done: int, total: int) -> None:
            rate = done / (bars.tasks[0].elapsed or 1)
            bars.update(bar, completed=done, total=total, rate=f"passages, {rate:,.0f}/s")

        yield on_sent
