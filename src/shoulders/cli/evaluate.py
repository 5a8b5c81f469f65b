"""`shoulders evaluate`, `shoulders sample` and `shoulders forget`: commands that measure."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoulders.cli.common import (
    Out,
    Overrides,
    RecipeOption,
    ScaffoldName,
    SkipBadRows,
    check_weights,
    find_recipe,
    recipe_of,
    weights_of,
    with_flags,
    write_numbers,
)
from shoulders.cli.show import console, quiet_libraries, warn
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.answering.models import ModelInfo, RivalInfo
    from shoulders.backbone.frozen import FrozenLM
    from shoulders.data.tasks import Task
    from shoulders.evaluation.protocol import Scores
    from shoulders.evidence.base import Evidence
    from shoulders.records import Answer, Example, Question
    from shoulders.runs.forgetting import Forgetting, OnOff
    from shoulders.runs.recipe import Recipe
    from shoulders.scaffolds.base import Scaffold

READER = "reader"  # the recipe that a re-ranker is measured by
UNCHANGED = "no bit of the model has moved"
NOT_OFF = "it cannot be taken off"


def evaluate(
    scaffold: ScaffoldName,
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    out: Out = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Measure a scaffold by rank classification or generation: per template, median over templates, clusters, average.

    The recipe's `test` values say what is measured, e.g. `test.split=validation test.limit=100 suite.source=PATH`.
    Rivals, re-rankers, the folders of `shoulders calibrate` and the bare model are measured in the same way.

    Example: `shoulders evaluate runs/first test.limit=100 --out first.json`
    """
    quiet_libraries()
    write_numbers(out, _measured(scaffold, recipe, with_flags(overrides, skip_bad_rows=skip_bad_rows)))


