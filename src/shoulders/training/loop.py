"""The training loop, for any module with a loss, and its checkpoints."""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from shoulders.backbone.checkpointing import checkpointing
from shoulders.data.mixture import Counts, copy_counts
from shoulders.errors import CorruptFile, MemoryFull, TrainingDiverged, UsageError, first_line
from shoulders.store.files import atomic_folder, read_json, read_tensors, write_json, write_tensors
from shoulders.training.plan import TrainPlan

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"
RANDOM, RANDOM_THERE = "random", "random_there"  # of the CPU's generator, and of the accelerator's
SHARING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)  # also what trains


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run.

    Attributes:
        step: optimizer steps done.
        position: next example of the mixture.
        best_score, best_step: best development score so far, and its step; None before the first.
        scored_step, score: last step with a development score, and that score.
        counts: examples read and left out, by data set.
    """

    step: int = 0
    position: int = 0
    best_score: float | None = None
    best_step: int | None = None
    scored_step: int = 0
    score: float | None = None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer, progress: Progress, keep: int) -> Path:
    """Write the checkpoint `folder/step-N`, whole or not at all, and delete all but the newest `keep`.

    Raises:
        SaveFailed: the disk is full; older checkpoints are untouched.
    """
    target = folder / f"step-{progress.step:08d}"
    with atomic_folder(target, PROGRESS) as scratch:
        write_tensors(scratch / WEIGHTS, module.state_dict())
        write_tensors(scratch / OPTIMIZER, _flat(optimizer))
        write_json(scratch / PROGRESS, asdict(progress))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / PROGRESS).exists())


def steps_done(folder: Path) -> int:
    """Return the step of the newest checkpoint in a folder; 0 if there is none."""
    saved = checkpoints(folder)
    return int(saved[-1].name.removeprefix("step-")) if saved else 0


def load_checkpoint(path: Path, module: nn.Module, optimizer: Optimizer) -> Progress:
    """Restore module, optimizer and random state, and return the progress.

    Raises:
        CorruptFile: a file of the checkpoint is broken; the message says how to continue without it.
    """
    try:
        progress = Progress(**read_json(path / PROGRESS))
        weights, state = read_tensors(path / WEIGHTS), read_tensors(path / OPTIMIZER)
    except (CorruptFile, TypeError) as error:
        others = [other.name for other in checkpoints(path.parent) if other != path]
        way_out = f"delete {path} and --resume from {others[-1]}" if others else "train again"
        raise CorruptFile(f"the checkpoint cannot be read: {error}; or {way_out}") from error
    module.load_state_dict(weights)
    _unflatten(optimizer, state)
    return progress


def _flat(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return Adam's moments by parameter number, and the states of the random generators.

    An accelerator has a generator of its own, which dropout draws from there.
    """
    tensors: dict[str, Tensor] = {RANDOM: torch.get_rng_state()}
    if place := _accelerator(optimizer):
        tensors[RANDOM_THERE] = torch.get_device_module(place).get_rng_state(place)
    for number, state in optimizer.state_dict()["state"].items():
        tensors.update({f"{number}.{name}": torch.as_tensor(value) for name, value in state.items()})
    return tensors


def _unflatten(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors.pop(RANDOM))
    there, place = tensors.pop(RANDOM_THERE, None), _accelerator(optimizer)
    if there is not None and place is not None:
        torch.get_device_module(place).set_rng_state(there, place)
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _accelerator(optimizer: Optimizer) -> torch.device | None:
    """Return the device of the parameters if it has a random generator of its own, as CUDA devices have."""
    place = optimizer.param_groups[0]["params"][0].device
    return place if place.type in ("cuda", "xpu") else None


Part = TypeVar("Part")  # a micro-batch
PartOut = TypeVar("PartOut", covariant=True)


class StepExamples(Protocol[PartOut]):
    """The examples of one step, as this process sees them."""

    @property
    def parts(self) -> Sequence[PartOut]:
        """Micro-batches of this process."""
        ...

    @property
    def terms(self) -> int:
        """Number of loss terms of the step, over all micro-batches and processes."""
        ...

    @property
    def positions(self) -> int:
        """Number of positions that this process computes."""
        ...


