"""`shoulders evaluate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoulders.adaptive.storage import is_adaptive, read
from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.cascade import stage_named
from shoulders.answering.models import ModelInfo, model_info
from shoulders.backbone.sources import is_encoder_decoder
from shoulders.cli.common import check_weights, find_recipe, recipe_of, weights_of
from shoulders.cli.rivals import measured
from shoulders.cli.scores import measuring, print_retrieval, print_skipped, scores_table
from shoulders.cli.show import console, quiet_libraries
from shoulders.evaluation.protocol import Scores
from shoulders.files import write_json
from shoulders.ranking.storage import is_reranker
from shoulders.recipes.adaptive import adaptive_result, measure_stages
from shoulders.recipes.encoder_decoder import measure_encoder_decoder
from shoulders.recipes.evidence import answer_spec
from shoulders.recipes.extractive import measure_extractive
from shoulders.recipes.jobs import measure, task_parts
from shoulders.recipes.recipe import Recipe
from shoulders.recipes.run import result
from shoulders.scaffolds.base import BARE

READER = "reader"  # the recipe that a re-ranker is measured by


def run(name: str, overrides: Sequence[str], recipe_name: str | None, out: Path | None) -> None:
    """Measure a scaffold, a cascade, or the bare model, by a recipe's `test` plan."""
    quiet_libraries()
    if is_reranker(Path(name)):
        _run_extractive(name, find_recipe(recipe_name or READER, overrides), out)
        return
    recipe = recipe_of(name, recipe_name, overrides)
    if is_adaptive(name):
        _run_adaptive(name, recipe, out)
        return
    info = model_info(name)
    if info.rival:
        _write(out, measured(info.rival, recipe, weights_of(recipe.backbone), task_parts(recipe).tested))
        return
    check_weights(recipe.backbone)
    if name == BARE and is_encoder_decoder(recipe.backbone.name):
        _run_encoder_decoder(recipe, out)
        return
    _run_scaffold(info, recipe, out)


def _run_scaffold(info: ModelInfo, recipe: Recipe, out: Path | None) -> None:
    """Measure a scaffold, or the bare model."""
    lm = weights_of(recipe.backbone)
    asked = ModelAnswerer.load(info, lm, answer_spec(recipe))
    scaffold, evidence = asked.scaffold, asked.evidence
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores = measure(recipe, lm, scaffold, recipe.test, on_done=watch.on_done, evidence=evidence)
    _print_scores(info.name, recipe, scores)
    content = result(recipe, lm, scaffold, scores, None if info.name == BARE else info.name, evidence)
    print_retrieval(content)
    _write(out, content)


def _run_extractive(name: str, recipe: Recipe, out: Path | None) -> None:
    """Measure a re-ranker as an extractive reader."""
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores, content = measure_extractive(recipe, weights_of(recipe.backbone), name, watch.on_done)
    _print_scores(name, recipe, scores)
    print_retrieval(content)
    _write(out, content)


def _run_encoder_decoder(recipe: Recipe, out: Path | None) -> None:
    """Measure a sequence-to-sequence model as it is."""
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores, content = measure_encoder_decoder(recipe, watch.on_done)
    _print_scores(recipe.backbone.name, recipe, scores)
    _write(out, content)


def _run_adaptive(name: str, recipe: Recipe, out: Path | None) -> None:
    """Measure all stages on all examples, for the curve; the scores are those of the calibrated thresholds."""
    stored = read(Path(name))
    lm = weights_of(recipe.backbone)
    adaptive = stored.load(lm, stage_named)
    with measuring(f"measuring {len(adaptive.stages)} stages on {recipe.test.split}") as watch:
        tasks = task_parts(recipe).tested
        found = measure_stages(recipe, lm, adaptive.stages, recipe.test, tasks, adaptive.rule, watch.on_done)
    content = adaptive_result(recipe, lm, adaptive, found, stored.calibration, name)
    _print_scores(name, recipe, found.scores(found.stops(adaptive.thresholds).tolist()))
    spent = content["passes"]
    console.print(f"{spent['average']:.2f} passes an answer on average (budget {spent['budget']:.2f})")
    _write(out, content)


def _print_scores(name: str, recipe: Recipe, scores: Scores) -> None:
    console.print(scores_table(f"{name} on {recipe.suite.source} ({recipe.test.split})", {"score": scores}))
    print_skipped(scores)


def _write(out: Path | None, content: Mapping[str, Any]) -> None:
    if out:
        write_json(out, content)
        console.print(f"written to {out}")
