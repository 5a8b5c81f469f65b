"""Forgetting: perplexity and scores of the language model on other text and tasks, before and after training."""

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

Score = TypeVar("Score")


@dataclass(frozen=True, slots=True)
class BeforeAfter(Generic[Score]):
    """A measurement of a model before and after training.

    Attributes:
        before: of the backbone.
        after: of the model without a scaffold after training; of a rival, with its changed weights.
        attached: of the model with its scaffold, which can always be removed; None if there is none.
    """

    before: Score
    after: Score
    attached: Score | None = None


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Measurements of a model before and after training.

    Attributes:
        checksums: over every bit of the model before and after.
        text: perplexity; an input-dependent prompt is not attached, because it would read the text to predict.
        tasks: scores.
    """

    checksums: tuple[str, str]
    text: BeforeAfter[Perplexity] | None = None
    tasks: BeforeAfter[Scores] | None = None

    @property
    def unchanged(self) -> bool:
        """Whether no bit of the model changed."""
        return self.checksums[0] == self.checksums[1]

    @property
    def ratio(self) -> float:
        """Perplexity after divided by perplexity before: 1 if nothing is forgotten."""
        assert self.text is not None
        return self.text.after.perplexity / self.text.before.perplexity

    @property
    def difference(self) -> Interval:
        """Average score after minus before, with its paired interval: 0 if nothing is forgotten."""
        assert self.tasks is not None
        return difference_interval(self.tasks.after.measured, self.tasks.before.measured)

    @property
    def answers_changed(self) -> int:
        """Number of examples whose answer changed, right or wrong."""
        assert self.tasks is not None
        pairs = zip(self.tasks.before.wordings, self.tasks.after.wordings, strict=True)
        return sum(
            one.text != other.text
            for before, after in pairs
            for one, other in zip(before.predictions, after.predictions, strict=True)
        )

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as results store them: those of the text at the top level, others under `tasks`."""
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


def _as_json(found: BeforeAfter[Score], as_json: Callable[[Score], dict[str, Any]]) -> dict[str, Any]:
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
    """Measure a backbone, and the same model after training.

    Args:
        adapted: the trained copy of a rival; the backbone itself for scaffolds, which do not change it.
        scaffold: around the adapted model.
        sequences: of a text; empty for no perplexity.
        scores_of: returns the scores of a model on tasks; None for no scores.
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


def untrained_tasks(tasks: Sequence[Task], source: str, trained: Recipe) -> tuple[list[Task], list[str]]:
    """Return the tasks of a suite that a run was not trained on, and the names of the others.

    Args:
        source: of the tasks.
        trained: recipe of the run. It was trained on the tasks that its suite names, or on all tasks of the same source
            if its suite names none.

    Raises:
        UsageError: the run was trained on all of them.
    """
    suite = trained.suite
    every = not trained.text.source and not suite.tasks and source == suite.source
    inside = [task.name for task in tasks if (every or task.name in suite.tasks) and not suite.holds_out(task)]
    found = [task for task in tasks if task.name not in inside]
    if not found:
        raise UsageError(f"--tasks {source} has only tasks that the run was trained on: name other tasks")
    return found, inside
