"""Sweeps: each variant of a recipe trains a share of the steps, and the best on the development set trains the rest.

Source: the paper, section 2.2 (prompt length and learning rate, at 10% of the training).
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from shoulders.answering.models import FID
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import ContextFull, TrainingDiverged, UsageError, first_line
from shoulders.evaluation.report import markdown_rows
from shoulders.evaluation.results import provenance
from shoulders.runs.build import TaskParts
from shoulders.runs.jobs import check_tested
from shoulders.runs.recipe import Recipe, recipe_from_json, with_overrides
from shoulders.runs.run import Watch
from shoulders.store.files import atomic_file, read_json, write_json
from shoulders.training.log import read_log
from shoulders.training.loop import Progress

SWEEP, TABLE = "sweep.json", "sweep.md"
VARIED = ("scaffold.", "training.", "rival.", "evidence.")  # scores on other suites or models are not comparable
STEPS = "training.steps"
OF_SCAFFOLDS = tuple(  # a rival has its own (`RivalChoice.plan`)
    f"training.{name}" for name in ("learning_rate", "base_learning_rate", "warmup", "decay", "weight_decay", "eps")
)

Grid = Mapping[str, Sequence[str]]  # values, as texts, by recipe key


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant of the recipe.

    Attributes:
        name: of its folder in that of the sweep.
        values: of the grid, by recipe key.
        recipe: of its full run.
        score: on the development set at the pause; None before.
        seconds: of its steps until the pause.
        failure: error that stopped it, if any.
    """

    name: str
    values: Mapping[str, str]
    recipe: Recipe
    score: float | None = None
    seconds: float = 0.0
    failure: str = ""

    @property
    def done(self) -> bool:
        """Whether the candidate has a score or has failed."""
        return self.score is not None or bool(self.failure)

    def as_json(self) -> dict[str, Any]:
        """Return name, values and outcome as JSON."""
        found = {"score": self.score, "seconds": self.seconds, "failure": self.failure}
        return {"name": self.name, "values": dict(self.values), **found}


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The plan of a sweep.

    Attributes:
        recipe: of the full run.
        grid: recipe values to try, in all combinations.
        fraction: share of the steps that every candidate trains.
    """

    recipe: Recipe
    grid: Grid
    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageError(f"--fraction is {self.fraction}: it must be above 0 and at most 1; the paper's is 0.1")
        if not self.grid or not all(self.grid.values()):
            raise UsageError("there is nothing to choose among: name values, --grid training.learning_rate=1e-3,1e-2")
        if self.recipe.rival.kind == FID:
            raise UsageError("values of fid cannot be chosen here: name them, shoulders train RECIPE --rival fid")
        for key in self.grid:
            if self.recipe.rival.kind and key in OF_SCAFFOLDS:
                raise UsageError(f"{key} has no effect on a rival, which has values of its own (rival.)")
            if key == STEPS or not key.startswith(VARIED):
                raise UsageError(
                    f"{key} cannot be chosen by development score at {self.fraction:.0%} of the steps: a grid is of "
                    f"values of {', '.join(part.rstrip('.') for part in VARIED)}, {STEPS} apart"
                )

    @property
    def until(self) -> int:
        """Step at which every candidate pauses."""
        return max(1, round(self.fraction * self.recipe.training.steps))

    def candidates(self) -> list[Candidate]:
        """Return all variants, in the order of the grid.

        Raises:
            UnknownName, UsageError: a key or value is invalid, or two variants are equal.
        """
        found: list[Candidate] = []
        for number, values in enumerate(itertools.product(*self.grid.values()), start=1):
            chosen = dict(zip(self.grid, values, strict=True))
            recipe = with_overrides(self.recipe, [f"{key}={value}" for key, value in chosen.items()])
            recipe.check_trainable()
            if any(recipe == other.recipe for other in found):
                raise UsageError(f"the grid holds {_assignments(chosen)} twice: name each value once")
            found.append(Candidate(f"{number:02d}", chosen, recipe))
        return found


@dataclass(frozen=True, slots=True)
class SweepState:
    """The candidates of a sweep with their outcomes so far."""

    plan: SweepPlan
    candidates: Sequence[Candidate]

    @property
    def best(self) -> Candidate | None:
        """Candidate with the highest development score, the first of equals; None if there is none yet."""
        scored = [one for one in self.candidates if one.score is not None]
        return max(scored, key=lambda one: one.score or 0.0, default=None)

    @property
    def chosen(self) -> Candidate | None:
        """Best candidate, once all are done."""
        return self.best if all(one.done for one in self.candidates) else None

    def as_json(self) -> dict[str, Any]:
        """Return grid and outcomes, as stored in `sweep.json`."""
        plan = self.plan
        return {
            "grid": {key: list(values) for key, values in plan.grid.items()},
            "fraction": plan.fraction,
            "until": plan.until,
            "candidates": [one.as_json() for one in self.candidates],
            "chosen": self.chosen and self.chosen.name,
        }

    def table(self) -> str:
        """Return a Markdown table of the candidates."""
        plan = self.plan
        rows = []
        for one in self.candidates:
            score = one.failure if one.score is None else f"{one.score:.2f}"
            score = f"**{score}**" if one is self.chosen else score
            rows.append([one.name, *one.values.values(), score, f"{one.seconds:.0f}"])
        header = ["candidate", *plan.grid, f"development score at step {plan.until}", "seconds"]
        table = markdown_rows(header, rows, [True] + [False] * (len(header) - 1))
        chosen = f"; {self.chosen.name} goes on" if self.chosen else ""
        return f"{table}\n\n{plan.until} of {plan.recipe.training.steps} steps each{chosen}.\n"


Watching = Callable[[Candidate], AbstractContextManager[Watch]]
TrainUntil = Callable[..., Progress]  # `shoulders.runs.run.train_until`, or the like


def sweep(
    plan: SweepPlan,
    lm: FrozenLM,
    parts: TaskParts,
    folder: Path,
    train: TrainUntil,
    watching: Watching,
    *,
    resume: bool = False,
) -> SweepState:
    """Train every candidate to its pause, at the learning rates of its full run, and choose the best.

    `train(chosen.recipe, lm, folder / chosen.name, resume=True)` then continues the chosen run as if it had never
    paused. A candidate that diverges, or does not fit the memory or the context, is noted, and the others are trained.

    Args:
        parts: tasks of the recipe.
        folder: receives the table (`sweep.json`, `sweep.md`), and the folder of each candidate's run.
        train: trains a candidate to its pause (`train_until` for scaffolds).
        watching: opens what shows the progress of a candidate.
        resume: continue an interrupted sweep; finished and failed candidates do not run again.

    Raises:
        UsageError: the folder holds another sweep, or one that is not to be resumed; every candidate failed.
    """
    found = _opened(plan, folder, resume=resume)
    PartialState().wait_for_everyone()  # all have looked into the folder before one writes into it
    _keep(found, lm, folder)
    for number, candidate in enumerate(found.candidates):
        if candidate.done:
            continue
        with watching(candidate) as watch:
            advance = partial(train, until=plan.until, tasks=parts.trained, resume=resume, watch=watch)
            outcome = _outcome(candidate, lm, parts, folder / candidate.name, advance)
        candidates = [*found.candidates[:number], outcome, *found.candidates[number + 1 :]]
        found = replace(found, candidates=candidates)
        _keep(found, lm, folder)
    if found.chosen is None:
        raise UsageError(f"no candidate came to step {plan.until}; the first: {found.candidates[0].failure}")
    return found


def _outcome(candidate: Candidate, lm: FrozenLM, parts: TaskParts, folder: Path, advance: TrainUntil) -> Candidate:
    """Train a candidate to its pause, and return it with its score or failure."""
    failure, score = "", None
    try:
        check_tested(candidate.recipe, lm, parts)
        score = advance(candidate.recipe, lm, folder).score
    except (TrainingDiverged, ContextFull, MemoryError, RuntimeError) as error:
        if not _of_the_candidate(error):
            raise
        failure = first_line(error)
    if failure and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return replace(candidate, score=score, seconds=sum(step["seconds"] for step in read_log(folder)), failure=failure)


def _of_the_candidate(error: BaseException) -> bool:
    """Return whether an error concerns only one candidate, so that others may succeed."""
    # On a CPU, PyTorch has no exception of its own for a full memory.
    full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    return full or isinstance(error, TrainingDiverged | ContextFull)


def _opened(plan: SweepPlan, folder: Path, *, resume: bool) -> SweepState:
    """Return a new sweep, or the state of an interrupted one."""
    candidates = plan.candidates()
    if not (folder / SWEEP).exists():
        return SweepState(plan, candidates)
    content = read_json(folder / SWEEP)
    done = sum(one["score"] is not None or bool(one["failure"]) for one in content["candidates"])
    if not resume:
        raise UsageError(
            f"{folder} holds a sweep, {done} of {len(content['candidates'])} candidates done: go on with --resume, or "
            "name another --out"
        )
    kept = SweepPlan(recipe_from_json(content["recipe"]), content["grid"], content["fraction"])
    if (kept.recipe, kept.fraction, kept.candidates()) != (plan.recipe, plan.fraction, candidates):
        raise UsageError(f"{folder} holds a sweep of another recipe or grid (see its {SWEEP}): name another --out")
    pairs = zip(candidates, content["candidates"], strict=True)
    return SweepState(
        plan,
        [replace(one, **{key: was[key] for key in ("score", "seconds", "failure")}) for one, was in pairs],
    )


def _keep(found: SweepState, lm: FrozenLM, folder: Path) -> None:
    if PartialState().is_main_process:
        write_json(folder / SWEEP, {**found.as_json(), **provenance(found.plan.recipe.as_json(), lm)})
        with atomic_file(folder / TABLE) as part:
            part.write_text(found.table(), encoding="utf-8")


def parse_grid(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the grid of texts `key=value,value`.

    Raises:
        UsageError: a text has another form, or two have the same key.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        found = tuple(value.strip() for value in values.split(",") if value.strip())
        if not equals or not found:
            raise UsageError(f"--grid {text!r} is not key=value,value, e.g. scaffold.length=100,200")
        if key in grid:
            raise UsageError(f"--grid names {key} twice: put all its values into one")
        grid[key] = found
    return grid


def _assignments(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
