"""Passages of an index as evidence: those that a retriever finds, or those that are annotated (an oracle)."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import final

from shoulders.errors import UsageError
from shoulders.evidence.base import NUMBERED
from shoulders.evidence.packing import Packed, Packer
from shoulders.records import Passage, Question
from shoulders.retrieval.index import Index
from shoulders.retrieval.passages import StoredPassage
from shoulders.retrieval.search import Searcher, fingerprint_of


@final
@dataclass(frozen=True, slots=True)
class Retrieved:
    """An evidence source: as many of the k best passages of an index as fit into the context.

    Attributes:
        index: the index.
        k: number of passages retrieved for a question.
        packer: packs them before the question.
        searcher: the retriever; None for BM25 on tantivy.
    """

    index: Index
    k: int
    packer: Packer
    searcher: Searcher | None = None

    @property
    def passes(self) -> int:
        """0: the language model takes no part in retrieval."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Hash over the index's description, the number of passages, the retriever and the packing."""
        how = [self.packer.room, self.packer.truncate]
        parts = [self.index.fingerprint, self.k, fingerprint_of(self.searcher), how]
        return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Return the k best passages of each question, searched for by its query, without the wording.

        The retriever was not trained on the questions, so the fold does not matter.
        """
        del fold
        found = self.index.search([question.query for question in questions], self.k, self.searcher)
        return [[Passage(hit.text, hit.score, hit.title) for hit in hits] for hits in found]

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """Return the question after the passages that fit, best first, with these passages."""
        return self.packer.pack(question, passages)

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question after the passages that fit, best first."""
        return self.packed(question, passages).question


@final
@dataclass(frozen=True, slots=True)
class Oracle:
    """An evidence source: the passages of the documents that are annotated as containing the answer, in their order.

    An annotation is the id of a document, or that of one passage (`base.passage_id`).

    Attributes:
        retrieved: source with their index and packer, which also retrieves the distractors.
        distractors: number of retrieved passages that follow the annotated ones.
    """

    retrieved: Retrieved
    distractors: int = 0

    @property
    def passes(self) -> int:
        """0: the language model takes no part in retrieval."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Hash over the fingerprint of `retrieved` and the number of distractors."""
        parts = ["oracle", self.distractors, self.retrieved.fingerprint]
        return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Return the annotated passages of each question, with infinite scores, and the distractors.

        Raises:
            UsageError: a question has no annotation, or its annotation names a document that is not in the index.
        """
        annotated = [self._annotated(question) for question in questions]
        found = self.retrieved.find(questions, fold) if self.distractors else [[] for _ in questions]
        return [[*gold, *_others(gold, some)[: self.distractors]] for gold, some in zip(annotated, found, strict=True)]

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """Return the question after the passages that fit, in their order, with these passages."""
        return self.retrieved.packed(question, passages)

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """Return the question after the passages that fit, in their order."""
        return self.retrieved.write(question, passages)

    def _annotated(self, question: Question) -> list[Passage]:
        index = self.retrieved.index
        if not question.gold:
            raise UsageError(
                f"no passage is annotated for {question.text!r}: evidence.kind=oracle needs the gold_passage_ids of "
                "every question, evidence.kind=retrieved none"
            )
        found = {document: self._passages(document) for document in question.gold}
        if unknown := [document for document, passages in found.items() if not passages]:
            raise UsageError(
                f"{index.folder} does not have the documents {', '.join(unknown)} that are annotated for "
                f"{question.text!r} (gold_passage_ids): name the index of the passages that the annotations are of "
                "(evidence.index)"
            )
        passages = [passage for some in found.values() for passage in some]
        return [Passage(passage.text, math.inf, passage.title) for passage in passages]

    def _passages(self, annotated: str) -> list[StoredPassage]:
        """Return the passages of a document, or the one passage of a number (`passage_id`)."""
        store, number = self.retrieved.index.store, annotated.removeprefix(NUMBERED)
        found = store.of_documents([annotated])
        if not found and annotated.startswith(NUMBERED) and number.isdecimal():
            found = [*store.get([int(number)]).values()]
        return found


def _others(gold: Sequence[Passage], found: Sequence[Passage]) -> list[Passage]:
    """Return the passages found, without the annotated ones."""
    texts = {passage.text for passage in gold}
    return [passage for passage in found if passage.text not in texts]
