"""Runs: training by a recipe into a folder (recipe, log, checkpoints, best scaffold), and their results."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import peak_memory
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.perplexity import Perplexity
from shoulders.evaluation.protocol import OnDone, Scores
from shoulders.evaluation.results import describe_scaffold, provenance, scores_as_json
from shoulders.evidence.base import Evidence
from shoulders.runs.build import (
    as_asked,
    describe_evidence,
    measure_demonstrations,
    measure_retrieval,
    new_evidence,
    new_scaffold,
    stored_spec,
)
from shoulders.runs.jobs import Job, job_of, tasks_of
from shoulders.runs.recipe import Recipe, read_recipe
from shoulders.scaffolds.base import Scaffold
from shoulders.store.files import BEST, RECIPE, write_json
from shoulders.training.log import RunLog, locked_log, read_log
from shoulders.training.loop import Hooks, OnStep, Progress, Step, fit, steps_done
from shoulders.training.plan import TrainPlan

CHECKPOINTS = "checkpoints"  # folder of the checkpoints in that of the run


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks for the progress of a run."""

    on_step: OnStep = lambda _: None
    on_done: OnDone = lambda _done, _all: None


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run.

    Attributes:
        recipe: of the run, as JSON.
        done: number of steps already done.
    """

    path: Path
    recipe: Mapping[str, Any]
    done: int

    @classmethod
    def opened(
        cls,
        path: Path,
        recipe: Mapping[str, Any],
        read: Callable[[Path], Mapping[str, Any]],
        *,
        resume: bool,
        part: str = "",
    ) -> "RunFolder":
        """Return the folder of a new or resumed run.

        Args:
            read: returns the recipe in a file of an earlier run as JSON.
            part: folder in `path`, for one of several runs.

        Raises:
            UsageError: the folder holds another run, or a run and `resume` is false.
        """
        inner = path / part
        done = steps_done(inner / CHECKPOINTS)
        if (inner / RECIPE).exists():
            if not resume:
                what = f"runs ({part} at step {done})" if part else f"a run at step {done}"
                raise UsageError(f"{path} holds {what}: go on with --resume, or name another --out")
            if _lasting(read(inner / RECIPE)) != _lasting(recipe):
                see = Path(part, RECIPE)
                raise UsageError(f"{path} holds a run of another recipe (see its {see}): name another --out")
        elif done:  # of `shoulders.train(out=)`, whose file has another name
            raise UsageError(f"{inner} holds checkpoints of another run, without a {RECIPE}: name another --out")
        return cls(inner, recipe, done)

    def fit(
        self,
        trained: nn.Module,
        job: Job,
        plan: TrainPlan,
        keep: Callable[[float, int], None],
        watch: Watch,
        groups: list[dict[str, Any]] | None = None,
        until: int | None = None,
    ) -> Progress:
        """Train the remaining steps, and return the progress.

        Args:
            keep: called with score and step when the score is the best so far.
            groups: optimizer groups (`training.loop.fit`).
            until: pause after this step (`training.loop.fit`).
        """
        processes = Accelerator(device_placement=False)
        processes.wait_for_everyone()  # all have looked into the folder before one writes into it
        with locked_log(self.path, self.done) if processes.is_main_process else nullcontext() as log:
            if log is not None:
                write_json(self.path / RECIPE, self.recipe)
            hooks = Hooks(_on_step(watch, log), job.score, keep, job.before_step)
            folder = self.path / CHECKPOINTS
            progress = fit(trained, job.loss, job.source, plan, groups=groups, folder=folder, hooks=hooks, until=until)
        processes.wait_for_everyone()
        return progress


def _lasting(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the recipe without `suite.skip_...`, which may change when a run that stopped is resumed."""
    suite = {key: value for key, value in recipe["suite"].items() if not key.startswith("skip_")}
    return {**recipe, "suite": suite}


def _on_step(watch: Watch, log: RunLog | None) -> OnStep:
    """Return the callback of a step: the main process logs and reports it."""

    def on_step(step: Step) -> None:
        if log is not None:
            log(step)
            watch.on_step(step)

    return on_step


