"""Run a grid of recipes one after the other, resumable, and compare the results.

    python -m experiments.sweep experiments/002-length-suite/grid.json [--only NAME] [--minutes N]

The grid file names a recipe and its overrides for each run, with seeds and training lengths; `common` holds values for
all runs. Each finished run writes `results/NAME.json` (scores by example, recipe, provenance) beside the grid file, and
is not run again. The summary, with intervals, goes to `summary.md`, curves to `curves.png`. Run folders with
checkpoints go to `runs/` (not in git), so that an interrupted run goes on; with `--minutes` it is interrupted after so
many, and the summary is made of what is done. Peak memory is that of the process: to
compare it, run each cell with a command of its own.
"""

import argparse
import itertools
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers.utils import logging as transformers_logging

from shoulders.answering.models import rival_info
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task
from shoulders.evaluation.results import Result, read_result
from shoulders.evaluation.statistics import average_interval, difference_interval
from shoulders.paper.rivals import measure_rival, train_rival
from shoulders.runs.build import TaskParts, load_backbone, new_evidence
from shoulders.runs.jobs import measure, split_tasks
from shoulders.runs.recipe import BackboneChoice, Recipe, with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.runs.run import Watch, result, train, training_summary
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.store.files import BEST, write_json
from shoulders.training.log import read_log
from shoulders.training.loop import Step


@dataclass(frozen=True, slots=True)
class Run:
    """One cell of the grid."""

    name: str
    group: str  # the same for all seeds
    recipe: Recipe


def main() -> None:
    """Run the cells that have no result yet, then write the summary."""
    folder, kept = run_grid(_measured)
    found = [(run, read_result(path)) for run, path in kept]
    if not found:
        print("no run has ended yet: call again to go on")
        return
    plot(found, folder / "curves.png")
    write_summary(folder, summary(found))


def run_grid(measured: Callable[[Run, FrozenLM, Path], dict[str, Any]]) -> tuple[Path, list[tuple[Run, Path]]]:
    """Run the cells of the command line's grid that have no result yet.

    Args:
        measured: returns the result of a cell, given its backbone and the folder of its run.

    Returns:
        The folder of the grid, and every cell that has a result, with its file.
    """
    parser = argparse.ArgumentParser(description="run a grid of recipes")
    parser.add_argument("grid", type=Path)
    parser.add_argument("--only", help="run only the cell, or the group of seeds, of this name")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; another call goes on")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = arguments.grid.parent
    runs = list(cells(json.loads(arguments.grid.read_text(encoding="utf-8"))))
    lm: FrozenLM | None = None
    held: BackboneChoice | None = None
    with _stopping(arguments.minutes):
        for run in runs:
            if not _kept(folder, run).exists() and arguments.only in {None, run.name, run.group}:
                if lm is None or run.recipe.backbone != held:
                    lm, held = load_backbone(run.recipe.backbone), run.recipe.backbone
                print(f"{run.name} ...", flush=True)
                write_json(_kept(folder, run), measured(run, lm, Path("runs") / folder.name / run.name))
    return folder, [(run, path) for run in runs if (path := _kept(folder, run)).exists()]


class _TimeIsOver(BaseException):
    """Raised in the middle of a run; its newest checkpoint stays."""


