"""`shoulders calibrate` and `shoulders threshold`: thresholds that are chosen on the development part."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from shoulders.cli.common import Overrides, RecipeOption, recipe_of, weights_of
from shoulders.cli.show import console, counted_passes, inform, quiet_libraries, titled
from shoulders.errors import UsageError, WrongBackbone

if TYPE_CHECKING:
    from shoulders.answering.stages import Calibration, Cascade
    from shoulders.runs.calibrate import ChosenThreshold

RULES = {"probability": "log-probability", "margin": "margin"}  # names of the numbers that are compared


def calibrate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN... [KEY=VALUE]...",
            help="folders of runs or scaffolds around one frozen model, or 'bare'; and recipe values to change, e.g. "
            "development.limit=500",
            show_default=False,
        ),
    ],
    budget: Annotated[float, typer.Option(help="average number of passes through the frozen model for an answer")],
    rule: Annotated[
        str,
        typer.Option(
            help="confidence in an answer: its 'probability', or its 'margin': a token's least lead over the next best"
        ),
    ] = "probability",
    recipe: RecipeOption = None,
    out: Annotated[Path, typer.Option(help="folder to write; `ask` and `evaluate` accept it like a scaffold")] = Path(
        "runs/adaptive"
    ),
) -> None:
    """Choose by confidence which questions go on to a more expensive run, within a budget of passes.

    Every run is measured on the recipe's `development` part, and the thresholds with the best score within the budget
    are kept. The cost of a question counts the passes of all runs that it went through.

    Example: `shoulders calibrate runs/one_pass runs/two_passes --budget 1.5 --out runs/adaptive`
    """
    from shoulders.answering.cascade import load_stage
    from shoulders.answering.stages import check_cascade_folder, check_count, check_rule, save
    from shoulders.cli.scores import measuring
    from shoulders.evaluation.results import circumstances
    from shoulders.runs import calibrate as calibration
    from shoulders.scaffolds.base import BARE

    quiet_libraries()
    names, overrides = _names_and_overrides(arguments)
    check_rule(rule)
    check_count(len(names))
    check_cascade_folder(out, names)
    trained = next((name for name in names if name != BARE), BARE)
    chosen_recipe = recipe_of(trained, recipe, overrides)
    _check_backbones(names)
    lm = weights_of(chosen_recipe.backbone)
    stages = [load_stage(name, lm) for name in names]
    split = chosen_recipe.development.split
    with measuring(f"measuring {len(stages)} stages on {split}") as watch:
        adaptive, calibrated = calibration.calibrate(chosen_recipe, lm, stages, budget, rule, watch.on_done)
    console.print(_curve(calibrated, split))
    _print_stages(adaptive, calibrated)
    save(out, adaptive, lm, calibrated, circumstances())
    inform(f"kept in {out}; try: shoulders ask {out}")


def _names_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the scaffolds, and the recipe values among them."""
    from shoulders.scaffolds.storage import scaffold_folder

    overrides = [text for text in arguments if "=" in text and not Path(text).exists()]
    names = [scaffold_folder(text) for text in arguments if text not in overrides]
    places = [Path(name).expanduser().resolve() for name in names]
    for name, place in zip(names, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{name!r} is named twice: name each run once")
    return names, overrides


def _check_backbones(names: Sequence[str]) -> None:
    """Raise `WrongBackbone` if two scaffolds were trained around different frozen models."""
    from shoulders.answering.models import model_info

    origins = {name: origin for name in names if (origin := model_info(name).origin)}
    for name, origin in origins.items():
        first, other = next(iter(origins.items()))
        if origin.fingerprint != other.fingerprint:
            raise WrongBackbone(
                f"{first} was trained around {other.backbone!r} (fingerprint {other.fingerprint[:12]}) and {name} "
                f"around {origin.backbone!r} ({origin.fingerprint[:12]}): stages share one frozen model, so name runs "
                "around the same one"
            )


def _curve(calibration: "Calibration", split: str) -> Group:
    """Return a table of average passes and scores, cheapest first, with the chosen thresholds marked."""
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    table.add_column("passes", justify="right")
    table.add_column("score", justify="right")
    table.add_column("")
    chosen = calibration.chosen
    points = [point for point in calibration.curve if point.thresholds != chosen.thresholds]
    for point in sorted([*points, chosen], key=lambda point: point.passes):
        mark = ("chosen", "bold") if point is chosen else ("", None)
        table.add_row(f"{point.passes:.2f}", f"{point.score:.1f}", mark[0], style=mark[1])
    return titled(f"calibration on {split}", table)


def _print_stages(adaptive: "Cascade", calibration: "Calibration") -> None:
    """Print at which confidence each stage stops, and the average number of passes."""
    for stage, threshold in zip(adaptive.stages, adaptive.thresholds, strict=False):
        sure = f"with a {RULES[adaptive.rule]} of at least {threshold:.3f}"
        inform(f"stops at {stage.name} ({counted_passes(stage.passes)}) {sure}")
    last, chosen = adaptive.stages[-1], calibration.chosen
    inform(f"otherwise goes on to {last.name} ({counted_passes(last.passes)} more)")
    console.print(f"{chosen.passes:.2f} passes an answer on average (budget {calibration.budget:.2f})")


def threshold(
    scaffold: Annotated[str, typer.Argument(help="folder of a run or a scaffold that reads passages")],
    overrides: Overrides = None,
    index: Annotated[
        str, typer.Option(help="folder of the index to read passages from [default: the recipe's index]")
    ] = "",
    test: Annotated[bool, typer.Option("--test", help="also measure the threshold on the recipe's test part")] = False,
) -> None:
    """Choose how sure a reader must be to answer; below that, `shoulders ask` prints "no answer".

    Two probabilities are chosen on the recipe's `development` part: one for answers that stand in the passages read,
    and one for the others. They give the best F1, where "no answer" is right for a question none of whose answers was
    in the passages read. Choose again for another index: `shoulders ask` warns if it reads another one.

    Example: `shoulders threshold runs/reader --index runs/index --test`
    """
    from shoulders.answering.answerer import ModelAnswerer
    from shoulders.answering.models import model_info
    from shoulders.cli.scores import measuring
    from shoulders.runs import calibrate as calibration
    from shoulders.runs.build import answer_spec
    from shoulders.runs.jobs import split_tasks
    from shoulders.runs.recipe import recipe_from_json, with_overrides
    from shoulders.scaffolds.base import BARE

    quiet_libraries()
    if scaffold == BARE or not Path(scaffold).expanduser().is_dir():
        raise UsageError(f"a threshold is kept in the folder of its scaffold, and {scaffold!r} has none: name a run")
    info = model_info(scaffold)
    if not info.recipe.get("name"):
        raise UsageError(f"{info.name!r} holds no recipe: only what `shoulders train` wrote can be measured by its own")
    recipe = with_overrides(recipe_from_json(info.recipe), overrides or [])
    spec = answer_spec(recipe).with_options(index)
    if not spec.reads_passages:
        raise UsageError(
            f"{scaffold} was not trained to read passages, and no index is named: add one (--index FOLDER)"
        )
    recipe = replace(recipe, evidence=spec.evidence)
    lm = weights_of(recipe.backbone)
    reader = ModelAnswerer.load(info, lm, spec)
    parts = split_tasks(recipe)
    plans = [(recipe.development, parts.trained), *([(recipe.test, parts.tested)] if test else [])]
    judged = []
    for plan, tasks in plans:
        with measuring(f"asking {plan.split}") as watch:
            judged.append(calibration.graded_answers(reader, recipe, plan, tasks, watch.on_done))
    chosen = calibration.choose_threshold(judged[0])
    others = [calibration.threshold_scores(chosen.threshold, one) for one in judged[1:]]
    console.print(_outcomes([(plan.split, one) for (plan, _), one in zip(plans, (chosen, *others), strict=True)]))
    _print_threshold(chosen)
    path = calibration.save_threshold(Path(info.name).expanduser(), reader, recipe, lm, chosen, others)
    inform(f"kept in {path}")


def _outcomes(parts: Sequence[tuple[str, "ChosenThreshold"]]) -> Table:
    """Return a table of scores on each part, with all answers given and with the threshold."""
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    for header in ("part", "answers", "coverage", "EM of those answered", "EM", "F1"):
        table.add_column(header, justify="left" if header in ("part", "answers") else "right")
    for split, chosen in parts:
        for answers, outcome in (("all", chosen.before), ("sure enough", chosen.after)):
            answered = "-" if outcome.exact_match_answered is None else f"{outcome.exact_match_answered:.1f}"
            coverage = f"{outcome.coverage:.1f}%"
            table.add_row(split, answers, coverage, answered, f"{outcome.exact_match:.1f}", f"{outcome.f1:.1f}")
    return table


def _print_threshold(chosen: "ChosenThreshold") -> None:
    """Print from which probability on answers are given."""
    counted = "EM and F1 count 'no answer' as right if no correct answer was in the passages read, else as wrong"
    inform(f"{counted}: one was for {chosen.answerable:.1f}% of {chosen.examples:,} questions.")
    for which, least in (
        ("that stands in the passages read", chosen.threshold.standing),
        ("that does not", chosen.threshold.elsewhere),
    ):
        rule = f"from a probability of {max(least, 0):.3f}" if least <= 1 else "never"
        inform(f"an answer {which} is given {rule}")
