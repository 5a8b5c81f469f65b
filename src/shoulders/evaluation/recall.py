"""Recall of sampling: how often a right answer is among so many samples (the paper, section 4.1 and table 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoulders.data.matching import NEVER
from shoulders.data.tasks import check_answered
from shoulders.errors import UsageError
from shoulders.evaluation.metrics import exact_match
from shoulders.evaluation.protocol import Asked, OnDone
from shoulders.evaluation.results import examples_hash
from shoulders.evaluation.retrieval import recall_at
from shoulders.records import Answer, Question

SAMPLES = "samples"  # what the kind of file is called
TOGETHER = 64  # questions between two reports of progress

Samples = Callable[[Sequence[Question], int], list[list[Answer]]]


@dataclass(frozen=True, slots=True)
class Recall:
    """Where among its samples each question has its first right answer.

    Attributes:
        asked: the questions, by wording.
        counts: of samples that recall is given for, rising.
        first: for each wording and example the number of the first right sample, from 0; NEVER if none is right.
    """

    asked: Sequence[Asked]
    counts: tuple[int, ...]
    first: Sequence[Sequence[int]]

    def at(self, count: int) -> float:
        """Percentage of questions with a right answer among the first `count` samples."""
        return recall_at([number for some in self.first for number in some], count)

    def as_json(self) -> dict[str, Any]:
        """The numbers, as results are kept."""
        examples = [(one.task.name, one.wording, example) for one in self.asked for example in one.examples]
        return {
            "kind": SAMPLES,
            "examples": len(examples),
            "examples_hash": examples_hash(examples),
            "recall": {str(count): self.at(count) for count in self.counts},
            "wordings": [
                {"task": one.task.name, "wording": one.wording, "first": list(first)}
                for one, first in zip(self.asked, self.first, strict=True)
            ],
        }


def recall(asked: Sequence[Asked], samples: Samples, counts: Sequence[int], on_done: OnDone) -> Recall:
    """Sample the largest of some numbers of answers to each question; the smaller ones are its first.

    An answer is right if it equals a gold answer, both normalised (exact match).

    Raises:
        UsageError: a count below 1, or none; questions without answers.
    """
    for one in asked:
        check_answered(one.examples[0])
    counts = sorted(set(counts))
    if not counts or counts[0] < 1:
        raise UsageError(f"recall among {counts[0] if counts else 'no'} samples: ask for 1 at least, e.g. 1,8,16,64")
    flat = [example for one in asked for example in one.examples]
    first: list[int] = []
    for start in range(0, len(flat), TOGETHER):
        part = flat[start : start + TOGETHER]
        drawn = samples([example.question for example in part], counts[-1])
        first += [_first_right(some, example.references) for some, example in zip(drawn, part, strict=True)]
        on_done(len(first), len(flat))
    numbers = iter(first)
    return Recall(asked, tuple(counts), [[next(numbers) for _ in one.examples] for one in asked])


def _first_right(samples: Sequence[Answer], golds: Sequence[str]) -> int:
    return next((number for number, one in enumerate(samples) if exact_match(one.text, golds)), NEVER)
