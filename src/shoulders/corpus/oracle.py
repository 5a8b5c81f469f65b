"""Annotated passages as evidence: what a reader makes of a retriever that is never wrong.

An ablation beside the paper's section 3: it tells errors of the reader from those of retrieval.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import final

from shoulders.corpus.retrieved import Retrieved
from shoulders.data.packing import Packed
from shoulders.errors import UsageError
from shoulders.records import Passage, Question


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
