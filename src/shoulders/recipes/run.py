"""A recipe from its first step to its measured scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import EvaluationPlan, OnDone, Scores, evaluate
from shoulders.evaluation.provenance import provenance
from shoulders.evaluation.results import scores_as_json
from shoulders.files import write_json
from shoulders.recipes.build import example_source, load_tasks, new_scaffold
from shoulders.recipes.recipe import Recipe, read_recipe
from shoulders.scaffolds.base import Scaffold
from shoulders.training.checkpoint import Progress, checkpoints
from shoulders.training.log import RunLog
from shoulders.training.loop import Hooks, OnStep, Step, fit
from shoulders.training.scaffolds import scaffold_loss

RECIPE, CHECKPOINTS, BEST = "recipe.json", "checkpoints", "best"


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
    watch = watch or Watch()
    done = _prepare(folder, recipe, resume=resume)
    tasks = load_tasks(recipe.suite) if tasks is None else tasks
    scaffold = new_scaffold(recipe.scaffold, lm, recipe.training.seed, tasks)
    source = example_source(recipe, tasks, lm, scaffold)

    def development() -> float:
        scores = evaluate(
            tasks, lm, scaffold, recipe.development, without=recipe.suite.without_templates, on_done=watch.on_done
        )
        return scores.average

    def keep(score: float, step: int) -> None:
        about = {"development": {"average": score, "step": step}}
        scaffold.made_for(lm, recipe.as_json(), about).save_pretrained(folder / BEST)

    with RunLog(folder, done) as log:

        def on_step(step: Step) -> None:
            if PartialState().is_main_process:
                log(step)
                watch.on_step(step)

        hooks = Hooks(on_step, development, keep)
        progress = fit(
            scaffold,
            scaffold_loss(lm, scaffold),
            source,
            recipe.training,
            groups=scaffold.learning_rates(recipe.training.learning_rate, recipe.training.base_learning_rate),
            folder=folder / CHECKPOINTS,
            hooks=hooks,
        )
    PartialState().wait_for_everyone()
    return Scaffold.load(folder / BEST, lm), progress


def _prepare(folder: Path, recipe: Recipe, *, resume: bool) -> int:
    """The steps that are done already in this folder."""
    saved = checkpoints(folder / CHECKPOINTS)
    done = int(saved[-1].name.removeprefix("step-")) if saved else 0
    if (folder / RECIPE).exists():
        if not resume:
            raise UsageError(f"{folder} holds a run at step {done}: go on with --resume, or name another --out")
        if read_recipe(folder / RECIPE).as_json() != recipe.as_json():
            raise UsageError(f"{folder} holds a run of another recipe (see its {RECIPE}): name another --out")
    write_json(folder / RECIPE, recipe.as_json())
    return done


def measure(
    recipe: Recipe,
    lm: FrozenLM,
    scaffold: Scaffold,
    plan: EvaluationPlan,
    tasks: Sequence[Task] | None = None,
    on_done: OnDone = lambda _done, _all: None,
) -> Scores:
    """Scores of a scaffold on the recipe's suite."""
    tasks = load_tasks(recipe.suite) if tasks is None else tasks
    return evaluate(tasks, lm, scaffold, plan, without=recipe.suite.without_templates, on_done=on_done)


def result(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, scores: Scores) -> dict[str, Any]:
    """Everything measured with where it comes from, as JSON: what `results.json` holds."""
    return {**scores_as_json(scores), "trained": trained_parameters(scaffold), **provenance(recipe.as_json(), lm)}


def trained_parameters(scaffold: Scaffold) -> int:
    """Numbers that training moved."""
    return sum(weight.numel() for weight in scaffold.parameters())
