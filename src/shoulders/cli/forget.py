"""`shoulders forget`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from shoulders.answering.models import model_info
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.common import recipe_of, weights_of
from shoulders.cli.scores import measuring, print_skipped, scores_table
from shoulders.cli.show import console, quiet_libraries
from shoulders.data.text import open_text
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.provenance import provenance, scaffold_measured
from shoulders.evidence.choice import EvidenceChoice
from shoulders.files import write_json
from shoulders.recipes.build import load_tasks
from shoulders.recipes.forgetting import BeforeAfter, Forgetting, forgetting, outside
from shoulders.recipes.jobs import check_measurable, measure, measured_sequences
from shoulders.recipes.recipe import Recipe, SuiteChoice, with_overrides
from shoulders.recipes.rivals import load_rival, rival_measured
from shoulders.scaffolds.base import Scaffold


def run(name: str, text: str, tasks: str, overrides: Sequence[str], out: Path | None) -> None:
    """Measure perplexity on a text, and scores on tasks outside the suite, before and after a run."""
    quiet_libraries()
    if not text and not tasks:
        raise UsageError("there is nothing to measure: name held-out text (--text), a suite (--tasks), or both")
    documents = open_text(text) if text else None
    info = model_info(name)
    trained = recipe_of(info.name, None, [])
    # Everything but what is asked: a suite of its own, and nothing to read beside the questions.
    asked = replace(trained, suite=SuiteChoice(source=tasks), evidence=EvidenceChoice()) if tasks else trained
    recipe = with_overrides(asked, overrides)
    lm = weights_of(recipe.backbone)
    if info.rival:
        found = load_rival(info.rival, recipe, lm)
        about = rival_measured(info.rival, found)
    else:
        found = info.load(lm)
        about = {"scaffold": scaffold_measured(found.scaffold, info.name)}
    measured = forgetting(
        lm,
        found.lm,
        found.scaffold,
        sequences=measured_sequences(recipe, lm, documents) if documents else [],
        scores_of=_scores_of(recipe, lm, trained) if tasks else None,
    )
    _tell(measured)
    if out:
        write_json(out, {**measured.as_json(), "text": text or None, **about, **provenance(recipe.as_json(), lm)})
        console.print(f"written to {out}")


def _scores_of(recipe: Recipe, lm: FrozenLM, trained: Recipe) -> Callable[[FrozenLM, Scaffold], Scores]:
    """What measures a model by the recipe's `test` on those of its tasks that nothing was trained on."""
    tasks, inside = outside(load_tasks(recipe.suite), recipe.suite.source, trained)
    if inside:
        told = f"left out, because the run was trained on them: {', '.join(inside)}"
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    check_measurable(recipe, recipe.test, lm, tasks)

    def scores_of(model: FrozenLM, scaffold: Scaffold) -> Scores:
        with measuring(f"measuring on {recipe.test.split}") as watch:
            return measure(recipe, model, scaffold, recipe.test, tasks, watch.on_done)

    return scores_of


def _tell(found: Forgetting) -> None:
    unmoved = "no bit of the model has moved"
    if found.text:
        before, after = found.text.before.perplexity, found.text.after.perplexity
        told = unmoved if found.unchanged else f"{100 * (found.ratio - 1):+.1f}%"
        tokens = found.text.before.tokens
        console.print(f"perplexity on {tokens:,} tokens: before {before:.2f}, after {after:.2f} ({told})")
        if found.text.attached:
            console.print(f"read through the scaffold: {found.text.attached.perplexity:.2f}")
    if found.tasks:
        _tell_tasks(found, found.tasks, unmoved)


def _tell_tasks(found: Forgetting, tasks: BeforeAfter[Scores], unmoved: str) -> None:
    columns = {"before": tasks.before, "after": tasks.after}
    if tasks.attached:
        columns["with scaffold"] = tasks.attached
    console.print(scores_table("Tasks outside the suite", columns))
    print_skipped(tasks.before)
    gap = found.difference
    told = unmoved if found.unchanged else f"95% interval {gap.low:+.1f} to {gap.high:+.1f}"
    changed = f"{found.answers_changed:,} of {tasks.before.examples:,} answers changed"
    console.print(f"average after less before: {gap.value:+.1f} ({told}); {changed}")
