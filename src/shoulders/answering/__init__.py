"""Asking questions: `open` returns the answerer of a name. No recipe and no training code is needed."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from shoulders.answering.answerer import Answerer, ModelAnswerer
from shoulders.answering.cascade import CascadeAnswerer
from shoulders.answering.models import model_info
from shoulders.answering.stages import is_cascade, read
from shoulders.backbone.chat import check_chat
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UsageError

__all__ = ["Answerer", "CascadeAnswerer", "ModelAnswerer", "open"]


@runtime_checkable
class HasFolder(Protocol):
    """An open `Index`, known by its folder: asking without passages needs no search library."""

    folder: Path


def open(
    name: str | Path,
    *,
    lm: FrozenLM | None = None,
    backbone: str | None = None,
    index: str | Path | HasFolder = "",
    longest: int | None = None,
    truncate: bool = False,
    chat: bool | str | None = None,
) -> Answerer:
    """Return the answerer of a name: "bare", a scaffold, a reader, a rival, or a cascade.

    >>> shoulders.open("runs/first").ask("Capital of France?").text  # doctest: +SKIP

    Args:
        name: folder of a run, a scaffold, a rival or a cascade (`shoulders calibrate`), or a repository on the hub.
        lm: the frozen model, if it is already loaded.
        backbone: name of the frozen model, if not the one recorded with the scaffold; required for "bare".
        index: passages to read, an `Index` or its folder; empty: the index of the training, if any.
        longest: maximum length of an answer in tokens; None: the length it was measured with, or 64.
        truncate: cut questions that do not fit the context instead of refusing them.
        chat: ask through the tokenizer's chat template (True, or a system text), or as plain text (False); None: as it
            was trained, and the bare model as plain text.

    Raises:
        UsageError: no backbone is named, an argument is of another kind, or the name stands for something that answers
            no questions.
        SourceNotFound, HubUnreachable, CorruptFile, WrongBackbone: it cannot be loaded.
    """
    _check_kinds(name, lm, longest)
    name = str(name)
    index = str(index.folder if isinstance(index, HasFolder) else index)
    if is_cascade(name):
        if index:
            raise UsageError(
                f"--index goes with one scaffold, and {name} is several: name a run (shoulders ask RUN --index)"
            )
        if chat is not None:
            raise UsageError(f"chat goes with one scaffold, and {name} is several, each asked as it was trained")
        stored = read(Path(name))
        lm = lm or FrozenLM.load(backbone or stored.backbone)
        return CascadeAnswerer.load(stored, lm, longest, truncate=truncate)
    info = model_info(name)
    spec = info.spec.with_options(index, longest).in_chat(chat)
    lm = lm or FrozenLM.load(backbone or info.backbone)
    check_chat(spec.chat, lm)
    return ModelAnswerer.load(info, lm, spec, truncate=truncate).with_threshold_of(info.name)


def _check_kinds(name: object, lm: object, longest: object) -> None:
    """Raise `UsageError` for an argument of another kind, such as a scaffold in the place of its name."""
    if not isinstance(name, str | Path) or not str(name).strip():
        got = repr(name) if isinstance(name, str) or name is None else f"a {type(name).__name__}"
        raise UsageError(f"what is opened is named by a folder, a hub repository or 'bare', got {got}: name one")
    if not isinstance(lm, FrozenLM | None):
        raise UsageError(f"lm is a {type(lm).__name__}: give a FrozenLM (lm=), or the name of a model (backbone=)")
    if not isinstance(longest, int | None):
        raise UsageError(f"longest is {longest!r}: give a whole number of tokens")
