"""`shoulders report`."""

from collections.abc import Sequence
from pathlib import Path

from shoulders.cli.show import console, need, quiet_libraries
from shoulders.evaluation.report import headline, write_report
from shoulders.evaluation.results import Result, read_result, short_names
from shoulders.training.log import read_log


def run(paths: Sequence[Path], out: Path) -> None:
    """Write the report of measured runs."""
    quiet_libraries()
    need("matplotlib", "report")
    results = [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]
    page = write_report(results, out)
    console.print(headline(results), markup=False)
    console.print(f"report: {page}", markup=False)


def read_run(path: Path, name: str = "") -> Result:
    """A run's results with its training log."""
    return read_result(path, name, read_log(path if path.is_dir() else path.parent))
