"""Builds what a recipe names: backbone, scaffold, tasks, mixture and evidence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoulders.answering.spec import AnswerSpec
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import Mixture
from shoulders.data.readers import QA, QUERY, QUESTION_WORDING, open_suite
from shoulders.data.tasks import TRAIN, SkipPolicy, Task, check_wordings, class_labels
from shoulders.engine.batches import Lengths
from shoulders.errors import UnknownName, UsageError
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.recall import Retrieval, retrieval
from shoulders.evidence.base import CANDIDATES, Evidence
from shoulders.evidence.choice import PASSAGES, EvidenceChoice
from shoulders.evidence.kinds import load_first_prompt, new_source
from shoulders.evidence.packing import PackedEvidence
from shoulders.records import Example
from shoulders.runs.recipe import BackboneChoice, Recipe, SuiteChoice
from shoulders.scaffolds.base import KINDS, Scaffold, ScaffoldConfig, TrainingData, scaffold_named
from shoulders.scaffolds.storage import scaffold_folder
from shoulders.store.files import cache_folder
from shoulders.training.distillation import Teacher
from shoulders.training.losses import ExampleSource
from shoulders.training.stream import Stream

TAUGHT = "taught"  # folder of teachers' distributions in the cache folder


def answer_spec(recipe: Recipe) -> AnswerSpec:
    """Return how the model of a recipe is asked: with the wording of its suite and its evidence, as it is measured."""
    # room for all answers that a recipe generates: those of its plans, and those that `shoulders sample` draws
    drawn = recipe.evidence.longest if isinstance(recipe.evidence, EvidenceChoice) else 0
    room = max(recipe.suite.lengths.target, recipe.development.longest, recipe.test.longest, drawn)
    return AnswerSpec(
        wording=QUESTION_WORDING if recipe.suite.source.startswith(QA) else QUERY,
        evidence=recipe.evidence,
        lengths=Lengths(recipe.suite.lengths.input, room),
        longest=recipe.test.longest,
    )


def new_evidence(recipe: Recipe, lm: FrozenLM, prompt: int) -> Evidence | None:
    """Return the source of evidence of a recipe, or None (`AnswerSpec.source`)."""
    return answer_spec(recipe).source(lm, prompt)


def new_teacher(recipe: Recipe, lm: FrozenLM) -> Teacher | None:
    """Return the teacher of a recipe, or None.

    Raises:
        UsageError, SourceNotFound, ContextFull: its evidence or scaffold is missing, or leaves no room for a question.
        SaveFailed: the folder of its distributions cannot be written.
    """
    choice = recipe.teacher
    if not choice.evidence.kind:
        return None
    scaffold = scaffold_named(choice.scaffold, lm)
    lengths = Lengths(choice.input, recipe.suite.lengths.target)
    evidence = new_source(choice.evidence, lm, scaffold.length, lengths)
    assert evidence is not None
    folder = Path(choice.store).expanduser() if choice.store else cache_folder() / TAUGHT
    return Teacher(lm, scaffold, evidence, choice, folder)


def describe_evidence(recipe: Recipe, lm: FrozenLM, evidence: Evidence | None) -> dict[str, Any] | None:
    """Return the evidence of a result as JSON: the index, or the prompts that candidates were sampled under."""
    choice = recipe.evidence
    if evidence is None:
        return None
    if choice.kind in PASSAGES:
        return {"kind": choice.kind, "index": choice.index, "fingerprint": evidence.fingerprint}
    if choice.kind != CANDIDATES:
        return {"kind": choice.kind, "fingerprint": evidence.fingerprint}
    names = (choice.scaffold, *choice.across)
    return {"kind": choice.kind, "scaffolds": {name: identity(load_first_prompt(name, lm)) for name in names}}


def measure_retrieval(recipe: Recipe, evidence: Evidence | None, scores: Scores) -> Retrieval | None:
    """Return the recall of the passages of the measured examples; None if no passages were retrieved."""
    if recipe.evidence.kind not in PASSAGES or not isinstance(evidence, PackedEvidence):
        return None
    predictions = [prediction for row in scores.wordings for prediction in row.predictions]
    examples = [prediction.example for prediction in predictions]
    answers = [prediction.text for prediction in predictions]
    return retrieval(examples, evidence, recipe.evidence.passages, answers)


def load_backbone(choice: BackboneChoice) -> FrozenLM:
    """Return the frozen model."""
    return FrozenLM.load(choice.name, dtype=choice.dtype, device=choice.device, attention_kernel=choice.attention)


def new_scaffold(config: ScaffoldConfig, lm: FrozenLM, seed: int, tasks: Sequence[Task] = ()) -> Scaffold:
    """Return a new scaffold with its initial parameters.

    Args:
        tasks: of the training.

    Raises:
        ContextFull: the prompt leaves no room in the context.
    """
    torch.manual_seed(seed)
    data = TrainingData(lambda: class_labels(tasks), lambda: _examples(tasks, seed))
    scaffold = KINDS[config.kind].new(config, lm, seed=seed, data=data).to(lm.device)
    lm.check_room(f"a prompt of {scaffold.length} vectors and a text", scaffold.length + 2, "lower scaffold.length")
    if not config.start:
        return scaffold
    return scaffold.started_from(Scaffold.load(scaffold_folder(config.start), lm), config.start)


def _examples(tasks: Sequence[Task], seed: int) -> Iterator[Example]:
    """Yield the training examples of tasks in the order of their mixture, without those that cannot be used."""
    mixture = Mixture(tasks, split=TRAIN, seed=seed, skip=SkipPolicy(failing=True, bad_rows=True))
    yield from filter(None, (mixture.read(position, {}) for position in range(len(mixture))))


def load_tasks(choice: SuiteChoice) -> list[Task]:
    """Return the tasks of a suite."""
    return open_suite(choice.source, choice.tasks)


@dataclass(frozen=True, slots=True)
class TaskParts:
    """The tasks of a suite to train and select on, and the tasks to test on.

    They are the same unless tasks are held out (`suite.held_out`), as T0 holds out clusters.
    """

    trained: list[Task]
    tested: list[Task]


def suite_parts(choice: SuiteChoice) -> TaskParts:
    """Return the tasks of a suite, divided into those to train on and those to test on.

    Raises:
        UnknownName: the name of a held-out task or cluster, or of a wording to leave out, is unknown.
        UsageError: all tasks are held out.
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
    """Return the mixture of the training examples of a suite, in the order of the seed."""
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
    recipe: Recipe,
    tasks: Sequence[Task],
    lm: FrozenLM,
    scaffold: Scaffold,
    evidence: Evidence | None,
    teacher: Teacher | None = None,
) -> ExampleSource:
    """Return the source of the training examples of a recipe."""
    suite, plan = recipe.suite, recipe.training
    mixture = training_mixture(suite, tasks, plan.seed)
    stream = Stream(
        mixture,
        lm,
        lengths=suite.lengths,
        prompt_length=scaffold.length,
        evidence=evidence,
        fold=suite.fold,
        teacher=teacher,
    )
    return ExampleSource(stream, plan.batch_size, plan.positions_at_once, scaffold.length, plan.average)
