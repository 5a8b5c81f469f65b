"""A cascade: stages around one frozen model, each dearer than the one before, and when an input goes on to the next.

Source: the paper, sections 1 and 4 ("vary the number of passes through a single frozen model based on an assessment of
the input's difficulty"). The assessment is the model's confidence in its own greedy answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

from shoulders.data.evidence import Evidence
from shoulders.errors import UnknownName, UsageError
from shoulders.records import Answer
from shoulders.scaffolds.base import Scaffold

RULES: dict[str, Callable[[Answer], float]] = {
    "probability": lambda answer: answer.log_probability,
    "margin": lambda answer: answer.margin,
}
PROBABILITY = "probability"


@dataclass(frozen=True, slots=True)
class Stage:
    """A scaffold around the frozen model, and what an answer costs there.

    Attributes:
        scaffold: whose greedy answer it is.
        passes: through the frozen model, those that its evidence costs among them.
        name: where the scaffold lies.
        evidence: that its questions are read with.
    """

    scaffold: Scaffold
    passes: int
    name: str = ""
    evidence: Evidence | None = None

    @classmethod
    def of(cls, scaffold: Scaffold, name: str = "", evidence: Evidence | None = None) -> Self:
        """A scaffold with its evidence, at the price of both."""
        return cls(scaffold, scaffold.passes + (evidence.passes if evidence else 0), name or scaffold.kind, evidence)


@dataclass(frozen=True, slots=True)
class Decided:
    """An answer, the stage that gave it, and the passes of all stages that the input went through."""

    answer: Answer
    stage: int
    passes: int


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Stages in order of cost; an input stops at the first whose confidence reaches its threshold, or at the last.

    Attributes:
        stages: in order of cost.
        thresholds: of all stages but the last.
        rule: what confidence is: "probability" (log-probability of the answer) or "margin" (its smallest lead).
    """

    stages: tuple[Stage, ...]
    thresholds: tuple[float, ...]
    rule: str = PROBABILITY

    def __post_init__(self) -> None:
        check_rule(self.rule)
        if len(self.thresholds) != len(self.stages) - 1:
            raise UsageError(
                f"there are {len(self.stages)} stages and {len(self.thresholds)} thresholds: every stage but the last "
                "has one"
            )
        for one, other in pairwise(self.stages):
            if one.passes > other.passes:
                raise UsageError(
                    f"stage {one.name!r} costs {one.passes} passes and the one after it, {other.name!r}, "
                    f"{other.passes}: put the cheaper one first"
                )

    def only(self, passes: int) -> Self:
        """The dearest stage of at most so many passes, asked without those before it.

        Raises:
            UsageError: the cheapest costs more.
        """
        found = [stage for stage in self.stages if stage.passes <= passes]
        if not found:
            costs = ", ".join(str(stage.passes) for stage in self.stages)
            raise UsageError(f"no stage answers with {passes} passes, they cost {costs}: ask for --passes auto or more")
        return replace(self, stages=(found[-1],), thresholds=())

    def decided(self, count: int, ask: Callable[[Stage, Sequence[int]], list[Answer]]) -> list[Decided]:
        """Return the answer to each of so many questions, asked stage by stage until one is sure of it.

        Args:
            ask: answers the questions of these numbers in a stage.
        """
        found: dict[int, Decided] = {}
        left, spent = list(range(count)), 0
        for number, stage in enumerate(self.stages):
            spent += stage.passes
            for one, answer in zip(left, ask(stage, left) if left else [], strict=True):
                if number == len(self.thresholds) or RULES[self.rule](answer) >= self.thresholds[number]:
                    found[one] = Decided(answer, number, spent)
            left = [one for one in left if one not in found]
        return [found[number] for number in range(count)]


def check_rule(rule: str) -> None:
    """Raise `UnknownName` for a rule that is none."""
    if rule not in RULES:
        raise UnknownName("rule", rule, RULES)


def check_count(stages: int) -> None:
    """Raise `UsageError` where there is nothing to go on to."""
    if stages < 2:
        raise UsageError(
            f"passes cannot vary over {stages} stage: name at least 2 runs, such as one of 1 pass and one of 2"
        )
