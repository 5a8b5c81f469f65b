"""From a recipe's choices to the things themselves: backbone, scaffold, tasks, mixture and evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shoulders.answering.spec import AnswerSpec
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.mixture import Mixture
from shoulders.data.readers import QA, QUERY, QUESTION_WORDING, open_suite
from shoulders.data.tasks import TRAIN, Task, check_wordings, class_labels
from shoulders.engine.batches import Lengths
from shoulders.errors import UnknownName, UsageError
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.recall import Retrieval, retrieval
from shoulders.evidence.base import CANDIDATES, Evidence
from shoulders.evidence.choice import PASSAGES, EvidenceChoice
from shoulders.evidence.packing import PackedEvidence
from shoulders.evidence.sources import first_prompt
from shoulders.runs.recipe import BackboneChoice, Recipe, SuiteChoice
from shoulders.scaffolds.base import KINDS, Scaffold, ScaffoldConfig, TrainingData
from shoulders.scaffolds.storage import scaffold_folder
from shoulders.training.losses import ExampleSource
from shoulders.training.stream import Stream


def answer_spec(recipe: Recipe) -> AnswerSpec:
    """Return how what a recipe trains is asked: in the wording of its suite, with its evidence, as it is measured."""
    # whatever a recipe has generated: answers of its plans, or those that `shoulders sample` draws
    drawn = recipe.evidence.longest if isinstance(recipe.evidence, EvidenceChoice) else 0
    room = max(recipe.suite.lengths.target, recipe.development.longest, recipe.test.longest, drawn)
    return AnswerSpec(
        wording=QUESTION_WORDING if recipe.suite.source.startswith(QA) else QUERY,
        evidence=recipe.evidence,
        lengths=Lengths(recipe.suite.lengths.input, room),
        longest=recipe.test.longest,
    )


def new_evidence(recipe: Recipe, lm: FrozenLM, prompt: int) -> Evidence | None:
    """Return the source of evidence that a recipe names, or none (`AnswerSpec.source`)."""
    return answer_spec(recipe).source(lm, prompt)


def evidence_measured(recipe: Recipe, lm: FrozenLM, evidence: Evidence | None) -> dict[str, Any] | None:
    """Which evidence a result was measured with: the index, or the prompts that candidates were sampled under."""
    choice = recipe.evidence
    if evidence is None:
        return None
    if choice.kind in PASSAGES:
        return {"kind": choice.kind, "index": choice.index, "fingerprint": evidence.fingerprint}
    if choice.kind != CANDIDATES:
        return {"kind": choice.kind, "fingerprint": evidence.fingerprint}
    names = (choice.scaffold, *choice.across)
    return {"kind": choice.kind, "scaffolds": {name: identity(first_prompt(name, lm)) for name in names}}


def retrieval_measured(recipe: Recipe, evidence: Evidence | None, scores: Scores) -> Retrieval | None:
    """How often an answer was retrieved for the measured examples, and how often read; None if none was retrieved."""
    if recipe.evidence.kind not in PASSAGES or not isinstance(evidence, PackedEvidence):
        return None
    predictions = [prediction for row in scores.wordings for prediction in row.predictions]
    examples = [prediction.example for prediction in predictions]
    answers = [prediction.text for prediction in predictions]
    return retrieval(examples, evidence, recipe.evidence.passages, answers)


def load_backbone(choice: BackboneChoice) -> FrozenLM:
    """The frozen model."""
    return FrozenLM.load(choice.name, dtype=choice.dtype, device=choice.device, attention_kernel=choice.attention)


def new_scaffold(config: ScaffoldConfig, lm: FrozenLM, seed: int, tasks: Sequence[Task] = ()) -> Scaffold:
    """A scaffold at the start of its training.

    Args:
        tasks: that it is to be trained on.

    Raises:
        ContextFull: its prompt leaves no room in the context.
    """
    torch.manual_seed(seed)
    data = TrainingData(lambda: class_labels(tasks))
    scaffold = KINDS[config.kind].new(config, lm, seed=seed, data=data).to(lm.device)
    lm.check_room(f"a prompt of {scaffold.length} vectors and a text", scaffold.length + 2, "lower scaffold.length")
    if not config.start:
        return scaffold
    return scaffold.started_from(Scaffold.load(scaffold_folder(config.start), lm), config.start)


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
