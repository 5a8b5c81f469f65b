"""`shoulders calibrate` and `shoulders threshold`: what chooses thresholds on the development part."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.cascade import stage_named
from shoulders.answering.models import model_info
from shoulders.answering.stages import Adaptive, Calibration, check_count, check_place, check_rule, save
from shoulders.cli.common import recipe_of, weights_of
from shoulders.cli.scores import measuring
from shoulders.cli.show import console, counted_passes, quiet_libraries
from shoulders.errors import UsageError, WrongBackbone
from shoulders.evaluation.results import circumstances
from shoulders.runs.build import answer_spec
from shoulders.runs.calibrate import Chosen, calibrate, choose_threshold, judged_answers, keep_threshold, measured_with
from shoulders.runs.jobs import task_parts
from shoulders.runs.recipe import recipe_from_json, with_overrides
from shoulders.scaffolds.base import BARE
from shoulders.scaffolds.storage import scaffold_folder

MEANT = {"probability": "log-probability", "margin": "margin"}


def run_calibrate(arguments: Sequence[str], budget: float, rule: str, recipe_name: str | None, out: Path) -> None:
    """Measure every run on the development part, choose the thresholds, and keep them."""
    quiet_libraries()
    names, overrides = _sorted_out(arguments)
    check_rule(rule)
    check_count(len(names))
    check_place(out, names)
    trained = next((name for name in names if name != BARE), BARE)
    recipe = recipe_of(trained, recipe_name, overrides)
    _check_backbones(names)
    lm = weights_of(recipe.backbone)
    stages = [stage_named(name, lm) for name in names]
    with measuring(f"measuring {len(stages)} stages on {recipe.development.split}") as watch:
        adaptive, calibration = calibrate(recipe, lm, stages, budget, rule, watch.on_done)
    console.print(_curve(calibration, recipe.development.split))
    _tell(adaptive, calibration)
    save(out, adaptive, lm, calibration, circumstances())
    console.print(f"kept in {out}; try: shoulders ask {out}", markup=False, soft_wrap=True)


def _sorted_out(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Scaffolds, and the recipe's values among them."""
    overrides = [text for text in arguments if "=" in text and not Path(text).exists()]
    names = [scaffold_folder(text) for text in arguments if text not in overrides]
    places = [Path(name).expanduser().resolve() for name in names]
    for name, place in zip(names, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{name!r} is named twice: name each run once")
    return names, overrides


def _check_backbones(names: Sequence[str]) -> None:
    origins = {name: origin for name in names if (origin := model_info(name).origin)}
    for name, origin in origins.items():
        first, others = next(iter(origins.items()))
        if origin.fingerprint != others.fingerprint:
            raise WrongBackbone(
                f"{first} stands around {others.backbone!r} (fingerprint {others.fingerprint[:12]}) and {name} around "
                f"{origin.backbone!r} ({origin.fingerprint[:12]}): stages share one frozen model, name runs around one"
            )


def _curve(calibration: Calibration, split: str) -> Table:
    """Average passes and score, cheapest first; what was chosen stands among them."""
    table = Table(title=f"calibration on {split}", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("passes", justify="right")
    table.add_column("score", justify="right")
    table.add_column("")
    chosen = calibration.chosen
    points = [point for point in calibration.curve if point.thresholds != chosen.thresholds]
    for point in sorted([*points, chosen], key=lambda point: point.passes):
        mark = ("chosen", "bold") if point is chosen else ("", None)
        table.add_row(f"{point.passes:.2f}", f"{point.score:.1f}", mark[0], style=mark[1])
    return table


def _tell(adaptive: Adaptive, calibration: Calibration) -> None:
    for stage, threshold in zip(adaptive.stages, adaptive.thresholds, strict=False):
        sure = f"with a {MEANT[adaptive.rule]} of at least {threshold:.3f}"
        told = f"stops at {stage.name} ({counted_passes(stage.passes)}) {sure}"
        console.print(told, markup=False, soft_wrap=True)
    last, chosen = adaptive.stages[-1], calibration.chosen
    console.print(
        f"otherwise goes on to {last.name} ({counted_passes(last.passes)} more)", markup=False, soft_wrap=True
    )
    console.print(f"{chosen.passes:.2f} passes an answer on average (budget {calibration.budget:.2f})")


def run_threshold(name: str, overrides: Sequence[str], index: str, *, test: bool) -> None:
    """Choose a reader's threshold on the development part, and keep it beside the scaffold."""
    quiet_libraries()
    if name == BARE or not Path(name).expanduser().is_dir():
        raise UsageError(f"a threshold lies in the folder of its scaffold, and {name!r} has none here: name a run")
    info = model_info(name)
    recipe = with_overrides(recipe_from_json(info.recipe), overrides)
    spec = answer_spec(recipe).with_options(index)
    if not spec.reads_passages:
        raise UsageError(f"{name} was not trained to read passages, and no index is named: add one (--index FOLDER)")
    recipe = replace(recipe, evidence=spec.evidence)
    lm = weights_of(recipe.backbone)
    reader = ModelAnswerer.load(info, lm, spec)
    judged = []
    parts = task_parts(recipe)
    plans = [(recipe.development, parts.trained), *([(recipe.test, parts.tested)] if test else [])]
    for plan, tasks in plans:
        with measuring(f"asking {plan.split}") as watch:
            judged.append(judged_answers(reader, recipe, plan, tasks, watch.on_done))
    chosen = choose_threshold(judged[0])
    others = [measured_with(chosen.threshold, some) for some in judged[1:]]
    console.print(_table([(plan.split, one) for (plan, _), one in zip(plans, (chosen, *others), strict=True)]))
    _tell_threshold(chosen)
    path = keep_threshold(Path(info.name).expanduser(), reader, recipe, lm, chosen, others)
    console.print(f"kept in {path}", markup=False, soft_wrap=True)


def _table(parts: Sequence[tuple[str, Chosen]]) -> Table:
    """Answering always, and answering or abstaining, on each part."""
    table = Table(title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for header in ("part", "answers", "coverage", "EM of those answered", "EM", "F1"):
        table.add_column(header, justify="left" if header in ("part", "answers") else "right")
    for split, chosen in parts:
        for which, one in (("all", chosen.before), ("sure enough", chosen.after)):
            answered = "-" if one.exact_match_answered is None else f"{one.exact_match_answered:.1f}"
            table.add_row(split, which, f"{one.coverage:.1f}%", answered, f"{one.exact_match:.1f}", f"{one.f1:.1f}")
    return table


def _tell_threshold(chosen: Chosen) -> None:
    told = "EM and F1 count 'no answer' as right where no gold answer was read, and as wrong where one was"
    console.print(f"{told}: one was for {chosen.answerable:.1f}% of {chosen.examples:,} questions.", soft_wrap=True)
    for what, least in (
        ("that stands in what was read", chosen.threshold.standing),
        ("that does not", chosen.threshold.elsewhere),
    ):
        rule = f"from a probability of {max(least, 0):.3f}" if least <= 1 else "never"
        console.print(f"an answer {what} is given {rule}", soft_wrap=True)
