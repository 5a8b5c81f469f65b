"""Retrieved passages as evidence for questions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import final

from shoulders.corpus.index import Index
from shoulders.corpus.searching import Searcher, fingerprint_of
from shoulders.data.packing import Packed, Packer
from shoulders.records import Passage, Question


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
