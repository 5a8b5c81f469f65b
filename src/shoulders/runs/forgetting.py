"""What a training made the language model forget: held-out text, and tasks outside the suite, before and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.perplexity import Perplexity, perplexity
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.results import scores_as_json
from shoulders.evaluation.statistics import Interval, difference_interval
from shoulders.runs.recipe import Recipe
from shoulders.scaffolds.base import Bare, Scaffold

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class BeforeAfter(Generic[Found]):
    """The same measurement of a model before and after.

    Attributes:
        before: of the backbone as it was loaded.
        after: of the model without a scaffold once the method has been used: of a rival, the weights that moved.
        attached: through the scaffold, which nobody has to do; None where there is none.
    """

    before: Found
    after: Found
    attached: Found | None = None


@dataclass(frozen=True, slots=True)
class Forgetting:
    """A model before and after.

    Attributes:
        checksums: over every bit of the two models.
        text: perplexity. An input-dependent prompt is not attached: it would read what it is to predict.
        tasks: scores.
    """

    checksums: tuple[str, str]
    text: BeforeAfter[Perplexity] | None = None
    tasks: BeforeAfter[Scores] | None = None

    @property
    def unchanged(self) -> bool:
        """Whether no bit of the model moved."""
        return self.checksums[0] == self.checksums[1]

    @property
    def ratio(self) -> float:
        """Perplexity after over before: 1 where nothing is forgotten."""
        assert self.text is not None
        return self.text.after.perplexity / self.text.before.perplexity

    @property
    def difference(self) -> Interval:
        """Average score after less before, with its paired interval: 0 where nothing is forgotten."""
        assert self.tasks is not None
        return difference_interval(self.tasks.after.measured, self.tasks.before.measured)

    @property
    def answers_changed(self) -> int:
        """Examples that are answered otherwise than before, right or wrong."""
        assert self.tasks is not None
        pairs = zip(self.tasks.before.wordings, self.tasks.after.wordings, strict=True)
        return sum(
            one.text != other.text
            for before, after in pairs
            for one, other in zip(before.predictions, after.predictions, strict=True)
        )

    def as_json(self) -> dict[str, Any]:
        """The numbers, as results are kept: those of a text at the top, those of tasks under `tasks`."""
        found: dict[str, Any] = {"unchanged": self.unchanged, "checksums": list(self.checksums)}
        if self.text:
            found |= {**_as_json(self.text, Perplexity.as_json), "ratio": self.ratio}
        if self.tasks:
            gap = self.difference
            found["tasks"] = {
                **_as_json(self.tasks, scores_as_json),
                "difference": {"value": gap.value, "low": gap.low, "high": gap.high},
                "answers_changed": self.answers_changed,
            }
        return found


def _as_json(found: BeforeAfter[Found], as_json: Callable[[Found], dict[str, Any]]) -> dict[str, Any]:
    attached = None if found.attached is None else as_json(found.attached)
    return {"before": as_json(found.before), "after": as_json(found.after), "attached": attached}


def forgetting(
    lm: FrozenLM,
    adapted: FrozenLM,
    scaffold: Scaffold,
    *,
    sequences: Sequence[Sequence[int]] = (),
    scores_of: Callable[[FrozenLM, Scaffold], Scores] | None = None,
) -> Forgetting:
    """Measure a backbone, use the method, and measure the model that is left.

    Args:
        adapted: a rival's copy of the backbone; the backbone itself where nothing changes it.
        scaffold: what it is read through.
        sequences: of a text; none for no perplexity.
        scores_of: measures a model on tasks; None for no scores.
    """
    checksum = lm.checksum()
    reads = not isinstance(scaffold, Bare)
    text, tasks = None, None
    if sequences:
        before = perplexity(lm, Bare(), sequences)
        attached = perplexity(adapted, scaffold, sequences) if reads and scaffold.encoder is None else None
        text = BeforeAfter(before, perplexity(adapted, Bare(), sequences), attached)
    if scores_of:
        before = scores_of(lm, Bare())
        attached = scores_of(adapted, scaffold) if reads else None
        tasks = BeforeAfter(before, scores_of(adapted, Bare()), attached)
    return Forgetting((checksum, adapted.checksum()), text, tasks)


def outside(tasks: Sequence[Task], source: str, trained: Recipe) -> tuple[list[Task], list[str]]:
    """Tasks of a suite that a run was not trained on, and the names of those that it was.

    Args:
        source: of the tasks.
        trained: of the run. The tasks that it was trained on are known by their names: those that its suite names, or
            all of a suite that names none and is of the same source.

    Raises:
        UsageError: it was trained on all of them.
    """
    suite = trained.suite
    every = not trained.text.source and not suite.tasks and source == suite.source
    inside = [task.name for task in tasks if (every or task.name in suite.tasks) and not suite.holds_out(task)]
    found = [task for task in tasks if task.name not in inside]
    if not found:
        raise UsageError(f"--tasks {source} holds nothing but tasks that the run was trained on: name other tasks")
    return found, inside
