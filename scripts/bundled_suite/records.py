"""What all tasks make their records with."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from scripts.bundled_suite.facts import Entity
from scripts.bundled_suite.splits import dice
from scripts.bundled_suite.world import KINDS, World

Record = dict[str, Any]
SIZES = {"train": 1500, "validation": 200, "test": 300}
SHARES = {"country": 0.4, "city": 0.4, "element": 0.2}
ENOUGH = 3  # facts
TRIES = 30
Thing = TypeVar("Thing")


def collected(size: int, make: Callable[[int], Record | None], chance: random.Random) -> list[Record]:
    """Different records, shuffled. `make` is given how many there are and may return None to be asked again."""
    found: dict[str, Record] = {}
    for _ in range(TRIES * size):
        if len(found) == size:
            break
        record = make(len(found))
        if record is not None:
            found.setdefault(json.dumps(record, sort_keys=True), record)
    records = list(found.values())
    chance.shuffle(records)
    return records


def endless(things: Sequence[Thing], chance: random.Random) -> Iterator[Thing]:
    """The things again and again, in another order each time."""
    while things:
        yield from chance.sample(things, len(things))


def subjects(world: World, split: str, task: str) -> Iterator[Entity]:
    """Entities of all kinds in their shares, without end; those of which little is known are left out."""
    chance = dice(task, split, "subjects")
    fit = {kind: [entity for entity in world.entities[kind, split] if len(entity.facts) >= ENOUGH] for kind in KINDS}
    streams = {kind: endless(fit[kind], chance) for kind in KINDS}
    while True:
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        yield next(streams[kind])


def places(count: int, options: int, chance: random.Random) -> list[int]:
    """Where the right answer of each record stands: all places equally often, in random order."""
    found = [index % options for index in range(count)]
    chance.shuffle(found)
    return found


def arranged(right: str, wrong: Sequence[str], place: int) -> list[str]:
    """The choices with the right one in its place."""
    return [*wrong[:place], right, *wrong[place:]]


def keys(*groups: Sequence[str]) -> list[str]:
    """The keys of all entities that a record speaks of, its subject's first."""
    return list(dict.fromkeys(key for group in groups for key in group))
