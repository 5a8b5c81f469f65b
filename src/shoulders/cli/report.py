"""`shoulders report`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from shoulders.answering.models import model_info, rival_folder
from shoulders.cli.common import recipe_of, weights_of
from shoulders.cli.scores import measuring
from shoulders.cli.show import console, need, quiet_libraries
from shoulders.data.tasks import DEV
from shoulders.errors import UsageError
from shoulders.evaluation.perplexity import read_text_result, write_text_report
from shoulders.evaluation.protocol import chosen_examples
from shoulders.evaluation.recall import read_samples
from shoulders.evaluation.report import headline, write_report
from shoulders.evaluation.results import RESULTS, Result, provenance, read_result, scaffold_measured, short_names
from shoulders.evidence.base import with_evidence
from shoulders.paper.prompts_report import generator_of, write_prompts_report
from shoulders.paper.reader_report import write_reader_report
from shoulders.paper.recursion_report import write_recursion_report
from shoulders.paper.suite_numbers import read_forgotten
from shoulders.paper.suite_report import write_suite_report
from shoulders.runs.build import new_evidence
from shoulders.runs.jobs import tasks_of
from shoulders.scaffolds.base import BARE
from shoulders.scaffolds.storage import scaffold_folder
from shoulders.training.log import read_log

Report = Callable[[Sequence[Path], Path], tuple[Path, str]]  # of some paths into a folder: its page, and what it says
Other = TypeVar("Other")

PROMPTS = "prompts"
EXAMPLES = 10  # of each template that prompts are generated for, if the recipe does not say


def run(arguments: Sequence[str], out: Path) -> None:
    """Write a report: of the kind that the first word names, if it is one and no run, else the usual one."""
    quiet_libraries()
    need("matplotlib", "report")
    paths = [Path(argument) for argument in arguments]
    kind = "" if paths[0].is_file() or (paths[0] / RESULTS).exists() else arguments[0]
    if kind == PROMPTS:
        page, told = prompts(arguments[1:], out)
    else:
        page, told = KINDS[kind](paths[1:], out) if kind in KINDS else comparison(paths, out)
    console.print(told, markup=False)
    console.print(f"report: {page}", markup=False)


def comparison(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Measured runs side by side."""
    results = read_runs(paths)
    return write_report(results, out), headline(results)


def recursion(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Runs of one and of several passes; files of samples among them are told by what they hold."""
    results, samples = _parted(paths, read_samples)
    return write_recursion_report(results, samples, out)


def reader(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Readers of passages, and what they are compared with."""
    return write_reader_report(read_runs(paths), out)


def suite(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Methods on a suite; files of what `shoulders forget` measured among them are told by what they hold."""
    results, forgotten = _parted(paths, read_forgotten)
    return write_suite_report(results, forgotten, out)


def prompts(arguments: Sequence[str], out: Path) -> tuple[Path, str]:
    """The prompts that a scaffold generates for the validation part of its suite.

    Raises:
        UsageError: no scaffold is named, or one that generates none.
    """
    if not arguments or "=" in arguments[0]:
        raise UsageError("name the scaffold whose prompts are compared: shoulders report prompts RUN [KEY=VALUE]...")
    name, *overrides = arguments
    if name == BARE or rival_folder(name):
        raise UsageError(f"{name} generates no prompts: name an ID-PT scaffold (input_prompt)")
    place = scaffold_folder(name)
    recipe = recipe_of(place, None, overrides)
    lm = weights_of(recipe.backbone)
    scaffold = model_info(place).load(lm).scaffold
    generator = generator_of(scaffold)
    plan = replace(recipe.development, split=DEV, limit=recipe.development.limit or EXAMPLES, wordings=0)
    suite, tasks = recipe.suite, tasks_of(recipe)
    asked = chosen_examples(tasks, plan, suite.without(tasks), skip=suite.skip).asked
    examples = [example for one in asked for example in one.examples]
    questions = with_evidence([one.question for one in examples], new_evidence(recipe, lm, scaffold.length))
    read = [replace(example, question=question) for example, question in zip(examples, questions, strict=True)]
    about = {"scaffold": scaffold_measured(scaffold, place), **provenance(recipe.as_json(), lm)}
    with measuring(f"generating prompts for {plan.split}") as watch:
        return write_prompts_report(name, generator, read, out, about, plan.positions_at_once, watch.on_done)


def text(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Runs on text: perplexity."""
    names = zip(paths, short_names(paths), strict=True)
    return write_text_report([read_text_result(path, name, _log(path)) for path, name in names], out)


KINDS: dict[str, Report] = {"reader": reader, "recursion": recursion, "suite": suite, "text": text}


def _parted(paths: Sequence[Path], read: Callable[[Path, str], Other | None]) -> tuple[list[Result], list[Other]]:
    """Runs, and the files among them of another kind, which `read` knows."""
    results: list[Result] = []
    others: list[Other] = []
    for path, name in zip(paths, short_names(paths), strict=True):
        if found := read(path, name):
            others.append(found)
        else:
            results.append(read_run(path, name))
    return results, others


def read_runs(paths: Sequence[Path]) -> list[Result]:
    """Results under names that tell them apart."""
    return [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def read_run(path: Path, name: str = "") -> Result:
    """A run's results with its training log."""
    return read_result(path, name, _log(path))


def _log(path: Path) -> list[dict[str, Any]]:
    return read_log(path if path.is_dir() else path.parent)
