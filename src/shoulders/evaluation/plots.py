"""The plots of reports; a scaffold has the same colour in all plots."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from shoulders.evaluation.results import Result
from shoulders.evaluation.statistics import Interval, average_interval

COLOURS = ("#8a8f98", "#2a7fba", "#e07b39", "#5b9b57", "#9467bd", "#b5495b")
LINES, POINTS = ("-", "--", ":", "-."), "s^vP"  # the next one once all colours are used
SIGNS, HATCHES = f"o{POINTS}DX*", ("", "//", "..", "xx")
AVERAGE, TASKS, CURVES = "average.png", "tasks.png", "training.png"
DEVELOPMENT, PASSES, PERPLEXITY, READERS = "dev.png", "passes.png", "perplexity.png", "reader.png"
SUITE, PROMPTS = "suite.png", "prompts.png"


@dataclass(frozen=True, slots=True)
class PassesScore:
    """Average passes and score of one run.

    Attributes:
        style: number of the run in the report; sets its colour.
        curve: (passes, score) by threshold; empty if all questions take the same passes.
    """

    name: str
    style: int
    passes: float
    score: float
    curve: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """The score of a reader, and the percentage of questions with an answer in its passages (None without passages)."""

    name: str
    score: Interval
    recall: float | None


def draw(results: Sequence[Result], folder: Path) -> list[str]:
    """Write the plots of a report into a folder, and return their file names."""
    with _style():
        names = [_average(results, folder), _tasks(results, folder)]
        if any(result.log for result in results):
            names.append(_curves(results, folder))
    return names


def draw_recursion(
    results: Sequence[Result], spent: Mapping[str, Sequence[PassesScore]], score: str, folder: Path
) -> list[str]:
    """Write the plots of a report on recursion into a folder, and return the file names of those with data.

    Args:
        spent: passes and scores of runs, by data set.
        score: label of development scores.
    """
    with _style():
        names = []
        if any(result.development for result in results):
            names.append(_development(results, score, folder))
        if spent:
            names.append(_passes(spent, folder))
    return names


def draw_perplexity(results: Sequence[Result], folder: Path) -> list[str]:
    """Write the curve of runs on text into a folder, if any has a log, and return its file name."""
    trained = [(number, result) for number, result in enumerate(results) if result.log]
    with _style():
        return [_perplexity(trained, folder)] if trained else []


def draw_readers(splits: Mapping[str, Sequence[Bar]], folder: Path) -> str:
    """Write a plot of scores of readers and the recall that bounds them, by data set, and return its file name."""
    with _style():
        figure, _ = _figure(7, sum(0.45 * len(bars) + 1.2 for bars in splits.values()), len(splits))
        for axes, (split, bars) in zip(figure.axes, splits.items(), strict=True):
            places = range(len(bars))[::-1]
            for number, (place, bar) in enumerate(zip(places, bars, strict=True)):
                spread = [[bar.score.value - bar.score.low], [bar.score.high - bar.score.value]]
                look = {"color": _line(number)["color"], "ecolor": "#444444", "capsize": 3, "height": 0.6}
                axes.barh(place, bar.score.value, xerr=spread, **look)
                axes.text(bar.score.high + 1, place, f"{bar.score.value:.1f}", va="center")
            known = [(bar.recall, place) for place, bar in zip(places, bars, strict=True) if bar.recall is not None]
            if known:
                axes.plot(*zip(*known, strict=True), "D", color="#444444", label="an answer is in what was read")
                axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
            axes.set_yticks(list(places), [bar.name for bar in bars])
            axes.set_xlim(0, 103)
            axes.set_xlabel(f"score on {split} with 95% interval")
        return _save(figure, folder, READERS)


def draw_suite(
    splits: Mapping[str, Mapping[str, Mapping[str, float]]],
    curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    levels: Mapping[str, float],
    folder: Path,
) -> list[str]:
    """Write the plots of methods on a suite into a folder, and return the file names of those with data.

    Args:
        splits: average and score of each cluster, by data set and method.
        curves: development scores over examples seen of each run, by method.
        levels: development scores of methods without a curve.
    """
    methods = list(dict.fromkeys(name for scores in splits.values() for name in scores))
    with _style():
        names = [_clusters(splits, methods, folder)]
        if curves:
            names.append(_seen(curves, levels, methods, folder))
    return names


def draw_map(points: Mapping[str, Sequence[tuple[float, float]]], shares: tuple[float, float], folder: Path) -> str:
    """Write a map of prompts into a folder, with a colour and sign for each task, and return its file name.

    Args:
        points: coordinates of prompts, by task.
        shares: of the variance, of the two directions.
    """
    with _style():
        figure, axes = _figure(7, 5 + 0.1 * len(points))
        for number, (task, places) in enumerate(points.items()):
            sign = SIGNS[number // len(COLOURS) % len(SIGNS)]
            look = {"color": _line(number)["color"], "marker": sign, "linestyle": "none"}
            axes.plot(*zip(*places, strict=True), **look, markersize=5, alpha=0.7, label=task)
        for axis, share in zip((axes.xaxis, axes.yaxis), shares, strict=True):
            axis.set_label_text(f"{100 * share:.0f}% of the variance")
        figure.legend(loc="outside lower left", frameon=False, ncols=3, fontsize=8)
        return _save(figure, folder, PROMPTS)


@contextmanager
def _style() -> Iterator[None]:
    """Set the style of plots, and draw without a screen."""
    import matplotlib as mpl  # an optional dependency: only reports need it

    mpl.use("Agg")
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "figure.constrained_layout.use": True,
    }
    with mpl.rc_context(style):
        yield


def _average(results: Sequence[Result], folder: Path) -> str:
    """Draw the average score of each scaffold with its interval."""
    figure, axes = _figure(6, 0.6 * len(results) + 0.9)
    intervals = [average_interval(result.measured) for result in results]
    places = list(range(len(results)))[::-1]
    values = [interval.value for interval in intervals]
    spread = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
    axes.barh(places, values, xerr=spread, color=_colours(results), capsize=3, ecolor="#444444", height=0.6)
    for place, interval in zip(places, intervals, strict=True):
        axes.text(interval.high + 1, place, f"{interval.value:.1f}", va="center")
    axes.set_yticks(places, [result.name for result in results])
    axes.set_xlim(0, max(interval.high for interval in intervals) * 1.15 or 1)
    axes.set_xlabel("average over tasks, with 95% interval")
    return _save(figure, folder, AVERAGE)


def _tasks(results: Sequence[Result], folder: Path) -> str:
    """Draw the score of each task, scaffolds side by side."""
    scores = {result.name: result.content["tasks"] for result in results}
    figure, axes = _figure(7, _height(scores))
    _side_by_side(axes, scores, list(scores))
    axes.set_xlabel("score")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(results), frameon=False)
    return _save(figure, folder, TASKS)


def _height(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the height of a plot of grouped bars."""
    return 0.14 * sum(map(len, scores.values())) + 1.6


