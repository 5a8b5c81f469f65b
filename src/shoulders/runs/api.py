"""Training and measuring from Python: `shoulders.train` and `shoulders.evaluate`."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from numbers import Integral, Real
from pathlib import Path
from statistics import mean, median
from typing import Any, final

from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.spec import LONGEST, AnswerSpec, spec_from_json
from shoulders.backbone.chat import check_chat
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import READ, Mixture, describe_counts, total_counts
from shoulders.data.pairs import Examples, InMemoryTask, open_examples
from shoulders.data.readers import QA, QUERY, QUESTION_WORDING
from shoulders.data.tasks import TEST, TRAIN, Task, check_placement
from shoulders.engine.batches import Lengths
from shoulders.engine.inference import Answering
from shoulders.errors import UnknownName, UsageError
from shoulders.evaluation.metrics import not_computed
from shoulders.evaluation.protocol import EvaluationPlan, Scores
from shoulders.evaluation.protocol import evaluate as measure
from shoulders.records import Answer, Chat, QuestionLike
from shoulders.runs.jobs import example_loss
from shoulders.runs.run import CHECKPOINTS
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.storage import Origin
from shoulders.store.files import BEST, RECIPE, read_json, write_json
from shoulders.training.log import locked_log, read_log
from shoulders.training.loop import Hooks, Step, fit, steps_done
from shoulders.training.losses import ExampleSource
from shoulders.training.plan import TrainPlan
from shoulders.training.stream import Stream

RUN = "run.json"  # in a run's folder, all that it depends on
# Many small steps and a rate that ends at 0 (experiments/006).
USUAL = {"batch_size": 8, "warmup": 0.05, "decay": "linear", "save_every": 50}


@final
@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A scaffold that has been trained, with the model it stands around.

    Attributes:
        losses: mean loss of each step, per scored token; with `out`, those before an interruption among them.
        spec: how it is asked.
    """

    scaffold: Scaffold
    lm: FrozenLM
    losses: tuple[float, ...]
    spec: AnswerSpec

    @property
    def answerer(self) -> ModelAnswerer:
        """What `shoulders.open` gives for the saved scaffold."""
        return ModelAnswerer(self.lm, self.scaffold, Answering(self.spec.longest), self.spec)

    def ask(self, question: QuestionLike, choices: Sequence[str] = ()) -> Answer:
        """Return the answer to a question, or the most likely of some choices (`Answerer.ask`)."""
        return self.answerer.ask(question, choices)

    def save(self, folder: str | Path) -> Path:
        """Write the scaffold to a folder that `shoulders.open`, `Scaffold.load` and the command line read.

        Raises:
            SaveFailed: it cannot be written.
        """
        self.scaffold.save_pretrained(folder)
        return Path(folder).expanduser()

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the scaffold to a hub repository, with a model card; options are Hugging Face's."""
        return self.scaffold.push_to_hub(repository, **options)


