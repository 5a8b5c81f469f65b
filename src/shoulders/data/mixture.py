"""The training mixture: examples of all tasks in all wordings, capped and shuffled together.

Also the two folds for cross-fitting, and counts of the examples that were read, left out or truncated.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import final

from shoulders.data.matching import question_words
from shoulders.data.tasks import SkipPolicy, Task, check_wordings
from shoulders.errors import BadRow, DataError, TemplateFailed, UsageError
from shoulders.records import Example

READ = "read"  # examples that were read, those left out or truncated included
CAPPED = "capped"  # examples that every epoch leaves out because their data set is larger than the cap
TRUNCATED = "truncated"  # examples that were used with a truncated input

Counts = dict[
    str, dict[str, int]
]  # by data set and category; categories other than these three are reasons to leave out


def add_count(counts: Counts, name: str, what: str, number: int = 1) -> None:
    """Add to the count of a category (`what`) of a data set."""
    of_name = counts.setdefault(name, {})
    of_name[what] = of_name.get(what, 0) + number


def copy_counts(counts: Mapping[str, Mapping[str, int]]) -> Counts:
    """Return a copy of the counts."""
    return {name: dict(of_name) for name, of_name in counts.items()}


def total_counts(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the counts summed over all data sets."""
    found: Counts = {}
    for of_name in counts.values():
        for what, number in of_name.items():
            add_count(found, "", what, number)
    return found.get("", {})


def used_count(of_name: Mapping[str, int]) -> int:
    """Return how many examples of a data set were read and not left out."""
    return of_name.get(READ, 0) - sum(n for what, n in of_name.items() if what not in {READ, CAPPED, TRUNCATED})


def describe_counts(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return the counts of left out and truncated examples as text, e.g. "3 discarded, 1 bad row", or "none"."""
    return ", ".join(f"{n} {what}" for what, n in total_counts(counts).items() if n and what != READ) or "none"


CAP = 500_000  # greatest number of training examples of a data set (Sanh et al. 2021; the paper, section 2.2)


@dataclass(frozen=True, slots=True)
class Component:
    """One wording of one task: `count` of its `rows` examples are in every epoch."""

    task: Task
    wording: str
    count: int
    rows: int


@dataclass(frozen=True, slots=True)
class ExampleReference:
    """Reference to an example by task, split, wording and row."""

    task: Task
    split: str
    wording: str
    row: int

    def example(self) -> Example | None:
        """Return the example; None if the wording does not apply to the record.

        Raises:
            TemplateFailed, BadRow: as `Task.example`.
        """
        return self.task.example(self.split, self.wording, self.row)


@final
class Mixture:
    """An endless shuffled sequence of examples, addressed by position.

    Every task contributes all its examples in every wording; a task with more than `cap` examples contributes cap //
    wordings of each, others in each epoch. An epoch is a pseudo-random permutation that is computed position by
    position: it takes no memory, any position is reached at once (to resume a run), and every epoch has another order.

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
        skip: SkipPolicy = SkipPolicy(),  # noqa: B008 (frozen)
    ) -> None:
        """Create the mixture without reading an example.

        Args:
            tasks: tasks to mix.
            split: split of their examples.
            seed: seed of the order.
            cap: greatest number of examples of a task in an epoch.
            without: wordings to leave out, as "task/wording".
            original_only: leave out wordings that ask another task than the data set's own.
            skip: failures to leave out and count, instead of raising an error.

        Raises:
            UnknownName, DataError: a wording or split does not exist, the cap is too low, or no wording is left.
        """
        self.split, self.seed, self.skip = split, seed, skip
        check_wordings(tasks, without)
        self.components = [
            component
            for task in tasks
            for component in _components(task, split, cap, without, original_only=original_only)
        ]
        if not self.components:
            raise DataError("the mixture is empty: all wordings are left out")
        self._ends = list(accumulate(component.count for component in self.components))

    def __len__(self) -> int:
        """Return the number of examples in an epoch, including those that are left out when they are read."""
        return self._ends[-1]

    @property
    def capped(self) -> dict[str, int]:
        """Number of examples that every epoch leaves out because of the cap, by task."""
        found: dict[str, int] = {}
        for component in self.components:
            found[component.task.name] = found.get(component.task.name, 0) + component.rows - component.count
        return found

    def reference(self, position: int) -> ExampleReference:
        """Return the reference at a position of the endless sequence."""
        epoch, place = divmod(position, len(self))
        index = permute_index(place, len(self), f"{self.seed}/{epoch}")
        which = bisect_right(self._ends, index)
        component = self.components[which]
        row = index - (self._ends[which] - component.count)
        if component.count < component.rows:  # a capped task: a random part, another one in each epoch
            row = permute_index(row, component.rows, f"{self.seed}/{epoch}/{which}")
        return ExampleReference(component.task, self.split, component.wording, row)

    def example(self, position: int) -> Example | None:
        """Return the example at a position; None if the wording does not apply to the record.

        Raises:
            TemplateFailed, BadRow: as `Task.example`.
        """
        return self.reference(position).example()

    def read(self, position: int, counts: Counts, fold: str = "") -> Example | None:
        """Return the example at a position and count it; None if it is left out, which is counted by its reason.

        Args:
            fold: the half of the examples to keep (cross-fitting); "" for all.

        Raises:
            TemplateFailed, BadRow: it cannot be used, and `skip` does not leave it out.
        """
        reference = self.reference(position)
        example, why = None, "not meant"
        try:
            example = reference.example()
        except (TemplateFailed, BadRow) as error:
            why = self.skip.reason(error)
        if example is not None and fold and fold_of(example) != fold:
            example, why = None, "of the other fold"
        add_count(counts, reference.task.name, READ)
        if example is None:
            add_count(counts, reference.task.name, why)
        return example


def _components(task: Task, split: str, cap: int, without: Sequence[str], *, original_only: bool) -> list[Component]:
    wordings = [
        wording
        for wording in task.wordings
        if f"{task.name}/{wording}" not in without and (task.original(wording) or not original_only)
    ]
    if cap < len(wordings):
        raise DataError(
            f"suite.cap {cap} is less than the {len(wordings)} templates of task {task.name!r} that share it: raise it"
        )
    found = []
    for wording in wordings:
        rows = task.rows(split, wording)
        found.append(Component(task, wording, rows if rows <= cap else cap // len(wordings), rows))
    return found


def permute_index(index: int, size: int, key: str) -> int:
    """Return the image of `index` under a pseudo-random permutation of range(size) that `key` determines.

    A Feistel network of four rounds over the smallest even number of bits that `size` fits into, with cycle walking:
    images outside the range are permute_index again.
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
    """Return the half of the training examples that an example belongs to, the same in all its wordings."""
    return FOLDS[blake2b(f"{example.task}/{example.id}".encode(), digest_size=1).digest()[0] % len(FOLDS)]


def in_one_fold(mixture: Mixture, fold: str) -> set[str]:
    """Return the questions of a mixture that occur in this half of the training examples only; all for no fold.

    A question may stand in several records, and a model that is trained on one half must not have seen it.
    """
    found: dict[str, set[str]] = {}
    for place in range(len(mixture)):
        if (example := mixture.read(place, {})) is not None:
            found.setdefault(question_words(example.question.query), set()).add(fold_of(example))
    return {words for words, folds in found.items() if folds == {fold} or not fold}


def check_fold(fold: str) -> None:
    """Raise `UsageError` for an unknown fold."""
    if fold and fold not in FOLDS:
        raise UsageError(
            f"suite.fold={fold!r} is no half of the training examples: set a or b, or leave it empty for all examples"
        )
