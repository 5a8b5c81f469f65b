"""Exact resume: everything a run needs to go on as if it had never stopped, in safetensors and JSON."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shoulders.errors import CorruptFile
from shoulders.files import read_json, read_tensors, whole_folder, write_json, write_tensors

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        position: next example of the mixture.
        best_score, best_step: of the development scores so far; None before the first.
        scored_step, score: the last step whose development score is known, and that score.
        counts: examples that were read, and left out of them, by data set.
    """

    step: int = 0
    position: int = 0
    best_score: float | None = None
    best_step: int | None = None
    scored_step: int = 0
    score: float | None = None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer, progress: Progress, keep: int) -> Path:
    """Write `folder/step-N` whole or not at all, then drop all but the newest `keep`.

    Raises:
        SaveFailed: the disk is full; older checkpoints are untouched.
    """
    target = folder / f"step-{progress.step:08d}"
    with whole_folder(target, PROGRESS) as scratch:
        write_tensors(scratch / WEIGHTS, module.state_dict())
        write_tensors(scratch / OPTIMIZER, _flat(optimizer))
        write_json(scratch / PROGRESS, asdict(progress))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / PROGRESS).exists())


def load_checkpoint(path: Path, module: nn.Module, optimizer: Optimizer) -> Progress:
    """Put module, optimizer and random state back to where they were.

    Raises:
        CorruptFile: a file of the checkpoint is broken; what it says how to go on without it.
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
    """Adam's moments by parameter number, and the state of the random generator."""
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors.update({f"{number}.{name}": torch.as_tensor(value) for name, value in state.items()})
    return tensors


def _unflatten(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors.pop("random"))
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
