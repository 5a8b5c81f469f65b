"""Recall of retrieval: how often an answer is in one of the first k passages, and in the passages that are read.

Source: Karpukhin et al. 2020, `dpr/data/qa_validation.py`; the paper, table 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from shoulders.data.matching import Rule, first_with_answer, has_answer, has_span
from shoulders.data.packing import PackedEvidence
from shoulders.data.support import support
from shoulders.errors import UsageError
from shoulders.records import Example

RANKS = (1, 5, 20)
AT_ONCE = 128  # questions whose passages are held at the same time


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What was retrieved for some examples, and what of it was read.

    Attributes:
        recall: by number of passages, the percentage of examples with an answer in one of the first of them.
        recall_at_input: percentage of examples with an answer in one of the passages that were read.
        packed: passages read for an example, on average.
        without: examples for which no passage was read.
        too_long: passages left out because they fit no context, not even alone.
        supported: percentage of the answers given that stand in one of the passages that were read; None without any.
        recall_by_dpr, recall_at_input_by_dpr: by DPR's rule of where an answer stands (`matching.has_answer`), for
            figures beside published ones; all others are by `matching.has_span`.
    """

    recall: Mapping[int, float]
    recall_at_input: float
    packed: float
    without: int
    too_long: int
    supported: float | None = None
    recall_by_dpr: Mapping[int, float] = field(default_factory=dict)
    recall_at_input_by_dpr: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values; numbers of passages are texts."""
        by_rank = {"recall": self.recall, "recall_by_dpr": self.recall_by_dpr}
        return {**asdict(self), **{key: {str(k): one for k, one in some.items()} for key, some in by_rank.items()}}


def retrieval(
    examples: Sequence[Example], source: PackedEvidence, k: int, answers: Sequence[str] | None = None
) -> Retrieval:
    """How often an answer of the examples is retrieved, and how often it is read.

    Args:
        k: passages that the source retrieves for a question.
        answers: that were given to the examples, to be looked for in what was read.

    Raises:
        UsageError: there is no example.
    """
    first: dict[Rule, list[int]] = {has_span: [], has_answer: []}
    read: dict[Rule, list[int]] = {has_span: [], has_answer: []}
    packed: list[int] = []
    supported = 0
    too_long = 0
    for start in range(0, len(examples), AT_ONCE):
        some = examples[start : start + AT_ONCE]
        given = answers[start : start + AT_ONCE] if answers is not None else [""] * len(some)
        sought = source.find([one.question for one in some])
        for example, passages, answer in zip(some, sought, given, strict=True):
            found = source.packed(example.question, passages)
            for texts, numbers in ((passages, first), (found.passages, read)):
                for rule, of_rule in numbers.items():
                    of_rule.append(first_with_answer(example.references, [one.text for one in texts], rule))
            packed.append(len(found.passages))
            too_long += found.too_long
            supported += support(answer, found.passages) is not None
    ranks = [rank for rank in sorted({*RANKS, k}) if rank <= k]
    recall, by_dpr = ({rank: recall_at(numbers, rank) for rank in ranks} for numbers in first.values())
    at_input, at_input_by_dpr = (recall_at(numbers, k) for numbers in read.values())
    share = 100 * supported / len(examples) if answers is not None else None
    return Retrieval(recall, at_input, mean(packed), packed.count(0), too_long, share, by_dpr, at_input_by_dpr)


def recall_at(first: Sequence[int], k: int) -> float:
    """Percentage of questions whose first passage with an answer is among the k best.

    Raises:
        UsageError: there is no question, or k is below 1.
    """
    if not first or k < 1:
        raise UsageError(f"recall at {k} of {len(first)} questions: 1 at least of each")
    return 100 * sum(0 <= number < k for number in first) / len(first)
