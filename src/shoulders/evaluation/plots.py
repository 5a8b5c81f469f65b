"""Plots of a report: one colour for each scaffold throughout, values written where they are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import average_interval

COLOURS = ("#8a8f98", "#2a7fba", "#e07b39", "#5b9b57", "#9467bd", "#b5495b")
AVERAGE, TASKS, CURVES = "average.png", "tasks.png", "training.png"


def draw(results: Sequence[Result], folder: Path) -> list[str]:
    """Write the plots into a folder; returns their file names."""
    import matplotlib as mpl  # an optional dependency: only reports need it

    mpl.use("Agg")
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "figure.constrained_layout.use": True,
    }
    with mpl.rc_context(style):
        names = [_average(results, folder), _tasks(results, folder)]
        if any(result.log for result in results):
            names.append(_curves(results, folder))
    return names


def _average(results: Sequence[Result], folder: Path) -> str:
    """The average score of each scaffold with its interval."""
    figure, axes = _figure(6, 0.6 * len(results) + 0.9)
    intervals = [average_interval(result.measured) for result in results]
    places = list(range(len(results)))[::-1]
    values = [interval.value for interval in intervals]
    spread = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
    axes.barh(places, values, xerr=spread, color=_colours(results), capsize=3, ecolor="#444444", height=0.6)
    for place, interval in zip(places, intervals, strict=True):
        axes.text(interval.high + 1, place, f"{interval.value:.1f}", va="center")
    axes.set_yticks(places, [result.name for result in results])
    axes.set_xlim(0, max(interval.high for interval in intervals) * 1.15)
    axes.set_xlabel("average over tasks, with 95% interval")
    return _save(figure, folder, AVERAGE)


def _tasks(results: Sequence[Result], folder: Path) -> str:
    """The score of each task, scaffolds side by side."""
    tasks = list(results[0].content["tasks"])
    height = 0.8 / len(results)
    figure, axes = _figure(7, 0.28 * len(tasks) * len(results) / 2 + 1.6)
    for number, (result, colour) in enumerate(zip(results, _colours(results), strict=True)):
        places = [len(tasks) - row - number * height for row in range(len(tasks))]
        values = [result.content["tasks"].get(task, 0) for task in tasks]
        axes.barh(places, values, height=height, color=colour, label=result.name)
    axes.set_yticks([len(tasks) - row - 0.4 + height / 2 for row in range(len(tasks))], tasks)
    axes.set_xlabel("score")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(results), frameon=False)
    return _save(figure, folder, TASKS)


def _curves(results: Sequence[Result], folder: Path) -> str:
    """Training loss over the examples seen, smoothed, with development scores where there are any."""
    figure, axes = _figure(7, 3.2)
    for result, colour in zip(results, _colours(results), strict=True):
        if result.log:
            batch = result.content["recipe"]["training"]["batch_size"]
            seen = [line["number"] * batch for line in result.log]
            axes.plot(seen, _smooth([line["loss"] for line in result.log]), color=colour, label=result.name)
    axes.set_xlabel("examples seen")
    axes.set_ylabel("loss (nats a token)")
    axes.legend(frameon=False)
    return _save(figure, folder, CURVES)


def _smooth(values: Sequence[float], share: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    found: list[float] = []
    mean = 0.0
    for count, value in enumerate(values, start=1):
        mean = share * mean + (1 - share) * value
        found.append(mean / (1 - share**count))
    return found


def _colours(results: Sequence[Result]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(results))]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height))


def _save(figure: Any, folder: Path, name: str) -> str:
    import matplotlib.pyplot as plt

    figure.savefig(folder / name, dpi=160)
    plt.close(figure)
    return name
