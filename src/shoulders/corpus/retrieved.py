"""Retrieved passages as evidence for questions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import final

from shoulders.corpus.index import Index
from shoulders.corpus.searching import Searcher
from shoulders.data.evidence import Passage
from shoulders.records import Question


@final
@dataclass(frozen=True, slots=True)
class Retrieved:
    """An evidence source: the k passages of an index that a retriever ranks highest for the question's text.

    Attributes:
        searcher: the retriever; BM25 on tantivy if there is none.
    """

    index: Index
    k: int
    searcher: Searcher | None = None

    @property
    def passes(self) -> int:
        """None: the language model does not take part."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Of what is said about the index, the number of passages, and the retriever."""
        parts = [self.index.manifest, self.k, type(self.searcher).__name__]
        return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def find(self, questions: Sequence[Question], fold: str = "") -> list[list[Passage]]:
        """Passages of each question, title in the first line. Retrieval is not trained, so folds are all the same."""
        del fold
        found = self.index.search([question.text for question in questions], self.k, self.searcher)
        return [[Passage(f"{hit.title}\n{hit.text}".strip(), hit.score) for hit in hits] for hits in found]

    def write(self, question: Question, passages: Sequence[Passage]) -> Question:
        """The passages before the question, best first, an empty line after each."""
        written = "".join(f"{passage.text}\n\n" for passage in passages)
        return replace(question, evidence=f"{written}{question.evidence}")
