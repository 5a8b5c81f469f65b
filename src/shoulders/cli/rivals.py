"""What `shoulders train --rival` and `shoulders evaluate` do with a rival of a scaffold."""

from collections.abc import Sequence
from typing import Any

from shoulders.answering.models import RivalInfo
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.scores import measuring, print_retrieval, print_skipped, scores_table
from shoulders.cli.show import console
from shoulders.data.evidence import Evidence
from shoulders.data.tasks import Task
from shoulders.recipes.jobs import measure_text
from shoulders.recipes.recipe import Recipe
from shoulders.recipes.rivals import load_rival, measure_rival, rival_measured
from shoulders.recipes.run import text_result


def measured(
    info: RivalInfo, recipe: Recipe, lm: FrozenLM, tasks: Sequence[Task], evidence: Evidence | None = None
) -> dict[str, Any]:
    """Measure a rival by a recipe, print its scores, and give what results say of it.

    Args:
        lm: the backbone that it was made from.
        tasks: of the recipe; without any its text is measured.
        evidence: of the recipe, if it is at hand already.
    """
    if not tasks:
        found = load_rival(info, recipe, lm)
        numbers = measure_text(recipe, found.lm, found.scaffold)
        console.print(f"perplexity {numbers.perplexity:.2f} on {numbers.tokens:,} held-out tokens")
        return {**text_result(recipe, lm, found.scaffold, numbers, str(info.folder)), **rival_measured(info, found)}
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores, content = measure_rival(info, recipe, lm, tasks, watch.on_done, evidence)
    title = f"{info.folder} on {recipe.suite.source} ({recipe.test.split})"
    console.print(scores_table(title, {info.kind: scores}))
    print_skipped(scores)
    print_retrieval(content)
    return content