@contextmanager
def _stopping(minutes: float) -> Iterator[None]:
    """End the block after some minutes; 0 for no end."""

    def stop(*_: object) -> None:
        raise _TimeIsOver

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    except _TimeIsOver:
        print(f"{minutes:g} minutes are over: another call goes on", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def write_summary(folder: Path, text: str) -> None:
    """Write the tables of a grid, and print them."""
    (folder / "summary.md").write_text(text, encoding="utf-8")
    print(text)


def _kept(folder: Path, run: Run) -> Path:
    return folder / "results" / f"{run.name}.json"


def cells(grid: Mapping[str, Any]) -> Iterator[Run]:
    """Yield the runs of a grid file: every row with every seed and length."""
    for row in grid["rows"]:
        lengths, seeds = row.get("steps", [None]), row.get("seeds", [0])
        for steps, seed in itertools.product(lengths, seeds):
            group = row["name"] + (f"-{steps}" if steps else "")
            values = [*grid.get("common", []), *row.get("values", []), f"training.seed={seed}"]
            if steps:
                values.append(f"training.steps={steps}")
            yield Run(f"{group}-s{seed}", group, with_overrides(recipe_named(row["recipe"]), values))


def _measured(run: Run, lm: FrozenLM, folder: Path) -> dict[str, Any]:
    recipe, parts = run.recipe, split_tasks(run.recipe)
    if recipe.rival.kind:
        content, told = _rival(run, lm, folder, parts)
    else:
        scaffold, told = trained_scaffold(run, lm, folder, parts.trained)
        evidence = new_evidence(recipe, lm, scaffold.length)
        scores = measure(recipe, lm, scaffold, recipe.test, parts.tested, evidence=evidence)
        content = result(recipe, lm, scaffold, scores, evidence=evidence)
    for row in content["wordings"]:
        row["samples"] = []  # the texts of data sets are not copied
    log = read_log(folder)
    development = {line["number"]: line["score"] for line in log if "score" in line}
    content |= {**told, "training": {**training_of(log), "development": development}}
    print(f"{run.name}: {content['average']:.2f} {content['average_interval']}", flush=True)
    return content


def trained_scaffold(run: Run, lm: FrozenLM, folder: Path, tasks: Sequence[Task]) -> tuple[Scaffold, dict[str, Any]]:
    """Return the run's scaffold and the costs of its training; go on with an interrupted run."""
    if run.recipe.scaffold.kind == "bare":
        return Bare(), {}
    scaffold, progress = train(run.recipe, lm, folder, tasks=tasks, resume=True, watch=Watch(on_step=_print))
    return scaffold, training_summary(folder, lm, progress)


def _rival(run: Run, lm: FrozenLM, folder: Path, parts: TaskParts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and measure a rival; return its result and the costs of its training."""
    progress = train_rival(run.recipe, lm, folder, tasks=parts.trained, resume=True, watch=Watch(on_step=_print))
    told = training_summary(folder, lm, progress)
    _, content = measure_rival(rival_info(folder / BEST), run.recipe, lm, parts.tested, lambda _done, _all: None)
    return content, told


def training_of(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers of positions and the losses of a training log."""
    return {
        "positions": sum(line["positions"] for line in log),
        "losses": [round(line["loss"], 4) for line in log],
    }


def _print(step: Step) -> None:
    if step.number % 20 == 0 or step.score is not None:
        score = f" dev {step.score:.1f}" if step.score is not None else ""
        speed = step.positions / step.seconds
        print(f"  step {step.number} loss {step.loss:.3f} {speed:.0f} positions/s{score}", flush=True)


def summary(found: Sequence[tuple[Run, Result]]) -> str:
    """Return the tables of the grid: scores, development scores and losses over training."""
    groups: dict[str, list[tuple[Run, Result]]] = {}
    for run, one in found:
        groups.setdefault(run.group, []).append((run, one))
    split = found[0][0].recipe.test.split if found else ""
    examples = found[0][1].content["examples"] if found else 0
    return "\n".join(
        [
            *_scores(groups),
            f"\n{examples} examples of the {split} part, the same for all runs.\n",
            *_over_training(groups),
            f"\nThe loss (nats a token, mean over the steps since the column before) is over examples not trained on "
            f"before; all runs of one seed have the same examples in the same order. torch {torch.__version__}.\n",
        ]
    )


def _scores(groups: Mapping[str, Sequence[tuple[Run, Result]]]) -> list[str]:
    """Return means over seeds, their spread, and intervals over the examples of the first seed."""
    tuned = [members[0][1] for members in groups.values() if _prompt_tuned(members[0][0])]
    lines = [
        "| run | seeds | examples seen | trained | average | by seed | 95% interval, first seed | over prompt tuning |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- | --- |",
    ]
    for group, members in groups.items():
        scores = [one.content["average"] for _, one in members]
        recipe = members[0][0].recipe
        bare = recipe.scaffold.kind == "bare"
        seen = 0 if bare else recipe.training.steps * recipe.training.batch_size
        interval = average_interval(members[0][1].measured)
        gap = difference_interval(members[0][1].measured, tuned[0].measured) if tuned else None
        lines.append(
            f"| {group} | {len(members)} | {seen:,} | {members[0][1].content['trained']:,} | "
            f"**{np.mean(scores):.2f}** | "
            f"{', '.join(f'{score:.1f}' for score in scores)} | {interval.low:.1f} to {interval.high:.1f} | "
            + (f"{gap.value:+.1f} ({gap.low:+.1f} to {gap.high:+.1f}) |" if gap else "|")
        )
    return lines


def _prompt_tuned(run: Run) -> bool:
    """Return whether a run trains a soft prompt; recipes of rivals have one that is not trained."""
    return run.recipe.scaffold.kind == "soft_prompt" and not run.recipe.rival.kind


def _over_training(groups: Mapping[str, Sequence[tuple[Run, Result]]], columns: int = 8) -> list[str]:
    """Return losses and any development scores up to some steps, as means over seeds."""
    trained = {group: members for group, members in groups.items() if members[0][0].recipe.scaffold.kind != "bare"}
    steps = max((run.recipe.training.steps for members in trained.values() for run, _ in members), default=0)
    ends = [steps * number // columns for number in range(1, columns + 1)]
    lines = [
        "| by step | " + " | ".join(map(str, ends)) + " | development scores |",
        "| --- |" + " ---: |" * columns + " --- |",
    ]
    for group, members in trained.items():
        losses = np.mean([one.content["training"]["losses"] for _, one in members], axis=0)
        parts = [losses[start:end] for start, end in itertools.pairwise([0, *ends])]
        cells = [f"{part.mean():.3f}" if len(part) else "" for part in parts]
        scored = [one.content["training"]["development"] for _, one in members]
        if len(scored[0]) == 1:  # there was no choice between scores
            scored = [{}]
        shown = [f"{step}: {np.mean([one[step] for one in scored]):.1f}" for step in sorted(scored[0], key=int)]
        lines.append(f"| {group} | {' | '.join(cells)} | {', '.join(shown)} |")
    return lines


def plot(found: Sequence[tuple[Run, Result]], path: Path) -> None:
    """Plot the losses of first seeds over training, and their differences from the first prompt tuning."""
    curves: dict[str, tuple[int, Sequence[float]]] = {}
    tuned: Sequence[float] | None = None
    for run, one in found:
        if run.recipe.scaffold.kind != "bare" and run.group not in curves:
            curves[run.group] = run.recipe.training.batch_size, one.content["training"]["losses"]
            if tuned is None and _prompt_tuned(run):
                tuned = one.content["training"]["losses"]
    mpl.use("Agg")
    figure, (losses, gaps) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, (batch, values) in curves.items():
        losses.plot(*_smooth(values, batch), label=name)
        if tuned is not None and len(values) == len(tuned):
            gaps.plot(*_smooth(np.subtract(values, tuned), batch))
    losses.set(xlabel="examples seen", ylabel="loss, nats a token")
    gaps.set(xlabel="examples seen", ylabel="loss less prompt tuning's", ylim=(-0.6, 0.6))
    losses.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def _smooth(values: ArrayLike, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return means over a sixth of a run, and the examples seen at their middle."""
    heights = np.asarray(values, dtype=float)
    width = max(1, len(heights) // 6)
    means = np.convolve(heights, np.ones(width) / width, mode="valid")
    return (np.arange(len(means)) + width / 2) * batch, means


if __name__ == "__main__":
    main()