def train(
    scaffold: Scaffold,
    lm: FrozenLM,
    examples: Examples,
    *,
    steps: int = 200,
    out: str | Path | None = None,
    chat: bool | str | None = None,
    progress: bool = True,
    on_step: Callable[[Step], None] = lambda _: None,
    **plan: Any,
) -> TrainedRun:
    """Train a scaffold around a frozen model; the model itself does not change.

    >>> run = shoulders.train(prompt, lm, [("Capital of France?", "Paris")], steps=20)  # doctest: +SKIP

    Args:
        scaffold: what trains, in place.
        examples: pairs `(question, answer)`, records with `question` and `answer` or `answers` (and `choices`,
            `evidence`), a `datasets.Dataset` of such, the name of a suite ("bundled", a folder, "qa:PATH/NAME"), or
            its tasks. Those that do not fit the context are left out, and counted in a warning.
        steps: optimizer steps.
        out: folder for checkpoints, a log and the trained scaffold; the same call goes on from there if it was
            interrupted.
        chat: put questions through the tokenizer's chat template (True, or a system text), or not (False); None: as the
            scaffold was trained before, and else not.
        progress: show a progress bar.
        on_step: called after each step.
        plan: values of `TrainPlan`, e.g. learning_rate (by default the scaffold's usual one), batch_size (8), seed.

    Raises:
        DataError, UsageError: an example, or a number, does not fit; or `out` holds another run.
        WrongBackbone: the scaffold was made around another model.
        TrainingDiverged: the loss is not finite; the last checkpoint is kept.
    """
    _check_fits(scaffold, lm)
    rates = {"learning_rate": scaffold.usual_rate, "base_learning_rate": scaffold.usual_base_rate}
    how = _plan({"steps": steps, **rates, **plan})
    if not any(weight.requires_grad and weight.numel() for weight in scaffold.parameters()):
        raise UsageError(f"there is nothing to train in {type(scaffold).__name__}: it has no parameters")
    tasks = open_examples(examples)
    wording = QUESTION_WORDING if isinstance(examples, str) and examples.startswith(QA) else QUERY
    spec = replace(_trained_spec(scaffold), wording=wording).in_chat(chat)
    check_chat(spec.chat, lm)
    if spec.chat is None:
        check_placement(tasks, scaffold.placement)
    folder = None if out is None else Path(out).expanduser()
    begun = 0 if folder is None else _steps_done(folder, _about(scaffold, lm, tasks, how, spec.chat))
    losses = [] if folder is None else [row["loss"] for row in read_log(folder)][:begun]
    scaffold.around(lm).train()
    mixture = Mixture(tasks, split=TRAIN, seed=how.seed)
    lengths = Lengths(lm.context, lm.context)
    stream = Stream(mixture, lm, lengths=lengths, prompt_length=scaffold.length, chat=spec.chat)
    source = ExampleSource(stream, how.batch_size, int(how.positions_at_once), scaffold.length, how.average)
    groups = scaffold.learning_rates(how.learning_rate, how.base_learning_rate)
    main = PartialState().is_main_process
    log = locked_log(folder, begun) if folder is not None and main else nullcontext(lambda _: None)
    with _bar(scaffold.label, shown=progress and main) as show, log as write:

        def tell(step: Step) -> None:
            losses.append(step.loss)
            write(step)
            show(step.number, steps, f"loss {step.loss:.3f}")
            on_step(step)

        kept = None if folder is None else folder / CHECKPOINTS
        loss = example_loss(how, lm, scaffold)
        fit(scaffold, loss, source, how, groups=groups, folder=kept, hooks=Hooks(tell))
    if (told := describe_counts(stream.counts)) != "none":
        _warn(f"{told}, of {total_counts(stream.counts)[READ]} examples that were read", lm)
    run = TrainedRun(_made(scaffold.eval(), lm, how, spec), lm, tuple(losses), spec)
    if folder is not None and main:
        run.save(folder / BEST)
    return run


def evaluate(
    run: TrainedRun | Scaffold,
    examples: Examples,
    lm: FrozenLM | None = None,
    *,
    split: str = TEST,
    limit: int = 0,
    longest: int = LONGEST,
    chat: bool | str | None = None,
    progress: bool = True,
) -> Mapping[str, float]:
    """Measure a scaffold: scores by metric ("exact_match", "f1", "accuracy" ...) and their "average", in percent.

    As `shoulders evaluate` does: a task's score is the median over its wordings, and those of tasks are averaged. The
    "average" takes of each task the metric that decides.

    Args:
        run: what `train` returned, or a scaffold; `Bare()` is the model as it is.
        examples: as in `train`; of a suite the split is measured, and rows are all measured.
        lm: the frozen model, where the scaffold does not know it.
        limit: examples of each wording at most; 0 for all.
        longest: tokens of a generated answer at most; as many as `shoulders.open` gives.
        chat: as in `train`.
        progress: show a progress bar.

    Raises:
        DataError, UsageError: an example does not fit; or a scaffold without its model.
        WrongBackbone: the scaffold was made around another model.
    """
    scaffold = run.scaffold if isinstance(run, TrainedRun) else run
    lm = lm or (run.lm if isinstance(run, TrainedRun) else getattr(scaffold, "backbone", None))
    if lm is None:
        raise UsageError("a scaffold is measured around its model: shoulders.evaluate(scaffold, examples, lm)")
    _check_fits(scaffold, lm)
    plan = EvaluationPlan(split=split, limit=limit, longest=longest)
    spec = (run.spec if isinstance(run, TrainedRun) else _trained_spec(scaffold)).in_chat(chat)
    check_chat(spec.chat, lm)
    scaffold.to(lm.device).eval()
    with _bar("measuring", shown=progress) as show:
        tasks = open_examples(examples)
        scores = measure(tasks, lm, scaffold, plan, chat=spec.chat, on_done=lambda done, every: show(done, every, ""))
    if scores.uncomputed:
        warnings.warn(not_computed(scores.uncomputed), stacklevel=2)
    if scores.truncated:
        _warn(f"{scores.truncated} of {scores.examples} questions were cut", lm)
    return _averages(scores)


def _averages(scores: Scores) -> dict[str, float]:
    found: dict[str, dict[str, list[float]]] = {}
    for row in scores.wordings:
        for name, value in row.scores.items():
            found.setdefault(name, {}).setdefault(row.task, []).append(value)
    return {**{name: mean(map(median, tasks.values())) for name, tasks in found.items()}, "average": scores.average}


