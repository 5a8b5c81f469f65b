"""Prepare closed-book questions for the experiments: EntityQuestions has no test part, so its dev part is halved.

python -m experiments.closedbook ../shared/data runs/closedbook
"""

import gzip
import sys
from hashlib import blake2b
from pathlib import Path


def main(data: Path, target: Path) -> None:
    """Copy WebQuestions and EntityQuestions into one folder; the halves are drawn by a hash of the line."""
    target.mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev", "test"):
        _write(target / f"webquestions.{part}.jsonl", _lines(data / f"closedbook/webquestions.{part}.jsonl.gz"))
    _write(target / "entityquestions.train.jsonl", _lines(data / "closedbook/entityquestions.train.jsonl.gz"))
    both = _lines(data / "closedbook/entityquestions.dev.jsonl.gz")
    halves: dict[str, list[str]] = {"dev": [], "test": []}
    for line in both:
        halves["test" if blake2b(line.encode(), digest_size=1).digest()[0] % 2 else "dev"].append(line)
    for part, lines in halves.items():
        _write(target / f"entityquestions.{part}.jsonl", lines)


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return list(lines)


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
