"""A check of all records of a task before a run: broken records, failing templates, repeated ids."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from shoulders.data.formats import missing
from shoulders.data.tasks import BAD_ROW, FAILED, Records, Task, TemplatedTask
from shoulders.errors import BadRow, TemplateFailed

REPEATED = "repeated id"
ID = "id"  # field that identifies a record


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault in the records of a split of a task.

    Attributes:
        task, split: where it occurs.
        what: "bad row", "template failed" (the wording is in `first`) or "repeated id".
        count: number of records that have it.
        first: message about the first of them.
    """

    task: str
    split: str
    what: str
    count: int
    first: str


def find_problems(task: Task) -> Iterator[Problem]:
    """Yield the faults of a task, split by split: broken records, failing templates, repeated ids.

    Every record is rendered in every wording; 8 bytes of each record are kept in memory, for its id. Ids are compared
    within a split, since many data sets number the records of each split from 0.

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
            message = (
                f"{ID} {task.splits[split][again].get(ID)!r} of record {split}:{first} is also that of {split}:{again}"
            )
            yield Problem(task.name, split, REPEATED, len(repeated), message)


def _failures(task: Task, split: str, wording: str) -> list[Problem]:
    """Return the faults of one wording, one `Problem` of each kind."""
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
    """Return the numbers of records with the same id: an earlier and a later one, sorted by the later one."""
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
    # Different ids may have the same hash.
    return sorted((pair for pair in found if _id(records, pair[0]) == _id(records, pair[1])), key=lambda pair: pair[1])


def _id(records: Records, number: int) -> str:
    return str(records[number].get(ID))
