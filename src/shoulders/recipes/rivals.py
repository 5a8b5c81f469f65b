"""A recipe's rival from its first step to its measured scores: the same examples, the same loss, the same selection."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shoulders.backbone.adapters import peft_library, read_adapter
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.evidence import Evidence
from shoulders.data.tasks import Task
from shoulders.errors import CorruptFile
from shoulders.evaluation.protocol import OnDone, Scores
from shoulders.files import read_json, recovered, whole_folder, write_json
from shoulders.recipes.build import load_backbone
from shoulders.recipes.evidence import new_evidence
from shoulders.recipes.folders import BEST
from shoulders.recipes.jobs import Job, job_of, measure, tasks_of
from shoulders.recipes.recipe import Recipe, recipe_from_json
from shoulders.recipes.run import result, run_folder
from shoulders.recipes.running import Watch
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.prefix_tuning import PrefixTuning
from shoulders.scaffolds.storage import Origin, versions
from shoulders.training.checkpoint import Progress
from shoulders.training.rivals import FULL, PREFIX, Rival, new_rival

RIVAL = "rival.json"


@dataclass(frozen=True, slots=True)
class StoredRival:
    """What is kept beside the weights of a rival.

    Attributes:
        folder: that holds it.
        origin: the backbone it was made from, its recipe, and its scores.
        trained: numbers that training moved.
    """

    folder: Path
    origin: Origin
    trained: int

    @property
    def recipe(self) -> Recipe:
        """What it was trained by."""
        return recipe_from_json(self.origin.recipe)


def rival_folder(name: str) -> Path | None:
    """The folder of a rival that a run's folder or its own names; None where it names something else."""
    for folder in (Path(name).expanduser(), recovered(Path(name).expanduser() / BEST)):
        if (folder / RIVAL).exists():
            return folder
    return None


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
    kept = Origin(lm.name, lm.fingerprint(), lm.width, recipe.as_json())

    def keep(score: float, step: int) -> None:
        scores = {"development": {"average": score, "step": step}}
        with whole_folder(folder / BEST, RIVAL) as scratch:
            rival.write(scratch)
            _note(scratch, replace(kept, scores=scores), _count(rival.trained))

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


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _note(folder: Path, origin: Origin, trained: int) -> None:
    write_json(folder / RIVAL, {"origin": asdict(origin), "trained": trained, "versions": versions()})


def read_rival(folder: Path) -> StoredRival:
    """What is kept of a rival beside its weights.

    Raises:
        CorruptFile: the file is broken.
    """
    content = read_json(folder / RIVAL)
    try:
        return StoredRival(folder, Origin(**content["origin"]), content["trained"])
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{folder / RIVAL} is not a rival's: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Adapted:
    """What answers: a model, and what it is read through. A trained rival is measured as such."""

    lm: FrozenLM
    scaffold: Scaffold

    def fingerprint(self) -> str:
        """Of what was trained: the weights of the model, where nothing stands around it."""
        return identity(self.lm.model if isinstance(self.scaffold, Bare) else self.scaffold)


def load_rival(stored: StoredRival, recipe: Recipe, lm: FrozenLM) -> Adapted:
    """What was trained, held as the recipe says, with the room beside it that the recipe's own prompt would take.

    Args:
        lm: the backbone that it was made from; its weights stay as they are.

    Raises:
        WrongBackbone: it was not.
        CorruptFile: the weights cannot be read.
    """
    stored.origin.check(lm)
    bare, kind = Bare(recipe.scaffold.taken), stored.recipe.rival.kind
    if kind == FULL:
        return Adapted(load_backbone(replace(recipe.backbone, name=str(stored.folder))), bare)
    if kind == PREFIX:
        return Adapted(lm, PrefixTuning(read_adapter(lm, stored.folder)).to(lm.device))
    copy = lm.copied()
    read_adapter(copy, stored.folder)
    return Adapted(copy, bare)


def measure_rival(
    stored: StoredRival,
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
    found = load_rival(stored, recipe, lm)
    evidence = evidence or new_evidence(recipe, lm, found.scaffold.length)  # the frozen model's, as in training
    scores = measure(recipe, found.lm, found.scaffold, recipe.test, tasks, on_done, evidence)
    content = result(recipe, lm, found.scaffold, scores, str(stored.folder), evidence)
    return scores, {**content, **rival_measured(stored, found)}


def rival_measured(stored: StoredRival, found: Adapted) -> dict[str, Any]:
    """What a result says of a rival in the place of a scaffold."""
    choice, name = stored.recipe.rival, str(stored.folder)
    rate = choice.plan(stored.recipe.training).learning_rate
    library = {} if choice.kind == FULL else {"peft": peft_library().__version__}
    return {
        "trained": stored.trained,
        "rival": {**asdict(choice), "learning_rate": rate, "versions": library},
        "scaffold": {"kind": choice.kind, "name": name, "fingerprint": found.fingerprint(), "encoder": None},
    }
