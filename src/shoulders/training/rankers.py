"""Training of retrievers and re-rankers: their examples, steps and losses."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from accelerate import PartialState
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.data.matching import has_span, question_words
from shoulders.data.mixture import Counts, Mixture, add_count, describe_counts, in_one_fold
from shoulders.engine.batches import by_length
from shoulders.errors import DataError, UsageError
from shoulders.evidence.reranked import cached_scores
from shoulders.records import Example
from shoulders.retrieval.bi_encoder import BiEncoder, in_batch_loss
from shoulders.retrieval.index import Hit, Index
from shoulders.retrieval.reranker import PAPER, Group, LossWeights, Reranker
from shoulders.retrieval.scoring import Pair, Ranker, by_question, standardised
from shoulders.retrieval.search import Searcher
from shoulders.store.cache import ValueCache

Titled = tuple[str, str]  # title and text of a passage


@dataclass(frozen=True, slots=True)
class RankingExample:
    """A question with its passages; the first is positive, the others negative.

    Attributes:
        order: the retriever's score of each passage, standardised over all that it found. A positive passage that it
            did not find has the lowest of them.
        taught: a teacher's distribution over the passages; empty without a teacher.
    """

    question: str
    answers: tuple[str, ...]
    passages: tuple[Titled, ...]
    order: tuple[float, ...] = ()
    taught: tuple[float, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class RankingSampler:
    """Samples passages for questions from the first `depth` that a retriever finds.

    The positive is an annotated passage with an answer, if the data set names one; otherwise a retrieved passage with
    an answer (distant supervision). Negatives are retrieved passages without an answer. If no answer is known, only the
    annotated passages are positive. The sample depends on the seed and the position of the example alone.

    Attributes:
        negatives: maximum number of negatives of a question.
        hardest: whether the positive and the negatives are those that the retriever ranks highest, instead of a random
            draw. A positive that is not annotated must then be among the first `negatives` + 1: further down, a passage
            holds an answer by chance more often than not.
        candidates: keep all negatives, for a re-ranker to choose from (`OwnNegatives`).
        searcher: the retriever; None for BM25.

    Source: Karpukhin et al. 2020, sections 3.2 and 6.1; the paper, section 3.1 (1 positive and 23 negatives of 100).
    """

    index: Index
    depth: int = 100
    negatives: int = 23
    seed: int = 0
    searcher: Searcher | None = None
    hardest: bool = False
    candidates: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.negatives < self.depth:
            raise UsageError(
                f"negatives is {self.negatives} and depth {self.depth}: negatives must be at least 1 and below depth"
            )

    def of(self, examples: Sequence[Example], positions: Sequence[int]) -> list[RankingExample | None]:
        """Return the passages of each example; None if no passage has an answer, or all have.

        Args:
            positions: of the examples in the order of training.
        """
        queries = [example.question.query for example in examples]
        found = self.index.search(queries, self.depth, self.searcher)
        return [self._drawn(*one) for one in zip(queries, examples, found, positions, strict=True)]

    def _drawn(self, query: str, example: Example, hits: Sequence[Hit], position: int) -> RankingExample | None:
        draw = random.Random(f"{self.seed}/{position}")
        gold = self._gold(example)
        found = [(hit.title, hit.text) for hit in hits]
        with_answer = [has_span(example.references, text) for _, text in found]
        near = len(found) if not self.hardest else self.negatives + 1
        positives = gold or [one for one, has in zip(found[:near], with_answer[:near], strict=True) if has]
        negatives = [one for one, has in zip(found, with_answer, strict=True) if not has and one not in gold]
        if not positives or not negatives:
            return None
        count = len(negatives) if self.candidates else min(self.negatives, len(negatives))
        order = dict(zip(found, standardised([hit.score for hit in hits]), strict=True))
        lowest = min(order.values())
        if self.hardest:
            passages = (max(positives, key=lambda one: order.get(one, lowest)), *negatives[:count])
        else:
            passages = (draw.choice(positives), *draw.sample(negatives, count))
        return RankingExample(query, example.references, passages, tuple(order.get(one, lowest) for one in passages))

    def _gold(self, example: Example) -> list[Titled]:
        stored = self.index.store.of_documents(example.question.gold)
        answers = example.references
        return [(one.title, one.text) for one in stored if not answers or has_span(answers, one.text)]


@final
@dataclass(frozen=True, slots=True)
class PassageTeacher:
    """The frozen language model as the teacher of a re-ranker: how probable an answer becomes with each passage.

    Its distribution over the passages of a question is the softmax of their log-likelihoods. Likelihoods are computed
    once and kept.

    Attributes:
        ranker: the model, and which likelihood; that of the answer is the first of the question's answers'.
        store: keeps the likelihoods.
        temperature: of the softmax.

    Source: Izacard and Grave 2021 (distillation of a reader into what finds its passages); Izacard et al. 2022,
    section 2.2 (likelihoods as targets: "perplexity distillation").
    """

    ranker: Ranker
    store: ValueCache
    temperature: float = 1.0

    def taught(self, rows: Sequence[RankingExample]) -> list[RankingExample]:
        """Return questions with the teacher's distributions over their passages."""
        pairs = [Pair(row.question, *passage, next(iter(row.answers), "")) for row in rows for passage in row.passages]
        scores = torch.tensor(cached_scores(pairs, self.ranker, self.store)) / self.temperature
        parts = scores.split([len(row.passages) for row in rows])
        return [replace(row, taught=tuple(some.softmax(0).tolist())) for row, some in zip(rows, parts, strict=True)]


