"""Printing of commands that train or measure: progress, tables of scores, examples that were left out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.progress import TimeElapsedColumn
from rich.table import Table

from shoulders.cli.show import console, progress_bars, titled, warn
from shoulders.data.mixture import total_counts
from shoulders.evaluation.metrics import not_computed
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.results import metrics_of_tasks
from shoulders.evaluation.statistics import average_interval
from shoulders.runs.run import Watch
from shoulders.training.loop import Step


@contextmanager
def watching(title: str, steps: int) -> Iterator[Watch]:
    """Show the progress of a training run; a second bar shows the scoring of the development set."""
    with progress_bars("{task.completed:.0f}/{task.total:.0f}", "{task.fields[note]}") as bars:
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
    """Show the progress of an evaluation."""
    counts = "{task.completed:.0f}/{task.total:.0f} examples"
    with progress_bars(counts, TimeElapsedColumn(), time_left=False) as bars:
        scoring = bars.add_task(title, total=1)
        yield Watch(on_done=lambda done, total: bars.update(scoring, completed=done, total=total))


def scores_table(title: str, columns: Mapping[str, Scores]) -> Group:
    """Return a table of several scaffolds' scores on each task, and of their averages with 95% intervals."""
    first = next(iter(columns.values()))
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)  # three scaffolds' intervals: 79 columns
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
    return titled(f"{title}: {first.examples} examples", table)


def counts_table(counts: Mapping[str, Mapping[str, int]]) -> Group:
    """Return a table of the examples of each data set by what happened to them in training, without empty columns."""
    columns = [event for event, number in total_counts(counts).items() if number]
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    table.add_column("data set", no_wrap=True)
    for event in columns:
        table.add_column(event, justify="right")
    for name, data_set in counts.items():
        table.add_row(name, *[f"{data_set.get(event, 0):,}" for event in columns])
    return titled("examples", table)


def print_scores(title: str, columns: Mapping[str, Scores]) -> None:
    """Print a table of scores, and the examples that were left out of the first of them."""
    console.print(scores_table(title, columns))
    print_skipped(next(iter(columns.values())))


def print_skipped(scores: Scores) -> None:
    """Print which examples were not measured, and why."""
    if scores.unmeasured:
        warn(f"not measured, because they have no such split: {', '.join(scores.unmeasured)}")
    if scores.uncomputed:
        warn(not_computed(scores.uncomputed))
    if scores.truncated:
        warn(f"cut to fit the context: the inputs of {scores.truncated} examples")
    for wording, skipped in scores.skipped.items():
        failed, broken = skipped.count - skipped.bad_rows, skipped.bad_rows
        counts = [f"{failed} examples whose template fails"] * bool(failed) + [f"{broken} broken lines"] * bool(broken)
        warn(f"left out of {wording}: {' and '.join(counts)}; the first: {skipped.reason}")


def print_retrieval(content: Mapping[str, Any]) -> None:
    """Print how often an answer was among the passages found and those read, or how many demonstrations fitted."""
    if fitted := content.get("demonstrations"):
        none = f"; {fitted['without']} questions have none" if fitted["without"] else ""
        console.print(
            f"demonstrations that fit before a question: {fitted['packed']:.1f} of {fitted['asked']} on average{none}",
            highlight=False,
        )
    retrieval = content["retrieval"]
    if not retrieval:
        return
    _print_recall("", retrieval["recall"], retrieval["recall_at_input"], retrieval["packed"])
    by_dpr = retrieval.get("recall_by_dpr"), retrieval.get("recall_at_input_by_dpr")
    if by_dpr[0] and by_dpr != (retrieval["recall"], retrieval["recall_at_input"]):
        _print_recall("by DPR's rule, ", *by_dpr, retrieval["packed"])
    if (supported := retrieval.get("supported")) is not None:
        console.print(f"answers that stand in a passage that was read: {supported:.1f}%")
    if retrieval["without"] or retrieval["too_long"]:
        warn(
            f"{retrieval['without']} examples were read without a passage; {retrieval['too_long']} passages are longer "
            "than the context: cut them (evidence.truncate=yes), or raise suite.lengths.input"
        )


def _print_recall(rule: str, recall: Mapping[str, float], at_input: float, packed: float) -> None:
    ranks = ", ".join(f"{k}: {value:.1f}%" for k, value in recall.items())
    console.print(
        f"{rule}recall of the passages found, at {ranks}; of those that are read ({packed:.1f} on average): "
        f"{at_input:.1f}%"
    )
