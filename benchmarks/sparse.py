"""BM25 over a corpus: building the index, its size, and the time of single queries for the best 100 passages.

    python -m benchmarks.sparse [--data FOLDER] [--passages N] [--queries N] [--out FILE]

FOLDER holds `passages.jsonl.gz` and `nq.dev.jsonl.gz`. If it holds fewer than N passages, more are made of the first
half of one and the second half of another. Building and searching run in a process each, whose memory is reported.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import report
from benchmarks.rivals import peak_resident
from shoulders.data.lines import read_json_lines
from shoulders.evaluation.results import circumstances
from shoulders.retrieval.building import build
from shoulders.retrieval.index import SPARSE, Index
from shoulders.retrieval.passages import Cutting

K = 100


def main() -> None:
    """Run the benchmark and print the figures last."""
    arguments = _arguments()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    record = bench(arguments.data, arguments.passages, arguments.queries)
    report({"sparse_p95_ms": record["milliseconds"]["p95"]}, {**record, **circumstances("tantivy")}, arguments.out)


def bench(data: str, passages: int, queries: int) -> dict[str, Any]:
    """Measure both parts, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        common = ["--data", data, "--passages", str(passages), "--queries", str(queries), "--index", f"{folder}/index"]
        built, searched = (_in_own_process(part, common) for part in PARTS)
    for name, value in {**built, **searched}.items():
        print(f"{name}: {value}", flush=True)
    return {**built, **searched}


def _in_own_process(part: str, common: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.sparse", *common, "--part", part]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _build(arguments: argparse.Namespace) -> dict[str, Any]:
    folder = Path(arguments.index)
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch) / "passages.jsonl"
        with texts.open("w", encoding="utf-8") as lines:
            wanted = _passages(Path(arguments.data) / "passages.jsonl.gz")
            lines.writelines(json.dumps(row) + "\n" for row in itertools.islice(wanted, arguments.passages))
        begun = time.perf_counter()
        counts = build([str(texts)], folder, Cutting(), as_is=True).counts
        seconds = time.perf_counter() - begun
    index = Index(folder)
    sizes = {
        "tantivy": sum(path.stat().st_size for path in (index.folder / SPARSE).iterdir()),
        "sqlite": index.store.path.stat().st_size,
    }
    return {
        "passages": counts.passages,
        "build_seconds": seconds,
        "build_peak_bytes": peak_resident(),
        "bytes_per_passage": {name: size / counts.passages for name, size in sizes.items()},
    }


def _search(arguments: argparse.Namespace) -> dict[str, Any]:
    before = peak_resident()
    searcher = Index(Path(arguments.index)).sparse
    rows = itertools.islice(read_json_lines(Path(arguments.data) / "nq.dev.jsonl.gz"), arguments.queries)
    queries = [row["question"] for row in rows]
    for query in queries[:50]:  # warm up: later searches find the files in memory
        searcher.search([query], K)
    taken = []
    for query in queries:
        begun = time.perf_counter()
        searcher.search([query], K)
        taken.append(1000 * (time.perf_counter() - begun))
    percentiles = {f"p{part}": float(np.percentile(taken, part)) for part in (50, 95, 99)}
    return {"queries": len(queries), "milliseconds": percentiles, "search_bytes": peak_resident() - before}


PARTS = {"build": _build, "search": _search}


def _passages(path: Path) -> Iterator[dict[str, str]]:
    rows = [{"title": row["title"], "text": row["text"]} for row in read_json_lines(path)]
    yield from rows
    halves = [row["text"].split() for row in rows]
    for step in itertools.count(1):
        for number, row in enumerate(rows):
            mine, other = halves[number], halves[(number + 7919 * step) % len(rows)]
            yield {"title": row["title"], "text": " ".join(mine[: len(mine) // 2] + other[len(other) // 2 :])}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", default="../shared/data/odqa", help="folder of passages and questions")
    parser.add_argument("--passages", type=int, default=60_250)
    parser.add_argument("--queries", type=int, default=900)
    parser.add_argument("--out", help="write all figures to this JSON file")
    parser.add_argument("--index", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["build", "search"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