class Source(Protocol[PartOut]):
    """A source of steps, in an order that depends on the position alone."""

    @property
    def position(self) -> int:
        """Number of the next example; set when a run is resumed."""
        ...

    @position.setter
    def position(self, value: int) -> None: ...

    @property
    def counts(self) -> Counts:
        """Examples read and left out so far, by data set."""
        ...

    def step(self) -> StepExamples[PartOut]:
        """Return the examples of the next step."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """The record of an optimizer step."""

    number: int
    loss: float  # mean over the loss terms of the step: its scored tokens, or its examples (`TrainPlan.average`)
    rate: float  # learning rate of the first group
    norm: float  # of the gradient, before clipping
    positions: int
    seconds: float
    score: float | None = None  # on the development set, at the steps that have one


LossOf = Callable[[nn.Module, Part], Tensor]  # the sum of a micro-batch's loss terms
OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks of the training loop.

    Attributes:
        on_step: called after every step.
        evaluate: returns the score on the development set; higher is better.
        on_best: called when a score is the best so far (checkpoint selection; the paper, section 2.2).
        before_step: called with the number of a step before its examples are read. What it changes must depend on the
            number and on what checkpoints hold alone.
    """

    on_step: OnStep = lambda _: None
    evaluate: Callable[[], float] | None = None
    on_best: Callable[[float, int], None] = lambda _score, _step: None
    before_step: Callable[[int], None] = lambda _: None


