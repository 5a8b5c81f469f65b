"""Errors that a user can act on: each names the thing, the numbers involved and the way out.

All are subclasses of `UsageError`, which the command line prints as one line. Any other exception is a defect of the
library and keeps its traceback.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; of an empty message, the error's `repr`."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the known name that is most like a name, upper and lower case aside; None if none is like it.

    Args:
        cutoff: least similarity, from 0 to 1 (`difflib.get_close_matches`).
    """
    folded = {one.casefold(): one for one in sorted(known, reverse=True)}
    near = get_close_matches(name.casefold(), folded, n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


WANTED = {  # by the first word of pydantic's types of errors
    "bool": "yes or no",
    "dataclass": "a record",
    "dict": "a record",
    "finite": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "iterable": "a list",
    "list": "a list",
    "mapping": "a record",
    "model": "a record",
    "string": "a text",
    "tuple": "a list",
}
LIMITS = {  # by pydantic's names of what bounds a value; such an error is told by its bound
    "ge": "at least {}",
    "gt": "a number above {}",
    "le": "at most {}",
    "lt": "a number below {}",
    "min_length": "a length of at least {}",
    "max_length": "a length of at most {}",
    "expected": "{}",
}


def misfit(key: str, faults: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on a value that does not fit: its key, what is wanted and what was given.

    For example "training.steps takes a whole number, got 'three'".

    Args:
        key: of what was checked; "" for a record whose values have names of their own.
        faults: the errors of a pydantic `ValidationError`; those of the first value are told.
    """
    given, places = faults[0]["input"], faults[0]["loc"]
    alike = [one for one in faults if one["input"] is given]  # several, if a value may be of several types
    missing = faults[0]["type"] == "missing"
    if len(alike) > 1 and not missing:
        places = places[:-1]  # without the type
    key = ".".join([*[key] * bool(key), *(place for place in places if isinstance(place, str))])
    number = "".join(f" in place {place + 1}" for place in places if isinstance(place, int))
    if missing:
        return f"{key} lacks a value{number}"
    return f"{key or 'it'} takes {' or '.join(dict.fromkeys(map(_wanted, alike)))}{number}, got {given!r:.80}"


def _wanted(fault: Mapping[str, Any]) -> str:
    """Return what a value should have been, by pydantic's error."""
    for name, words in LIMITS.items():
        if name in fault.get("ctx", {}):
            return words.format(fault["ctx"][name])
    return WANTED.get(fault["type"].partition("_")[0], f"another value ({fault['msg']})")


class UsageError(Exception):
    """A request that cannot be fulfilled: the message says why, and what to do instead."""


class UnknownName(UsageError):
    """A name that is unknown: the message suggests the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = nearest(name, known)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"there is no {kind} {name!r}: {hint}")


class ContextFull(UsageError):
    """An input that is longer than the context window of the language model."""

    def __init__(self, what: str, *, wanted: int, room: int, way_out: str) -> None:
        super().__init__(f"{what} needs {wanted} positions, the model has room for {room}: {way_out}")


class QueueFull(UsageError):
    """A request to a scheduler whose queue is full: ask again later."""

    def __init__(self, size: int) -> None:
        super().__init__(f"all {size} places of the queue are taken: ask again later, or run a longer queue")


class PoolTooSmall(UsageError):
    """A request whose keys and values alone need more memory than a scheduler has for all."""

    def __init__(self, *, wanted: int, room: int) -> None:
        super().__init__(
            f"the request needs {wanted:,} bytes for keys and values, the pool has {room:,}: shorten it, ask for fewer "
            "or shorter answers, or run a larger pool"
        )


class Stopped(UsageError):
    """A request to a scheduler that has been stopped, or that was stopped before the request was answered."""


class RequestFailed(UsageError):
    """A request that failed because its scaffold did: it raised an exception, or its states are no numbers."""


class SourceNotFound(UsageError):
    """A model, data set or other source that does not exist where its name points."""


class HubUnreachable(UsageError):
    """A name that is not on this machine while the Hugging Face hub does not answer."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is no folder {name!r} on this machine, and the Hugging Face hub does not answer: check the name, "
            "connect to a network, or fetch it elsewhere (hf download) and name its folder here"
        )


class WrongBackbone(UsageError):
    """A scaffold that was trained for another language model."""


class TemplateFailed(UsageError):
    """A template that cannot be read, fails, or renders an unusable example."""


class DataError(UsageError):
    """A data set that is broken, empty, or does not fit its templates."""


class BadRow(DataError):
    """A broken record of a data set: the message names the file, the line and the fault."""


class CorruptFile(UsageError):
    """A file that is truncated, damaged, or of another format than expected."""


class SaveFailed(UsageError):
    """A file or folder that cannot be written; what was saved there before is kept."""


class MemoryFull(UsageError, MemoryError):
    """A training step that needs more memory than its device has."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(
            f"memory is full in step {step} ({reason}): lower training.positions_at_once (auto: as many as are planned "
            "to fit) or suite.lengths, or set training.checkpointing=true or backbone.quantize=nf4"
        )


class TrainingDiverged(UsageError):
    """A loss or gradient that is no longer a finite number."""

    def __init__(self, *, step: int, what: str, value: float, kept: str) -> None:
        super().__init__(
            f"the {what} is {value} at step {step}: training stopped, {kept}; lower the learning rate or clip gradients"
        )