def _measured(name: str, recipe_name: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Measure by a recipe's `test` plan, print the scores, and return all that results hold."""
    from shoulders.answering.models import FID, model_info
    from shoulders.answering.stages import is_cascade
    from shoulders.backbone.sources import is_encoder_decoder
    from shoulders.retrieval.reranker import is_reranker
    from shoulders.runs.jobs import split_tasks
    from shoulders.scaffolds.base import BARE

    if is_reranker(Path(name)):
        return _measured_extractive(name, find_recipe(recipe_name or READER, overrides))
    recipe = recipe_of(name, recipe_name, overrides)
    if is_cascade(name):
        return _measured_cascade(name, recipe)
    info = model_info(name)
    if info.rival and info.rival.kind == FID:
        return measured_fid(info.rival, recipe)
    if info.rival:
        return measured_rival(info.rival, recipe, weights_of(recipe.backbone), split_tasks(recipe).tested)
    check_weights(recipe.backbone)
    if name == BARE and is_encoder_decoder(recipe.backbone.name):
        return _measured_encoder_decoder(recipe)
    return _measured_scaffold(info, recipe)


def _measured_scaffold(info: "ModelInfo", recipe: "Recipe") -> dict[str, Any]:
    """Measure a scaffold, or the bare model."""
    from shoulders.answering.answerer import ModelAnswerer
    from shoulders.cli.scores import measuring, print_retrieval, print_scores
    from shoulders.runs.build import answer_spec
    from shoulders.runs.jobs import measure
    from shoulders.runs.run import result
    from shoulders.scaffolds.base import BARE

    lm = weights_of(recipe.backbone)
    answerer = ModelAnswerer.load(info, lm, answer_spec(recipe))
    scaffold, evidence = answerer.scaffold, answerer.evidence
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores = measure(recipe, lm, scaffold, recipe.test, on_done=watch.on_done, evidence=evidence)
    print_scores(_title(info.name if info.origin else info.method, recipe), {"score": scores})
    content = result(recipe, lm, scaffold, scores, None if info.name == BARE else info.name, evidence)
    print_retrieval(content)
    return content


def _measured_extractive(name: str, recipe: "Recipe") -> dict[str, Any]:
    """Measure a re-ranker as an extractive reader."""
    from shoulders.cli.scores import measuring, print_retrieval, print_scores
    from shoulders.paper.comparisons import measure_extractive

    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores, content = measure_extractive(recipe, weights_of(recipe.backbone), name, watch.on_done)
    print_scores(_title(name, recipe), {"score": scores})
    print_retrieval(content)
    return content


def _measured_encoder_decoder(recipe: "Recipe") -> dict[str, Any]:
    """Measure a bare sequence-to-sequence model."""
    from shoulders.cli.scores import measuring, print_scores
    from shoulders.paper.comparisons import measure_encoder_decoder

    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores, content = measure_encoder_decoder(recipe, watch.on_done)
    print_scores(_title(recipe.backbone.name, recipe), {"score": scores})
    return content


def _measured_cascade(name: str, recipe: "Recipe") -> dict[str, Any]:
    """Measure all stages on all examples, for the curve, and print the scores with the calibrated thresholds."""
    from shoulders.answering.cascade import load_stage
    from shoulders.answering.stages import read
    from shoulders.cli.scores import measuring, print_scores
    from shoulders.runs.calibrate import cascade_result, measure_stages
    from shoulders.runs.jobs import split_tasks

    stored = read(Path(name))
    lm = weights_of(recipe.backbone)
    adaptive = stored.load(lm, load_stage)
    with measuring(f"measuring {len(adaptive.stages)} stages on {recipe.test.split}") as watch:
        tasks = split_tasks(recipe).tested
        staged = measure_stages(recipe, lm, adaptive.stages, recipe.test, tasks, adaptive.rule, watch.on_done)
    content = cascade_result(recipe, lm, adaptive, staged, stored.calibration, name)
    scores = staged.scores(staged.stops(adaptive.thresholds).tolist())
    print_scores(_title(name, recipe), {"score": scores})
    passes = content["passes"]
    console.print(f"{passes['average']:.2f} passes an answer on average (budget {passes['budget']:.2f})")
    console.print(
        f"later stages mend {passes['fixed']:.1f}% of the answers and spoil {passes['broken']:.1f}% (asked every time: "
        f"{passes['always']['fixed']:.1f}% and {passes['always']['broken']:.1f}%)",
        highlight=False,
    )
    return content


def measured_rival(
    info: "RivalInfo",
    recipe: "Recipe",
    lm: "FrozenLM",
    tasks: "Sequence[Task]",
    evidence: "Evidence | None" = None,
) -> dict[str, Any]:
    """Measure a rival by a recipe, print its scores, and return all that results hold.

    Args:
        lm: the backbone that it was made from.
        tasks: of the recipe; if empty, its text is measured.
        evidence: of the recipe, if it is loaded already.
    """
    from shoulders.cli.scores import measuring, print_retrieval, print_scores
    from shoulders.paper import rivals
    from shoulders.runs.jobs import measure_text
    from shoulders.runs.run import text_result

    if not tasks:
        loaded = rivals.load_rival(info, recipe, lm)
        numbers = measure_text(recipe, loaded.lm, loaded.scaffold)
        console.print(f"perplexity {numbers.perplexity:.2f} on {numbers.tokens:,} held-out tokens")
        content = text_result(recipe, lm, loaded.scaffold, numbers, str(info.folder))
        return {**content, **rivals.rival_measured(info, loaded)}
    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores, content = rivals.measure_rival(info, recipe, lm, tasks, watch.on_done, evidence)
    print_scores(_title(str(info.folder), recipe), {info.kind: scores})
    print_retrieval(content)
    return content


def measured_fid(info: "RivalInfo", recipe: "Recipe") -> dict[str, Any]:
    """Measure a sequence-to-sequence model that reads passages apart, and print its scores."""
    from shoulders.cli.scores import measuring, print_retrieval, print_scores
    from shoulders.paper.fid import measure_fid

    with measuring(f"measuring on {recipe.test.split}") as watch:
        scores, content = measure_fid(info, recipe, watch.on_done)
    print_scores(_title(str(info.folder), recipe), {info.kind: scores})
    print_retrieval(content)
    return content


def _title(name: str, recipe: "Recipe") -> str:
    return f"{name} on {recipe.suite.source} ({recipe.test.split})"


def sample(
    scaffold: ScaffoldName,
    overrides: Overrides = None,
    samples: Annotated[str, typer.Option(help="numbers of samples to report recall for")] = "1,8,16,64",
    recipe: RecipeOption = None,
    out: Out = None,
    majority: Annotated[
        Path | None, typer.Option(help="also measure the most frequent sample, and write that to this file")
    ] = None,
) -> None:
    """Sample answers, and report how often a right one is among them: the limit of what textual recursion can gain.

    The questions are those of the recipe's `test`, with the passages that a reader reads. The recipe's `evidence` says
    how answers are sampled (temperature, longest, seed); `evidence.store=FILE` keeps the samples for a textual
    recursion over the same scaffold. With `--majority` the answer that was sampled most often (self-consistency) is
    measured like a model.

    Example: `shoulders sample runs/first --samples 1,8 --out samples.json`
    """
    from shoulders.answering.answerer import ModelAnswerer
    from shoulders.answering.models import model_info
    from shoulders.cli.scores import measuring, print_scores
    from shoulders.evaluation.protocol import chosen_examples, scored
    from shoulders.evaluation.recall import recall
    from shoulders.evaluation.results import describe_scaffold, provenance
    from shoulders.evidence.base import CANDIDATES, with_evidence
    from shoulders.evidence.candidates import majority as majority_of
    from shoulders.evidence.choice import EvidenceChoice
    from shoulders.evidence.kinds import new_sampler
    from shoulders.runs.build import answer_spec, describe_evidence
    from shoulders.runs.jobs import split_tasks
    from shoulders.runs.run import result
    from shoulders.scaffolds.base import BARE
    from shoulders.store.cache import ValueCache

    quiet_libraries()
    info = model_info(scaffold)
    if info.rival:
        raise UsageError(
            f"{scaffold} holds a rival ({info.rival.kind}), and answers are sampled from the frozen model with a "
            "scaffold: name one, or bare"
        )
    counts = _sample_counts(samples)
    plan = recipe_of(info.name, recipe, overrides or [])
    lm = weights_of(plan.backbone)
    spec = answer_spec(plan)
    if spec.evidence.kind == CANDIDATES:  # these are what is sampled here
        spec = replace(spec, evidence=EvidenceChoice())
    answerer = ModelAnswerer.load(info, lm, spec)
    tasks = split_tasks(plan).tested
    asked = chosen_examples(tasks, plan.test, plan.suite.without(tasks), skip=plan.suite.skip).asked
    sampling = plan.evidence if isinstance(plan.evidence, EvidenceChoice) else EvidenceChoice()
    sampling = replace(sampling, count=max(counts))
    sampler = new_sampler(sampling, lm, info.name, ValueCache(sampling.store))

    def draw(questions: "Sequence[Question]", count: int) -> "list[list[Answer]]":
        asked = [replace(question, chat=spec.chat) for question in questions]
        return sampler.samples(with_evidence(asked, answerer.evidence), count)

    def most_frequent(examples: "Sequence[Example]") -> "list[Answer]":
        return [majority_of(some) for some in draw([one.question for one in examples], max(counts))]

    with measuring(f"sampling {max(counts)} answers") as watch:
        measured = recall(asked, draw, counts, watch.on_done)
    for count in measured.counts:
        console.print(f"recall at {count}: {measured.at(count):.1f}%", highlight=False)
    about = {
        "split": plan.test.split,
        "scaffold": describe_scaffold(answerer.scaffold, None if info.name == BARE else scaffold),
        "evidence": describe_evidence(plan, lm, answerer.evidence),
    }
    write_numbers(out, {**measured.as_json(), **about, **provenance(plan.as_json(), lm)})
    if majority is not None:
        without = plan.suite.without(tasks)
        scores = scored(tasks, plan.test, most_frequent, without=without, skip=plan.suite.skip)
        print_scores(_title(f"majority of {max(counts)} samples", plan), {"score": scores})
        content = result(plan, lm, answerer.scaffold, scores, None if info.name == BARE else scaffold)
        write_numbers(majority, {**content, "majority": max(counts)})


def _sample_counts(text: str) -> list[int]:
    """Return the numbers of samples, from "1,8,16"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--samples {text!r} are not whole numbers with commas between them: e.g. 1,8,16,64") from None


def forget(
    run: Annotated[str, typer.Argument(help="folder of a run, of a scaffold or of a rival (`train --rival`)")],
    overrides: Overrides = None,
    text: Annotated[str, typer.Option(help="held-out text: a file, a folder, or hub:NAME[:CONFIG]")] = "",
    tasks: Annotated[
        str, typer.Option(help="a suite, as suite.source names it; tasks that the run was trained on are left out")
    ] = "",
    recipe: RecipeOption = None,
    out: Out = None,
) -> None:
    """Measure what training made the language model forget: perplexity and scores on other data, before and after.

    After training it is measured on, as it is used, and off, with what was trained taken off again. A scaffold leaves
    every bit of the frozen model as it was, and LoRA's adapters come off; full fine-tuning cannot be taken off.
    Set how much text is read with `text.sequences=64 text.length=256`, and which tasks with
    `suite.tasks=a,b test.limit=200`.

    Example: `shoulders forget runs/lora --text hub:wikitext:wikitext-2-raw-v1 --out forgotten.json`
    """
    from shoulders.answering.models import model_info
    from shoulders.data.text import open_text
    from shoulders.evaluation.results import describe_scaffold, provenance
    from shoulders.evidence.choice import EvidenceChoice
    from shoulders.paper.rivals import load_rival, rival_measured
    from shoulders.runs.forgetting import forgetting
    from shoulders.runs.jobs import measured_sequences
    from shoulders.runs.recipe import SuiteChoice, with_overrides

    quiet_libraries()
    if not text and not tasks:
        raise UsageError("there is nothing to measure: name held-out text (--text), a suite (--tasks), or both")
    documents = open_text(text) if text else None
    info = model_info(run)
    trained = recipe_of(info.name, recipe, [])
    # The recipe of the training, but with its own suite and without passages.
    asked = replace(trained, suite=SuiteChoice(source=tasks), evidence=EvidenceChoice()) if tasks else trained
    chosen = with_overrides(asked, overrides or [])
    lm = weights_of(chosen.backbone)
    if info.rival:
        loaded = load_rival(info.rival, chosen, lm)
        about = rival_measured(info.rival, loaded)
    else:
        loaded = info.load(lm)
        about = {"scaffold": describe_scaffold(loaded.scaffold, info.name)}
    measured = forgetting(
        lm,
        loaded,
        sequences=measured_sequences(chosen, lm, documents) if documents else [],
        scores_of=_scores_of(chosen, lm, trained) if tasks else None,
    )
    _print_forgetting(measured)
    write_numbers(out, {**measured.as_json(), "text": text or None, **about, **provenance(chosen.as_json(), lm)})


def _scores_of(recipe: "Recipe", lm: "FrozenLM", trained: "Recipe") -> "Callable[[FrozenLM, Scaffold], Scores]":
    """Return a function that measures a model by the recipe's `test`, on tasks that the run was not trained on."""
    from shoulders.cli.scores import measuring
    from shoulders.runs.build import load_tasks
    from shoulders.runs.forgetting import untrained_tasks
    from shoulders.runs.jobs import check_measurable, measure

    tasks, inside = untrained_tasks(load_tasks(recipe.suite), recipe.suite.source, trained)
    if inside:
        warn(f"left out, because the run was trained on them: {', '.join(inside)}")
    check_measurable(recipe, recipe.test, lm, tasks)

    def scores_of(model: "FrozenLM", scaffold: "Scaffold") -> "Scores":
        with measuring(f"measuring on {recipe.test.split}") as watch:
            return measure(recipe, model, scaffold, recipe.test, tasks, watch.on_done)

    return scores_of


def _print_forgetting(measured: "Forgetting") -> None:
    if text := measured.text:
        told = [f"before {text.before.perplexity:.2f}"]
        for name, one in (("on", text.on), ("off", text.off)):
            if one:
                change = _change(measured, name, f"{100 * (one.perplexity / text.before.perplexity - 1):+.1f}%")
                told.append(f"{name} {one.perplexity:.2f} ({change})")
        told += [] if text.off else [NOT_OFF]
        console.print(f"perplexity on {text.before.tokens:,} tokens: {', '.join(told)}")
    if measured.tasks:
        _print_tasks(measured, measured.tasks)


def _change(measured: "Forgetting", name: str, change: str) -> str:
    return UNCHANGED if name == "off" and measured.unchanged else change


def _print_tasks(measured: "Forgetting", tasks: "OnOff[Scores]") -> None:
    from shoulders.cli.scores import print_scores

    columns = {"before": tasks.before, "on": tasks.on} | ({"off": tasks.off} if tasks.off else {})
    print_scores("Tasks outside the suite", columns)
    for name, gap in measured.differences.items():
        if gap is None:
            console.print(NOT_OFF)
            continue
        interval = _change(measured, name, f"95% interval {gap.low:+.1f} to {gap.high:+.1f}")
        changed = f"{measured.answers_changed[name]:,} of {tasks.before.examples:,} answers changed"
        console.print(f"average {name} less before: {gap.value:+.1f} ({interval}); {changed}")
