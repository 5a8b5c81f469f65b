"""Parts that the benchmarks share: timing runs in turn, checking that they do the same work, printing ratios."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CLOSE = 1e-3


def in_turn(what: str, runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; the order alternates, so that other load affects all runs."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begun)
        print(
            f"{what} {number + 1}: " + ", ".join(f"{name} {took[-1]:.2f} s" for name, took in seconds.items()),
            flush=True,
        )
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median over rounds of the ratio of seconds."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def same(what: str, values: Mapping[str, float]) -> None:
    """Stop if two runs do not compute the same value."""
    (one, mine), (other, theirs) = values.items()
    print(f"{what}: {one} {mine:.5f}, {other} {theirs:.5f}", flush=True)
    if abs(mine - theirs) > CLOSE * max(1.0, abs(theirs)):
        raise SystemExit(f"{what} differs by more than {CLOSE}: the two runs do not do the same work")


def report(ratios: Mapping[str, float], record: Mapping[str, Any], out: str | None) -> None:
    """Print the ratios, and write them with all measurements to a file, if one is named."""
    if out:
        Path(out).write_text(json.dumps({"ratios": ratios, **record}, indent=1) + "\n", encoding="utf-8")
    for name, value in ratios.items():
        print(f"{name} {value:.3f}")
