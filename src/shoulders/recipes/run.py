"""A recipe from its first step to its measured scores."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from shoulders.backbone.devices import peak_memory
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.perplexity import Perplexity
from shoulders.evaluation.protocol import OnDone, Scores
from shoulders.evaluation.provenance import provenance, scaffold_measured
from shoulders.evaluation.results import scores_as_json
from shoulders.files import write_json
from shoulders.recipes.build import new_scaffold
from shoulders.recipes.evidence import evidence_measured, retrieval_measured
from shoulders.recipes.folders import BEST, CHECKPOINTS, RECIPE
from shoulders.recipes.jobs import Job, job_of, tasks_of
from shoulders.recipes.recipe import Recipe, read_recipe
from shoulders.scaffolds.base import Scaffold
from shoulders.training.checkpoint import Progress, checkpoints
from shoulders.training.log import RunLog, read_log
from shoulders.training.loop import Hooks, OnStep, Step, fit
from shoulders.training.plan import TrainPlan


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how a run goes."""

    on_step: OnStep = lambda _: None
    on_done: OnDone = lambda _done, _all: None


def train(
    recipe: Recipe,
    lm: FrozenLM,
    folder: Path,
    *,
    tasks: Sequence[Task] | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> tuple[Scaffold, Progress]:
    """Train the recipe's scaffold; the run's folder holds recipe, log, checkpoints and the best scaffold.

    Args:
        tasks: of the suite, if they are loaded already.
        resume: go on from the newest checkpoint in the folder.

    Returns:
        The scaffold of the best development score, and how far the run came.

    Raises:
        UsageError: the folder holds another run, or one that is not to be resumed.
    """
    recipe.check_trainable()
    done = steps_done(folder, recipe, resume=resume)
    tasks = tasks_of(recipe) if tasks is None else tasks
    scaffold = new_scaffold(recipe.scaffold, lm, recipe.training.seed, tasks)
    watch = watch or Watch()
    job = job_of(recipe, lm, scaffold, tasks, watch.on_done)

    def keep(score: float, step: int) -> None:
        about = {"development": {"average": score, "step": step}}
        scaffold.made_for(lm, recipe.as_json(), about).save_pretrained(folder / BEST)

    groups = scaffold.learning_rates(recipe.training.learning_rate, recipe.training.base_learning_rate)
    progress = carry_out(recipe, Trainee(scaffold, groups, recipe.training, job, keep), folder, done, watch)
    return Scaffold.load(folder / BEST, lm), progress


@dataclass(frozen=True, slots=True)
class Trainee:
    """What a run trains.

    Attributes:
        module, groups: as the loop takes them.
        plan: of the steps.
        job: what it is trained on.
        keep: is told of the best score so far and its step.
    """

    module: nn.Module
    groups: list[dict[str, Any]] | None
    plan: TrainPlan
    job: Job
    keep: Callable[[float, int], None]


def carry_out(recipe: Recipe, trainee: Trainee, folder: Path, done: int, watch: Watch) -> Progress:
    """Train in a run's folder, which gets the recipe, the log and the checkpoints.

    Args:
        done: steps that the folder holds already.
    """
    processes = Accelerator(device_placement=False)
    processes.wait_for_everyone()  # all have looked into the folder before one writes into it
    if processes.is_main_process:
        write_json(folder / RECIPE, recipe.as_json())
    job = trainee.job
    with RunLog(folder, done) if processes.is_main_process else nullcontext() as log:
        progress = fit(
            trainee.module,
            job.loss,
            job.source,
            trainee.plan,
            groups=trainee.groups,
            folder=folder / CHECKPOINTS,
            hooks=Hooks(_on_step(watch, log), job.score, trainee.keep),
        )
    processes.wait_for_everyone()
    return progress


def _on_step(watch: Watch, log: RunLog | None) -> OnStep:
    """Tell of a step; the log is the main process's."""

    def on_step(step: Step) -> None:
        if log is not None:
            log(step)
            watch.on_step(step)

    return on_step


def steps_done(folder: Path, recipe: Recipe, *, resume: bool) -> int:
    """The steps that are done already in this folder.

    Raises:
        UsageError: it holds another run, or one that is not to be resumed.
    """
    saved = checkpoints(folder / CHECKPOINTS)
    done = int(saved[-1].name.removeprefix("step-")) if saved else 0
    if (folder / RECIPE).exists():
        if not resume:
            raise UsageError(f"{folder} holds a run at step {done}: go on with --resume, or name another --out")
        if read_recipe(folder / RECIPE).as_json() != recipe.as_json():
            raise UsageError(f"{folder} holds a run of another recipe (see its {RECIPE}): name another --out")
    return done


def training_cost(folder: Path, lm: FrozenLM) -> dict[str, Any]:
    """What the training in a run's folder took, told as soon as it is over.

    Seconds are those of the steps, without development scores; memory is that of the process that took the last step,
    at its highest: models, optimizer, scores and the writing of checkpoints.
    """
    steps = read_log(folder)
    total = {name: sum(step[name] for step in steps) for name in ("seconds", "positions")}
    return {"cost": {"steps": len(steps), **total, "peak_bytes": peak_memory(lm.device)}}


def result(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, scores: Scores, name: str | None = None) -> dict[str, Any]:
    """Everything measured with where it comes from, as JSON: what `results.json` holds.

    Args:
        name: where the scaffold lies; None for one that was never saved, and for the bare model.
    """
    found = retrieval_measured(recipe, lm, scaffold.length, scores)
    numbers = {**scores_as_json(scores), "retrieval": found and found.as_json()}
    return _with_origin(numbers, recipe, lm, scaffold, name)


def text_result(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, measured: Perplexity, name: str) -> dict[str, Any]:
    """As `result`, for a run on text."""
    return _with_origin(measured.as_json(), recipe, lm, scaffold, name)


def _with_origin(
    numbers: Mapping[str, Any], recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, name: str | None
) -> dict[str, Any]:
    return {
        **numbers,
        "trained": trained_parameters(scaffold),
        "scaffold": scaffold_measured(scaffold, name),
        "evidence": evidence_measured(recipe, lm, scaffold.length),
        **provenance(recipe.as_json(), lm),
    }


def keep_test_scores(scaffold: Scaffold, lm: FrozenLM, folder: Path, split: str, scores: Scores) -> None:
    """Note in a saved scaffold's configuration, beside its development score, what it reached in the end."""
    origin = scaffold.origin
    assert origin is not None
    full = scores_as_json(scores)
    kept = {key: full[key] for key in ("average", "average_interval", "examples", "tasks", "unmeasured")}
    about = {**origin.scores, "test": {"split": split, **kept}}
    scaffold.made_for(lm, origin.recipe, about).save_pretrained(folder)


def trained_parameters(scaffold: Scaffold) -> int:
    """Numbers that training moved."""
    return sum(weight.numel() for weight in scaffold.parameters())
