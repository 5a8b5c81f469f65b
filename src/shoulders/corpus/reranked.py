"""Retrieved passages in the order of a re-ranker that has not seen the question.

Source: the paper, section 3.1. A re-ranker does far better on its training questions than on others, so those of either
half of the training set are ranked by the re-ranker that was trained on the other half.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Self, final

from shoulders.corpus.scores import ScoreStore
from shoulders.data.evidence import FOLDS
from shoulders.data.packing import Packed, PackedEvidence
from shoulders.errors import SourceNotFound, UsageError
from shoulders.ranking.interpolation import interpolated
from shoulders.ranking.named import ranker_named
from shoulders.ranking.scoring import Pair, Ranker
from shoulders.ranking.storage import DESCRIPTION, model_folder
from shoulders.records import Passage, Question

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
    store: ScoreStore
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
        scores = iter(self.store.scores(self.rankers.of(fold), pairs))
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
