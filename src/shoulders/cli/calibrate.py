"""`shoulders calibrate`."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shoulders.adaptive.stages import Adaptive, check_count, check_rule
from shoulders.adaptive.storage import Calibration, check_place, save
from shoulders.answering.cascade import stage_named
from shoulders.answering.models import model_info
from shoulders.cli.common import recipe_of, weights_of
from shoulders.cli.scores import measuring
from shoulders.cli.show import console, counted_passes, quiet_libraries
from shoulders.errors import UsageError, WrongBackbone
from shoulders.evaluation.provenance import circumstances
from shoulders.recipes.adaptive import calibrate
from shoulders.scaffolds.base import BARE
from shoulders.scaffolds.storage import scaffold_folder

MEANT = {"probability": "log-probability", "margin": "margin"}


def run(arguments: Sequence[str], budget: float, rule: str, recipe_name: str | None, out: Path) -> None:
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
