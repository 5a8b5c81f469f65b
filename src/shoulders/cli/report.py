"""`shoulders report`: tables and plots of measured runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shoulders.cli.common import recipe_of, weights_of
from shoulders.cli.show import inform, need, quiet_libraries
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.evaluation.results import Result

Report = Callable[[Sequence[Path], Path], tuple[Path, str]]  # from runs and a folder to a page and its summary
Other = TypeVar("Other")

PROMPTS = "prompts"
EXAMPLES = 10  # of each template that prompts are generated for, if the recipe sets no limit


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] RUN...",
            help="folders of runs, or results.json files, to compare; the kind of report may come first",
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the report, its numbers as JSON, and plots")] = Path("report"),
) -> None:
    """Compare measured runs: write tables, plots and the numbers as JSON.

    `shoulders report RUN...` compares any scaffolds, task by task: report.html, scores.md, scores.json.

    `shoulders report suite RUN...` compares methods on a suite, as section 2 of the paper (Levine et al. 2022) does
    (tables 1, 7 and 9, figure 3), with costs and paired differences: suite.md, suite.json and plots. Runs that differ
    only in the seed are one method. Files written by `shoulders forget --out` may be among the runs.

    `shoulders report reader RUN...` compares readers of passages, as section 3 of the paper does (tables 2 and 3), with
    paired differences from the first run and the gain from each re-ranker: reader.md, reader.json, reader.png.

    `shoulders report recursion RUN...` compares one pass with several, as section 4 of the paper does (tables 4 to 6,
    figure 6): recursion.md, recursion.json and plots. Files written by `shoulders sample --out` may be among the runs;
    they give the recall of sampled answers, and each run's score on the questions that no sample answers. Each split
    that runs were measured on gets a table.

    `shoulders report prompts RUN [KEY=VALUE]...` measures how far apart the prompts are that an ID-PT scaffold
    generates, within a template, within a data set and between data sets (table 8 of the paper), and draws a map of
    them: prompts.md, prompts.json, prompts.png. The prompts are those of the validation part of its suite; set e.g.
    `development.limit=20` (examples of each template) and `suite.tasks=A,B`.

    `shoulders report text RUN...` compares the perplexity of runs on text: text.md, text.json and its curve.

    The first word names a kind of report only if no run has that name.

    Example: `shoulders report runs/first runs/second --out report`
    """
    from shoulders.evaluation.results import RESULTS

    quiet_libraries()
    need("matplotlib", "report")
    paths = [Path(run) for run in runs]
    kind = "" if paths[0].is_file() or (paths[0] / RESULTS).exists() else runs[0]
    if kind == PROMPTS:
        page, summary = _prompts(runs[1:], out)
    else:
        page, summary = REPORTS[kind](paths[1:], out) if kind in REPORTS else _comparison(paths, out)
    inform(summary)
    inform(f"report: {page}")


def _comparison(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Write the report that compares any runs."""
    from shoulders.evaluation.report import headline, write_report

    results = read_runs(paths)
    return write_report(results, out), headline(results)


def _recursion(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Write the report on one pass and several, from runs and files of samples."""
    from shoulders.evaluation.recall import read_samples
    from shoulders.paper.recursion_report import write_recursion_report

    results, samples = _runs_and_others(paths, read_samples)
    return write_recursion_report(results, samples, out)


def _reader(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Write the report on readers of passages."""
    from shoulders.paper.reader_report import write_reader_report

    return write_reader_report(read_runs(paths), out)


def _suite(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Write the report on methods, from runs and files of `shoulders forget`."""
    from shoulders.paper.suite_numbers import read_forgetting
    from shoulders.paper.suite_report import write_suite_report

    results, forgotten = _runs_and_others(paths, read_forgetting)
    return write_suite_report(results, forgotten, out)


def _text(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Write the report on perplexity."""
    from shoulders.evaluation.perplexity import read_text_result, write_text_report
    from shoulders.evaluation.results import short_names

    names = zip(paths, short_names(paths), strict=True)
    return write_text_report([read_text_result(path, name, _log(path)) for path, name in names], out)


REPORTS: dict[str, Report] = {"reader": _reader, "recursion": _recursion, "suite": _suite, "text": _text}


def _prompts(arguments: Sequence[str], out: Path) -> tuple[Path, str]:
    """Write the report on the prompts that a scaffold generates for the validation part of its suite.

    Raises:
        UsageError: no scaffold is named, or one that generates no prompts.
    """
    from shoulders.answering.models import model_info, rival_folder
    from shoulders.cli.scores import measuring
    from shoulders.data.tasks import DEV
    from shoulders.evaluation.protocol import chosen_examples
    from shoulders.evaluation.results import describe_scaffold, provenance
    from shoulders.evidence.base import with_evidence
    from shoulders.paper.prompts_report import generator_of, write_prompts_report
    from shoulders.runs.build import new_evidence
    from shoulders.runs.jobs import tasks_of
    from shoulders.scaffolds.base import BARE
    from shoulders.scaffolds.storage import scaffold_folder

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
    chosen = chosen_examples(tasks, plan, suite.without(tasks), skip=suite.skip).asked
    examples = [example for one in chosen for example in one.examples]
    questions = with_evidence([one.question for one in examples], new_evidence(recipe, lm, scaffold.length))
    examples = [replace(example, question=question) for example, question in zip(examples, questions, strict=True)]
    about = {"scaffold": describe_scaffold(scaffold, place), **provenance(recipe.as_json(), lm)}
    with measuring(f"generating prompts for {plan.split}") as watch:
        return write_prompts_report(name, generator, examples, out, about, plan.positions_at_once, watch.on_done)


def _runs_and_others(
    paths: Sequence[Path], read: Callable[[Path, str], Other | None]
) -> tuple[list["Result"], list[Other]]:
    """Return the runs, and the files of another kind among them, which `read` recognises."""
    from shoulders.evaluation.results import short_names

    results: list[Result] = []
    others: list[Other] = []
    for path, name in zip(paths, short_names(paths), strict=True):
        if other := read(path, name):
            others.append(other)
        else:
            results.append(read_run(path, name))
    return results, others


def read_runs(paths: Sequence[Path]) -> list["Result"]:
    """Return results under names that tell them apart."""
    from shoulders.evaluation.results import short_names

    return [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def read_run(path: Path, name: str = "") -> "Result":
    """Return a run's results with its training log."""
    from shoulders.evaluation.results import read_result

    return read_result(path, name, _log(path))


def _log(path: Path) -> list[dict[str, Any]]:
    from shoulders.training.log import read_log

    return read_log(path if path.is_dir() else path.parent)
