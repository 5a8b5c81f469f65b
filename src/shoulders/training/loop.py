"""The one visible training loop: scaffolds now; anything with parameters and a loss."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shoulders.data.counts import Counts, copied
from shoulders.errors import TrainingDiverged, UsageError
from shoulders.training.checkpoint import Progress, checkpoints, load_checkpoint, save_checkpoint
from shoulders.training.plan import TrainPlan

Part = TypeVar("Part")  # a micro-batch
PartOut = TypeVar("PartOut", covariant=True)


class Portion(Protocol[PartOut]):
    """What one step trains on, as this process sees it."""

    @property
    def parts(self) -> Sequence[PartOut]:
        """This process's micro-batches."""
        ...

    @property
    def terms(self) -> int:
        """Loss terms of the whole step, over all micro-batches and processes."""
        ...

    @property
    def positions(self) -> int:
        """Positions that this process computes: the unit of cost."""
        ...


class Source(Protocol[PartOut]):
    """Where steps come from, in an order that depends on the position alone."""

    @property
    def position(self) -> int:
        """The next example; set when a run is resumed."""
        ...

    @position.setter
    def position(self, value: int) -> None: ...

    @property
    def counts(self) -> Counts:
        """Examples read and left out so far, by data set."""
        ...

    def step(self) -> Portion[PartOut]:
        """The next step's examples."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What is known after an optimizer step."""

    number: int
    loss: float  # mean over the scored tokens of the step
    rate: float  # learning rate of the first group
    norm: float  # of the gradient, before clipping
    positions: int
    seconds: float
    score: float | None = None  # on the development set, at the steps that have one


LossOf = Callable[[nn.Module, Part], Tensor]  # the sum of a micro-batch's loss terms
OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What happens beside the steps.

    Attributes:
        on_step: is told of every step.
        evaluate: the score on the development set, higher is better.
        on_best: is called when the score is the best so far (checkpoint selection; the paper, section 2.2).
    """

    on_step: OnStep = lambda _: None
    evaluate: Callable[[], float] | None = None
    on_best: Callable[[float, int], None] = lambda _score, _step: None


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
    """Train a module.

    Args:
        trained: its parameters are what moves.
        loss_of: the sum of the losses of a micro-batch; the loop divides by the terms of the whole step, so that any
            division into micro-batches and processes has the same gradient.
        source: the steps' examples.
        groups: optimizer groups, if not all parameters have the plan's rate.
        folder: where checkpoints go; training goes on from the newest one there.
        hooks: progress, scores, keeping the best.
        until: pause after this step, with a checkpoint, and a score that chooses nothing unless it is due anyway: the
            run goes on from there as if it had never paused.

    Raises:
        TrainingDiverged: the loss or its gradient is not finite; the last checkpoint is kept.
        CorruptFile: the newest checkpoint cannot be read.
    """
    hooks = hooks or Hooks()
    accelerator = Accelerator(device_placement=False)  # what trains is where the frozen model is already
    if plan.batch_size < accelerator.num_processes:
        raise UsageError(f"training.batch_size {plan.batch_size} is below the {accelerator.num_processes} processes")
    optimizer = torch.optim.AdamW(
        groups or trained.parameters(), plan.learning_rate, plan.betas, plan.eps, plan.weight_decay
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    progress = _resume(folder, trained, optimizer)
    source.position = progress.position
    source.counts.update(copied(progress.counts))
    module, stepper = accelerator.prepare(trained, optimizer)
    saving = folder if accelerator.is_main_process else None
    save = partial(_save, saving, accelerator.unwrap_model(module), optimizer, plan.keep)
    last = plan.steps if until is None else min(until, plan.steps)
    score = _Scoring(plan, hooks, last, main=accelerator.is_main_process)
    if score.missing(progress):
        progress = score.best(progress, progress.step, score.measured())
    for number in range(progress.step + 1, last + 1):
        begun = time.perf_counter()
        with _on_failure(partial(save, progress)):  # a line that cannot be read costs no step of the training
            portion = source.step()
        loss = _backward(accelerator, module, loss_of, portion)
        norm = accelerator.clip_grad_norm_(module.parameters(), plan.clip or float("inf"))
        _check_finite(number, loss, norm, folder)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * plan.rate_factor(number - 1)
        stepper.step()
        stepper.zero_grad()
        rate, spent = optimizer.param_groups[0]["lr"], time.perf_counter() - begun
        done = Step(number, loss.item(), rate, float(norm or 0.0), portion.positions, spent)
        progress = replace(progress, step=number, position=source.position, counts=copied(source.counts))
        with _on_failure(partial(save, progress), partial(hooks.on_step, done)):  # nor does a score that fails
            if score.due(number):
                measured = score.measured()
                done, progress = replace(done, score=measured), score.best(progress, number, measured)
        hooks.on_step(done)
        if _due(number, plan.save_every) or number == last:
            save(progress)
    return progress


@dataclass(frozen=True, slots=True)
class _Scoring:
    """When the development set is scored, and what follows from a score."""

    plan: TrainPlan
    hooks: Hooks
    last: int  # the step that training ends or pauses at
    main: bool  # this process tells others of the best

    def due(self, number: int) -> bool:
        return self.hooks.evaluate is not None and (self._chooses(number) or number == self.last)

    def _chooses(self, number: int) -> bool:
        return _due(number, self.plan.evaluate_every) or number == self.plan.steps

    def missing(self, progress: Progress) -> bool:
        """Whether a run that goes on stopped in the middle of a score."""
        return progress.step > 0 and self.due(progress.step) and progress.scored_step < progress.step

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
    """Stop before a step that would spoil the weights; a finite loss can have a gradient that is not."""
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


def _backward(accelerator: Accelerator, module: nn.Module, loss_of: LossOf[Part], portion: Portion[Part]) -> Tensor:
    """Gradients of the step's mean loss, micro-batch by micro-batch; returns the loss, over all processes."""
    total = torch.zeros((), device=next(module.parameters()).device)
    for number, part in enumerate(portion.parts, start=1):
        last = number == len(portion.parts)
        with nullcontext() if last else accelerator.no_sync(module):
            loss = loss_of(module, part) / portion.terms
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
