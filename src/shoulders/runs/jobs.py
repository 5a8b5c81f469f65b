"""Training jobs of a recipe, on tasks or text: source of examples, loss and development score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoulders.backbone.chat import check_chat
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task, check_placement
from shoulders.data.text import Documents, held_out, open_text
from shoulders.engine.batches import EncodedQuestion
from shoulders.engine.precomputed import Contexts, StateStore, check_contexts, check_first_pass
from shoulders.errors import UsageError
from shoulders.evaluation.perplexity import Perplexity, perplexity
from shoulders.evaluation.protocol import EvaluationPlan, OnDone, Scores, chosen_examples, evaluate
from shoulders.evidence.base import Evidence
from shoulders.evidence.choice import PASSAGES
from shoulders.runs.build import TaskParts, example_source, new_evidence, new_teacher, suite_parts
from shoulders.runs.memory import positions_at_once
from shoulders.runs.recipe import Recipe
from shoulders.scaffolds.base import Scaffold
from shoulders.training.distillation import Teacher
from shoulders.training.loop import LossOf, Source
from shoulders.training.losses import TextSource, language_loss, scaffold_loss
from shoulders.training.plan import TrainPlan
from shoulders.training.stream import PackedText

HELD_OUT_EVERY = 50  # without a validation text, one of so many documents is held out


@dataclass(frozen=True, slots=True)
class Job:
    """Source, loss and development score of a training run; higher scores are better.

    Attributes:
        before_step: see `training.loop.Hooks`.
    """

    source: Source[Any]
    loss: LossOf[Any]
    score: Callable[[], float]
    before_step: Callable[[int], None] = lambda _: None


def split_tasks(recipe: Recipe) -> TaskParts:
    """Return the tasks of a recipe (`suite_parts`); none for a recipe that models text."""
    return TaskParts([], []) if recipe.text.source else suite_parts(recipe.suite)


def tasks_of(recipe: Recipe) -> list[Task]:
    """Return the tasks that a recipe trains and selects on (`split_tasks`)."""
    return split_tasks(recipe).trained


def job_of(
    recipe: Recipe,
    lm: FrozenLM,
    scaffold: Scaffold,
    tasks: Sequence[Task],
    on_done: OnDone,
    evidence: Evidence | None = None,
) -> Job:
    """Return the training job of a recipe; refuse before training what could not be measured afterwards.

    Args:
        evidence: of the recipe, if it is already built; for a model that trains, that of the frozen model.

    Raises:
        UsageError: a split is missing, the placement does not fit the tasks, there is no text, or stored states would
            change because something trains before them.
        SaveFailed: the folder of stored states cannot be written.
    """
    if recipe.text.source:
        return _text_job(recipe, lm, scaffold)
    chat = recipe.backbone.conversation
    check_chat(chat, lm)
    if recipe.evidence.kind not in PASSAGES and chat is None:  # else an infix prompt has something before it
        check_placement(tasks, scaffold.placement)
    check_measurable(recipe, recipe.development, lm, tasks)
    evidence = evidence or new_evidence(recipe, lm, scaffold.length)
    teacher = new_teacher(recipe, lm)
    return Job(
        example_source(recipe, tasks, lm, scaffold, evidence, teacher),
        example_loss(recipe.training, lm, scaffold, teacher),
        lambda: measure(recipe, lm, scaffold, recipe.development, tasks, on_done, evidence).average,
    )


def example_loss(
    plan: TrainPlan, lm: FrozenLM, scaffold: Scaffold, teacher: Teacher | None = None
) -> LossOf[Sequence[EncodedQuestion]]:
    """Return the loss of a scaffold on examples, over the states that the plan keeps in folders, if it names any.

    Args:
        teacher: whose answers are learned (`training.distillation`); None for none.

    Raises:
        UsageError: something trains before what is to be stored.
        SaveFailed: a folder cannot be written.
    """
    kept = _first_pass(plan, lm, scaffold), _contexts(plan, lm, scaffold)
    return scaffold_loss(lm, scaffold, *kept, teacher=teacher, average=plan.average)


def _text_job(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold) -> Job:
    plan = recipe.training
    if plan.contexts:
        raise UsageError(
            f"training.contexts={plan.contexts} stores the text before a prompt, and in "
            f"text.source={recipe.text.source} the prompt comes first: leave training.contexts empty"
        )
    if recipe.teacher.evidence.kind:
        raise UsageError(
            f"teacher.evidence.kind={recipe.teacher.evidence.kind} is of the answers to questions, and "
            f"text.source={recipe.text.source} has none: leave one of them empty"
        )
    documents, others = text_parts(recipe)
    text = PackedText(documents, lm, recipe.text.length, plan.seed)
    source = TextSource(text, plan.batch_size, positions_at_once(recipe, lm), scaffold.length)
    measured = measured_sequences(recipe, lm, others)
    loss = language_loss(lm, scaffold, _first_pass(plan, lm, scaffold))
    return Job(source, loss, lambda: -perplexity(lm, scaffold, measured).perplexity)


def _first_pass(plan: TrainPlan, lm: FrozenLM, scaffold: Scaffold) -> StateStore | None:
    """Return the store of the states of the first pass, if the plan names a folder for it."""
    folder = plan.first_pass
    if not folder:
        return None
    check_first_pass(scaffold)  # before there is a folder
    return StateStore(folder, lm)


def _contexts(plan: TrainPlan, lm: FrozenLM, scaffold: Scaffold) -> Contexts | None:
    """Return the store of what is read before the prompt, if the plan names a folder for it."""
    folder = plan.contexts
    if not folder:
        return None
    check_contexts(scaffold)  # before there is a folder
    return Contexts(lm, folder)


def text_parts(recipe: Recipe) -> tuple[Documents, Documents]:
    """Return the documents to train on, and those to measure on."""
    documents = open_text(recipe.text.source)
    if recipe.text.validation:
        return documents, open_text(recipe.text.validation)
    return held_out(documents, HELD_OUT_EVERY)


def measure_text(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold) -> Perplexity:
    """Return the perplexity of a scaffold on the held-out text of a recipe; the sequences are always the same."""
    _, documents = text_parts(recipe)
    return perplexity(lm, scaffold, measured_sequences(recipe, lm, documents))


def measured_sequences(recipe: Recipe, lm: FrozenLM, documents: Documents) -> list[list[int]]:
    """Return the sequences of a text that are measured; no document is repeated."""
    text = PackedText(documents, lm, recipe.text.length, seed=0)
    found = [text.take()]  # even if the text is shorter than a sequence
    while len(found) < recipe.text.sequences:
        sequence = text.take()
        if text.position > text.epoch:
            break
        found.append(sequence)
    return found


def check_measurable(recipe: Recipe, plan: EvaluationPlan, lm: FrozenLM, tasks: Sequence[Task]) -> None:
    """Raise an error before training if a plan could not be measured afterwards.

    Raises:
        UnknownName, DataError: no task has the plan's split, or it is empty.
        ContextFull: generated answers do not fit the context.
    """
    suite = recipe.suite
    chosen = chosen_examples(tasks, plan, suite.without(tasks), skip=suite.skip)
    if any(example.choices is None for one in chosen.asked for example in one.examples):
        length = recipe.scaffold.taken
        what = f"a prompt of {length} vectors, a text and an answer of {plan.longest}"
        lm.check_room(what, length + 1 + plan.longest, "lower scaffold.length or the plan's `longest`")


def check_tested(recipe: Recipe, lm: FrozenLM, parts: TaskParts) -> None:
    """Raise an error before training if the test could not be measured afterwards (`check_measurable`)."""
    if parts.tested:
        check_measurable(recipe, recipe.test, lm, parts.tested)


def measure(
    recipe: Recipe,
    lm: FrozenLM,
    scaffold: Scaffold,
    plan: EvaluationPlan,
    tasks: Sequence[Task] | None = None,
    on_done: OnDone = lambda _done, _all: None,
    evidence: Evidence | None = None,
) -> Scores:
    """Return the scores of a scaffold on the suite of a recipe, with its evidence.

    Args:
        tasks: to measure; None for the test tasks of the recipe.
        evidence: of the recipe, if it is already built.
    """
    tasks = split_tasks(recipe).tested if tasks is None else tasks
    suite = recipe.suite
    return evaluate(
        tasks,
        lm,
        scaffold,
        plan,
        evidence=evidence or new_evidence(recipe, lm, scaffold.length),
        chat=recipe.backbone.conversation,
        without=suite.without(tasks),
        skip=suite.skip,
        on_done=on_done,
    )
