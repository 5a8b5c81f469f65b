"""Measure a trained re-ranker on retrieved passages: the retriever's order, the re-ranker's, and both combined.

    python -m experiments.reranking runs/odqa runs/reranker/all --data ../shared/data/odqa --out runs/reranking.json

The weight of the retriever's scores in the sum with the re-ranker's is chosen on nq.dev for each retriever, and
measured on the other sets. Only questions with an answer among the passages found count: no order can help the others.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoulders.data.lines import read_json_lines
from shoulders.data.readers import QA
from shoulders.evaluation.recall import RankedQuestion, answerable_questions, ranking
from shoulders.evaluation.results import circumstances
from shoulders.records import Example, Question
from shoulders.retrieval.dense import open_retriever
from shoulders.retrieval.index import Index
from shoulders.retrieval.reranker import Reranker
from shoulders.retrieval.scoring import WEIGHTS, Pair, ordering
from shoulders.store.files import write_json

SETS = ("nq.dev", "nq.test", "squad.dev")


def main() -> None:
    """Measure every set with every retriever."""
    parser = argparse.ArgumentParser(description="measure the order of passages with and without a re-ranker")
    parser.add_argument("index", type=Path)
    parser.add_argument("reranker", type=Path, help="folder of the re-ranker that is trained on all questions")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--retriever", action="append", default=[], help="sparse, dense, hybrid:WEIGHT, rrf")
    parser.add_argument("--limit", type=int, default=300, help="questions of a set")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    index, reranker = Index(arguments.index), Reranker.load(arguments.reranker / "best").frozen()

    def scores(questions: Sequence[str], hits: Any) -> list[list[float]]:
        pairs = [Pair(q, hit.title, hit.text) for q, some in zip(questions, hits, strict=True) for hit in some]
        left = iter(reranker.scores(pairs))
        own = reranker.order_weight
        return [ordering([next(left) for _ in some], [hit.score for hit in some], order_weight=own) for some in hits]

    found: dict[str, Any] = {}
    for named in arguments.retriever or ["sparse"]:
        kind, _, weight = named.partition(":")
        searcher = open_retriever(index, kind, weight=float(weight or 1))
        for name in SETS:
            examples = _examples(arguments.data / f"{name}.jsonl.gz", arguments.limit)
            some: Sequence[RankedQuestion] = answerable_questions(examples, index, arguments.depth, searcher)
            measured = ranking(some, scores, (0.0,) if reranker.order_weight else WEIGHTS)
            chosen = measured.best_weight if name == SETS[0] else found[f"{named} {SETS[0]}"]["chosen_weight"]
            found[f"{named} {name}"] = {**measured.as_json(), "asked": len(examples), "chosen_weight": chosen}
            together = measured.interpolated[chosen]
            for what, one in {"found": measured.found, "re-ranked": measured.ordered, "both": together}.items():
                print(named, name, what, f"MRR@10 {one.reciprocal_rank:.1f}", dict(one.recall), flush=True)
    about = {"kind": "reranking", "reranker": reranker.fingerprint, "depth": arguments.depth, "sets": found}
    write_json(arguments.out, {**about, **circumstances()})


def _examples(path: Path, limit: int) -> list[Example]:
    rows = list(read_json_lines(path))[:limit]
    return [
        Example(QA, "", str(number), Question(row["question"]), row["answers"][0], tuple(row["answers"]))
        for number, row in enumerate(rows)
    ]


if __name__ == "__main__":
    main()
