"""Which split an entity belongs to: fixed by a seed and its key, the same for every task."""

import hashlib
import random
from collections.abc import Iterable, Sequence

SEED = "shoulders-1"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
_PATTERN = (TRAIN, TEST, TRAIN, TRAIN, VALIDATION, TRAIN, TRAIN, TEST, TRAIN, TRAIN)


def fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key and the seed alone."""
    digest = hashlib.sha256(f"{SEED}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(key: str) -> str:
    """The split of a key: 70 % train, 10 % validation, 20 % test."""
    place = fraction(key)
    if place < 0.7:
        return TRAIN
    return VALIDATION if place < 0.8 else TEST


def spread(strata: Iterable[Sequence[str]]) -> dict[str, str]:
    """The splits of few keys in 70 : 10 : 20, evenly within each stratum and in the order of their hashes there."""
    ordered = [key for stratum in strata for key in sorted(stratum, key=fraction)]
    return {key: _PATTERN[place % len(_PATTERN)] for place, key in enumerate(ordered)}


def dice(*names: str) -> random.Random:
    """A random generator of its own for a use, so that a change of one task leaves the others as they are."""
    return random.Random("/".join((SEED, *names)))