def _plan(values: Mapping[str, Any]) -> TrainPlan:
    """Return how a training goes.

    Raises:
        UnknownName, UsageError: there is no such value, or it does not fit.
    """
    known = [item.name for item in fields(TrainPlan) if item.name != "evaluate_every"]  # nothing chooses here
    for name in values:
        if name not in known:
            raise UnknownName("value of training called", name, known)
    return TrainPlan(**{name: _number(name, value) for name, value in {**USUAL, **values}.items()})


def _number(name: str, value: Any) -> Any:
    """Return a value of training, if it is one, as a plain number; texts are returned as they are.

    Raises:
        UsageError: it should be a number, or two, and is not.
    """
    kind = type(getattr(TrainPlan(), name))
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, Integral):
        return int(value)
    if kind is float and isinstance(value, Real):
        return float(value)
    if kind is tuple and isinstance(value, Sequence) and [isinstance(one, Real) for one in value] == [True, True]:
        return tuple(float(one) for one in value)
    if kind is str:
        return str(value)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", tuple: "two numbers"}[kind]
    raise UsageError(f"training.{name} is {value!r}: it must be {wanted}")


def _check_fits(scaffold: Scaffold, lm: FrozenLM) -> None:
    """Raise `UsageError` where one of the two is something else, `WrongBackbone` for a scaffold of another model."""
    if not isinstance(scaffold, Scaffold) or not isinstance(lm, FrozenLM):
        raise UsageError(
            f"a Scaffold and a FrozenLM are needed, in this order, got {type(scaffold).__name__} and "
            f"{type(lm).__name__}: FrozenLM.load(NAME), or FrozenLM(model, tokenizer)"
        )
    own, origin = scaffold.backbone, scaffold.origin
    if own is not None and own is not lm:
        origin = Origin(own.name, own.fingerprint(), own.width, quantized=own.quantized)
    if origin is not None and own is not lm:
        origin.check(lm)
    lm.check_room(f"a prompt of {scaffold.length} vectors and a text", scaffold.length + 2, "make the prompt shorter")


def _made(scaffold: Scaffold, lm: FrozenLM, how: TrainPlan, spec: AnswerSpec) -> Scaffold:
    return scaffold.made_for(lm, {"training": asdict(how)}, answering=spec.as_json())


def _trained_spec(scaffold: Scaffold) -> AnswerSpec:
    """Return how a scaffold was trained to be asked, with nothing else than its conversation."""
    known = spec_from_json(scaffold.origin.answering, "the scaffold") if scaffold.origin else AnswerSpec()
    return AnswerSpec(chat=known.chat)


def _about(
    scaffold: Scaffold, lm: FrozenLM, tasks: Sequence[Task], how: TrainPlan, chat: Chat | None
) -> dict[str, Any]:
    """Return all that a run depends on, as JSON."""
    parts = [
        (task.name, task.examples)
        if isinstance(task, InMemoryTask)
        else (task.name, [(name, task.rows(TRAIN, name)) for name in task.wordings if TRAIN in task.split_names(name)])
        for task in tasks
    ]
    examples = blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    kind = {"kind": scaffold.kind, **scaffold.description()}
    asked = chat and asdict(chat)
    about = {"backbone": lm.variant, "scaffold": kind, "examples": examples, "chat": asked, **asdict(how)}
    return json.loads(json.dumps(about))


def _steps_done(folder: Path, about: Mapping[str, Any]) -> int:
    """Return the steps that are done already of a run in a folder, which is made if there is none.

    Raises:
        UsageError: the folder holds another run.
    """
    done = steps_done(folder / CHECKPOINTS)
    if (folder / RUN).exists():
        kept = read_json(folder / RUN)
        for name, value in about.items():
            if kept.get(name) != value:
                raise UsageError(
                    f"{folder} holds another run ({name} {kept.get(name)}, not {value}): name another folder (out=)"
                )
    elif done or (folder / RECIPE).exists():
        raise UsageError(f"{folder} holds a run of `shoulders train`: name another folder (out=)")
    else:
        write_json(folder / RUN, about)
    return done


def _warn(told: str, lm: FrozenLM) -> None:
    warnings.warn(f"{told}: the model has {lm.context} positions, beside the prompt and an answer", stacklevel=3)


@contextmanager
def _bar(title: str, *, shown: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show how far something is, on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:
        task = bars.add_task(title, total=0, note="")
        yield lambda done, every, note: bars.update(task, completed=done, total=every, note=note)
