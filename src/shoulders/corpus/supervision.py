"""What a retriever or a re-ranker learns from: for each question a passage with the answer, and passages without."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from shoulders.corpus.index import Index
from shoulders.corpus.searching import Searcher
from shoulders.data.matching import has_span
from shoulders.errors import UsageError
from shoulders.records import Example

Titled = tuple[str, str]  # title and text of a passage


@dataclass(frozen=True, slots=True)
class Supervised:
    """A question with its passages, the positive one first."""

    question: str
    answers: tuple[str, ...]
    passages: tuple[Titled, ...]


@final
@dataclass(frozen=True, slots=True)
class Supervision:
    """Draws passages for questions from the first `depth` that a retriever finds.

    The positive is one of the annotated passages that hold an answer, where the data set names any, else one of those
    found that hold an answer (distant supervision); negatives are found and hold none. Where no answer is known, the
    annotated passages alone are positive. Which are drawn depends on the seed and the example's position alone.

    Attributes:
        negatives: drawn for a question at most.
        searcher: the retriever; BM25 if there is none.

    Source: Karpukhin et al. 2020, sections 3.2 and 6.1; the paper, section 3.1 (1 positive and 23 negatives of 100).
    """

    index: Index
    depth: int = 100
    negatives: int = 23
    seed: int = 0
    searcher: Searcher | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.negatives < self.depth:
            raise UsageError(
                f"{self.negatives} negatives of {self.depth} passages: at least 1, and fewer than are retrieved "
                "(negatives, depth)"
            )

    def of(self, examples: Sequence[Example], positions: Sequence[int]) -> list[Supervised | None]:
        """The passages of each example; None where no passage has an answer, or all of them have.

        Args:
            positions: of the examples in the order of training.
        """
        queries = [example.question.query for example in examples]
        found = self.index.search(queries, self.depth, self.searcher)
        passages = [[(hit.title, hit.text) for hit in hits] for hits in found]
        return [self._drawn(*one) for one in zip(queries, examples, passages, positions, strict=True)]

    def _drawn(self, query: str, example: Example, found: Sequence[Titled], position: int) -> Supervised | None:
        draw = random.Random(f"{self.seed}/{position}")
        gold = self._gold(example)
        with_answer = [has_span(example.references, text) for _, text in found]
        positives = gold or [one for one, has in zip(found, with_answer, strict=True) if has]
        negatives = [one for one, has in zip(found, with_answer, strict=True) if not has and one not in gold]
        if not positives or not negatives:
            return None
        drawn = draw.sample(negatives, min(self.negatives, len(negatives)))
        return Supervised(query, example.references, (draw.choice(positives), *drawn))

    def _gold(self, example: Example) -> list[Titled]:
        stored = self.index.store.of_documents(example.question.gold)
        answers = example.references
        return [(one.title, one.text) for one in stored if not answers or has_span(answers, one.text)]
