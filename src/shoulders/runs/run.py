"""A recipe from its first step to its measured scores, in a folder: recipe, log, checkpoints, the best so far."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from shoulders.evaluation.results import provenance, scaffold_measured, scores_as_json
from shoulders.evidence.base import Evidence
from shoulders.runs.build import answer_spec, evidence_measured, new_evidence, new_scaffold, retrieval_measured
from shoulders.runs.jobs import Job, job_of, tasks_of
from shoulders.runs.recipe import Recipe, read_recipe
from shoulders.scaffolds.base import Scaffold
from shoulders.store.files import BEST, RECIPE, write_json
from shoulders.training.log import RunLog, read_log
from shoulders.training.loop import Hooks, OnStep, Progress, Step, checkpoints, fit
from shoulders.training.plan import TrainPlan

CHECKPOINTS = "checkpoints"  # folder in a run's


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how a run goes."""

    on_step: OnStep = lambda _: None
    on_done: OnDone = lambda _done, _all: None


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run is kept.

    Attributes:
        recipe: of the run, as JSON.
        done: steps that are done already.
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
        """The folder of a new run, or of one that goes on.

        Args:
            read: a recipe as a run before left it, with the defaults of today.
            part: folder in `path`, of a run that is one of several.

        Raises:
            UsageError: it holds another run, or one that is not to be resumed.
        """
        inner = path / part
        saved = checkpoints(inner / CHECKPOINTS)
        done = int(saved[-1].name.removeprefix("step-")) if saved else 0
        if (inner / RECIPE).exists():
            if not resume:
                what = f"runs ({part} at step {done})" if part else f"a run at step {done}"
                raise UsageError(f"{path} holds {what}: go on with --resume, or name another --out")
            if _lasting(read(inner / RECIPE)) != _lasting(recipe):
                see = Path(part, RECIPE)
                raise UsageError(f"{path} holds a run of another recipe (see its {see}): name another --out")
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
        """Train what is left to train.

        Args:
            keep: is called with score and step when the score is the best so far.
            groups: optimizer groups, as `training.loop.fit` takes them.
            until: pause after this step (likewise).
        """
        processes = Accelerator(device_placement=False)
        processes.wait_for_everyone()  # all have looked into the folder before one writes into it
        if processes.is_main_process:
            write_json(self.path / RECIPE, self.recipe)
        with RunLog(self.path, self.done) if processes.is_main_process else nullcontext() as log:
            hooks = Hooks(_on_step(watch, log), job.score, keep)
            folder = self.path / CHECKPOINTS
            progress = fit(trained, job.loss, job.source, plan, groups=groups, folder=folder, hooks=hooks, until=until)
        processes.wait_for_everyone()
        return progress


def _lasting(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe without what says only whether a run stops: that may change when one goes on that was stopped."""
    suite = {key: value for key, value in recipe["suite"].items() if not key.startswith("skip_")}
    return {**recipe, "suite": suite}


def _on_step(watch: Watch, log: RunLog | None) -> OnStep:
    """Tell of a step; the log is the main process's."""

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
    """Train the recipe's scaffold; the run's folder holds recipe, log, checkpoints and the best scaffold.

    Args:
        tasks: to train and select on, if they are loaded already.
        evidence: likewise (`new_evidence`).
        resume: go on from the newest checkpoint in the folder.

    Returns:
        The scaffold of the best development score, and how far the run came.

    Raises:
        UsageError: the folder holds another run, or one that is not to be resumed.
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
    """As `train`, with a pause after the step `until`, from where a run that is resumed goes on as if there was none.

    There need not be a best scaffold yet; what the run stands at is in its last checkpoint, and `Progress.score`.
    """
    recipe.check_trainable()
    run = run_folder(folder, recipe, resume=resume)
    tasks = tasks_of(recipe) if tasks is None else tasks
    scaffold = new_scaffold(recipe.scaffold, lm, recipe.training.seed, tasks)
    watch = watch or Watch()
    job = job_of(recipe, lm, scaffold, tasks, watch.on_done, evidence)

    def keep(score: float, step: int) -> None:
        about = {"development": {"average": score, "step": step}}
        scaffold.made_for(lm, recipe.as_json(), about, answer_spec(recipe).as_json()).save_pretrained(folder / BEST)

    groups = scaffold.learning_rates(recipe.training.learning_rate, recipe.training.base_learning_rate)
    return run.fit(scaffold, job, recipe.training, keep, watch, groups, until)


def run_folder(path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
    """The folder of a recipe's run (`RunFolder.opened`)."""
    return RunFolder.opened(path, recipe.as_json(), lambda kept: read_recipe(kept).as_json(), resume=resume)


def training_told(folder: Path, lm: FrozenLM, progress: Progress) -> dict[str, Any]:
    """What the training in a run's folder took, and what became of the examples it read; told as soon as it is over.

    Seconds are those of the steps, without development scores; memory is that of the process that took the last step,
    at its highest: models, optimizer, scores and the writing of checkpoints.
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
    """Everything measured with where it comes from, as JSON: what `results.json` holds.

    Args:
        name: where the scaffold lies; None for one that was never saved, and for the bare model.
        evidence: that it was measured with, if it is at hand.
    """
    evidence = evidence or new_evidence(recipe, lm, scaffold.length)
    found = retrieval_measured(recipe, evidence, scores)
    numbers = {
        **scores_as_json(scores),
        "retrieval": found and found.as_json(),
        "evidence": evidence_measured(recipe, lm, evidence),
    }
    return _with_origin(numbers, recipe, lm, scaffold, name)


def text_result(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, measured: Perplexity, name: str) -> dict[str, Any]:
    """As `result`, for a run on text."""
    return _with_origin({**measured.as_json(), "evidence": None}, recipe, lm, scaffold, name)


def _with_origin(
    numbers: Mapping[str, Any], recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, name: str | None
) -> dict[str, Any]:
    return {
        **numbers,
        "trained": trained_parameters(scaffold),
        "scaffold": scaffold_measured(scaffold, name),
        **provenance(recipe.as_json(), lm),
    }


def keep_test_scores(scaffold: Scaffold, lm: FrozenLM, folder: Path, split: str, scores: Scores) -> None:
    """Note in a saved scaffold's configuration, beside its development score, what it reached in the end."""
    origin = scaffold.origin
    assert origin is not None
    full = scores_as_json(scores)
    kept = {key: full[key] for key in ("average", "average_interval", "examples", "tasks", "unmeasured")}
    about = {**origin.scores, "test": {"split": split, **kept}}
    scaffold.made_for(lm, origin.recipe, about, origin.answering).save_pretrained(folder)


def trained_parameters(trained: nn.Module) -> int:
    """Numbers that training moved."""
    return sum(weight.numel() for weight in trained.parameters())
