"""A recipe's rival from its first step to its measured scores: the same examples, the same loss, the same selection."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shoulders.answering.models import RIVAL, LoadedModel, RivalInfo
from shoulders.backbone.adapters import peft_library
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.evidence import Evidence
from shoulders.data.tasks import Task
from shoulders.evaluation.protocol import OnDone, Scores
from shoulders.files import BEST, whole_folder
from shoulders.recipes.evidence import answer_spec, new_evidence
from shoulders.recipes.jobs import Job, job_of, measure, tasks_of
from shoulders.recipes.recipe import Recipe, recipe_from_json
from shoulders.recipes.run import result, run_folder, trained_parameters
from shoulders.recipes.running import Watch
from shoulders.scaffolds.storage import Origin
from shoulders.training.checkpoint import Progress
from shoulders.training.rivals import FULL, Rival, new_rival


def train_rival(
    recipe: Recipe,
    lm: FrozenLM,
    folder: Path,
    *,
    tasks: Sequence[Task] | None = None,
    evidence: Evidence | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    until: int | None = None,
) -> Progress:
    """Train the recipe's rival on a copy of the backbone; the run's folder is like a scaffold's (`recipes.run.train`).

    `best/` holds the rival of the best development score, as PEFT (LoRA) or transformers (all weights) saves it.

    Args:
        lm: the backbone.
        tasks, evidence: of the recipe, as `recipes.run.train` takes them.
        until: pause after this step (`recipes.run.train_until`).

    Raises:
        UsageError: the folder holds another run, or one that is not to be resumed; the rival does not fit the model.
    """
    recipe.check_trainable()
    run = run_folder(folder, recipe, resume=resume)
    tasks = tasks_of(recipe) if tasks is None else tasks
    rival = new_rival(recipe.rival, lm, recipe.scaffold.taken, recipe.training.seed)
    watch = watch or Watch()
    if tasks:  # candidates are the frozen model's
        evidence = evidence or new_evidence(recipe, lm, rival.scaffold.length)
    job = _job(recipe, rival, tasks, watch.on_done, evidence)
    answering = answer_spec(recipe).as_json()
    kept = Origin(lm.name, lm.fingerprint(), lm.width, recipe.as_json(), answering=answering)

    def keep(score: float, step: int) -> None:
        scores = {"development": {"average": score, "step": step}}
        with whole_folder(folder / BEST, RIVAL) as scratch:
            rival.write(scratch)
            origin = replace(kept, scores=scores)
            count = trained_parameters(rival.trained)
            RivalInfo(scratch, recipe.rival.kind, recipe.scaffold.taken, count, origin).write()

    return run.fit(rival.trained, job, recipe.rival.plan(recipe.training), keep, watch, until=until)


def _job(recipe: Recipe, rival: Rival, tasks: Sequence[Task], on_done: OnDone, evidence: Evidence | None) -> Job:
    """The recipe's own job, with the model brought up to date before each loss and each score."""
    job = job_of(recipe, rival.lm, rival.scaffold, tasks, on_done, evidence)

    def loss(module: nn.Module, part: Any) -> Tensor:
        rival.refresh()
        return job.loss(module, part)

    def score() -> float:
        rival.refresh()
        return job.score()

    return Job(job.source, loss, score)


def measure_rival(
    info: RivalInfo,
    recipe: Recipe,
    lm: FrozenLM,
    tasks: Sequence[Task],
    on_done: OnDone,
    evidence: Evidence | None = None,
) -> tuple[Scores, dict[str, Any]]:
    """Scores of a rival by a recipe's `test`, and all that `results.json` holds of them.

    Args:
        lm: the backbone that it was made from.
    """
    found = load_rival(info, recipe, lm)
    evidence = evidence or new_evidence(recipe, lm, found.scaffold.length)  # the frozen model's, as in training
    scores = measure(recipe, found.lm, found.scaffold, recipe.test, tasks, on_done, evidence)
    content = result(recipe, lm, found.scaffold, scores, str(info.folder), evidence)
    return scores, {**content, **rival_measured(info, found)}


def load_rival(info: RivalInfo, recipe: Recipe, lm: FrozenLM) -> LoadedModel:
    """Return what was trained, held as a recipe says, beside the room that the recipe's own prompt would take.

    Args:
        lm: the backbone that it was made from.

    Raises:
        WrongBackbone, CorruptFile: as `RivalInfo.load`.
    """
    return info.load(lm, recipe.scaffold.taken, recipe.backbone.attention)


def rival_measured(info: RivalInfo, found: LoadedModel) -> dict[str, Any]:
    """What a result says of a rival in the place of a scaffold."""
    recipe = recipe_from_json(info.origin.recipe)
    choice, name = recipe.rival, str(info.folder)
    rate = choice.plan(recipe.training).learning_rate
    library = {} if choice.kind == FULL else {"peft": peft_library().__version__}
    return {
        "trained": info.trained,
        "rival": {**asdict(choice), "learning_rate": rate, "versions": library},
        "scaffold": {"kind": choice.kind, "name": name, "fingerprint": found.fingerprint(), "encoder": None},
    }
