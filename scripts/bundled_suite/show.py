"""Looks at the suite through the library's own reader."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from scripts.bundled_suite.splits import dice

from shoulders.data.readers import open_suite
from shoulders.data.tasks import Task


def show(suite: Path, names: Sequence[str], split: str, count: int) -> None:
    """Prints some records of the tasks in every wording."""
    for task in open_suite(str(suite), names):
        rows = task.rows(split, task.wordings[0])
        for row in dice("show", task.name).sample(range(rows), min(count, rows)):
            for wording in task.wordings:
                example = task.example(split, wording, row)
                if example is not None:
                    print(f"===== {task.name} / {wording} / {row}\n{example.question.whole}")
                    print(f"----> {example.target!r} of {example.choices or example.references}\n")


def summary(suite: Path) -> None:
    """Prints the number of records, the wordings, and the mean words of the inputs and targets of each task."""
    size = sum(path.stat().st_size for path in suite.rglob("*") if path.is_file())
    for task in open_suite(str(suite)):
        counts = [task.rows(split, task.wordings[0]) for split in ("train", "validation", "test")]
        inputs, targets = _words(task)
        words = f"words {inputs:.0f} -> {targets:.1f}"
        print(f"{task.name:20} {task.cluster:28} {counts} wordings {len(task.wordings)} {words}")
    print(f"{size / 2**20:.2f} MiB")


def _words(task: Task) -> tuple[float, float]:
    """Mean words of inputs and targets of the test split over all wordings."""
    examples = [
        example
        for wording in task.wordings
        for row in range(task.rows("test", wording))
        if (example := task.example("test", wording, row)) is not None
    ]
    inputs = mean(len(example.question.whole.split()) for example in examples)
    return inputs, mean(len(example.target.split()) for example in examples)