@final
class OwnNegatives(nn.Module):
    """Negatives from the top of the order of the re-ranker that is trained, as it was at the last refresh.

    It chooses among the retrieved passages without an answer, so that no passage that holds one becomes a negative,
    however high it stands. Before the first refresh, negatives are the first of the retriever's order. The weights of
    the last refresh are part of the module that is trained, hence of its checkpoints: a resumed run chooses as an
    uninterrupted one.

    Args:
        reranker: one that corrects the retriever's order.
        every: steps between refreshes.
        count: maximum number of negatives of a question.

    Source: Xiong et al. 2021 (ANCE: negatives from the trained model's own order, by the weights of an earlier step);
    Qu et al. 2021 (RocketQA: the hardest negatives are often positives that nobody annotated).
    """

    def __init__(self, reranker: Reranker, every: int, count: int) -> None:
        super().__init__()
        self.every, self.count = every, count
        self._frozen = reranker.frozen  # the method: the module itself would be in the checkpoints twice
        self.scorer = self._frozen()
        self._refreshed = False

    def refresh(self, number: int) -> None:
        """Choose by the present weights from step `number` on, if a refresh is due."""
        self._refreshed = number > self.every
        if self._refreshed and (number - 1) % self.every == 0:
            self.scorer = self._frozen()

    def chosen(self, rows: Sequence[RankingExample]) -> list[RankingExample]:
        """Return questions with the negatives, of all their candidates, that are highest in the re-ranker's order."""
        if not self._refreshed:
            return [_with_passages(row, range(1 + self.count)) for row in rows]
        negatives = [row.passages[1:] for row in rows]
        pairs = [Pair(row.question, *passage) for row in rows for passage in row.passages[1:]]
        return [self._top(*one) for one in zip(rows, by_question(self.scorer.scores(pairs), negatives), strict=True)]

    def _top(self, row: RankingExample, corrections: Sequence[float]) -> RankingExample:
        weight = self.scorer.order_weight
        scores = [weight * found + one for found, one in zip(row.order[1:], corrections, strict=True)]
        best = sorted(range(len(scores)), key=lambda number: -scores[number])[: self.count]
        return _with_passages(row, [0, *(1 + number for number in best)])


def _with_passages(row: RankingExample, numbers: Sequence[int]) -> RankingExample:
    """Return the question with some of its passages only, in this order; numbers beyond the last are left out."""
    numbers = [number for number in numbers if number < len(row.passages)]
    passages, order = ([some[number] for number in numbers] for some in (row.passages, row.order))
    return replace(row, passages=tuple(passages), order=tuple(order))


Cost = Callable[[RankingExample], int]


@dataclass(frozen=True, slots=True)
class RankingStep:
    """The questions of one step; the share of this process is divided into micro-batches."""

    parts: Sequence[Sequence[RankingExample]]
    terms: int
    positions: int


