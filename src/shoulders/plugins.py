"""Scaffolds, evidence sources, metrics and recipes by name, our own and those of other packages.

Another package adds one by an entry point and changes nothing here; in its `pyproject.toml`:

    [project.entry-points."shoulders.scaffolds"]
    my_prompt = "my_package.prompts:MyPrompt"

The groups are `shoulders.scaffolds`, `shoulders.evidence`, `shoulders.metrics` and `shoulders.recipes`.
"""

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, final

from shoulders.errors import UnknownName, UsageError, first_line

Thing = TypeVar("Thing")


@final
class Registry(Generic[Thing]):
    """Things of one sort by name, each imported when its name is first looked up.

    Args:
        group: of the entry points.
        what: a thing is called in messages, e.g. "kind of scaffold".
        built_in: where our own things are, as entry points say it ("module:name"). No package can take their names.
        fault: what is wrong with what an entry point of a name gives, as "is no ..."; empty where nothing is.
    """

    def __init__(self, group: str, what: str, built_in: Mapping[str, str], fault: Callable[[str, Any], str]) -> None:
        self.what, self._group, self._fault = what, group, fault
        self.built_in = {name: EntryPoint(name, place, group) for name, place in built_in.items()}
        self._known: dict[str, Thing] = {}

    def add(self, name: str, thing: Thing) -> None:
        """Make known what was defined in this process, in a notebook for example."""
        self._known[name] = thing

    def names(self) -> list[str]:
        """All names, sorted; nothing is imported."""
        others = (point.name for point in _installed(self._group, tuple(sys.path)))
        return sorted({*self.built_in, *self._known, *others})

    def __contains__(self, name: str) -> bool:
        return name in self._known or name in self.built_in or bool(self._others(name))

    def __getitem__(self, name: str) -> Thing:
        """The thing of that name.

        Raises:
            UnknownName: there is none; the nearest is suggested.
            UsageError: two packages have one, or the package that has it is broken.
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

    def _loaded(self, point: EntryPoint) -> Thing:
        about = f"the {self.what} {point.name!r} of {_package(point)} ({point.value})"
        try:
            found = point.load()
        except Exception as error:  # whatever another package raises while it is imported
            raise UsageError(
                f"{about} cannot be imported ({type(error).__name__}: {first_line(error)}): update that package, or "
                "uninstall it"
            ) from error
        if fault := self._fault(point.name, found):
            raise UsageError(f"{about} {fault}: update that package, or uninstall it")
        return found


@lru_cache
def _installed(group: str, _: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points that packages on this path have; looking through all of them takes milliseconds."""
    return tuple(entry_points(group=group))


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else "this package"
