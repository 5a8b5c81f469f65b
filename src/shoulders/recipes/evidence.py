"""What a recipe says of how questions are read and asked."""

from typing import Any

from shoulders.answering.spec import AnswerSpec
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.data.batching import Lengths
from shoulders.data.evidence import Evidence
from shoulders.data.packing import PackedEvidence
from shoulders.data.questions import QA, QUERY, QUESTION_WORDING
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.retrieval import Retrieval, retrieval
from shoulders.evidence.choice import CANDIDATES, PASSAGES, EvidenceChoice
from shoulders.evidence.sources import first_prompt
from shoulders.recipes.recipe import Recipe


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