def _side_by_side(axes: Any, scores: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> None:
    """Draw grouped bars from the top, one group for each task or cluster; `names` sets the order of colours."""
    things = list(next(iter(scores.values())))
    height = 0.8 / len(scores)
    for number, (name, own) in enumerate(scores.items()):
        places = [len(things) - row - number * height for row in range(len(things))]
        turn = names.index(name) // len(COLOURS)
        look = {"color": _line(names.index(name))["color"], "hatch": HATCHES[turn % len(HATCHES)], "edgecolor": "white"}
        axes.barh(places, [own.get(thing, 0) for thing in things], height=height, linewidth=0, label=name, **look)
    axes.set_yticks([len(things) - row - 0.4 + height / 2 for row in range(len(things))], things)
    axes.margins(y=0.02)


def _curves(results: Sequence[Result], folder: Path) -> str:
    """Draw the smoothed training loss over the examples seen."""
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


def _development(results: Sequence[Result], score: str, folder: Path) -> str:
    """Draw development scores over training steps, with the best marked and labelled (the paper, figure 6)."""
    drawn: list[tuple[int, Result, list[tuple[int, float]]]] = []
    for number, result in enumerate(results):
        scored = result.development
        if scored and all(scored != other for _, _, other in drawn):  # one run may be measured twice
            drawn.append((number, result, scored))
    figure, axes = _figure(7, 3.4 + 0.24 * len(drawn))
    for number, result, scored in sorted(drawn, key=lambda one: -max(score for _, score in one[2])):
        best = max(scored, key=lambda point: point[1])
        label = f"{result.name}: best {best[1]:.1f} at step {best[0]:,}"
        axes.plot(*zip(*scored, strict=True), **_line(number), marker="o", markersize=3, label=label)
        axes.plot(*best, marker="o", markersize=8, color=_line(number)["color"])
    axes.set_xlabel("training steps")
    axes.set_ylabel(score)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower left", frameon=False)
    return _save(figure, folder, DEVELOPMENT)


def _clusters(splits: Mapping[str, Mapping[str, Mapping[str, float]]], names: Sequence[str], folder: Path) -> str:
    """Draw the average and the score of each cluster, methods side by side."""
    heights = [_height(scores) for scores in splits.values()]
    figure, _ = _figure(7, sum(heights) + 0.24 * _lines(names), len(splits), heights)
    shown: dict[str, Any] = {}
    for axes, (split, scores) in zip(figure.axes, splits.items(), strict=True):
        _side_by_side(axes, scores, names)
        axes.set_xlabel(f"score on {split}")
        handles, labels = axes.get_legend_handles_labels()
        shown.update(zip(labels, handles, strict=True))
    figure.legend([shown[name] for name in names], map(_wrapped, names), loc="outside upper left", frameon=False)
    return _save(figure, folder, SUITE)


def _seen(
    curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    levels: Mapping[str, float],
    names: Sequence[str],
    folder: Path,
) -> str:
    """Draw development scores over training examples (the paper, figure 3): the mean of seeds, and thin each seed."""
    figure, axes = _figure(7, 3.4 + 0.24 * _lines([*curves, *levels]))
    for name, runs in curves.items():
        look = _line(names.index(name))
        scores: dict[int, list[float]] = {}
        for run in runs:
            for seen, score in run:
                scores.setdefault(seen, []).append(score)
        mean = [(seen, sum(some) / len(some)) for seen, some in sorted(scores.items()) if len(some) == len(runs)]
        for run in runs[: len(runs) * (len(runs) > 1)]:
            axes.plot(*zip(*run, strict=True), **look, linewidth=0.6, alpha=0.6)
        label = name if len(runs) == 1 else f"{name}: mean of {len(runs)} seeds"
        axes.plot(*zip(*mean, strict=True), **look, marker="o", markersize=3, label=_wrapped(label))
    for name, level in levels.items():
        look = {"color": _line(names.index(name))["color"], "linestyle": "--", "linewidth": 1}
        axes.axhline(level, **look, label=_wrapped(f"{name}: {level:.1f}"))
    axes.set_xlabel("training examples seen")
    axes.set_ylabel("average development score")
    figure.legend(loc="outside lower left", frameon=False)
    return _save(figure, folder, DEVELOPMENT)


def _perplexity(trained: Sequence[tuple[int, Result]], folder: Path) -> str:
    """Draw perplexity over tokens read: a smoothed line for the training text, points for held-out text."""
    figure, axes = _figure(7, 3.4 + 0.24 * len(trained))
    for number, result in trained:
        read = list(accumulate(line["positions"] for line in result.log))
        losses = _smooth([line["loss"] for line in result.log])
        label = f"{result.name}: {result.content['perplexity']:.2f} at the end"
        axes.plot(read, [math.exp(loss) for loss in losses], **_line(number), alpha=0.6, label=label)
        scored = [(tokens, -line["score"]) for tokens, line in zip(read, result.log, strict=True) if "score" in line]
        if scored:
            axes.plot(*zip(*scored, strict=True), "o", color=_line(number)["color"], markersize=5)
    axes.set_yscale("log")
    axes.set_xlabel("tokens read (points: held-out text)")
    axes.set_ylabel("perplexity")
    figure.legend(loc="outside lower left", frameon=False)
    return _save(figure, folder, PERPLEXITY)


def _passes(spent: Mapping[str, Sequence[PassesScore]], folder: Path) -> str:
    """Draw scores over average passes: a line for each run with a variable number of passes, else a point."""
    figure, _ = _figure(7, sum(3.4 + 0.24 * len(runs) for runs in spent.values()), len(spent))
    for axes, (what, runs) in zip(figure.axes, spent.items(), strict=True):
        for run in sorted(runs, key=lambda run: -run.score):
            look = _line(run.style) if run.curve else {**_line(run.style), "linestyle": "none"}
            point = "D" if run.curve else POINTS[run.style // len(COLOURS) % len(POINTS)]
            label = f"{run.name}: {run.score:.1f}, {run.passes:.3g} pass{'es' * (run.passes != 1)}"
            axes.plot(run.passes, run.score, **look, marker=point, markersize=8, label=label)
            if run.curve:
                axes.plot(*zip(*sorted(run.curve), strict=True), **look, marker="o", markersize=3)
        axes.set_xlabel("passes through the frozen model for a question, on average")
        axes.set_ylabel(what)
        axes.margins(x=0.08, y=0.15)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), frameon=False)
    return _save(figure, folder, PASSES)


def _wrapped(name: str) -> str:
    """Return a name with line breaks for a legend."""
    return textwrap.fill(name, 80)


def _lines(names: Iterable[str]) -> int:
    """Return the number of lines of names in a legend."""
    return sum(_wrapped(name).count("\n") + 1 for name in names)


def _smooth(values: Sequence[float], share: float = 0.9) -> list[float]:
    """Return the exponential moving average with bias correction."""
    found: list[float] = []
    mean = 0.0
    for count, value in enumerate(values, start=1):
        mean = share * mean + (1 - share) * value
        found.append(mean / (1 - share**count))
    return found


def _colours(results: Sequence[Result]) -> list[str]:
    return [_line(number)["color"] for number in range(len(results))]


def _line(number: int) -> dict[str, str]:
    """Return the colour of a run by number; once all colours are used, the line style changes."""
    turn, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "linestyle": LINES[turn % len(LINES)]}


def _figure(width: float, height: float, rows: int = 1, heights: Sequence[float] | None = None) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    return plt.subplots(rows, figsize=(width, height), height_ratios=heights)


def _save(figure: Any, folder: Path, name: str) -> str:
    import matplotlib.pyplot as plt

    figure.savefig(folder / name, dpi=160)
    plt.close(figure)
    return name
