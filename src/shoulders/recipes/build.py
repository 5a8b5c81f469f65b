"""From a recipe's choices to the things themselves."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from shoulders.backbone.encoder import Encoder, FrozenEncoder, embedding_norm
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.batching import Stream
from shoulders.data.evidence import Evidence
from shoulders.data.mixture import Mixture
from shoulders.data.readers import open_suite
from shoulders.data.tasks import TRAIN, Task, class_labels
from shoulders.errors import UsageError
from shoulders.recipes.recipe import SELF, BackboneChoice, Recipe, ScaffoldChoice, SuiteChoice
from shoulders.scaffolds import initialise
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.initialise import PromptInit
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion
from shoulders.scaffolds.soft_prompt import SoftPrompt
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
    """The trained scaffold of that name, which must be what the recipe describes."""
    trained = Scaffold.load(name, lm)
    for key, wanted in {"kind": scaffold.kind, **scaffold.description()}.items():
        found = {"kind": trained.kind, **trained.description()}.get(key)
        if key != "norms" and found != wanted:
            raise UsageError(f"scaffold.start={name} has {key} {found}, the recipe asks for {wanted}")
    return trained


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


def mixture_of(choice: SuiteChoice, tasks: Sequence[Task], seed: int) -> Mixture:
    """The training examples of a suite's tasks, mixed."""
    return Mixture(
        tasks,
        split=TRAIN,
        seed=seed,
        cap=choice.cap,
        without=choice.without_templates,
        original_only=choice.original_only,
        skip_failing=choice.skip_failing,
    )


def example_source(
    recipe: Recipe, tasks: Sequence[Task], lm: FrozenLM, scaffold: Scaffold, evidence: Evidence | None
) -> ExampleSource:
    """The training examples of a recipe, in their order."""
    suite, plan = recipe.suite, recipe.training
    mixture = mixture_of(suite, tasks, plan.seed)
    stream = Stream(
        mixture, lm, lengths=suite.lengths, prompt_length=scaffold.length, evidence=evidence, fold=suite.fold
    )
    return ExampleSource(stream, plan.batch_size, plan.positions_at_once, scaffold.length)