def train(
    recipe: Recipe,
    lm: FrozenLM,
    folder: Path,
    *,
    tasks: Sequence[Task] | None = None,
    evidence: Evidence | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> tuple[Scaffold, Progress]:
    """Train the scaffold of a recipe into a folder of recipe, log, checkpoints and best scaffold.

    Args:
        tasks: to train and select on, if they are already loaded.
        evidence: of the recipe, if it is already built (`new_evidence`).
        resume: continue from the newest checkpoint in the folder.

    Returns:
        The scaffold with the best development score, and the progress of the run.

    Raises:
        UsageError: the folder holds another run, or a run and `resume` is false.
    """
    progress = train_until(recipe, lm, folder, None, tasks=tasks, evidence=evidence, resume=resume, watch=watch)
    return Scaffold.load(folder / BEST, lm), progress


def train_until(
    recipe: Recipe,
    lm: FrozenLM,
    folder: Path,
    until: int | None,
    *,
    tasks: Sequence[Task] | None = None,
    evidence: Evidence | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> Progress:
    """Train as `train` does, and pause after the step `until`; a resumed run continues as if there had been no pause.

    There may be no best scaffold yet; the state of the run is in its last checkpoint, its score in `Progress.score`.
    """
    recipe.check_trainable()
    recipe = as_asked(recipe, recipe.scaffold.start)
    run = run_folder(folder, recipe, resume=resume)
    tasks = tasks_of(recipe) if tasks is None else tasks
    scaffold = new_scaffold(recipe.scaffold, lm, recipe.training.seed, tasks)
    watch = watch or Watch()
    job = job_of(recipe, lm, scaffold, tasks, watch.on_done, evidence)
    answering = stored_spec(recipe).as_json()

    def keep(score: float, step: int) -> None:
        about = {"development": {"average": score, "step": step}}
        scaffold.made_for(lm, recipe.as_json(), about, answering).save_pretrained(folder / BEST)

    groups = scaffold.learning_rates(recipe.training.learning_rate, recipe.training.base_learning_rate)
    return run.fit(scaffold, job, recipe.training, keep, watch, groups, until)


def run_folder(path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
    """Return the folder of a run by a recipe (`RunFolder.opened`)."""
    return RunFolder.opened(path, recipe.as_json(), lambda kept: read_recipe(kept).as_json(), resume=resume)


def training_summary(folder: Path, lm: FrozenLM, progress: Progress) -> dict[str, Any]:
    """Return the cost of a finished training, and the counts of its examples, as JSON.

    Seconds are those of the steps, without evaluations; memory is the peak of the process that took the last step,
    including models, optimizer, evaluations and the writing of checkpoints.
    """
    steps = read_log(folder)
    total = {name: sum(step[name] for step in steps) for name in ("seconds", "positions")}
    cost = {"steps": len(steps), **total, "peak_bytes": peak_memory(lm.device)}
    return {"cost": cost, "trained_on": progress.counts}


def result(
    recipe: Recipe,
    lm: FrozenLM,
    scaffold: Scaffold,
    scores: Scores,
    name: str | None = None,
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """Return the content of `results.json`: scores with their provenance.

    Args:
        name: folder or hub repository of the scaffold; None for one that was not saved, and for the bare model.
        evidence: of the evaluation, if it is already built.
    """
    evidence = evidence or new_evidence(recipe, lm, scaffold.length)
    found = measure_retrieval(recipe, evidence, scores)
    fitted = measure_demonstrations(recipe, evidence, scores)
    numbers = {
        **scores_as_json(scores),
        "retrieval": found and found.as_json(),
        "demonstrations": fitted and asdict(fitted),
        "evidence": describe_evidence(recipe, lm, evidence),
    }
    return _with_origin(numbers, recipe, lm, scaffold, name)


def text_result(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, measured: Perplexity, name: str) -> dict[str, Any]:
    """Return the content of `results.json` for a run on text."""
    return _with_origin({**measured.as_json(), "evidence": None}, recipe, lm, scaffold, name)


def _with_origin(
    numbers: Mapping[str, Any], recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, name: str | None
) -> dict[str, Any]:
    return {
        **numbers,
        "trained": trained_parameters(scaffold),
        "scaffold": describe_scaffold(scaffold, name),
        **provenance(recipe.as_json(), lm),
    }


def save_test_scores(scaffold: Scaffold, lm: FrozenLM, folder: Path, split: str, scores: Scores) -> None:
    """Add test scores to the description of a saved scaffold, beside its development score."""
    origin = scaffold.origin
    assert origin is not None
    full = scores_as_json(scores)
    kept = {key: full[key] for key in ("average", "average_interval", "examples", "tasks", "unmeasured")}
    about = {**origin.scores, "test": {"split": split, **kept}}
    scaffold.made_for(lm, origin.recipe, about, origin.answering).save_pretrained(folder)


def trained_parameters(trained: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(weight.numel() for weight in trained.parameters())
