"""Retrieved passages in the order of a re-ranker that has not seen the question; scores are kept in a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Self, final

from shoulders.data.mixture import FOLDS
from shoulders.errors import SourceNotFound, UsageError
from shoulders.evidence.packing import Packed, PackedEvidence
from shoulders.records import Passage, Question
from shoulders.retrieval.cross_encoder import ranker_named
from shoulders.retrieval.reranker import DESCRIPTION, model_folder
from shoulders.retrieval.scoring import AT_ONCE, Pair, Ranker, interpolated
from shoulders.store.cache import ValueCache, key_of_texts

ALL = "all"
CROSS_FITTED = (*FOLDS, ALL)  # folders of re-rankers, by what each was trained on


@final
@dataclass(frozen=True, slots=True)
class Rankers:
    """Which ranker orders the passages of which questions.

    Attributes:
        name: that they were loaded by.
        everything: ranks for all questions that are not trained on, and for others where there is no other.
        across: by half of the training examples, the ranker that was trained on the other half.
    """

    name: str
    everything: Ranker
    across: Mapping[str, Ranker] = field(default_factory=dict)

    @classmethod
    def named(cls, name: str, *, device: str = "auto") -> Self:
        """One ranker (`ranker_named`), or the three of a folder with a/, b/ and all/.

        Raises:
            SourceNotFound, HubUnreachable, CorruptFile: they are not there, or broken.
            UsageError: what is there does not order passages.
        """
        folder = Path(name).expanduser()
        there = [part for part in CROSS_FITTED if (model_folder(folder / part) / DESCRIPTION).exists()]
        if not there:
            return cls(name, ranker_named(name, device=device))
        missing = [part for part in CROSS_FITTED if part not in there]
        if missing:
            raise SourceNotFound(
                f"{folder} has no re-ranker in {', '.join(missing)}: cross-fitting takes one that was trained on each "
                "half (a, b) and one on all; train what is missing, or name one of the others alone"
            )
        a, b, every = (ranker_named(str(folder / part), device=device) for part in CROSS_FITTED)
        return cls(name, every, {FOLDS[0]: b, FOLDS[1]: a})

    def of(self, fold: str) -> Ranker:
        """The ranker for the questions of a half of the training examples; "" for questions that are not trained on."""
        return self.across.get(fold, self.everything)

    def check_unseen(self, questions: Sequence[str], fold: str) -> None:
        """Raise `UsageError` for training questions that their ranker was trained on itself."""
        seen = self.of(fold).seen
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
    """An evidence source: what another retrieves, most relevant first.

    Attributes:
        source: retrieves the passages, and packs them.
        rankers: that order them.
        store: keeps their scores.
        weight: of the retriever's scores beside the re-ranker's (`interpolated`); 0, as in the paper: these alone.
    """

    source: PackedEvidence
    rankers: Rankers
    store: ValueCache
    weight: float = 0.0

    @property
    def passes(self) -> int:
        """As many as retrieving costs: the re-ranker is another model."""
        return self.source.passes

    @property
    def fingerprint(self) -> str:
        """Of the source, of the ranker of each half and of all others, and of the retriever's weight if it has one."""
        weight = [self.weight] if self.weight else []
        parts = [self.source.fingerprint, *(self.rankers.of(fold).fingerprint for fold in ("", *FOLDS)), *weight]
        return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """The passages that the source finds, by their score.

        Raises:
            UsageError: a question of a training half was seen by the re-ranker that would rank it.
        """
        asked = [question.query for question in questions]
        self.rankers.check_unseen(asked, fold)
        found = self.source.find(questions, fold)
        pairs = [
            Pair(question, passage.title, passage.text)
            for question, passages in zip(asked, found, strict=True)
            for passage in passages
        ]
        scores = iter(_scores(pairs, self.rankers.of(fold), self.store))
        return [self._ordered(passages, list(islice(scores, len(passages)))) for passages in found]

    def _ordered(self, passages: Sequence[Passage], scores: Sequence[float]) -> list[Passage]:
        together = interpolated(scores, [passage.score for passage in passages], self.weight)
        rated = [replace(passage, score=score) for passage, score in zip(passages, together, strict=True)]
        return sorted(rated, key=lambda passage: -passage.score)

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """The question after the passages that fit, best first, and these passages."""
        return self.source.packed(question, passages)

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """The question after the passages that fit, best first."""
        return self.source.write(question, passages)


def _scores(pairs: Sequence[Pair], ranker: Ranker, cache: ValueCache) -> list[float]:
    """Return the score of each pair; what the ranker scores anew is cached part by part."""
    keys = [key_of_texts("score", ranker.fingerprint, pair.question, pair.title, pair.text) for pair in pairs]
    known = cache.get(keys)
    missing = list({key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}.items())
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        fresh = dict(zip([key for key, _ in some], ranker.scores([pair for _, pair in some]), strict=True))
        cache.put(fresh)
        known |= fresh
    return [known[key] for key in keys]
