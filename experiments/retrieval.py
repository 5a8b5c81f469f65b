"""Measure BM25 on a folder of passages and questions: recall at k, time of a query, time and size of the index.

    python -m experiments.retrieval ../shared/data/odqa runs/retrieval --out runs/retrieval.json

The folder holds passages.jsonl.gz and questions in NAME.dev.jsonl.gz. tantivy has k1 = 1.2 and b = 0.75; the engine in
memory is measured with these too, and with Pyserini's k1 = 0.9 and b = 0.4.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoulders.corpus.building import build
from shoulders.corpus.exact import PYSERINI, ExactBM25
from shoulders.corpus.index import Index
from shoulders.corpus.passages import Cutting
from shoulders.corpus.searching import Searcher
from shoulders.corpus.sparse import K1, B
from shoulders.data.lines import read_json_lines
from shoulders.data.matching import first_with_answer
from shoulders.evaluation.provenance import circumstances
from shoulders.evaluation.retrieval import recall_at
from shoulders.files import write_json

DEPTHS = (1, 5, 20, 100)
SETS = ("nq", "squad")


def main() -> None:
    """Build or update the index, then measure every engine on every set of questions."""
    parser = argparse.ArgumentParser(description="recall and speed of BM25")
    parser.add_argument("data", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    built = build([str(arguments.data / "passages.jsonl.gz")], arguments.index, Cutting(), as_is=True)
    seconds = time.perf_counter() - started
    index = Index(arguments.index)
    engines: dict[str, Searcher] = {f"tantivy k1={K1} b={B}": index.sparse}
    for k1, b in ((K1, B), PYSERINI):
        engines[f"in memory k1={k1} b={b}"] = ExactBM25(index.store.passages(), index.analyser, k1, b)
    content = {
        "kind": "retrieval",
        "index": {
            "passages": built.counts.passages,
            "documents_added": built.done["added"],
            "build_seconds": seconds,
            "bytes_per_passage": _sizes(index, built.counts.passages),
        },
        "sets": {name: measured(arguments.data / f"{name}.dev.jsonl.gz", index, engines) for name in SETS},
        **circumstances("tantivy", "PyStemmer"),
    }
    for name, engine_results in content["sets"].items():
        for engine, result in engine_results.items():
            print(name, engine, {k: round(v, 2) for k, v in {**result["recall"], **result["milliseconds"]}.items()})
    print(content["index"])
    if arguments.out:
        write_json(arguments.out, content)


def measured(questions: Path, index: Index, engines: Mapping[str, Searcher]) -> Mapping[str, Any]:
    """Recall at every depth, and the time of single queries for the deepest, by engine."""
    rows = list(read_json_lines(questions))
    asked = [row["question"] for row in rows]
    found: dict[str, Any] = {}
    for name, engine in engines.items():
        hits = index.search(asked, max(DEPTHS), engine)
        first = [
            first_with_answer(row["answers"], [h.text for h in some]) for row, some in zip(rows, hits, strict=True)
        ]
        found[name] = {
            "questions": len(rows),
            "recall": {f"@{k}": recall_at(first, k) for k in DEPTHS},
            "milliseconds": _times(asked[:500], engine),
        }
    return found


def _times(queries: Sequence[str], engine: Searcher) -> dict[str, float]:
    taken = []
    for query in queries:
        started = time.perf_counter()
        engine.search([query], max(DEPTHS))
        taken.append(1000 * (time.perf_counter() - started))
    return {"p50": float(np.percentile(taken, 50)), "p95": float(np.percentile(taken, 95))}


def _sizes(index: Index, passages: int) -> dict[str, float]:
    sparse = sum(path.stat().st_size for path in index.sparse.folder.iterdir())
    return {"tantivy": sparse / passages, "sqlite": index.store.path.stat().st_size / passages}


if __name__ == "__main__":
    main()
