"""Steps of a run in its folder: recipe, log, checkpoints, the best so far; whatever it trains."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from shoulders.errors import UsageError
from shoulders.evaluation.protocol import OnDone
from shoulders.files import RECIPE, write_json
from shoulders.recipes.jobs import Job
from shoulders.training.checkpoint import Progress, checkpoints
from shoulders.training.log import RunLog
from shoulders.training.loop import Hooks, OnStep, Step, fit
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
