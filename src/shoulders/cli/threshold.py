"""`shoulders threshold`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shoulders.answering.answerer import ModelAnswerer
from shoulders.answering.models import model_info
from shoulders.cli.common import weights_of
from shoulders.cli.scores import measuring
from shoulders.cli.show import console, quiet_libraries
from shoulders.errors import UsageError
from shoulders.recipes.abstaining import Chosen, choose_threshold, judged_answers, keep_threshold, measured_with
from shoulders.recipes.evidence import answer_spec
from shoulders.recipes.jobs import task_parts
from shoulders.recipes.recipe import recipe_from_json, with_overrides
from shoulders.scaffolds.base import BARE


def run(name: str, overrides: Sequence[str], index: str, *, test: bool) -> None:
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
    _tell(chosen)
    path = keep_threshold(Path(info.name).expanduser(), reader, recipe, lm, chosen, others)
    console.print(f"kept in {path}", markup=False, soft_wrap=True)


def _table(parts: Sequence[tuple[str, Chosen]]) -> Table:
    """Answering always, and answering or abstaining, on each part."""
    table = Table(title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for header in ("part", "answers", "coverage", "EM of those answered", "EM", "F1"):
        table.add_column(header, justify="left" if header in ("part", "answers") else "right")
    for split, chosen in parts:
        for which, one in (("all", chosen.before), ("sure enough", chosen.after)):
            answered = "-" if one.em_answered is None else f"{one.em_answered:.1f}"
            table.add_row(split, which, f"{one.coverage:.1f}%", answered, f"{one.em:.1f}", f"{one.f1:.1f}")
    return table


def _tell(chosen: Chosen) -> None:
    told = "EM and F1 count 'no answer' as right where no gold answer was read, and as wrong where one was"
    console.print(f"{told}: one was for {chosen.answerable:.1f}% of {chosen.examples:,} questions.", soft_wrap=True)
    for what, least in (
        ("that stands in what was read", chosen.threshold.standing),
        ("that does not", chosen.threshold.elsewhere),
    ):
        rule = f"from a probability of {max(least, 0):.3f}" if least <= 1 else "never"
        console.print(f"an answer {what} is given {rule}", soft_wrap=True)
