"""What became of the examples that were read, counted by data set and by what happened to them."""

from collections.abc import Mapping

READ = "read"  # all that were drawn; beside it stand those that were left out or cut
CAPPED = "capped"  # examples that every epoch leaves out, because its data set is larger than the cap

TRUNCATED = "truncated"  # read, and used with its input cut

Counts = dict[str, dict[str, int]]


def tally(counts: Counts, name: str, what: str, number: int = 1) -> None:
    """Add to a count of the data set of that name."""
    of_name = counts.setdefault(name, {})
    of_name[what] = of_name.get(what, 0) + number


def copied(counts: Mapping[str, Mapping[str, int]]) -> Counts:
    """The same counts, which no longer change with these."""
    return {name: dict(of_name) for name, of_name in counts.items()}


def totals(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Over all data sets."""
    found: Counts = {}
    for of_name in counts.values():
        for what, number in of_name.items():
            tally(found, "", what, number)
    return found.get("", {})


def used(of_name: Mapping[str, int]) -> int:
    """Examples of one data set that were read and not left out."""
    return of_name.get(READ, 0) - sum(n for what, n in of_name.items() if what not in {READ, CAPPED, TRUNCATED})


def left_out(counts: Mapping[str, Mapping[str, int]]) -> str:
    """What was left out or cut, e.g. "3 discarded, 1 bad row"; "none" if nothing was."""
    return ", ".join(f"{n} {what}" for what, n in totals(counts).items() if n and what != READ) or "none"
