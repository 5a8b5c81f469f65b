"""From a recipe's choice to a source of evidence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import cache_folder
from shoulders.corpus.reranked import Rankers, Reranked
from shoulders.corpus.scores import ScoreStore
from shoulders.data.evidence import FOLDS, Evidence, EvidenceConfig, Room
from shoulders.data.packing import PackedEvidence, Packer
from shoulders.errors import SourceNotFound, UsageError
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.retrieval import Retrieval, retrieval
from shoulders.evidence.candidates import Candidates, FirstPass
from shoulders.evidence.store import AnswerStore
from shoulders.pipeline import Answering, Sampling
from shoulders.recipes.folders import scaffold_folder, scaffold_named
from shoulders.recipes.recipe import CANDIDATES, ORACLE, PASSAGES, SOURCES, EvidenceChoice, Recipe, recipe_from_json
from shoulders.recipes.retrievers import searcher_of
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.storage import read_origin

SCORES = "scores.sqlite"  # in the cache folder
SAMPLED_AT_ONCE = 16_384  # positions; branches are short, and only their keys and values are held


def new_evidence(recipe: Recipe, lm: FrozenLM, prompt: int) -> Evidence | None:
    """The source of evidence that a recipe names, or none.

    Args:
        prompt: vectors of the prompt that the evidence is read with.

    Raises:
        UsageError: the first prompt is missing, or those for cross-fitting were not trained on the two halves; no index
            is named.
        SourceNotFound: there is no index, or the libraries to search it are not installed.
        ContextFull: beside prompt and answer there is no room for a question with passages.
    """
    if not recipe.evidence.kind:
        return None
    lengths = recipe.suite.lengths
    # One and the same room in training, measuring and asking: for any answer of the recipe's plans.
    answer = max(lengths.target, recipe.development.longest, recipe.test.longest)
    return SOURCES[recipe.evidence.kind].new(recipe.evidence, lm, Room(prompt, lengths.input, answer))


def _retrieved(choice: EvidenceChoice, lm: FrozenLM, room: Room) -> PackedEvidence:
    """Passages, packed into the room."""
    if not choice.index:
        raise UsageError(
            "passages are retrieved from an index: build one (shoulders index), then evidence.index=FOLDER"
        )
    answer = max(room.answer, choice.longest)  # also those that `shoulders sample` draws
    packer = Packer.beside(lm, room.prompt, answer, room.input, truncate=choice.truncate)
    try:
        from shoulders.corpus.oracle import Oracle
        from shoulders.corpus.retrieved import Index, Retrieved
    except ImportError as error:
        raise SourceNotFound(f"an index needs {error.name}: pip install 'shoulders[search]'") from None
    index = Index(Path(choice.index).expanduser())
    retrieved = Retrieved(index, choice.passages, packer, searcher_of(choice, index))
    if choice.kind == ORACLE:
        return Oracle(retrieved, choice.distractors)
    return _reranked(choice, retrieved, lm) if choice.reranker else retrieved


def _reranked(choice: EvidenceChoice, found: PackedEvidence, lm: FrozenLM) -> PackedEvidence:
    store = ScoreStore(Path(choice.store) if choice.store else cache_folder() / SCORES)
    return Reranked(found, Rankers.named(choice.reranker, device=str(lm.device)), store, choice.retriever_weight)


def _candidates(choice: EvidenceChoice, lm: FrozenLM, _: Room) -> Candidates:
    if not choice.scaffold:
        raise UsageError("candidates are sampled under a first prompt: evidence.scaffold=RUN, or bare for none")
    store = AnswerStore(choice.store)
    across = _across(choice)
    return Candidates(
        sampler_of(choice, lm, choice.scaffold, store),
        choice.count,
        {fold: sampler_of(choice, lm, name, store) for fold, name in across.items()},
        choice.before,
    )


@final
@dataclass(frozen=True, slots=True)
class BuiltIn:
    """One of our own kinds of evidence, which share their values."""

    new: Callable[[EvidenceChoice, FrozenLM, Room], Evidence]
    Config: ClassVar[type[EvidenceConfig]] = EvidenceChoice


FOUND, SAMPLED = BuiltIn(_retrieved), BuiltIn(_candidates)


def evidence_of(recipe: Mapping[str, Any], lm: FrozenLM, prompt: int) -> Evidence | None:
    """What something that was trained reads its questions with, by the recipe that is kept with it."""
    return new_evidence(recipe_from_json(recipe), lm, prompt) if recipe.get("evidence") else None


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
    return {"kind": choice.kind, "scaffolds": {name: identity(_prompt(name, lm)) for name in names}}


def retrieval_measured(recipe: Recipe, evidence: Evidence | None, scores: Scores) -> Retrieval | None:
    """How often an answer was retrieved for the measured examples, and how often read; None if none was retrieved."""
    if recipe.evidence.kind not in PASSAGES or not isinstance(evidence, PackedEvidence):
        return None
    predictions = [prediction for row in scores.wordings for prediction in row.predictions]
    examples = [prediction.example for prediction in predictions]
    answers = [prediction.text for prediction in predictions]
    return retrieval(examples, evidence, recipe.evidence.passages, answers)


def sampler_of(choice: EvidenceChoice, lm: FrozenLM, name: str, store: AnswerStore) -> FirstPass:
    """What answers are sampled from, under the scaffold of that name."""
    scaffold = _prompt(name, lm)
    key = f"{lm.fingerprint()}/{identity(scaffold)}/{choice.temperature}/{choice.longest}/{choice.seed}"
    how = Answering(choice.longest, truncate=True, positions_at_once=SAMPLED_AT_ONCE)
    return FirstPass(lm, scaffold, Sampling(choice.count, choice.temperature, choice.seed), how, store, key)


def _prompt(name: str, lm: FrozenLM) -> Scaffold:
    try:
        return scaffold_named(scaffold_folder(name), lm)
    except SourceNotFound as error:
        raise SourceNotFound(
            f"{error}, and candidates were to be sampled under it: put it back, or name another (evidence.scaffold)"
        ) from error


def _across(choice: EvidenceChoice) -> dict[str, str]:
    """By fold the scaffold that was trained on the other one."""
    if not choice.across:
        return {}
    if len(choice.across) != len(FOLDS):
        raise UsageError(f"evidence.across names {len(choice.across)} scaffolds: one trained on each of the folds a, b")
    trained: dict[str, str] = {}
    for name in choice.across:
        fold = (read_origin(scaffold_folder(name)).recipe.get("suite") or {}).get("fold", "")
        trained[fold] = name
    if set(trained) != set(FOLDS):
        raise UsageError(
            f"evidence.across={','.join(choice.across)} were trained on the folds {', '.join(map(repr, trained))}: "
            "train one with suite.fold=a and one with suite.fold=b"
        )
    return {FOLDS[0]: trained[FOLDS[1]], FOLDS[1]: trained[FOLDS[0]]}
