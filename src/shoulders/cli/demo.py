"""`shoulders demo`: the whole way on two cores, from a frozen model to scaffolds that answer, from passages too."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shoulders.answering.answerer import ModelAnswerer
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli import ask
from shoulders.cli.ask import typed
from shoulders.cli.report import read_run
from shoulders.cli.scores import measuring, print_retrieval, scores_table, watching
from shoulders.cli.show import console, need, quiet_libraries, say
from shoulders.data.lines import read_json_lines
from shoulders.data.matching import has_span
from shoulders.data.readers import bundled_folder
from shoulders.data.tasks import Task
from shoulders.engine.inference import Answering
from shoulders.evaluation.protocol import Prediction, Scores
from shoulders.evaluation.report import gains, headline, write_report
from shoulders.evaluation.results import RESULTS
from shoulders.evidence.base import RETRIEVED
from shoulders.evidence.choice import EvidenceChoice
from shoulders.runs.build import answer_spec, load_backbone, load_tasks, retrieval_measured
from shoulders.runs.jobs import measure
from shoulders.runs.recipe import Recipe
from shoulders.runs.registry import bundled_input_prompt, bundled_soft_prompt
from shoulders.runs.run import keep_test_scores, result, train, trained_parameters
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.store.files import BEST, write_json

ASKED, TEXTS = "country_facts", "fact_sheets"  # the task whose questions are asked, and the one whose texts are read
TOKENS, FOUND = 128, 5  # of passages with their question; passages found for it


def facts_index(folder: Path) -> Path:
    """An index of the bundled fact sheets, each of them a passage."""
    need("tantivy", "search")
    from shoulders.retrieval.building import build
    from shoulders.retrieval.passages import Cutting

    rows = [
        row
        for split in ("train", "validation", "test")
        for row in read_json_lines(bundled_folder() / TEXTS / f"{split}.jsonl.gz")
    ]
    texts = {row["context"]: row["title"] for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"title": title, "text": text}) + "\n" for text, title in texts.items()]
    (folder / "facts.jsonl").write_text("".join(lines), encoding="utf-8")
    built = build([str(folder / "facts.jsonl")], folder / "index", Cutting(), as_is=True)
    console.print(f"\n{built.counts.passages:,} fact sheets indexed: the same questions, now with passages to read")
    return folder / "index"


def open_book(
    scaffolds: Mapping[str, Scaffold],
    closed: Mapping[str, Scores],
    recipe: Recipe,
    lm: FrozenLM,
    folder: Path,
) -> None:
    """Ask with passages what was asked without any, and show one answer in its passage.

    Args:
        scaffolds: that read, by name.
        closed: what was measured of each without passages, the questions of `ASKED` among it.
        recipe: it was measured by.
    """
    recipe = replace(
        recipe,
        suite=replace(recipe.suite, tasks=(ASKED,), lengths=replace(recipe.suite.lengths, input=TOKENS)),
        evidence=EvidenceChoice(kind=RETRIEVED, index=str(facts_index(folder)), passages=FOUND),
    )
    table = Table(title=f"Answers that hold a right one: {ASKED}", title_justify="left", box=SIMPLE_HEAD)
    for header in ("", "closed book", "open book"):
        table.add_column(header, justify="right" if header else "left")
    read: dict[str, Scores] = {}
    for name, scaffold in scaffolds.items():
        with measuring(f"{name} reads and answers") as watch:
            read[name] = measure(recipe, lm, scaffold, recipe.test, on_done=watch.on_done)
        table.add_row(name, *(f"{_right(scores):.1f}%" for scores in (closed[name], read[name])))
    console.print(table)
    name = list(scaffolds)[-1]
    spec, scaffold = answer_spec(recipe), scaffolds[name]
    evidence = spec.source(lm, scaffold.length)
    found = retrieval_measured(recipe, evidence, read[name])
    print_retrieval({"retrieval": found and found.as_json()})
    _show_one(name, ModelAnswerer(lm, scaffold, Answering(spec.longest), spec, evidence), read[name])


def _show_one(name: str, reader: ModelAnswerer, scores: Scores) -> None:
    """The first right answer with the passage that it stands in, or else the first answer."""
    predictions = _predictions(scores)
    shown = next((one for one in predictions if _holds(one)), predictions[0])
    answer = reader.ask(shown.example.question)
    console.print(f"\n{shown.example.question.text}", style="bold", markup=False, soft_wrap=True)
    console.print(f"  {name}: {ask.said(answer)}", markup=False, soft_wrap=True)
    for line in ask.shown(answer):
        console.print(line, soft_wrap=True)


def _predictions(scores: Scores) -> list[Prediction]:
    return [prediction for row in scores.wordings if row.task == ASKED for prediction in row.predictions]


def _right(scores: Scores) -> float:
    predictions = _predictions(scores)
    return 100 * sum(map(_holds, predictions)) / len(predictions)


def _holds(prediction: Prediction) -> bool:
    return has_span(prediction.example.references, prediction.text)


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
