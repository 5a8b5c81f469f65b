"""Registries of scaffolds, evidence sources, metrics and recipes by name, built in or from other packages.

Another package adds one by an entry point in its `pyproject.toml`:

    [project.entry-points."shoulders.scaffolds"]
    my_prompt = "my_package.prompts:MyPrompt"

The entry point groups are `shoulders.scaffolds`, `shoulders.evidence`, `shoulders.metrics` and `shoulders.recipes`.
"""

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, final

from shoulders.errors import UnknownName, UsageError, first_line

Member = TypeVar("Member")


@final
class Registry(Generic[Member]):
    """Classes or functions of one kind by name, each imported when it is first looked up.

    Args:
        group: entry point group that other packages use.
        what: word for a member in messages, e.g. "kind of scaffold".
        built_in: "module:name" of each built-in member. Other packages cannot replace these.
        fault: returns why a member from another package cannot be used, e.g. "is no scaffold"; "" if it can.
    """

    def __init__(self, group: str, what: str, built_in: Mapping[str, str], fault: Callable[[str, Any], str]) -> None:
        self.what, self._group, self._fault = what, group, fault
        self.built_in = {name: EntryPoint(name, place, group) for name, place in built_in.items()}
        self._known: dict[str, Member] = {}

    def add(self, name: str, member: Member) -> None:
        """Register a member that is defined in this process, for example in a notebook."""
        self._known[name] = member

    def names(self) -> list[str]:
        """Return all names, sorted, without importing anything."""
        others = (point.name for point in _installed(self._group, tuple(sys.path)))
        return sorted({*self.built_in, *self._known, *others})

    def __contains__(self, name: str) -> bool:
        return name in self._known or name in self.built_in or bool(self._others(name))

    def __getitem__(self, name: str) -> Member:
        """Return the member of that name.

        Raises:
            UnknownName: no member has this name; the message suggests the nearest.
            UsageError: two packages define it, or the package that does is broken.
        """
        if name not in self._known:
            self._known[name] = self._loaded(self._point(name))
        return self._known[name]

    def _point(self, name: str) -> EntryPoint:
        if name in self.built_in:
            return self.built_in[name]
        found = self._others(name)
        if not found:
            raise UnknownName(self.what, name, self.names())
        if len(found) > 1:
            packages = " and ".join(map(_package, found))
            raise UsageError(f"the {self.what} {name!r} comes from {packages}: uninstall all but one")
        return found[0]

    def _others(self, name: str) -> list[EntryPoint]:
        return [point for point in _installed(self._group, tuple(sys.path)) if point.name == name]

    def _loaded(self, point: EntryPoint) -> Member:
        about = f"the {self.what} {point.name!r} of {_package(point)} ({point.value})"
        try:
            found = point.load()
        except (Exception, SystemExit) as error:  # whatever another package raises while it is imported
            raise UsageError(
                f"{about} cannot be imported ({type(error).__name__}: {first_line(error)}): update that package, or "
                "uninstall it"
            ) from error
        try:
            fault = self._fault(point.name, found)
        except Exception as error:  # or while it is looked at
            fault = f"cannot be used ({type(error).__name__}: {first_line(error)})"
        if fault:
            raise UsageError(f"{about} {fault}: update that package, or uninstall it")
        return found


@lru_cache
def _installed(group: str, _: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of the packages on this path; reading them anew takes milliseconds."""
    return tuple(entry_points(group=group))


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else "this package"


def register_vllm_model() -> None:
    """Tell vLLM our model of two passes by name (the entry point `vllm.general_plugins`, in each of its processes)."""
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports] (only vLLM calls this)

    ModelRegistry.register_model("ShouldersRecursiveLlama", "shoulders.engine.vllm_model:RecursiveLlama")
