"""`shoulders check`."""

from collections import Counter

from shoulders.cli.show import console, quiet_libraries, say
from shoulders.data.checking import problems
from shoulders.data.readers import open_suite
from shoulders.errors import DataError


def run(source: str, names: list[str]) -> None:
    """Look through a suite, task by task, and say what is wrong.

    Raises:
        DataError: something is.
    """
    quiet_libraries()
    found: Counter[str] = Counter()
    for task in open_suite(source, names):
        splits = {split: task.rows(split, name) for name in task.wordings for split in task.split_names(name)}
        told = ", ".join(f"{rows:,} {split}" for split, rows in splits.items())
        console.print(f"{task.name}: {told}; {len(task.wordings)} templates", markup=False)
        for problem in problems(task):
            found[problem.what] += problem.count
            say(f"  {problem.split}: {problem.count} {problem.what}; the first: {problem.first}")
    if found:
        told = ", ".join(f"{count} {what}" for what, count in found.items())
        raise DataError(f"something is wrong in {source!r}: {told}")
    console.print("nothing is wrong")
