"""Retrieved passages as evidence for questions, and annotated ones: a retriever that is never wrong."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import final

from shoulders.errors import UsageError
from shoulders.evidence.packing import Packed, Packer
from shoulders.records import Passage, Question
from shoulders.retrieval.index import Index
from shoulders.retrieval.search import Searcher, fingerprint_of


@final
@dataclass(frozen=True, slots=True)
class Retrieved:
    """An evidence source: of the k passages of an index that a retriever ranks highest, as many as fit the context.

    Attributes:
        packer: what puts them before the question.
        searcher: the retriever; BM25 on tantivy if there is none.
    """

    index: Index
    k: int
    packer: Packer
    searcher: Searcher | None = None

    @property
    def passes(self) -> int:
        """None: the language model does not take part."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Of what is said about the index, the number of passages, the retriever, and how they are packed."""
        how = [self.packer.room, self.packer.truncate]
        parts = [self.index.fingerprint, self.k, fingerprint_of(self.searcher), how]
        return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """The k passages of each question, searched for by its query: without the words of its wording.

        Retrieval is not trained, so folds are all the same.
        """
        del fold
        found = self.index.search([question.query for question in questions], self.k, self.searcher)
        return [[Passage(hit.text, hit.score, hit.title) for hit in hits] for hits in found]

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """The question after the passages that fit, best first, and these passages."""
        return self.packer.pack(question, passages)

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """The question after the passages that fit, best first."""
        return self.packed(question, passages).question


@final
@dataclass(frozen=True, slots=True)
class Oracle:
    """An evidence source: the passages of the documents that are annotated as holding the answer, in their order.

    Attributes:
        retrieved: the index that they are in, what packs them, and what finds the others.
        distractors: passages that are found for a question, put after those.
    """

    retrieved: Retrieved
    distractors: int = 0

    @property
    def passes(self) -> int:
        """None: the language model does not take part."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Of the retriever's, and how many of its passages follow."""
        parts = ["oracle", self.distractors, self.retrieved.fingerprint]
        return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """The annotated passages of each question, of endless trust, and as many others as are asked for.

        Raises:
            UsageError: a question has no annotation, or names a document that the index does not have.
        """
        annotated = [self._annotated(question) for question in questions]
        found = self.retrieved.find(questions, fold) if self.distractors else [[] for _ in questions]
        return [[*gold, *_others(gold, some)[: self.distractors]] for gold, some in zip(annotated, found, strict=True)]

    def packed(self, question: Question, passages: Sequence[Passage]) -> Packed:
        """As `Retrieved.packed`."""
        return self.retrieved.packed(question, passages)

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """As `Retrieved.write`."""
        return self.retrieved.write(question, passages)

    def _annotated(self, question: Question) -> list[Passage]:
        index = self.retrieved.index
        if not question.gold:
            raise UsageError(
                f"no passage is annotated for {question.text!r}: evidence.kind=oracle needs the gold_passage_ids of "
                "every question, evidence.kind=retrieved none"
            )
        found = {document: index.store.of_documents([document]) for document in question.gold}
        if unknown := [document for document, passages in found.items() if not passages]:
            raise UsageError(
                f"{index.folder} does not have the documents {', '.join(unknown)} that are annotated for "
                f"{question.text!r} (gold_passage_ids): name the index of the passages that the annotations are of "
                "(evidence.index)"
            )
        passages = [passage for some in found.values() for passage in some]
        return [Passage(passage.text, math.inf, passage.title) for passage in passages]


def _others(gold: Sequence[Passage], found: Sequence[Passage]) -> list[Passage]:
    """What was found, without what is annotated."""
    texts = {passage.text for passage in gold}
    return [passage for passage in found if passage.text not in texts]
