"""From a recipe's choices to the things themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from shoulders.backbone.encoder import Encoder, FrozenEncoder, embedding_norm
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.batching import Stream
from shoulders.data.evidence import Evidence
from shoulders.data.mixture import Mixture
from shoulders.data.readers import open_suite
from shoulders.data.tasks import TRAIN, Task, check_wordings, class_labels
from shoulders.errors import UnknownName, UsageError
from shoulders.recipes.recipe import SELF, BackboneChoice, Recipe, ScaffoldChoice, SuiteChoice
from shoulders.scaffolds import initialise
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.initialise import PromptInit
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.scaffolds.storage import scaffold_folder
from shoulders.training.scaffolds import ExampleSource


def load_backbone(choice: BackboneChoice) -> FrozenLM:
    """The frozen model."""
    return FrozenLM.load(choice.name, dtype=choice.dtype, device=choice.device, attention_kernel=choice.attention)


def load_encoder(choice: ScaffoldChoice, lm: FrozenLM) -> Encoder:
    """ID-PT's encoder, in the type and place of the backbone; the backbone itself for "self"."""
    if choice.encoder == SELF:
        return lm
    return FrozenEncoder.load(choice.encoder, dtype=str(lm.dtype).removeprefix("torch."), device=str(lm.device))


def new_scaffold(choice: ScaffoldChoice, lm: FrozenLM, seed: int, tasks: Sequence[Task] = ()) -> Scaffold:
    """A scaffold at the start of its training.

    Args:
        tasks: that it is to be trained on, where it starts from their class labels.

    Raises:
        ContextFull: its prompt leaves no room in the context.
    """
    torch.manual_seed(seed)
    scaffold = _new(choice, lm, seed, tasks).to(lm.device)
    lm.check_room(f"a prompt of {scaffold.length} vectors and a text", scaffold.length + 2, "lower scaffold.length")
    return _started(scaffold, choice.start, lm) if choice.start else scaffold


def _new(choice: ScaffoldChoice, lm: FrozenLM, seed: int, tasks: Sequence[Task]) -> Scaffold:
    if choice.kind == "bare":
        return Bare()
    if choice.kind == "recursion":
        return Recursion(lm, choice.recursion, _new(replace(choice, kind=choice.inner), lm, seed, tasks))
    start = prompt_init(choice, lm, seed, tasks)(choice.length)
    if choice.kind == "soft_prompt":
        return SoftPrompt(start, choice.placement)
    encoder = load_encoder(choice, lm)
    return InputPrompt(
        encoder, lm.width, shape_of(choice), norm=embedding_norm(lm), start=start, placement=choice.placement
    )


def _started(scaffold: Scaffold, name: str, lm: FrozenLM) -> Scaffold:
    """The trained scaffold of that name, which must be what the recipe describes, or the base of what it describes."""
    trained = Scaffold.load(scaffold_folder(name), lm)
    if isinstance(scaffold, InputPrompt) and scaffold.base is not None and isinstance(trained, SoftPrompt):
        return _composed(scaffold, scaffold.base, trained, name)
    for key, wanted in {"kind": scaffold.kind, **scaffold.description()}.items():
        found = {"kind": trained.kind, **trained.description()}.get(key)
        if key != "norms" and found != wanted:
            raise UsageError(f"scaffold.start={name} has {key} {found}, the recipe asks for {wanted}")
    return trained


def _composed(over: InputPrompt, base: nn.Parameter, trained: SoftPrompt, name: str) -> InputPrompt:
    """The input prompt over a task's trained prompt: p + g(x), which says at first exactly what p says."""
    wanted, found = (over.length, over.placement), (trained.length, trained.placement)
    if found != wanted:
        raise UsageError(
            f"scaffold.start={name} is a {found[1].value} of {found[0]} vectors, the recipe asks for a "
            f"{wanted[1].value} of {wanted[0]}: change scaffold.length or scaffold.placement"
        )
    with torch.no_grad():
        base.copy_(trained.prompt)
    return over


def shape_of(choice: ScaffoldChoice) -> InputPromptShape:
    """The sizes of ID-PT's generator."""
    return InputPromptShape(
        choice.length, choice.encoder_length, choice.layers, choice.head_width, choice.query_std, choice.base
    )


def prompt_init(choice: ScaffoldChoice, lm: FrozenLM, seed: int, tasks: Sequence[Task] = ()) -> PromptInit:
    """What a learned prompt starts from.

    Raises:
        UsageError: it should start from class labels, and there are none.
    """
    if choice.init == "text":
        return initialise.from_text(lm, choice.init_text)
    if choice.init == "labels":
        labels = choice.init_text.split("|") if choice.init_text else class_labels(tasks)
        if not labels:
            raise UsageError("no task has class labels to start from: name some, scaffold.init_text='yes|no'")
        return initialise.from_labels(lm, labels, seed)
    return {"vocabulary": initialise.from_vocabulary, "normal": initialise.from_normal}[choice.init](lm, seed)


def load_tasks(choice: SuiteChoice) -> list[Task]:
    """The suite's tasks."""
    return open_suite(choice.source, choice.tasks)


@dataclass(frozen=True, slots=True)
class TaskParts:
    """Tasks of a suite: those to train and select on, and those to measure in the end.

    They are the same unless some are held out (`suite.held_out`), as T0 holds out clusters.
    """

    trained: list[Task]
    tested: list[Task]


def suite_parts(choice: SuiteChoice) -> TaskParts:
    """The suite's tasks by what they are for.

    Raises:
        UnknownName: no task or cluster that is to be held out, or no wording that is to be left out, has that name.
        UsageError: nothing is left to train on.
    """
    tasks, held = load_tasks(choice), choice.held_out
    if not held:
        return TaskParts(tasks, tasks)
    check_wordings(tasks, choice.without_templates)
    known = {name for task in tasks for name in (task.name, task.cluster)}
    for name in held:
        if name not in known:
            raise UnknownName("task or cluster (suite.held_out) called", name, known)
    trained = [task for task in tasks if not choice.holds_out(task)]
    if not trained:
        raise UsageError(f"suite.held_out={','.join(held)} leaves no task to train on: hold out fewer")
    return TaskParts(trained, [task for task in tasks if choice.holds_out(task)])


def training_mixture(suite: SuiteChoice, tasks: Sequence[Task], seed: int) -> Mixture:
    """The training examples of a suite, in the order of the seed."""
    return Mixture(
        tasks,
        split=TRAIN,
        seed=seed,
        cap=suite.cap,
        without=suite.without(tasks),
        original_only=suite.original_only,
        skip=suite.skip,
    )


def example_source(
    recipe: Recipe, tasks: Sequence[Task], lm: FrozenLM, scaffold: Scaffold, evidence: Evidence | None
) -> ExampleSource:
    """The training examples of a recipe, in their order."""
    suite, plan = recipe.suite, recipe.training
    mixture = training_mixture(suite, tasks, plan.seed)
    stream = Stream(
        mixture, lm, lengths=suite.lengths, prompt_length=scaffold.length, evidence=evidence, fold=suite.fold
    )
    return ExampleSource(stream, plan.batch_size, plan.positions_at_once, scaffold.length)
