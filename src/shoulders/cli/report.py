"""`shoulders report`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shoulders.cli.show import console, need, quiet_libraries
from shoulders.evaluation.reader_report import write_reader_report
from shoulders.evaluation.recursion_report import write_recursion_report
from shoulders.evaluation.report import headline, write_report
from shoulders.evaluation.results import Result, read_result, short_names
from shoulders.evaluation.samples import Samples, read_samples
from shoulders.evaluation.text_report import read_text_result, write_text_report
from shoulders.training.log import read_log

Report = Callable[[Sequence[Path], Path], tuple[Path, str]]  # of some paths into a folder: its page, and what it says


def run(paths: Sequence[Path], out: Path) -> None:
    """Write a report: of the kind that the first word names, if it is one and no path, else the usual one."""
    quiet_libraries()
    need("matplotlib", "report")
    named = KINDS.get(str(paths[0])) if not paths[0].exists() else None
    page, told = named(paths[1:], out) if named else comparison(paths, out)
    console.print(told, markup=False)
    console.print(f"report: {page}", markup=False)


def comparison(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Measured runs side by side."""
    results = read_runs(paths)
    return write_report(results, out), headline(results)


def recursion(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Runs of one and of several passes; files of samples among them are told by what they hold."""
    results: list[Result] = []
    samples: list[Samples] = []
    for path, name in zip(paths, short_names(paths), strict=True):
        if found := read_samples(path, name):
            samples.append(found)
        else:
            results.append(read_run(path, name))
    return write_recursion_report(results, samples, out)


def reader(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Readers of passages, and what they are compared with."""
    return write_reader_report(read_runs(paths), out)


def text(paths: Sequence[Path], out: Path) -> tuple[Path, str]:
    """Runs on text: perplexity."""
    names = zip(paths, short_names(paths), strict=True)
    return write_text_report([read_text_result(path, name, _log(path)) for path, name in names], out)


KINDS: dict[str, Report] = {"reader": reader, "recursion": recursion, "text": text}


def read_runs(paths: Sequence[Path]) -> list[Result]:
    """Results under names that tell them apart."""
    return [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def read_run(path: Path, name: str = "") -> Result:
    """A run's results with its training log."""
    return read_result(path, name, _log(path))


def _log(path: Path) -> list[dict[str, Any]]:
    return read_log(path if path.is_dir() else path.parent)
