"""`shoulders train` and `shoulders sweep`."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.box import SIMPLE_HEAD
from rich.table import Table

from shoulders.answering.models import rival_info
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.common import find_recipe, weights_of
from shoulders.cli.evaluate import measured
from shoulders.cli.scores import counts_table, measuring, print_retrieval, print_skipped, scores_table, watching
from shoulders.cli.show import console, need, quiet_libraries
from shoulders.data.mixture import left_out
from shoulders.data.tasks import Task
from shoulders.errors import UsageError
from shoulders.evaluation.results import RESULTS
from shoulders.evidence.base import Evidence
from shoulders.paper.recipes import GRIDS
from shoulders.paper.rivals import train_rival
from shoulders.retrieval.towers import RERANKER
from shoulders.runs.build import TaskParts, new_evidence
from shoulders.runs.jobs import check_tested, measure, measure_text, task_parts
from shoulders.runs.ranking_recipes import KINDS, RankingRecipe, ranking_recipe_from_json, ranking_recipes
from shoulders.runs.recipe import Recipe, with_overrides
from shoulders.runs.run import (
    Watch,
    keep_test_scores,
    result,
    text_result,
    train,
    train_until,
    trained_parameters,
    training_told,
)
from shoulders.runs.sweep import Candidate, Grid, SweepPlan, parsed_grid, sweep
from shoulders.scaffolds.base import Scaffold
from shoulders.store.files import BEST, read_json, write_json
from shoulders.training.loop import Progress


def is_ranking(name: str) -> bool:
    """Whether a recipe, by name or as a file, is that of a retriever or a re-ranker."""
    if not name.endswith(".json"):
        return name in ranking_recipes()
    return Path(name).exists() and read_json(Path(name)).get("kind") in KINDS


def run_train_ranking(name: str, overrides: Sequence[str], out: Path | None, *, resume: bool, cross_fit: bool) -> None:
    """Train by the recipe, and say how well passages are ordered."""
    need("tantivy", "search")
    quiet_libraries()
    from shoulders.runs.train_ranking import cross_fit as cross_fitted
    from shoulders.runs.train_ranking import train_ranking

    recipe = with_overrides(_named(name), overrides)
    folder = out or Path("runs") / recipe.name
    steps = recipe.training.steps
    if cross_fit:
        runs = cross_fitted(recipe, folder, resume=resume, watch=lambda part: watching(f"{recipe.name} {part}", steps))
        found = {part: ranked.result for part, ranked in runs.items()}
    else:
        with watching(recipe.name, steps) as watch:
            found = {recipe.name: train_ranking(recipe, folder, resume=resume, watch=watch).result}
    if not PartialState().is_main_process:
        return
    console.print(_table(found))
    kept = folder if cross_fit else folder / "best"
    how = (
        f"evidence.reranker={kept}"
        if recipe.kind == RERANKER
        else f"shoulders encode {recipe.index} --retriever {kept}"
    )
    console.print(f"kept in {kept}; use it: {how}", markup=False, soft_wrap=True)


def _named(name: str) -> RankingRecipe:
    return ranking_recipe_from_json(read_json(Path(name))) if name.endswith(".json") else ranking_recipes()[name]


def _table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    first = next(iter(found.values()))["development"]
    title = f"development: {first['questions']} questions with an answer among the passages found"
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for column in ("", "MRR@10", *(f"recall@{k}" for k in sorted(first["recall"], key=int))):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("as found", *_cells(first, "found_"))
    for name, one in found.items():
        measured = one["development"]
        table.add_row(f"{name}, step {measured['step']}", *_cells(measured))
        if weight := measured.get("best_retriever_weight"):
            table.add_row(f"  retriever_weight={weight}", *_cells(measured["retriever_weights"][str(weight)]))
    return table


def _cells(order: Mapping[str, Any], of: str = "") -> list[str]:
    recall = order[f"{of}recall"]
    values = (order[f"{of}reciprocal_rank"], *(recall[k] for k in sorted(recall, key=int)))
    return [f"{value:.1f}" for value in values]


def run_train(name: str, overrides: Sequence[str], out: Path | None, *, resume: bool, rival: str = "") -> None:
    """Train, then measure the best scaffold on the test part."""
    quiet_libraries()
    recipe = find_recipe(name, rivalled(overrides, rival))
    recipe.check_trainable()
    lm, parts = weights_of(recipe.backbone), task_parts(recipe)
    check_tested(recipe, lm, parts)
    train_and_measure(recipe, lm, parts, out or default_folder(recipe), resume=resume)


def rivalled(overrides: Sequence[str], rival: str) -> list[str]:
    """Recipe values with what `--rival` says."""
    return [*([f"rival.kind={rival}"] if rival else []), *overrides]


def default_folder(recipe: Recipe) -> Path:
    """Where a run goes if nothing is said."""
    return Path("runs") / "-".join(filter(None, [recipe.name, recipe.rival.kind]))


def train_and_measure(recipe: Recipe, lm: FrozenLM, parts: TaskParts, folder: Path, *, resume: bool) -> None:
    """A recipe's run with loaded weights and tasks, and its results."""
    evidence = new_evidence(recipe, lm, recipe.scaffold.taken) if parts.tested else None
    if recipe.rival.kind:
        _run_rival(recipe, lm, parts, evidence, folder, resume=resume)
        return
    with watching(recipe.name, recipe.training.steps) as watch:
        scaffold, progress = train(
            recipe, lm, folder, tasks=parts.trained, evidence=evidence, resume=resume, watch=watch
        )
    if not PartialState().is_main_process:
        return
    _print_training(trained_parameters(scaffold), progress)
    told = training_told(folder, lm, progress)
    if parts.tested:
        _measure_tasks(recipe, lm, scaffold, parts.tested, evidence, folder, told)
    else:
        numbers = measure_text(recipe, lm, scaffold)
        console.print(f"perplexity {numbers.perplexity:.2f} on {numbers.tokens:,} held-out tokens")
        write_json(folder / RESULTS, {**text_result(recipe, lm, scaffold, numbers, str(folder / BEST)), **told})
    console.print(f"kept in {folder / BEST}; try: shoulders ask {folder / BEST}")


