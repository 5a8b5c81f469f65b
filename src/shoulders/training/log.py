"""The log of a training run: JSON lines, and TensorBoard events where it is installed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from shoulders.errors import SaveFailed
from shoulders.store.files import lock_folder, save_failed
from shoulders.training.loop import Step

LOG, CURVES = "log.jsonl", "tensorboard"


class RunLog:
    """The log of a run: one line a step in `log.jsonl`, and the same curves for TensorBoard.

    Args:
        folder: of the run.
        resumed_at: steps done when training continues; later lines of an interrupted run are dropped.

    Raises:
        SaveFailed: the log or the curves cannot be written, when it is opened, written to or closed.
    """

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        self._log, self._events = folder / LOG, folder / CURVES
        with _writing(self._events):
            folder.mkdir(parents=True, exist_ok=True)
            self._curves = _tensorboard(self._events, resumed_at)
        with _writing(self._log):
            _keep(folder, resumed_at)
            self._lines = self._log.open("a", encoding="utf-8")

    def __call__(self, step: Step) -> None:
        """Write a step."""
        line = json.dumps({key: value for key, value in asdict(step).items() if value is not None}) + "\n"
        with _writing(self._log):
            self._lines.write(line)
            self._lines.flush()
        with _writing(self._events):
            if self._curves is not None:
                self._draw(step)

    def _draw(self, step: Step) -> None:
        for name in ("loss", "rate", "norm", "score"):
            if (value := getattr(step, name)) is not None:
                self._curves.add_scalar(f"train/{name}", value, step.number)
        self._curves.add_scalar("train/positions_per_second", step.positions / step.seconds, step.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, stopped_by: object, *_: object) -> None:
        try:
            with _writing(self._log):
                self._lines.close()
            with _writing(self._events):
                if self._curves is not None:
                    self._curves.close()
        except SaveFailed:
            if stopped_by is None:  # otherwise the error that stopped the run is reported
                raise


@contextmanager
def locked_log(folder: Path, resumed_at: int = 0) -> Iterator[RunLog]:
    """Open the log of a run that no other process writes meanwhile.

    Raises:
        UsageError: another process writes the run.
        SaveFailed: see `RunLog`.
    """
    with lock_folder(folder), RunLog(folder, resumed_at) as log:
        yield log


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a run, without a last line that was cut off when the run was killed."""
    path = folder / LOG
    if not path.exists():
        return []
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _keep(folder: Path, steps: int) -> None:
    """Drop logged steps beyond a number. The new log replaces the old one at once: a full disk loses nothing."""
    kept = [line for line in read_log(folder) if line["number"] <= steps]
    part = folder / f".{LOG}.part"
    try:
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(part, folder / LOG)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise save_failed(path, error) from error


def _tensorboard(events: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(events), purge_step=resumed_at + 1 if resumed_at else None)
