"""`shoulders demo`: the whole way on two cores, from a frozen model to scaffolds that answer."""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shoulders.answering.answerer import ModelAnswerer
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.ask import typed
from shoulders.cli.open_book import open_book
from shoulders.cli.report import read_run
from shoulders.cli.scores import measuring, scores_table, watching
from shoulders.cli.show import console, need, quiet_libraries, say
from shoulders.data.tasks import Task
from shoulders.evaluation.protocol import Scores
from shoulders.evaluation.report import gains, headline, write_report
from shoulders.evaluation.results import RESULTS
from shoulders.files import write_json
from shoulders.pipeline import Answering
from shoulders.recipes.build import load_backbone, load_tasks
from shoulders.recipes.jobs import measure
from shoulders.recipes.recipe import Recipe
from shoulders.recipes.run import BEST, keep_test_scores, result, train, trained_parameters
from shoulders.recipes.small import bundled_input_prompt, bundled_soft_prompt
from shoulders.scaffolds.base import Bare, Scaffold

LONGEST = 32  # tokens of an answer
BARE, SOFT, INPUT = "bare model", "soft prompt", "ID-PT"


def run(out: Path, *, quick: bool) -> None:
    """Train, measure, compare, read passages, then answer."""
    quiet_libraries()
    need("matplotlib", "report")
    need("tantivy", "search")
    begun = time.perf_counter()
    recipes = {SOFT: bundled_soft_prompt(), INPUT: bundled_input_prompt()}
    if quick:
        recipes = {name: _tenth(recipe) for name, recipe in recipes.items()}
    first = recipes[SOFT]
    console.print(f"Loading the frozen backbone {first.backbone.name} (converted once, on the first run)")
    lm = load_backbone(first.backbone)
    tasks = load_tasks(first.suite)
    proof = lm.checksum()
    console.print(
        f"{sum(weight.numel() for weight in lm.model.parameters()):,} frozen parameters, {lm.dtype}, fingerprint "
        f"{lm.fingerprint()[:12]}; {len(tasks)} tasks, loaded in {time.perf_counter() - begun:.0f} s"
    )
    folder = _fresh(out)
    scaffolds: dict[str, Scaffold] = {BARE: Bare()}
    for name, recipe in recipes.items():
        with watching(f"training {name}", recipe.training.steps) as watch:
            scaffolds[name], _ = train(recipe, lm, folder / recipe.name, tasks=tasks, watch=watch)
    scores = _measure_all(scaffolds, first, lm, tasks)
    console.print(scores_table("Held-out test part", scores))
    _report(scores, scaffolds, {BARE: first, **recipes}, lm, folder)
    open_book({name: scaffolds[name] for name in (BARE, SOFT)}, scores, first, lm, folder / "facts")
    assert lm.checksum() == proof, "the frozen model has changed"
    console.print(f"The backbone is bit for bit what it was. {time.perf_counter() - begun:.0f} s in all.")
    if sys.stdin is not None:  # closed where nobody can type
        _answer(scores, scaffolds, lm)


def _tenth(recipe: Recipe) -> Recipe:
    training = replace(recipe.training, steps=max(2, recipe.training.steps // 10), save_every=0)
    few = replace(recipe.test, limit=max(2, recipe.test.limit // 10))
    return replace(recipe, training=training, test=few, development=replace(recipe.development, limit=2))


def _fresh(out: Path) -> Path:
    """A folder of this demo's own: earlier demos are kept."""
    number = 1
    while (out / f"{number:03d}").exists():
        number += 1
    return out / f"{number:03d}"


def _measure_all(
    scaffolds: Mapping[str, Scaffold], recipe: Recipe, lm: FrozenLM, tasks: list[Task]
) -> dict[str, Scores]:
    scores: dict[str, Scores] = {}
    for name, scaffold in scaffolds.items():
        with measuring(f"measuring {name}") as watch:
            scores[name] = measure(recipe, lm, scaffold, recipe.test, tasks, watch.on_done)
    return scores


def _report(
    scores: Mapping[str, Scores],
    scaffolds: Mapping[str, Scaffold],
    recipes: Mapping[str, Recipe],
    lm: FrozenLM,
    folder: Path,
) -> None:
    results = []
    for name, found in scores.items():
        place = folder / ("bare" if name == BARE else recipes[name].name)
        best = None if name == BARE else place / BEST
        write_json(place / RESULTS, result(recipes[name], lm, scaffolds[name], found, best and str(best)))
        if best:
            keep_test_scores(scaffolds[name], lm, best, recipes[name].test.split, found)
        results.append(read_run(place, name))
    page = write_report(results, folder / "report", "shoulders: one frozen model, two scaffolds")
    sizes = ", ".join(f"{name} {trained_parameters(scaffolds[name]):,}" for name in (SOFT, INPUT))
    bare, *trained = results
    console.print(f"[bold]{headline(trained)} {gains(trained, bare)}[/bold]")
    console.print(f"Trained parameters: {sizes}. Report with plots: {page}")


def _answer(scores: Mapping[str, Scores], scaffolds: Mapping[str, Scaffold], lm: FrozenLM) -> None:
    best = max((SOFT, INPUT), key=lambda name: scores[name].average)
    console.print(f"\nNow you: answers by {best}, and by the {BARE} for comparison.")
    for text in typed():
        say(text)
        for name in (best, BARE):
            answerer = ModelAnswerer(lm, scaffolds[name], Answering(LONGEST))
            say(f"  {name}: {answerer.ask(text).text}")
