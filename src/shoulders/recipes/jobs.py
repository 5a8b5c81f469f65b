"""What a recipe trains on, tasks or text: its source of steps, their loss, and how the development part is scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.tasks import Task, check_placement
from shoulders.data.text import PackedText, held_out, open_text
from shoulders.evaluation.perplexity import Perplexity, perplexity
from shoulders.evaluation.protocol import EvaluationPlan, OnDone, Scores, chosen_examples, evaluate
from shoulders.pipeline import Prepare, as_asked
from shoulders.recipes.build import example_source, load_tasks
from shoulders.recipes.recipe import Recipe
from shoulders.scaffolds.base import Scaffold
from shoulders.training.language import TextSource, language_loss
from shoulders.training.loop import LossOf, Source
from shoulders.training.scaffolds import scaffold_loss

ONE_IN = 50  # documents of a text without one of its own to measure on


@dataclass(frozen=True, slots=True)
class Job:
    """Everything the loop needs beside the scaffold; a score is the better the higher."""

    source: Source[Any]
    loss: LossOf[Any]
    score: Callable[[], float]


def tasks_of(recipe: Recipe) -> list[Task]:
    """The suite of a recipe; nothing for one that models text."""
    return [] if recipe.text.source else load_tasks(recipe.suite)


def job_of(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold, tasks: Sequence[Task], on_done: OnDone) -> Job:
    """The recipe's tasks as a job, or its text; what could not be measured afterwards is refused before.

    Raises:
        UsageError: a split is missing, the placement has nothing to hold on to, or the text is none.
    """
    if recipe.text.source:
        return _text_job(recipe, lm, scaffold)
    check_placement(tasks, recipe.scaffold.placement)
    check_measurable(recipe, recipe.development, lm, tasks)
    return Job(
        example_source(recipe, tasks, lm, scaffold),
        scaffold_loss(lm, scaffold),
        lambda: measure(recipe, lm, scaffold, recipe.development, tasks, on_done).average,
    )


def _text_job(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold) -> Job:
    plan = recipe.training
    documents, others = text_parts(recipe)
    text = PackedText(documents, lm, recipe.text.length, plan.seed)
    source = TextSource(text, plan.batch_size, plan.positions_at_once, scaffold.length)
    measured = _sequences(recipe, lm, others)
    return Job(source, language_loss(lm, scaffold), lambda: -perplexity(lm, scaffold, measured).perplexity)


def text_parts(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Documents to train on and documents to measure on."""
    documents = open_text(recipe.text.source)
    if recipe.text.validation:
        return documents, open_text(recipe.text.validation)
    return held_out(documents, ONE_IN)


def measure_text(recipe: Recipe, lm: FrozenLM, scaffold: Scaffold) -> Perplexity:
    """Perplexity of a scaffold on the recipe's held-out text, the same sequences every time."""
    _, documents = text_parts(recipe)
    return perplexity(lm, scaffold, _sequences(recipe, lm, documents))


def _sequences(recipe: Recipe, lm: FrozenLM, documents: Sequence[str]) -> list[list[int]]:
    """What is measured of a text: no document twice."""
    text = PackedText(documents, lm, recipe.text.length, seed=0)
    tokens = sum(len(lm.ids(document)) + 1 for document in documents)
    count = max(1, min(recipe.text.sequences, tokens // recipe.text.length))
    return [text.take() for _ in range(count)]


def check_measurable(recipe: Recipe, plan: EvaluationPlan, lm: FrozenLM, tasks: Sequence[Task]) -> None:
    """Refuse, before it is trained for, what could not be measured afterwards.

    Raises:
        UnknownName, DataError: no task has the plan's split, or it is empty.
        ContextFull: generated answers do not fit the context.
    """
    suite = recipe.suite
    chosen = chosen_examples(tasks, plan, suite.without_templates, skip_failing=suite.skip_failing)
    if any(example.choices is None for one in chosen.asked for example in one.examples):
        length = recipe.scaffold.length
        what = f"a prompt of {length} vectors, a text and an answer of {plan.longest}"
        lm.check_room(what, length + 1 + plan.longest, "lower scaffold.length or the plan's `longest`")


def measure(
    recipe: Recipe,
    lm: FrozenLM,
    scaffold: Scaffold,
    plan: EvaluationPlan,
    tasks: Sequence[Task] | None = None,
    on_done: OnDone = lambda _done, _all: None,
    prepare: Prepare = as_asked,
) -> Scores:
    """Scores of a scaffold on the recipe's suite."""
    tasks = tasks_of(recipe) if tasks is None else tasks
    suite = recipe.suite
    return evaluate(
        tasks,
        lm,
        scaffold,
        plan,
        without=suite.without_templates,
        skip_failing=suite.skip_failing,
        prepare=prepare,
        on_done=on_done,
    )