@final
class RankingSource:
    """A source of steps of `batch_size` questions that have a positive and a negative passage.

    Attributes:
        questions: all questions that may be drawn, as words (`question_words`).

    Args:
        fold: the half of the questions to train on (cross-fitting: the paper, section 3.1); "" for all. A question
            that occurs in both halves is left out of both.
        cost: returns the number of positions that the passages of a question take.
        teacher: of a re-ranker; None for none.
        own: chooses the negatives of a re-ranker from its own order; None for those of the supervision.
        positions_at_once: of a micro-batch; None keeps the share of a process in one micro-batch, for losses where
            the passages of other questions are negatives.
    """

    def __init__(
        self,
        mixture: Mixture,
        fold: str,
        supervision: RankingSampler,
        batch_size: int,
        cost: Cost,
        positions_at_once: int | None,
        teacher: PassageTeacher | None = None,
        own: OwnNegatives | None = None,
    ) -> None:
        self.mixture, self.fold, self.supervision = mixture, fold, supervision
        self.batch_size, self.cost, self.positions_at_once = batch_size, cost, positions_at_once
        self.position, self.teacher, self.own = 0, teacher, own
        self.counts: Counts = {}
        self.questions = in_one_fold(mixture, fold)

    def step(self) -> RankingStep:
        """Return the questions of the next step.

        Raises:
            DataError: no question of a whole epoch can be learned from.
        """
        rows: list[RankingExample] = []
        since = 0
        while len(rows) < self.batch_size:
            found = self._next(self.batch_size - len(rows))
            since = 0 if found else since + self.batch_size - len(rows)
            rows += found
            if since >= 2 * len(self.mixture):  # a question from the start of one epoch may come at the end of the next
                counts = describe_counts(self.counts)
                raise DataError(f"there is no question to learn from ({counts}): is the index that of the questions?")
        state = PartialState()
        mine = rows[state.process_index :: state.num_processes]
        mine = self.own.chosen(mine) if self.own else mine
        mine = self.teacher.taught(mine) if self.teacher else mine
        parts = [mine] if self.positions_at_once is None else list(by_length(mine, self.cost, self.positions_at_once))
        return RankingStep(parts, len(rows), sum(map(self.cost, mine)))

    def _next(self, count: int) -> list[RankingExample]:
        examples: list[Example] = []
        positions: list[int] = []
        for _ in range(count):
            place, self.position = self.position, self.position + 1
            example = self.mixture.read(place, self.counts, self.fold)
            if example is not None and self._belongs(example):
                examples.append(example)
                positions.append(place)
        drawn = self.supervision.of(examples, positions)
        for example, one in zip(examples, drawn, strict=True):
            if one is None:
                add_count(self.counts, example.task, "without a passage to learn from")
        return [one for one in drawn if one is not None]

    def _belongs(self, example: Example) -> bool:
        if question_words(example.question.query) not in self.questions:
            add_count(self.counts, example.task, "in both folds")
            return False
        return True


@final
class RetrieverLoss(nn.Module):
    """The training loss of a bi-encoder; the passages of other questions in a micro-batch are negatives too.

    Args:
        scale: factor of the scores (`in_batch_loss`).
    """

    def __init__(self, retriever: BiEncoder, scale: float) -> None:
        super().__init__()
        self.retriever, self.scale = retriever, scale

    def forward(self, rows: Sequence[RankingExample]) -> Float[Tensor, ""]:
        """Return the summed loss of some questions; dropout is on, whatever the mode of the module."""
        encoder = self.retriever
        titles, texts = zip(*(passage for row in rows for passage in row.passages), strict=True)
        firsts = torch.tensor([0, *(len(row.passages) for row in rows)]).cumsum(0)[:-1]
        encoder.train()
        try:
            questions = encoder.question_vectors(
                encoder.question.padded(encoder.question_rows([row.question for row in rows]))
            )
            passages = encoder.passage_vectors(encoder.passage.padded(encoder.passage_rows(titles, texts)))
        finally:
            encoder.eval()
        return in_batch_loss(questions, passages, firsts.to(questions.device), self.scale)

    def cost(self, row: RankingExample) -> int:
        """Return the number of positions of a question and its passages."""
        titles, texts = zip(*row.passages, strict=True)
        rows = [*self.retriever.question_rows([row.question]), *self.retriever.passage_rows(titles, texts)]
        return sum(map(len, rows))


@final
class RerankerLoss(nn.Module):
    """The training loss of a re-ranker.

    Args:
        own: chooses its negatives; saved with it.
    """

    def __init__(self, reranker: Reranker, weights: LossWeights = PAPER, own: OwnNegatives | None = None) -> None:
        super().__init__()
        self.reranker, self.weights, self.own = reranker, weights, own

    def forward(self, rows: Sequence[RankingExample]) -> Float[Tensor, ""]:
        """Return the summed loss of some questions."""
        return self.reranker([_group(row) for row in rows], self.weights)

    def cost(self, row: RankingExample) -> int:
        """Return the number of positions of a question's passages, padded to the longest."""
        rows = self.reranker.rows(_group(row).pairs)
        return len(rows) * max(map(len, rows))


def ranking_loss(module: nn.Module, rows: Sequence[RankingExample]) -> Tensor:
    """Return the summed loss of a micro-batch, for `training.loop.fit`."""
    return module(rows)


def _group(row: RankingExample) -> Group:
    return Group(row.question, row.passages, row.answers, row.order, row.taught)
