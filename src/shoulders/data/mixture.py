"""The training mixture: examples of all tasks in all wordings, capped, and shuffled together.

Also its two halves for cross-fitting, and the counts of what became of the examples that were read.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import final

from shoulders.data.tasks import Skip, Task, check_wordings
from shoulders.errors import BadRow, DataError, TemplateFailed, UsageError
from shoulders.records import Example

READ = "read"  # all that were drawn; beside it stand those that were left out or cut
CAPPED = "capped"  # examples that every epoch leaves out, because its data set is larger than the cap

TRUNCATED = "truncated"  # read, and used with its input cut

Counts = dict[str, dict[str, int]]


def tally(counts: Counts, name: str, what: str, number: int = 1) -> None:
    """Add to a count of the data set of that name."""
    of_name = counts.setdefault(name, {})
    of_name[what] = of_name.get(what, 0) + number


def copied(counts: Mapping[str, Mapping[str, int]]) -> Counts:
    """The same counts, which no longer change with these."""
    return {name: dict(of_name) for name, of_name in counts.items()}


def totals(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Over all data sets."""
    found: Counts = {}
    for of_name in counts.values():
        for what, number in of_name.items():
            tally(found, "", what, number)
    return found.get("", {})


def used(of_name: Mapping[str, int]) -> int:
    """Examples of one data set that were read and not left out."""
    return of_name.get(READ, 0) - sum(n for what, n in of_name.items() if what not in {READ, CAPPED, TRUNCATED})


def left_out(counts: Mapping[str, Mapping[str, int]]) -> str:
    """What was left out or cut, e.g. "3 discarded, 1 bad row"; "none" if nothing was."""
    return ", ".join(f"{n} {what}" for what, n in totals(counts).items() if n and what != READ) or "none"


CAP = 500_000  # training examples of a data set before it is capped (Sanh et al. 2021; the paper, section 2.2)


@dataclass(frozen=True, slots=True)
class Portion:
    """One wording of one task, with the examples it contributes to an epoch out of the rows it has."""

    task: Task
    wording: str
    count: int
    rows: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Which example stands at a position."""

    task: Task
    split: str
    wording: str
    row: int

    def example(self) -> Example | None:
        """The example; None where the wording is not meant for the record.

        Raises:
            TemplateFailed, BadRow: as `Task.example`.
        """
        return self.task.example(self.split, self.wording, self.row)


@final
class Mixture:
    """An endless shuffled sequence of examples, addressed by position.

    Every task contributes all its examples in every wording; a task of more than `cap` training examples contributes
    cap // wordings of each. One epoch is a pseudo-random permutation computed position by position, so the order takes
    no memory, any position is reached at once (a resumed run goes on where it stopped), and every epoch differs.

    Source: Sanh et al. 2021, section 5; the paper, section 2.2.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        split: str,
        seed: int,
        cap: int = CAP,
        without: Sequence[str] = (),
        original_only: bool = False,
        skip: Skip = Skip(),  # noqa: B008 (frozen)
    ) -> None:
        """Lay out the mixture.

        Args:
            without: wordings to leave out, as "task/wording".
            original_only: leave out wordings that ask something else than the data set's own task.
            skip: what whoever reads it is to leave out and count instead of stopping.

        Raises:
            UnknownName, DataError: a wording or split that is not there, a cap too low, or nothing left.
        """
        self.split, self.seed, self.skip = split, seed, skip
        check_wordings(tasks, without)
        self.portions = [
            portion for task in tasks for portion in _portions(task, split, cap, without, original_only=original_only)
        ]
        if not self.portions:
            raise DataError("the mixture is empty: no wording of any task is left")
        self._ends = list(accumulate(portion.count for portion in self.portions))

    def __len__(self) -> int:
        """Examples of one epoch, those left out when rendered included."""
        return self._ends[-1]

    @property
    def capped(self) -> dict[str, int]:
        """Examples that every epoch leaves out because of the cap, by task."""
        found: dict[str, int] = {}
        for portion in self.portions:
            found[portion.task.name] = found.get(portion.task.name, 0) + portion.rows - portion.count
        return found

    def draw(self, position: int) -> Draw:
        """What stands at a position of the endless sequence."""
        epoch, place = divmod(position, len(self))
        index = permuted(place, len(self), f"{self.seed}/{epoch}")
        which = bisect_right(self._ends, index)
        portion = self.portions[which]
        row = index - (self._ends[which] - portion.count)
        if portion.count < portion.rows:  # a capped task: its own random part, another each epoch
            row = permuted(row, portion.rows, f"{self.seed}/{epoch}/{which}")
        return Draw(portion.task, self.split, portion.wording, row)

    def example(self, position: int) -> Example | None:
        """The example at a position; None where the wording is not meant for the record.

        Raises:
            TemplateFailed, BadRow: as `Task.example`.
        """
        return self.draw(position).example()

    def read(self, position: int, counts: Counts) -> Example | None:
        """The example at a position, counted; None where it is left out, which is counted by its reason.

        Raises:
            TemplateFailed, BadRow: it cannot be used, and is not to be skipped.
        """
        draw = self.draw(position)
        example, why = None, "not meant"
        try:
            example = draw.example()
        except (TemplateFailed, BadRow) as error:
            why = self.skip.reason(error)
        tally(counts, draw.task.name, READ)
        if example is None:
            tally(counts, draw.task.name, why)
        return example


def _portions(task: Task, split: str, cap: int, without: Sequence[str], *, original_only: bool) -> list[Portion]:
    wordings = [
        wording
        for wording in task.wordings
        if f"{task.name}/{wording}" not in without and (task.original(wording) or not original_only)
    ]
    if cap < len(wordings):
        raise DataError(
            f"suite.cap {cap} is below the {len(wordings)} templates of task {task.name!r}, which share it: raise it"
        )
    found = []
    for wording in wordings:
        rows = task.rows(split, wording)
        found.append(Portion(task, wording, rows if rows <= cap else cap // len(wordings), rows))
    return found


def permuted(index: int, size: int, key: str) -> int:
    """The place of `index` in a pseudo-random permutation of range(size): a Feistel network with cycle walking.

    Four rounds over the smallest even number of bits that holds `size`; indices that fall outside walk on.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(4):
            left, right = right, left ^ (_hash(right, turn, key) & low)
        index = left << half | right
        if index < size:
            return index


def _hash(value: int, turn: int, key: str) -> int:
    return int.from_bytes(blake2b(f"{key}/{turn}/{value}".encode(), digest_size=8).digest(), "little")


FOLDS = ("a", "b")  # halves of the training examples, for cross-fitting


def fold_of(example: Example) -> str:
    """The half of the training examples that one belongs to, the same in all its wordings."""
    return FOLDS[blake2b(f"{example.task}/{example.id}".encode(), digest_size=1).digest()[0] % len(FOLDS)]


def check_fold(fold: str) -> None:
    """Raise `UsageError` for what is no half."""
    if fold and fold not in FOLDS:
        raise UsageError(f"suite.fold={fold!r} is no half of the training examples: a, b, or nothing for all of them")
