"""Tables of reports: Markdown, and numbers as they stand in it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from shoulders.evaluation.metrics import EM, F1
from shoulders.evaluation.statistics import Interval

ORIGIN = ("recipe", "backbone", "scaffold", "commit", "dirty", "versions", "machine", "time", "examples_hash")
NONE = "\N{EN DASH}"
CALLED = {EM.name: "EM", F1.name: "F1"}


def markdown(columns: Mapping[str, Sequence[str]], words: Collection[str]) -> str:
    """A table; columns of numbers stand to the right, those named as words to the left."""
    lines = [
        list(columns),
        ["---" if name in words else "---:" for name in columns],
        *zip(*columns.values(), strict=True),
    ]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def called(metric: str) -> str:
    """A metric as the literature writes it."""
    return CALLED.get(metric, metric)


def number(value: int | None) -> str:
    """A count, or a dash."""
    return NONE if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """A percentage or an average, or a dash."""
    return NONE if value is None else f"{value:.1f}"


def gigabytes(value: int | None) -> str:
    """Bytes in billions, or a dash."""
    return NONE if value is None else f"{value / 1e9:.1f}"


def or_none(interval: Interval | None) -> str:
    """A score with its interval, or a dash."""
    return str(interval) if interval else NONE


def signed(gap: Interval | None) -> str:
    """A difference with its interval, or a dash."""
    return f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]" if gap else NONE


def origin(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a report keeps of where a result comes from."""
    return {key: content[key] for key in ORIGIN if key in content}
