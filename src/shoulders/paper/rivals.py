"""Rivals of a scaffold (LoRA, prefix tuning, full fine-tuning): training, loading and measuring.

They are trained on the same examples, with the same loss and selection. Rivals that change weights train a copy of the
backbone.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from accelerate import PartialState
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.answering.models import RIVAL, LoadedModel, RivalInfo
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import OnDone, Scores
from shoulders.evidence.base import Evidence
from shoulders.records import ScaffoldInput
from shoulders.runs.build import new_evidence, stored_spec
from shoulders.runs.jobs import Job, job_of, measure, tasks_of
from shoulders.runs.recipe import Recipe, recipe_from_json
from shoulders.runs.run import Watch, result, run_folder, trained_parameters
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt, DeepPromptConfig
from shoulders.scaffolds.peft import FULL, LORA, PREFIX, add_lora, peft_library, write_adapter
from shoulders.scaffolds.storage import Origin
from shoulders.store.files import BEST, atomic_folder
from shoulders.training.loop import Progress
from shoulders.training.plan import RivalChoice


@dataclass(frozen=True, slots=True)
class Rival:
    """A rival in the form in which scaffolds are trained and measured.

    Attributes:
        lm: the adapted model, or the backbone itself if it does not change.
        scaffold: the scaffold that the model is used with.
        trained: the module whose parameters are trained.
        refresh: copies the trained parameters into `lm`; called before each use.
        write: writes the rival into a folder, in the format of the library that made it.
    """

    lm: FrozenLM
    scaffold: Scaffold
    trained: nn.Module
    refresh: Callable[[], None]
    write: Callable[[Path], None]


def new_rival(choice: RivalChoice, lm: FrozenLM, room: int, seed: int) -> Rival:
    """Return a rival at the start of its training; without a prefix it gives exactly the backbone's outputs.

    Args:
        lm: the backbone, of which a copy is trained.
        room: positions of the context left free for the prompt of the compared scaffold, or taken by a prefix.

    Raises:
        SourceNotFound: PEFT is needed, and is not installed.
        UsageError: the model cannot be adapted in this way, a prefix has no length, or several processes train a copy
            that is not in fp32.
    """
    if choice.kind not in (LORA, PREFIX, FULL):
        raise UsageError(f"{choice.kind} trains no causal model: shoulders train RECIPE --rival {choice.kind}")
    torch.manual_seed(seed)
    if choice.kind == PREFIX:
        return _prefix(lm, room, seed)
    if choice.kind == FULL and lm.quantized:
        raise UsageError(
            f"quantised weights ({lm.quantized}) get no gradients: leave backbone.quantize empty, or train --rival lora"
        )
    copy = lm.copied()
    if choice.kind == LORA:
        tuned = add_lora(copy, choice.rank, choice.alpha, choice.targets)
    else:
        tuned = copy.model.requires_grad_(True)
    trained = Weights(copy)

    def write(folder: Path) -> None:
        tuned.save_pretrained(str(folder))
        copy.tokenizer.save_pretrained(folder)

    return Rival(copy, Bare(room), trained, trained.refresh, write)


def _prefix(lm: FrozenLM, length: int, seed: int) -> Rival:
    """Return a deep prompt that starts at random, as PEFT's prefix tuning does; it is written in PEFT's format."""
    if length < 1:
        raise UsageError(
            "prefix tuning takes as many positions as the scaffold's prompt, which has 0: set scaffold.length"
        )
    scaffold = DeepPrompt.new(DeepPromptConfig(length=length, init="normal"), lm, seed=seed)
    return Rival(lm, scaffold, scaffold, lambda: None, lambda folder: write_adapter(scaffold, lm, folder))


@final
class Weights(nn.Module):
    """The trained weights of a model, in fp32.

    For a weight that the model holds in another type, a master copy is trained, and rounded into the model before use:
    so no update is lost because it is small beside its weight. Source: Micikevicius et al. 2018, section 3.1.
    """

    def __init__(self, lm: FrozenLM) -> None:
        super().__init__()
        held = [weight for weight in lm.model.parameters() if weight.requires_grad]
        self.weights = nn.ParameterList(
            weight if weight.dtype == torch.float32 else nn.Parameter(weight.detach().float()) for weight in held
        )
        self._rounded = [
            (master, weight) for master, weight in zip(self.weights, held, strict=True) if master is not weight
        ]
        if self._rounded and PartialState().num_processes > 1:
            raise UsageError("several processes fine-tune all weights in fp32 only: backbone.dtype=float32")
        for master, weight in self._rounded:
            weight.register_post_accumulate_grad_hook(_gradient_hook(master))

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the master copies into the model."""
        for master, weight in self._rounded:
            weight.copy_(master)

    def forward(self, lm: FrozenLM, given: ScaffoldInput) -> Float[Tensor, "B T D"]:
        """Return the states of the model itself; a module's `forward`, so that processes can share the training."""
        return lm.states(given.embeds, given.mask)


