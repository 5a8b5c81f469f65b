"""Training and measuring from Python: `shoulders.train` and `shoulders.evaluate`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import Mixture
from shoulders.data.pairs import Examples, given_task, is_tasks
from shoulders.data.readers import open_suite
from shoulders.data.tasks import TRAIN, Task
from shoulders.engine.batches import Lengths
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import EvaluationPlan
from shoulders.evaluation.protocol import evaluate as measured
from shoulders.scaffolds.base import Scaffold
from shoulders.training.loop import Hooks, Step, fit
from shoulders.training.losses import ExampleSource, scaffold_loss
from shoulders.training.plan import TrainPlan
from shoulders.training.stream import Stream

# Many small steps and a rate that ends at 0 (experiments/006).
USUAL = {"batch_size": 8, "warmup": 0.05, "decay": "linear", "base_learning_rate": 0.05, "save_every": 50}


@final
@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A trained scaffold with its model.

    Attributes:
        losses: mean loss per scored token of each step of this call.
    """

    scaffold: Scaffold
    lm: FrozenLM
    losses: tuple[float, ...]

    def save(self, folder: str | Path) -> Path:
        """Write the scaffold to a folder that `shoulders.open`, `Scaffold.load` and the command line read.

        Raises:
            SaveFailed: the folder cannot be written.
        """
        self.scaffold.save_pretrained(folder)
        return Path(folder)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the scaffold to a hub repository, with a model card; options are those of `push_to_hub`."""
        return self.scaffold.push_to_hub(repository, **options)


def train(
    scaffold: Scaffold,
    lm: FrozenLM,
    examples: Examples,
    *,
    steps: int = 200,
    out: str | Path | None = None,
    progress: bool = True,
    on_step: Callable[[Step], None] = lambda _: None,
    **plan: Any,
) -> TrainedRun:
    """Train a scaffold around a frozen model; the model itself does not change.

    Args:
        scaffold: trained in place.
        examples: pairs `(question, answer)`, records with `question` and `answer` or `answers` (and `choices`), a
            `datasets.Dataset` of such, the name of a suite ("bundled", a folder, "qa:PATH/NAME"), or its tasks.
        steps: optimizer steps.
        out: folder for checkpoints and the trained scaffold; after an interruption, the same call continues there.
        progress: show a progress bar.
        plan: values of `TrainPlan`, e.g. learning_rate (by default the scaffold's usual one), batch_size (8), seed.

    Raises:
        DataError, UsageError: an example or a value is invalid, or `out` holds another run.
        TrainingDiverged: the loss is not finite; the last checkpoint is kept.
    """
    how = TrainPlan(**{**USUAL, "steps": steps, "learning_rate": scaffold.usual_rate, **plan})
    if not any(weight.requires_grad for weight in scaffold.parameters()):
        raise UsageError(f"there is nothing to train in {type(scaffold).__name__}: it has no parameters")
    scaffold.to(lm.device).train()
    stream = Stream(
        Mixture(tasks_of(examples), split=TRAIN, seed=how.seed), lm, lengths=Lengths(), prompt_length=scaffold.length
    )
    source = ExampleSource(stream, how.batch_size, how.positions_at_once, scaffold.length)
    losses: list[float] = []
    folder = None if out is None else Path(out).expanduser()
    with _bar(scaffold.label, steps, shown=progress) as show:

        def tell(step: Step) -> None:
            losses.append(step.loss)
            show(step)
            on_step(step)

        groups = scaffold.learning_rates(how.learning_rate, how.base_learning_rate)
        checkpoints = None if folder is None else folder / "checkpoints"
        fit(scaffold, scaffold_loss(lm, scaffold), source, how, groups=groups, folder=checkpoints, hooks=Hooks(tell))
    run = TrainedRun(scaffold.eval().made_for(lm, {"training": asdict(how)}), lm, tuple(losses))
    if folder is not None:
        run.save(folder / "best")
    return run


def evaluate(
    run: TrainedRun | Scaffold,
    examples: Examples,
    lm: FrozenLM | None = None,
    *,
    split: str = "test",
    limit: int = 0,
    longest: int = 32,
) -> Mapping[str, float]:
    """Return scores by metric ("exact_match", "f1", "accuracy" ...), in percent, averaged over tasks.

    Args:
        run: the result of `train`, or a scaffold with its `lm`.
        examples: as in `train`; of a suite, the split is measured, of pairs all.
        limit: maximum number of examples of a wording; 0 for all.
        longest: maximum length of a generated answer in tokens.

    Raises:
        UsageError: a scaffold is given without its model.
    """
    if isinstance(run, TrainedRun):
        scaffold, lm = run.scaffold, run.lm
    else:
        scaffold = run
    if lm is None:
        raise UsageError("a scaffold is measured with its model: shoulders.evaluate(scaffold, examples, lm)")
    plan = EvaluationPlan(split=split, limit=limit, longest=longest)
    rows = measured(tasks_of(examples), lm, scaffold, plan).wordings
    totals: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.scores.items():
            totals.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}


def tasks_of(examples: Examples) -> list[Task]:
    """Return the tasks of a suite by name, or given tasks, or one task of given examples."""
    if isinstance(examples, str):
        return open_suite(examples)
    if is_tasks(examples):
        return list(examples)
    return [given_task(examples)]


@contextmanager
def _bar(title: str, steps: int, *, shown: bool) -> Iterator[Callable[[Step], None]]:
    """Show a progress bar of a training, and yield the function that updates it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, disable=not shown) as bars:
        task = bars.add_task(title, total=steps, note="")
        yield lambda step: bars.update(task, completed=step.number, note=f"loss {step.loss:.3f}")
