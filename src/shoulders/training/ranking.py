"""Training what orders passages: the steps of a retriever and of a re-ranker."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from accelerate import PartialState

from shoulders.corpus.supervision import Supervised, Supervision
from shoulders.data.batching import by_length
from shoulders.data.evidence import fold_of
from shoulders.data.mixture import Mixture
from shoulders.data.questions import without_wording
from shoulders.errors import DataError
from shoulders.records import Example

Cost = Callable[[Supervised], int]


@dataclass(frozen=True, slots=True)
class SupervisedStep:
    """One step's questions with their passages, this process's share divided into micro-batches."""

    parts: Sequence[Sequence[Supervised]]
    terms: int
    positions: int


@final
class SupervisedSource:
    """Steps of `batch_size` questions of a mixture that have a passage with an answer, and one without.

    Attributes:
        questions: all that may be drawn, as `words_of` gives them.

    Args:
        fold: the half of the questions that is trained on (cross-fitting: the paper, section 3.1); "" for all. A
            question whose words stand in the other half too is left out of both.
        cost: positions that a question's passages take.
        positions_at_once: of a micro-batch; None keeps a process's share of a step together, whose questions are
            negatives of each other.
    """

    def __init__(
        self,
        mixture: Mixture,
        fold: str,
        supervision: Supervision,
        batch_size: int,
        cost: Cost,
        positions_at_once: int | None,
    ) -> None:
        self.mixture, self.fold, self.supervision = mixture, fold, supervision
        self.batch_size, self.cost, self.positions_at_once = batch_size, cost, positions_at_once
        self.position = 0
        self.counts = {"of the other fold": 0, "in both folds": 0, "without a passage to learn from": 0}
        self.questions = {words for words, folds in folds_of(mixture).items() if folds == {fold} or not fold}

    def step(self) -> SupervisedStep:
        """The next step.

        Raises:
            DataError: a whole epoch went by without a question to learn from.
        """
        rows: list[Supervised] = []
        since = 0
        while len(rows) < self.batch_size:
            found = self._next(self.batch_size - len(rows))
            since = 0 if found else since + self.batch_size - len(rows)
            rows += found
            if since > len(self.mixture):
                left_out = ", ".join(f"{count} {reason}" for reason, count in self.counts.items() if count)
                raise DataError(f"there is no question to learn from ({left_out}): is the index that of the questions?")
        state = PartialState()
        mine = rows[state.process_index :: state.num_processes]
        parts = [mine] if self.positions_at_once is None else list(by_length(mine, self.cost, self.positions_at_once))
        return SupervisedStep(parts, len(rows), sum(map(self.cost, mine)))

    def _next(self, count: int) -> list[Supervised]:
        examples: list[Example] = []
        positions: list[int] = []
        for _ in range(count):
            place, self.position = self.position, self.position + 1
            example = self.mixture.example(place)
            if example is not None and self._belongs(example):
                examples.append(example)
                positions.append(place)
        drawn = self.supervision.of(examples, positions)
        self.counts["without a passage to learn from"] += drawn.count(None)
        return [one for one in drawn if one is not None]

    def _belongs(self, example: Example) -> bool:
        if self.fold and fold_of(example) != self.fold:
            self.counts["of the other fold"] += 1
            return False
        if words_of(example) not in self.questions:
            self.counts["in both folds"] += 1
            return False
        return True


def words_of(example: Example) -> str:
    """The question itself, as two that are the same share it."""
    return " ".join(without_wording(example.question.text).casefold().split())


def folds_of(mixture: Mixture) -> dict[str, set[str]]:
    """All questions of a mixture, with the halves of the training examples that they stand in."""
    found: dict[str, set[str]] = {}
    for place in range(len(mixture)):
        example = mixture.example(place)
        if example is not None:
            found.setdefault(words_of(example), set()).add(fold_of(example))
    return found