def fit(
    trained: nn.Module,
    loss_of: LossOf[Part],
    source: Source[Part],
    plan: TrainPlan,
    *,
    groups: list[dict[str, Any]] | None = None,
    folder: Path | None = None,
    hooks: Hooks | None = None,
    until: int | None = None,
) -> Progress:
    """Train a module, and return the progress.

    Args:
        trained: the module; its parameters are trained.
        loss_of: returns the summed loss of a micro-batch; the loop divides by the loss terms of the whole step, so that
            the gradient does not depend on the division into micro-batches and processes.
        source: of the examples of each step.
        groups: optimizer groups, if not all parameters have the learning rate of the plan.
        folder: of the checkpoints; training continues from the newest one.
        hooks: callbacks for progress, scores and the best score.
        until: pause after this step, with a checkpoint and a score; the score selects nothing unless it is due anyway,
            so that the run continues as if it had never paused.

    Raises:
        TrainingDiverged: the loss or its gradient is not finite; the last checkpoint is kept.
        MemoryFull: a step does not fit the device; the last checkpoint is kept.
        CorruptFile: the newest checkpoint cannot be read.
    """
    hooks = hooks or Hooks()
    accelerator = _processes(plan)
    optimizer = torch.optim.AdamW(
        groups or trained.parameters(), plan.learning_rate, plan.betas, plan.eps, plan.weight_decay
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    progress = _resume(folder, trained, optimizer)
    source.position = progress.position
    source.counts.update(copy_counts(progress.counts))
    module, stepper = accelerator.prepare(trained, optimizer)
    saving = folder if accelerator.is_main_process else None
    save = partial(_save, saving, accelerator.unwrap_model(module), optimizer, plan.keep)
    last = plan.steps if until is None else min(until, plan.steps)
    score = _Scoring(plan, hooks, last, main=accelerator.is_main_process)
    if score.missing(progress):
        progress = score.best(progress, progress.step, score.measured())
    for number in range(progress.step + 1, last + 1):
        begun = time.perf_counter()
        with _on_failure(partial(save, progress)):  # an unreadable line loses no step of the training
            hooks.before_step(number)
            examples = source.step()
        with checkpointing(plan.checkpointing), _full_memory(number):
            loss = _backward(accelerator, module, loss_of, examples)
        with _full_memory(number):
            norm = accelerator.clip_grad_norm_(_trains(optimizer, peaks), plan.clip or float("inf"))
        _check_finite(number, loss, norm, folder)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * plan.rate_factor(number - 1)
        with _full_memory(number):  # the first step makes the optimizer's own numbers
            stepper.step()
        stepper.zero_grad()
        rate, spent = optimizer.param_groups[0]["lr"], time.perf_counter() - begun
        done = Step(number, loss.item(), rate, float(norm or 0.0), examples.positions, spent)
        progress = replace(progress, step=number, position=source.position, counts=copy_counts(source.counts))
        with _on_failure(partial(save, progress), partial(hooks.on_step, done)):  # nor does a failed evaluation
            if score.due(number):
                measured = score.measured()
                done, progress = replace(done, score=measured), score.best(progress, number, measured)
        hooks.on_step(done)
        if _due(number, plan.save_every) or number == last:
            save(progress)
    return progress


def _processes(plan: TrainPlan) -> Accelerator:
    """Return what the processes of a run share their gradients by.

    Raises:
        UsageError: there are more processes than examples, or the launcher is to share what trains, too.
    """
    accelerator = Accelerator(device_placement=False)  # the module is already on the device of the frozen model
    if accelerator.distributed_type in SHARING:
        raise UsageError(
            f"the launcher was told to share the trained weights ({accelerator.distributed_type.value}), which are "
            "small and stay whole: start with --multi_gpu alone; backbone.parallel=fsdp shares the frozen ones"
        )
    if plan.batch_size < accelerator.num_processes:
        raise UsageError(
            f"training.batch_size is {plan.batch_size}: it must be at least the number of processes, "
            f"{accelerator.num_processes}"
        )
    return accelerator


@dataclass(frozen=True, slots=True)
class _Scoring:
    """The schedule of development scores, and the selection of the best."""

    plan: TrainPlan
    hooks: Hooks
    last: int  # the step that training ends or pauses at
    main: bool  # only the main process calls `on_best`

    def due(self, number: int) -> bool:
        return self.hooks.evaluate is not None and (self._chooses(number) or number == self.last)

    def _chooses(self, number: int) -> bool:
        return not number or _due(number, self.plan.evaluate_every) or number == self.plan.steps

    def missing(self, progress: Progress) -> bool:
        """Return whether a resumed run was interrupted during an evaluation, or a new one is to be scored first."""
        if not progress.step:
            return self.plan.score_start and self.hooks.evaluate is not None
        return self.due(progress.step) and progress.scored_step < progress.step

    def measured(self) -> float:
        assert self.hooks.evaluate is not None
        return self.hooks.evaluate()

    def best(self, progress: Progress, number: int, score: float) -> Progress:
        progress = replace(progress, scored_step=number, score=score)
        if not self._chooses(number) or (progress.best_score is not None and score <= progress.best_score):
            return progress
        if self.main:
            self.hooks.on_best(score, number)
        return replace(progress, best_score=score, best_step=number)


def _check_finite(number: int, loss: Tensor, norm: Tensor | None, folder: Path | None) -> None:
    """Raise `TrainingDiverged` for a loss or gradient that is not finite, before a step spoils the weights."""
    for what, value in (("loss", loss), ("norm of the gradient", norm)):
        if value is not None and not math.isfinite(value):
            raise TrainingDiverged(step=number, what=what, value=float(value), kept=_kept(folder))


def _save(
    folder: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, keep: int, progress: Progress
) -> None:
    if folder is not None and progress.step:
        save_checkpoint(folder, module, optimizer, progress, keep)


@contextmanager
def _on_failure(*then: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for act in then:
            act()
        raise


def _trains(optimizer: torch.optim.Optimizer, peaks: Sequence[float]) -> list[nn.Parameter]:
    """Return the parameters that train: those of a group whose rate is 0 have gradients, which clip nothing."""
    groups = zip(optimizer.param_groups, peaks, strict=True)
    return [parameter for group, peak in groups if peak for parameter in group["params"]]


@contextmanager
def _full_memory(number: int) -> Iterator[None]:
    """Raise `MemoryFull` where PyTorch finds no memory for a step."""
    try:
        yield
    except RuntimeError as error:
        # On a CPU, PyTorch has no exception of its own for it.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryFull(number, first_line(error)) from error
        raise


def _backward(accelerator: Accelerator, module: nn.Module, loss_of: LossOf[Part], step: StepExamples[Part]) -> Tensor:
    """Add up the gradients of the mean loss over micro-batches, and return the loss over all processes."""
    total = torch.zeros((), device=next(module.parameters()).device)
    for number, part in enumerate(step.parts, start=1):
        last = number == len(step.parts)
        with nullcontext() if last else accelerator.no_sync(module):
            loss = loss_of(module, part) / step.terms
            # Gradients of several processes are averaged; the loss is a sum over them.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return cast(Tensor, accelerator.reduce(total, "sum"))


def _resume(folder: Path | None, trained: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    saved = checkpoints(folder) if folder else []
    return load_checkpoint(saved[-1], trained, optimizer) if saved else Progress()


def _kept(folder: Path | None) -> str:
    saved = checkpoints(folder) if folder else []
    return f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint had been saved yet"


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
