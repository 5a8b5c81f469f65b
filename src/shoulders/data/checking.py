"""A whole suite looked through before a run meets what is wrong with it: every line, in every wording, and its id."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from shoulders.data.formats import missing
from shoulders.data.tasks import BAD_ROW, FAILED, Records, Task, TemplatedTask
from shoulders.errors import BadRow, TemplateFailed

REPEATED = "repeated id"
ID = "id"  # the field of records that tells them apart


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong in a split of a task.

    Attributes:
        what: "bad row", "template failed" (the wording is in `first`) or "repeated id".
        count: records that it is wrong with.
        first: of them, and why.
    """

    task: str
    split: str
    what: str
    count: int
    first: str


def problems(task: Task) -> Iterator[Problem]:
    """What is wrong with a task, split by split: broken lines, failing templates, ids that stand there twice.

    Every record is rendered in every wording; 8 bytes of a record stay in memory, for its id. Ids are compared within
    a split, since many data sets number each of theirs from 0.

    Raises:
        DataError: a file cannot be read to its end.
    """
    for split in dict.fromkeys(name for wording in task.wordings for name in task.split_names(wording)):
        broken: list[Problem] = []
        for wording in task.wordings:
            if split in task.split_names(wording):
                found = _failures(task, split, wording)
                yield from (one for one in found if one.what == FAILED)
                broken = broken or [one for one in found if one.what == BAD_ROW]  # the same lines in every wording
        yield from broken
        if isinstance(task, TemplatedTask) and (repeated := _repeated(task.splits[split])):
            first, again = repeated[0]
            told = (
                f"{ID} {task.splits[split][again].get(ID)!r} of record {split}:{first} is that of {split}:{again} too"
            )
            yield Problem(task.name, split, REPEATED, len(repeated), told)


def _failures(task: Task, split: str, wording: str) -> list[Problem]:
    """What fails in one wording: one problem of each kind."""
    found: dict[str, Problem] = {}
    for row in range(task.rows(split, wording)):
        try:
            task.example(split, wording, row)
        except (TemplateFailed, BadRow) as error:
            what = BAD_ROW if isinstance(error, BadRow) else FAILED
            before = found.get(what) or Problem(task.name, split, what, 0, str(error))
            found[what] = replace(before, count=before.count + 1)
    return list(found.values())


def _repeated(records: Records) -> Sequence[tuple[int, int]]:
    """Records whose id an earlier one has: both numbers, in the order of the later one."""
    hashes, numbers = array("Q"), array("Q")
    for number in range(len(records)):
        try:
            value = records[number].get(ID)
        except BadRow:
            continue
        if not missing(value):
            hashes.append(
                int.from_bytes(blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
            )
            numbers.append(number)
    keys, places = np.array(hashes, dtype=np.uint64), np.array(numbers, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    found = [(int(places[order[at]]), int(places[order[at + 1]])) for at in same]
    # Two ids may have one hash: what is told is looked at.
    return sorted((pair for pair in found if _id(records, pair[0]) == _id(records, pair[1])), key=lambda pair: pair[1])


def _id(records: Records, number: int) -> str:
    return str(records[number].get(ID))
