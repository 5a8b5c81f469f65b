"""Retrieved passages in the order of a re-ranker that was not trained on the question; its scores are cached."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Self, final

from shoulders.data.mixture import FOLDS
from shoulders.errors import SourceNotFound, UsageError
from shoulders.evidence.packing import Packed, PackedEvidence
from shoulders.records import Passage, Question
from shoulders.retrieval.cross_encoder import load_ranker
from shoulders.retrieval.reranker import DESCRIPTION, reranker_folder
from shoulders.retrieval.scoring import AT_ONCE, Pair, Ranker, by_question, ordering
from shoulders.store.cache import ValueCache, key_of_texts

ALL = "all"
CROSS_FITTED = (*FOLDS, ALL)  # folders of cross-fitted re-rankers, named by their training data


@final
@dataclass(frozen=True, slots=True)
class Rankers:
    """The rankers of questions: one for all, or one for each half of the training examples and one for the rest.

    Attributes:
        name: name that they were loaded by.
        default: ranker of questions outside training, and of all others without a ranker in `across`.
        across: for each half of the training examples, the ranker that was trained on the other half.
    """

    name: str
    default: Ranker
    across: Mapping[str, Ranker] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, *, device: str = "auto") -> Self:
        """Load one ranker (`load_ranker`), or three cross-fitted ones from a folder with a/, b/ and all/.

        Raises:
            SourceNotFound, HubUnreachable, CorruptFile: a ranker is missing or broken.
            UsageError: the model of that name cannot rank passages.
        """
        folder = Path(name).expanduser()
        there = [part for part in CROSS_FITTED if (reranker_folder(folder / part) / DESCRIPTION).exists()]
        if not there:
            return cls(name, load_ranker(name, device=device))
        missing = [part for part in CROSS_FITTED if part not in there]
        if missing:
            raise SourceNotFound(
                f"{folder} has no re-ranker in {', '.join(missing)}: cross-fitting needs one trained on each half "
                "(a, b) and one on all; train what is missing, or name one of the others alone"
            )
        a, b, every = (load_ranker(str(folder / part), device=device) for part in CROSS_FITTED)
        return cls(name, every, {FOLDS[0]: b, FOLDS[1]: a})

    def ranker_of(self, fold: str) -> Ranker:
        """Return the ranker of the questions of a half of the training examples; "" for questions outside training."""
        return self.across.get(fold, self.default)

    def check_unseen(self, questions: Sequence[str], fold: str) -> None:
        """Raise `UsageError` if the ranker of training questions was trained on one of them."""
        seen = self.ranker_of(fold).seen
        known = next((question for question in questions if question in seen), None) if fold else None
        if known is None:
            return
        if self.across:
            raise UsageError(
                f"the re-rankers of {self.name} have both seen the training question {known!r}: train them again, each "
                "on its half without the questions that are in the other half too"
            )
        raise UsageError(
            f"the re-ranker {self.name} was trained on {known!r}, which is trained on here, and would rank it better "
            "than any new question: name a folder of cross-fitted ones (a, b, all) in evidence.reranker"
        )


@final
@dataclass(frozen=True, slots=True)
class Reranked:
    """An evidence source: the passages of another source in the order of a re-ranker.

    Attributes:
        source: source that retrieves and packs the passages.
        rankers: the re-rankers.
        store: cache of their scores.
        weight: weight of the retriever's scores beside the re-ranker's (`interpolated`); 0: the re-ranker alone. A
            re-ranker that corrects the retriever's order has its own weight.

    Raises:
        UsageError: a weight is given, and the re-ranker has its own.
    """

    source: PackedEvidence
    rankers: Rankers
    store: ValueCache
    weight: float = 0.0

    def __post_init__(self) -> None:
        own = self.rankers.default.order_weight
        if own and self.weight:
            raise UsageError(
                f"evidence.retriever_weight={self.weight}: the re-ranker {self.rankers.name} was trained to correct "
                f"the retriever's order at a weight of {own:g}: leave evidence.retriever_weight at 0"
            )

    @property
    def passes(self) -> int:
        """Passes of the source: the re-ranker is another model."""
        return self.source.passes

    @property
    def fingerprint(self) -> str:
        """Hash over the fingerprints of the source and of all rankers, and the retriever's weight."""
        weight = [self.weight] if self.weight else []
        parts = [self.source.fingerprint, *(self.rankers.ranker_of(fold).fingerprint for fold in ("", *FOLDS)), *weight]
        return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Return the passages of the source, highest score first.

        Raises:
            UsageError: the re-ranker of a training question was trained on it.
        """
        queries = [question.query for question in questions]
        self.rankers.check_unseen(queries, fold)
        found = self.source.find(questions, fold)
        pairs = [
            Pair(question, passage.title, passage.text)
            for question, passages in zip(queries, found, strict=True)
            for passage in passages
        ]
        ranker = self.rankers.ranker_of(fold)
        scores = by_question(cached_scores(pairs, ranker, self.store), found)
        return [self._ordered(*one, ranker.order_weight) for one in zip(found, scores, strict=True)]

    def _ordered(self, passages: Sequence[Passage], scores: Sequence[float], order_weight: float) -> list[Passage]:
        found = [passage.score for passage in passages]
        together = ordering(scores, found, order_weight=order_weight, weight=self.weight)
        rated = [replace(passage, score=score) for passage, score in zip(passages, together, strict=True)]
        return sorted(rated, key=lambda passage: -passage.score)

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """Return the question after the passages that fit, best first, with these passages."""
        return self.source.packed(question, passages)

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question after the passages that fit, best first."""
        return self.source.write(question, passages)


def cached_scores(pairs: Sequence[Pair], ranker: Ranker, cache: ValueCache) -> list[float]:
    """Return the score of each pair; what the ranker scores anew is cached part by part."""
    keys = [
        key_of_texts(
            "score", ranker.fingerprint, pair.question, pair.title, pair.text, *([pair.answer] if pair.answer else [])
        )
        for pair in pairs
    ]
    known = cache.get(keys)
    missing = list({key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}.items())
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        fresh = dict(zip([key for key, _ in some], ranker.scores([pair for _, pair in some]), strict=True))
        cache.put(fresh)
        known |= fresh
    return [known[key] for key in keys]
