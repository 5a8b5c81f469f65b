"""The re-ranker as a reader of its own: the fine-tuned extractive reader that a frozen one is compared with.

Source: Karpukhin et al. 2020, section 6; the paper, table 3 (DPR's reader).
"""

from collections.abc import Sequence
from typing import Any

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.packing import PackedEvidence
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import OnDone, Scores, scored
from shoulders.ranking.extraction import extract
from shoulders.ranking.named import reranker_named
from shoulders.ranking.reranker import Reranker
from shoulders.recipes.evidence import new_evidence
from shoulders.recipes.jobs import task_parts
from shoulders.recipes.recipe import Recipe
from shoulders.recipes.run import result, trained_parameters
from shoulders.records import Answer, Example, Passage
from shoulders.scaffolds.base import Bare

AT_ONCE = 64  # questions, for progress
EXTRACTIVE = "extractive"


def measure_extractive(recipe: Recipe, lm: FrozenLM, name: str, on_done: OnDone) -> tuple[Scores, dict[str, Any]]:
    """Scores of a re-ranker's own best spans by a recipe's `test`, and all that `results.json` holds of them.

    It reads all `evidence.passages` that are found for a question, as DPR's reader does, packed or not.

    Args:
        lm: of the recipe: says which passages a frozen reader would read of them.

    Raises:
        UsageError: the recipe retrieves no passages.
    """
    evidence = new_evidence(recipe, lm, recipe.scaffold.taken)
    if not isinstance(evidence, PackedEvidence):
        raise UsageError(
            f"{name} is a re-ranker, which finds answers in passages, and the recipe retrieves none: name one that "
            "does, --recipe reader evidence.index=FOLDER"
        )
    reranker = reranker_named(name)
    assert reranker is not None

    def answers(examples: Sequence[Example]) -> list[Answer]:
        found: list[Answer] = []
        for start in range(0, len(examples), AT_ONCE):
            some = examples[start : start + AT_ONCE]
            found += _extracted(reranker, some, evidence.find([example.question for example in some]))
            on_done(len(found), len(examples))
        return found

    suite = recipe.suite
    tasks = task_parts(recipe).tested
    scores = scored(tasks, recipe.test, answers, without=suite.without(tasks), skip=suite.skip)
    about = {"kind": EXTRACTIVE, "name": name, "fingerprint": reranker.fingerprint(), "encoder": reranker.about.encoder}
    content = result(recipe, lm, Bare(recipe.scaffold.taken), scores, evidence=evidence)
    return scores, {**content, "trained": trained_parameters(reranker), "scaffold": about}


def _extracted(reranker: Reranker, examples: Sequence[Example], found: Sequence[Sequence[Passage]]) -> list[Answer]:
    """The best span of each question's passages; "" where there is no passage. How sure it is is not told."""
    asked = [number for number, passages in enumerate(found) if passages]
    queries = [examples[number].question.query for number in asked]
    texts = dict(zip(asked, extract(reranker, queries, [found[number] for number in asked]), strict=True))
    return [Answer(texts.get(number, ""), 0.0, 0.0) for number in range(len(examples))]