def _run_rival(
    recipe: Recipe, lm: FrozenLM, parts: TaskParts, evidence: Evidence | None, folder: Path, *, resume: bool
) -> None:
    """Likewise for what is trained in the place of the recipe's scaffold."""
    with watching(f"{recipe.name}, {recipe.rival.kind}", recipe.training.steps) as watch:
        progress = train_rival(recipe, lm, folder, tasks=parts.trained, evidence=evidence, resume=resume, watch=watch)
    if not PartialState().is_main_process:
        return
    told = training_told(folder, lm, progress)
    content = measured(rival_info(folder / BEST), recipe, lm, parts.tested, evidence)
    _print_training(content["trained"], progress)
    write_json(folder / RESULTS, {**content, **told})
    console.print(f"kept in {folder / BEST}; try: shoulders ask {folder}")


def _print_training(parameters: int, progress: Progress) -> None:
    best = (
        f"best development score {progress.best_score:.1f} at step {progress.best_step}" if progress.best_step else ""
    )
    told = left_out(progress.counts)
    console.print(f"{parameters:,} trained parameters; {best}; examples left out: {told}")
    if told != "none":
        console.print(counts_table(progress.counts))


def _measure_tasks(
    recipe: Recipe,
    lm: FrozenLM,
    scaffold: Scaffold,
    tasks: Sequence[Task],
    evidence: Evidence | None,
    folder: Path,
    told: Mapping[str, Any],
) -> None:
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores = measure(recipe, lm, scaffold, recipe.test, tasks, watch.on_done, evidence)
    console.print(scores_table(recipe.name, {"score": scores}))
    print_skipped(scores)
    content = {**result(recipe, lm, scaffold, scores, str(folder / BEST), evidence), **told}
    print_retrieval(content)
    write_json(folder / RESULTS, content)
    keep_test_scores(scaffold, lm, folder / BEST, recipe.test.split, scores)


def run_sweep(
    name: str,
    overrides: Sequence[str],
    grid: Sequence[str],
    fraction: float,
    out: Path | None,
    *,
    resume: bool,
    rival: str,
) -> None:
    """Train a share of every candidate's steps, then the rest of the best one's, and measure that on the test part."""
    quiet_libraries()
    recipe = find_recipe(name, rivalled(overrides, rival))
    plan = SweepPlan(recipe, parsed_grid(grid) or _usual(recipe), fraction)
    every = plan.candidates()
    lm, parts = weights_of(recipe.backbone), task_parts(recipe)
    folder = out or default_folder(recipe).with_name(f"{default_folder(recipe).name}-sweep")

    def watch(candidate: Candidate) -> AbstractContextManager[Watch]:
        return watching(f"candidate {candidate.name} of {len(every)}", plan.until)

    found = sweep(plan, lm, parts, folder, _train_until, watch, resume=resume)
    assert found.chosen is not None
    if PartialState().is_main_process:
        console.print(found.table(), markup=False, soft_wrap=True)
    train_and_measure(found.chosen.recipe, lm, parts, folder / found.chosen.name, resume=True)


def _train_until(recipe: Recipe, *given: Any, **options: Any) -> Progress:
    """Train the recipe's scaffold, or its rival, up to a pause."""
    return (train_rival if recipe.rival.kind else train_until)(recipe, *given, **options)


def _usual(recipe: Recipe) -> Grid:
    """The paper's grid for what the recipe trains."""
    kind = recipe.rival.kind or recipe.scaffold.kind
    if kind not in GRIDS:
        rate = "rival.learning_rate" if recipe.rival.kind else "training.learning_rate"
        raise UsageError(f"the paper has no grid for {kind}: name one, --grid {rate}=1e-4,2e-4,5e-4")
    return GRIDS[kind]