def _gradient_hook(master: nn.Parameter) -> Callable[[Tensor], None]:
    """Return a hook that adds the gradient of a rounded weight to that of its master copy."""

    def hand_over(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = weight.grad.float()
        master.grad = gradient if master.grad is None else master.grad + gradient
        weight.grad = None

    return hand_over


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
    """Train the recipe's rival on a copy of the backbone; the run's folder is like a scaffold's (`runs.run.train`).

    `best/` holds the rival with the best development score, as PEFT (LoRA) or transformers (all weights) saves it.

    Args:
        lm: the backbone.
        tasks, evidence: those of the recipe, as in `runs.run.train`.
        until: pause after this step (`runs.run.train_until`).

    Raises:
        UsageError: the folder holds another run, or a run and `resume` is not set; the rival does not fit the model.
    """
    recipe.check_trainable()
    run = run_folder(folder, recipe, resume=resume)
    tasks = tasks_of(recipe) if tasks is None else tasks
    rival = new_rival(recipe.rival, lm, recipe.scaffold.taken, recipe.training.seed)
    watch = watch or Watch()
    if tasks:  # candidates are sampled from the frozen model
        evidence = evidence or new_evidence(recipe, lm, rival.scaffold.length)
    job = _job(recipe, rival, tasks, watch.on_done, evidence)
    about = {"answering": stored_spec(recipe).as_json(), "quantized": lm.quantized}
    kept = Origin(lm.name, lm.fingerprint(), lm.width, recipe.as_json(), **about)

    def keep(score: float, step: int) -> None:
        scores = {"development": {"average": score, "step": step}}
        with atomic_folder(folder / BEST, RIVAL) as scratch:
            rival.write(scratch)
            origin = replace(kept, scores=scores)
            count = trained_parameters(rival.trained)
            RivalInfo(scratch, recipe.rival.kind, recipe.scaffold.taken, count, origin).write()

    return run.fit(rival.trained, job, recipe.rival.plan(recipe.training), keep, watch, until=until)


def _job(recipe: Recipe, rival: Rival, tasks: Sequence[Task], on_done: OnDone, evidence: Evidence | None) -> Job:
    """Return the recipe's job, with the model refreshed before each loss and each score."""
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
    """Measure a rival by a recipe's `test`; return scores and the content of `results.json`.

    Args:
        lm: the backbone that the rival was made from.
    """
    found = load_rival(info, recipe, lm)
    evidence = evidence or new_evidence(recipe, lm, found.scaffold.length)  # read with the frozen model, as in training
    scores = measure(recipe, found.lm, found.scaffold, recipe.test, tasks, on_done, evidence)
    content = result(recipe, lm, found.scaffold, scores, str(info.folder), evidence)
    return scores, {**content, **rival_measured(info, found)}


def load_rival(info: RivalInfo, recipe: Recipe, lm: FrozenLM) -> LoadedModel:
    """Load a rival, with the recipe's attention and with room in the context for the recipe's own prompt.

    Args:
        lm: the backbone that the rival was made from.

    Raises:
        WrongBackbone, CorruptFile: as `RivalInfo.load`.
    """
    return info.load(lm, recipe.scaffold.taken, recipe.backbone.attention)


def rival_measured(info: RivalInfo, found: LoadedModel) -> dict[str, Any]:
    """Return the description of a rival for a result, in place of a scaffold's."""
    recipe = recipe_from_json(info.origin.recipe)
    choice, name = recipe.rival, str(info.folder)
    rate = choice.plan(recipe.training).learning_rate
    library = {"peft": peft_library().__version__} if choice.kind == LORA else {}
    return {
        "trained": info.trained,
        "rival": {**asdict(choice), "learning_rate": rate, "versions": library},
        "scaffold": {"kind": choice.kind, "name": name, "fingerprint": found.fingerprint(), "encoder": None},
    }
