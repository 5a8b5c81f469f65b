"""What a run writes down while it trains: JSON lines always, TensorBoard where it is installed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from shoulders.errors import SaveFailed
from shoulders.store.files import save_failed
from shoulders.training.loop import Step

LOG, CURVES = "log.jsonl", "tensorboard"


class RunLog:
    """One line a step in `log.jsonl`; the same curves for TensorBoard.

    Args:
        folder: of the run.
        resumed_at: steps done when training goes on; what an interrupted run logged beyond them is dropped.

    Raises:
        SaveFailed: on making it, on a step, or on leaving it: the log or the curves cannot be written.
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
        """Write a step down."""
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
            if stopped_by is None:  # else what stopped the run is what is told
                raise


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The steps of a run so far; a last line that was cut off by a kill is left out."""
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
    """Drop what is logged beyond so many steps. Written beside the log: a full disk leaves the old one."""
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
