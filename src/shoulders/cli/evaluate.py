"""`shoulders evaluate`, `shoulders sample` and `shoulders forget`: what measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.cascade import stage_named
from shoulders.answering.models import ModelInfo, RivalInfo, model_info
from shoulders.answering.stages import is_adaptive, read
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import is_encoder_decoder
from shoulders.cli.common import check_weights, find_recipe, recipe_of, weights_of
from shoulders.cli.scores import measuring, print_retrieval, print_skipped, scores_table
from shoulders.cli.show import console, quiet_libraries
from shoulders.data.tasks import Task
from shoulders.data.text import open_text
from shoulders.errors import UsageError
from shoulders.evaluation.protocol import Scores, chosen_examples
from shoulders.evaluation.recall import recall
from shoulders.evaluation.results import provenance, scaffold_measured
from shoulders.evidence.base import CANDIDATES, Evidence, with_evidence
from shoulders.evidence.choice import EvidenceChoice
from shoulders.evidence.sources import sampler_of
from shoulders.paper.comparisons import measure_encoder_decoder, measure_extractive
from shoulders.paper.rivals import load_rival, measure_rival, rival_measured
from shoulders.records import Answer, Question
from shoulders.retrieval.reranker import is_reranker
from shoulders.runs.build import answer_spec, evidence_measured, load_tasks
from shoulders.runs.calibrate import adaptive_result, measure_stages
from shoulders.runs.forgetting import BeforeAfter, Forgetting, forgetting, outside
from shoulders.runs.jobs import check_measurable, measure, measure_text, measured_sequences, task_parts
from shoulders.runs.recipe import Recipe, SuiteChoice, with_overrides
from shoulders.runs.run import result, text_result
from shoulders.scaffolds.base import BARE, Scaffold
from shoulders.store.cache import ValueCache
from shoulders.store.files import write_json


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


READER = "reader"  # the recipe that a re-ranker is measured by


def run_evaluate(name: str, overrides: Sequence[str], recipe_name: str | None, out: Path | None) -> None:
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


def run_sample(name: str, overrides: Sequence[str], recipe_name: str | None, counts: str, out: Path | None) -> None:
    """Sample answers to the questions of a recipe's `test` plan, and say how often a right one is among them."""
    quiet_libraries()
    info = model_info(name)
    if info.rival:
        raise UsageError(
            f"{name} holds a rival ({info.rival.kind}), and answers are sampled from the frozen model "
            "under a scaffold: name one, or bare"
        )
    wanted = parsed_counts(counts)
    recipe = recipe_of(info.name, recipe_name, overrides)
    lm = weights_of(recipe.backbone)
    spec = answer_spec(recipe)
    if spec.evidence.kind == CANDIDATES:  # they are what is sampled here
        spec = replace(spec, evidence=EvidenceChoice())
    answerer = ModelAnswerer.load(info, lm, spec)
    suite = recipe.suite
    tasks = task_parts(recipe).tested
    chosen = chosen_examples(tasks, recipe.test, suite.without(tasks), skip=suite.skip).asked
    sampled = recipe.evidence if isinstance(recipe.evidence, EvidenceChoice) else EvidenceChoice()
    choice = replace(sampled, count=max(wanted))
    sampler = sampler_of(choice, lm, info.name, ValueCache(choice.store))

    def samples(questions: Sequence[Question], count: int) -> list[list[Answer]]:
        return sampler.samples(with_evidence(questions, answerer.evidence), count)

    with measuring(f"sampling {max(wanted)} answers") as watch:
        found = recall(chosen, samples, wanted, watch.on_done)
    for count in found.counts:
        console.print(f"recall at {count}: {found.at(count):.1f}%", highlight=False)
    if out:
        about = {
            "split": recipe.test.split,
            "scaffold": scaffold_measured(answerer.scaffold, None if name == BARE else name),
            "evidence": evidence_measured(recipe, lm, answerer.evidence),
        }
        write_json(out, {**found.as_json(), **about, **provenance(recipe.as_json(), lm)})
        console.print(f"written to {out}", markup=False)


def parsed_counts(text: str) -> list[int]:
    """Numbers of samples, from "1,8,16"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--samples {text!r} holds no numbers: e.g. 1,8,16,64") from None


def run_forget(name: str, text: str, tasks: str, overrides: Sequence[str], out: Path | None) -> None:
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
