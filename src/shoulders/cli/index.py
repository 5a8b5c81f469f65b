"""`shoulders index`."""

from collections.abc import Sequence
from pathlib import Path

from shoulders.cli.show import console, need, reading
from shoulders.errors import UsageError


def run(names: Sequence[str], out: Path, *, sentences: bool, as_is: bool, prune: bool) -> None:
    """Build an index, or bring one up to date, and say what was done."""
    need("tantivy", "search")
    from shoulders.corpus.building import NAMED, build
    from shoulders.corpus.passages import Cutting

    if not all(names):
        raise UsageError("a source without a name: name files, folders or hub:NAME")
    cutting = Cutting(sentences=sentences)
    with reading("indexing") as show:
        built = build(
            names,
            out,
            cutting,
            as_is=as_is,
            prune=prune,
            on_progress=lambda at: show(at.read, at.size, at.documents),
        )
    for skipped in built.skipped:
        console.print(f"skipped {skipped.place}: {skipped.reason}", style="yellow", markup=False, soft_wrap=True)
    if built.done["skipped"] > NAMED:
        console.print(f"and {built.done['skipped'] - NAMED:,} more", style="yellow")
    for name in built.unpruned:
        told = f"nothing was deleted of {name}: not all of it could be read"
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    words = ("added", "replaced", "deleted", "unchanged", "skipped")
    console.print("documents: " + ", ".join(f"{built.done[word]:,} {word}" for word in words))
    counts = built.counts
    told = f"{out}: {counts.passages:,} passages of {counts.documents:,} documents"
    told += f", {counts.copies:,} more are copies of these" if counts.copies else ""
    console.print(told, markup=False, soft_wrap=True)
