"""What commands that train or measure print: progress of both, tables of scores, what was left out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from shoulders.cli.show import console
from shoulders.data.mixture import totals
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.results import metrics_of_tasks
from shoulders.evaluation.statistics import average_interval
from shoulders.runs.run import Watch
from shoulders.training.loop import Step


@contextmanager
def watching(title: str, steps: int) -> Iterator[Watch]:
    """Progress of a training run, with rate and time left; a second bar while the development set is scored."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as bars:
        training = bars.add_task(title, total=steps, note="")
        scoring = bars.add_task("  scoring", total=1, note="", visible=False)

        def on_step(step: Step) -> None:
            note = f"loss {step.loss:.3f}, {step.positions / step.seconds:.0f} tokens/s"
            if step.score is not None:
                note += f", dev {step.score:.1f}"
                bars.update(scoring, visible=False)
            bars.update(training, completed=step.number, note=note)

        def on_done(done: int, total: int) -> None:
            bars.update(scoring, completed=done, total=total, visible=True)

        yield Watch(on_step, on_done)


@contextmanager
def measuring(title: str) -> Iterator[Watch]:
    """Progress of an evaluation."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.completed:.0f}/{task.total:.0f} examples"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        scoring = bars.add_task(title, total=1)
        yield Watch(on_done=lambda done, total: bars.update(scoring, completed=done, total=total))


def scores_table(title: str, columns: Mapping[str, Scores]) -> Table:
    """Scores of several scaffolds side by side: tasks, and the average with its interval."""
    first = next(iter(columns.values()))
    title = f"{title}: {first.examples} examples"
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("task", no_wrap=True)
    table.add_column("metric", style="dim", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for task, metric in metrics_of_tasks((row.task, row.metrics[0].name) for row in first.wordings).items():
        values = [scores.tasks[task] for scores in columns.values()]
        marks = [len(values) > 1 and value == max(values) for value in values]
        cells = [f"[bold]{v:.1f}[/bold]" if best else f"{v:.1f}" for v, best in zip(values, marks, strict=True)]
        table.add_row(task, metric, *cells)
    table.add_section()
    intervals = [average_interval(scores.measured) for scores in columns.values()]
    table.add_row("average", "", *[f"{i.value:.1f}" for i in intervals], style="bold")
    table.add_row("95% interval", "", *[f"{i.low:.1f} to {i.high:.1f}" for i in intervals], style="dim")
    for task in first.unmeasured:
        table.add_row(task, "unmeasured", *["-"] * len(columns), style="dim")
    return table


def counts_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """What became of the examples that a training read, by data set; what happened to none has no column."""
    columns = [what for what, number in totals(counts).items() if number]
    table = Table(title="examples", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("data set", no_wrap=True)
    for what in columns:
        table.add_column(what, justify="right")
    for name, of_name in counts.items():
        table.add_row(name, *[f"{of_name.get(what, 0):,}" for what in columns])
    return table


def print_skipped(scores: Scores) -> None:
    """Say what was not measured, and why."""
    if scores.unmeasured:
        told = f"unmeasured, because there is no such split: {', '.join(scores.unmeasured)}"
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    if scores.truncated:
        console.print(f"cut to fit the context: the inputs of {scores.truncated} examples", style="yellow")
    for wording, left_out in scores.skipped.items():
        failed, broken = left_out.count - left_out.bad_rows, left_out.bad_rows
        what = [f"{failed} examples whose template fails"] * bool(failed) + [f"{broken} broken lines"] * bool(broken)
        told = f"left out of {wording}: {' and '.join(what)}; the first: {left_out.reason}"
        console.print(told, style="yellow", markup=False, soft_wrap=True)


def print_retrieval(content: Mapping[str, Any]) -> None:
    """Of a result over retrieved passages, how often an answer was found, and how often read."""
    found = content["retrieval"]
    if not found:
        return
    _print_recall("", found["recall"], found["recall_at_input"], found["packed"])
    by_dpr = found.get("recall_by_dpr"), found.get("recall_at_input_by_dpr")
    if by_dpr[0] and by_dpr != (found["recall"], found["recall_at_input"]):
        _print_recall("by DPR's rule, ", *by_dpr, found["packed"])
    if (supported := found.get("supported")) is not None:
        console.print(f"answers that stand in a passage that was read: {supported:.1f}%")
    if found["without"] or found["too_long"]:
        console.print(
            f"no passage is read for {found['without']} examples; {found['too_long']} passages are longer than the "
            "context: cut them (evidence.truncate=yes), or raise suite.lengths.input",
            style="yellow",
            soft_wrap=True,
        )


def _print_recall(rule: str, recall: Mapping[str, float], at_input: float, packed: float) -> None:
    ranks = ", ".join(f"{k}: {value:.1f}%" for k, value in recall.items())
    console.print(
        f"{rule}recall of the passages found, at {ranks}; of those that are read ({packed:.1f} on average): "
        f"{at_input:.1f}%"
    )
