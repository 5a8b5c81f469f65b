"""Asking: one door to whatever answers. It needs no recipe, and nothing that trains."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from shoulders.answering.answerer import Answerer, ModelAnswerer
from shoulders.answering.cascade import CascadeAnswerer
from shoulders.answering.models import model_info
from shoulders.answering.stages import is_adaptive, read
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UsageError

__all__ = ["Answerer", "CascadeAnswerer", "ModelAnswerer", "open"]


@runtime_checkable
class HasFolder(Protocol):
    """An open `Index`; asking without passages needs no library that searches."""

    folder: Path


def open(
    name: str | Path,
    *,
    lm: FrozenLM | None = None,
    backbone: str | None = None,
    index: str | Path | HasFolder = "",
    longest: int | None = None,
    truncate: bool = False,
) -> Answerer:
    """Return what answers under a name: "bare", a scaffold, a reader, a rival, or a cascade.

    >>> shoulders.open("runs/first").ask("Capital of France?").text  # doctest: +SKIP

    Args:
        name: of a run's folder, a scaffold's or rival's own, one that `shoulders calibrate` wrote, or on the hub.
        lm: the frozen model, if it is loaded already.
        backbone: where it is, if not where the scaffold says; the bare model names none of its own.
        index: passages to read, an `Index` or its folder; empty: those that it was trained with, if any.
        longest: tokens of an answer at most; None: as many as it was measured with, 64 where nobody said.
        truncate: cut questions that do not fit the context instead of refusing them.

    Raises:
        UsageError: no backbone is named, or the name is that of something that answers nothing.
        SourceNotFound, HubUnreachable, CorruptFile, WrongBackbone: it cannot be loaded.
    """
    name = str(name)
    index = str(index.folder if isinstance(index, HasFolder) else index)
    if is_adaptive(name):
        if index:
            raise UsageError(
                f"--index goes with one scaffold, and {name} is several: name a run (shoulders ask RUN --index)"
            )
        stored = read(Path(name))
        lm = lm or FrozenLM.load(backbone or stored.backbone)
        return CascadeAnswerer.load(stored, lm, longest, truncate=truncate)
    info = model_info(name)
    spec = info.spec.with_options(index, longest)
    lm = lm or FrozenLM.load(backbone or info.backbone)
    return ModelAnswerer.load(info, lm, spec, truncate=truncate).with_threshold_of(info.name)
