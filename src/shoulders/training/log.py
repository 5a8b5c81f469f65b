"""What a run writes down while it trains: JSON lines always, TensorBoard where it is installed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from shoulders.training.loop import Step

LOG = "log.jsonl"


class RunLog:
    """One line a step in `log.jsonl`; the same curves for TensorBoard.

    Args:
        folder: of the run.
        resumed_at: steps done when training goes on; what an interrupted run logged beyond them is dropped.
    """

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG
        kept = [line for line in read_log(folder) if line["number"] <= resumed_at]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._lines = path.open("a", encoding="utf-8")
        self._curves = _tensorboard(folder, resumed_at)

    def __call__(self, step: Step) -> None:
        """Write a step down."""
        self._lines.write(json.dumps({key: value for key, value in asdict(step).items() if value is not None}) + "\n")
        self._lines.flush()
        if self._curves is not None:
            for name in ("loss", "rate", "norm", "score"):
                if (value := getattr(step, name)) is not None:
                    self._curves.add_scalar(f"train/{name}", value, step.number)
            self._curves.add_scalar("train/positions_per_second", step.positions / step.seconds, step.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        if self._curves is not None:
            self._curves.close()


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


def _tensorboard(folder: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None)
