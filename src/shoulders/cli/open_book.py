"""The open-book part of `shoulders demo`: the same questions with and without passages to read."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shoulders.answering.answerer import ModelAnswerer
from shoulders.backbone.frozen import FrozenLM
from shoulders.cli import passages
from shoulders.cli.scores import measuring, print_retrieval
from shoulders.cli.show import console, need
from shoulders.data.lines import read_json_lines
from shoulders.data.matching import has_span
from shoulders.data.readers import bundled_folder
from shoulders.evaluation.protocol import Prediction, Scores
from shoulders.evidence.choice import RETRIEVED, EvidenceChoice
from shoulders.pipeline import Answering
from shoulders.recipes.evidence import answer_spec, retrieval_measured
from shoulders.recipes.jobs import measure
from shoulders.recipes.recipe import Recipe
from shoulders.scaffolds.base import Scaffold

ASKED, TEXTS = "country_facts", "fact_sheets"  # the task whose questions are asked, and the one whose texts are read
TOKENS, FOUND = 128, 5  # of passages with their question; passages found for it


def facts_index(folder: Path) -> Path:
    """An index of the bundled fact sheets, each of them a passage."""
    need("tantivy", "search")
    from shoulders.corpus.building import build
    from shoulders.corpus.passages import Cutting

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
    console.print(f"  {name}: {passages.said(answer)}", markup=False, soft_wrap=True)
    for line in passages.shown(answer):
        console.print(line, soft_wrap=True)


def _predictions(scores: Scores) -> list[Prediction]:
    return [prediction for row in scores.wordings if row.task == ASKED for prediction in row.predictions]


def _right(scores: Scores) -> float:
    predictions = _predictions(scores)
    return 100 * sum(map(_holds, predictions)) / len(predictions)


def _holds(prediction: Prediction) -> bool:
    return has_span(prediction.example.references, prediction.text)
