"""Errors a user can act on: each names the thing, the numbers involved and the way out.

The command line prints them as one line; everything that is not a `UsageError` is a defect of ours and keeps its trace.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def first_line(error: BaseException) -> str:
    """What an error of a library says, as far as it fits into one line of ours."""
    return (str(error).strip() or repr(error)).splitlines()[0]


class UsageError(Exception):
    """What was asked for cannot be done; the message says why and what would work."""


class UnknownName(UsageError):
    """A name that is not among the known ones; the message suggests the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"there is no {kind} {name!r}: {hint}")


class ContextFull(UsageError):
    """An input that does not fit into the language model's context window."""

    def __init__(self, what: str, *, wanted: int, room: int, way_out: str) -> None:
        super().__init__(f"{what} needs {wanted} positions, the model has room for {room}: {way_out}")


class SourceNotFound(UsageError):
    """A model, data set or scaffold that is not where its name points."""


class HubUnreachable(UsageError):
    """The Hugging Face hub did not answer."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} is not on this machine and the Hugging Face hub does not answer: connect to a network, or fetch "
            "it elsewhere (hf download) and name its folder here"
        )


class WrongBackbone(UsageError):
    """A scaffold that was trained for another language model."""


class TemplateFailed(UsageError):
    """A template that cannot be read, fails, or renders something unusable for an example."""


class DataError(UsageError):
    """A data set that is broken, empty or does not fit its templates."""


class BadRow(DataError):
    """A broken line of a data set's file; the message says file, line and what is wrong."""


class CorruptFile(UsageError):
    """A file that is truncated or is not what its name says."""


class SaveFailed(UsageError):
    """Nothing could be written; whatever was saved before is still there."""


class TrainingDiverged(UsageError):
    """The loss or its gradient stopped being a finite number."""

    def __init__(self, *, step: int, what: str, value: float, kept: str) -> None:
        super().__init__(
            f"the {what} is {value} at step {step}: training stopped, {kept}; lower the learning rate or clip gradients"
        )
