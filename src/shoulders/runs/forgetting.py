"""Forgetting: perplexity and scores of the language model on other text and tasks, before and after training.

After training it is measured as it is used, with what was trained on, and with that taken off again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from shoulders.answering.models import LoadedModel
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
class OnOff(Generic[Score]):
    """A measurement of a model before training, and after it with what was trained on, and taken off again.

    Attributes:
        before: of the backbone.
        on: of the model with what was trained: with its scaffold or adapters, or with its changed weights.
        off: of the same model after that was taken off; None where it cannot be (full fine-tuning).
    """

    before: Score
    on: Score
    off: Score | None


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Measurements of a model before and after training.

    Attributes:
        checksums: over every bit of the model before training, and after it with what was trained taken off, if it can
            be.
        text: perplexity.
        given: first tokens of each sequence of the text, which are not predicted (`perplexity`).
        tasks: scores.
    """

    checksums: tuple[str, str]
    text: OnOff[Perplexity] | None = None
    given: int = 1
    tasks: OnOff[Scores] | None = None

    @property
    def unchanged(self) -> bool:
        """Whether every bit of the model is as before, once what was trained is taken off."""
        return self.checksums[0] == self.checksums[1]

    @property
    def ratios(self) -> dict[str, float | None]:
        """Perplexity on and off, divided by perplexity before: 1 if nothing is forgotten."""
        assert self.text is not None
        before, off = self.text.before.perplexity, self.text.off
        return {"on": self.text.on.perplexity / before, "off": off and off.perplexity / before}

    @property
    def differences(self) -> dict[str, Interval | None]:
        """Average score on and off, minus that before, with its paired interval: 0 if nothing is forgotten."""
        assert self.tasks is not None
        before, off = self.tasks.before.measured, self.tasks.off
        return {
            "on": difference_interval(self.tasks.on.measured, before),
            "off": off and difference_interval(off.measured, before),
        }

    @property
    def answers_changed(self) -> dict[str, int | None]:
        """Number of examples whose answer changed, right or wrong, on and off."""
        assert self.tasks is not None
        return {"on": _changed(self.tasks.before, self.tasks.on), "off": _changed(self.tasks.before, self.tasks.off)}

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as results store them: those of the text at the top level, others under `tasks`."""
        found: dict[str, Any] = {"unchanged": self.unchanged, "checksums": list(self.checksums)}
        if self.text:
            found |= {**_as_json(self.text, Perplexity.as_json), "given": self.given, "ratios": self.ratios}
        if self.tasks:
            found["tasks"] = {
                **_as_json(self.tasks, scores_as_json),
                "differences": {name: gap and asdict(gap) for name, gap in self.differences.items()},
                "answers_changed": self.answers_changed,
            }
        return found


def _changed(before: Scores, after: Scores | None) -> int | None:
    if after is None:
        return None
    pairs = zip(before.wordings, after.wordings, strict=True)
    return sum(
        one.text != other.text
        for row, new in pairs
        for one, other in zip(row.predictions, new.predictions, strict=True)
    )


def _as_json(found: OnOff[Score], as_json: Callable[[Score], dict[str, Any]]) -> dict[str, Any]:
    off = None if found.off is None else as_json(found.off)
    return {"before": as_json(found.before), "on": as_json(found.on), "off": off}


def forgetting(
    lm: FrozenLM,
    trained: LoadedModel,
    *,
    sequences: Sequence[Sequence[int]] = (),
    scores_of: Callable[[FrozenLM, Scaffold], Scores] | None = None,
) -> Forgetting:
    """Measure a backbone, and a model that was trained from it: as it is used, and with that taken off.

    An input-dependent prompt is written from the first half of each sequence of a text, and the other half is
    predicted, by the backbone, too.

    Args:
        trained: the scaffold around the backbone, or a rival; adapters are taken out of it.
        sequences: of a text; empty for no perplexity.
        scores_of: returns the scores of a model on tasks; None for no scores.
    """
    given = len(sequences[0]) // 2 if sequences and trained.scaffold.encoder is not None else 1

    def measured(model: LoadedModel) -> _Measured:
        text = perplexity(model.lm, model.scaffold, sequences, given) if sequences else None
        return _Measured(text, scores_of(model.lm, model.scaffold) if scores_of else None)

    checksum = lm.checksum()
    before, on = measured(LoadedModel(lm, Bare())), measured(trained)
    taken = trained.taken_off()
    off = measured(taken) if taken else _Measured()
    text = before.text and on.text and OnOff(before.text, on.text, off.text)
    tasks = before.tasks and on.tasks and OnOff(before.tasks, on.tasks, off.tasks)
    return Forgetting((checksum, (taken or trained).lm.checksum()), text, given, tasks)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was measured of one model."""

    text: Perplexity | None = None
    tasks: Scores | None = None


def _places(source: str) -> set[str]:
    """Return the parts of a suite's name, however they are spelled."""
    kind, colon, rest = source.rpartition(":")
    paths = [Path(one).expanduser() for one in rest.split(",")]
    return {f"{kind}{colon}{path.resolve() if path.parent.exists() else path}" for path in paths}


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
    every = not trained.text.source and not suite.tasks and _places(source) <= _places(suite.source)
    inside = [task.name for task in tasks if (every or task.name in suite.tasks) and not suite.holds_out(task)]
    found = [task for task in tasks if task.name not in inside]
    if not found:
        raise UsageError(f"--tasks {source} has only tasks that the run was trained on: name other tasks")
    return found, inside
