"""`shoulders train retriever` and `shoulders train reranker`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.box import SIMPLE_HEAD
from rich.table import Table

from shoulders.cli.scores import watching
from shoulders.cli.show import console, need, quiet_libraries
from shoulders.files import read_json
from shoulders.recipes.ranking import KINDS, RERANKER, RankingRecipe, ranking_recipe_from_json, ranking_recipes
from shoulders.recipes.recipe import with_overrides


def is_ranking(name: str) -> bool:
    """Whether a recipe, by name or as a file, is that of a retriever or a re-ranker."""
    if not name.endswith(".json"):
        return name in ranking_recipes()
    return Path(name).exists() and read_json(Path(name)).get("kind") in KINDS


def run(name: str, overrides: Sequence[str], out: Path | None, *, resume: bool, cross_fit: bool) -> None:
    """Train by the recipe, and say how well passages are ordered."""
    need("tantivy", "search")
    quiet_libraries()
    from shoulders.recipes.train_ranking import cross_fit as cross_fitted
    from shoulders.recipes.train_ranking import train_ranking

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
    for name, result in found.items():
        measured = result["development"]
        table.add_row(f"{name}, step {measured['step']}", *_cells(measured))
        if weight := measured.get("best_retriever_weight"):
            table.add_row(f"  retriever_weight={weight}", *_cells(measured["retriever_weights"][str(weight)]))
    return table


def _cells(order: Mapping[str, Any], of: str = "") -> list[str]:
    recall = order[f"{of}recall"]
    values = (order[f"{of}reciprocal_rank"], *(recall[k] for k in sorted(recall, key=int)))
    return [f"{value:.1f}" for value in values]
