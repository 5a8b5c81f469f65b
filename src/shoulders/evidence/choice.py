"""Which evidence a question is read with, as one frozen, self-validating record."""

import math
from dataclasses import dataclass
from typing import Protocol

from shoulders.engine.inference import Sampling
from shoulders.errors import UnknownName, UsageError
from shoulders.evidence.base import CANDIDATES, ORACLE, RETRIEVED, EvidenceConfig
from shoulders.retrieval.search import RETRIEVERS, SPARSE

PASSAGES = (RETRIEVED, ORACLE)  # of an index
BUILT_IN = ("", CANDIDATES, *PASSAGES)


@dataclass(frozen=True, slots=True)
class EvidenceChoice(EvidenceConfig):
    """What is put before, or after, each question as text, from one of our own sources.

    Attributes:
        kind: "candidates": answers that the frozen model sampled itself (textual recursion); "retrieved": passages of
            an index, as many as fit into suite.lengths.input tokens with the question; "oracle": likewise, and first
            those that are annotated for the question (gold_passage_ids); empty: nothing.
        scaffold: run, folder or hub name of the first prompt p1 that they are sampled under; "bare" for none.
        across: two more, trained with suite.fold=a and suite.fold=b: questions of either half of the training examples
            get the candidates of the prompt that was trained on the other half. The paper does not say that it did so.
        count: answers sampled for a question (the paper: 1, 8, 16, 64).
        temperature: they are sampled at.
        longest: tokens of one at most.
        seed: of the samples.
        before: list them before the question instead of after it.
        store: file that keeps them for other epochs, runs and measurements; empty: kept for this run only.
        index: of retrieved passages: the folder that `shoulders index` wrote.
        retriever: what finds passages: "sparse" (BM25), "dense", "hybrid" (the sum of both scores), "rrf" (of ranks).
        weight: of sparse scores in the hybrid sum.
        dense: name of the vectors (`shoulders encode`), if the index has several.
        engine: address of a Milvus that the index was sent to (`shoulders upload`), to search it there; its token is in
            the environment (MILVUS_TOKEN).
        collection: of that server, if the index was sent to several; of a hybrid two, "SPARSE,DENSE".
        passages: retrieved for a question, best first, before they are packed.
        truncate: cut the first passage that does not fit any more, instead of leaving it out (the paper: left out).
        reranker: orders them anew: a re-ranker that was trained here, a cross-encoder, or a folder with the re-rankers
            that were trained on either half of the training examples and on all (a, b, all); empty for none. Their
            scores are kept in `store`, or in the cache folder without one.
        retriever_weight: of the retriever's scores beside the re-ranker's, both standardised over the passages of a
            question; 0, as in the paper: the re-ranker alone. `shoulders train reranker` says what did best.
        distractors: of "oracle": retrieved passages that follow the annotated ones, `passages` at most.
    """

    kind: str = ""
    scaffold: str = ""
    across: tuple[str, ...] = ()
    count: int = 16
    temperature: float = 1.0
    longest: int = 16
    seed: int = 0
    before: bool = False
    store: str = ""
    index: str = ""
    retriever: str = SPARSE
    weight: float = 1.0
    dense: str = ""
    engine: str = ""
    collection: str = ""
    passages: int = 20
    truncate: bool = False
    reranker: str = ""
    retriever_weight: float = 0.0
    distractors: int = 0

    def __post_init__(self) -> None:
        if self.kind not in BUILT_IN:
            raise UnknownName("evidence.kind", self.kind, BUILT_IN)
        check_retriever(self, "evidence.")
        Sampling(self.count, self.temperature, self.seed)
        if self.longest < 1:
            raise UsageError(f"evidence.longest is {self.longest}: a candidate has at least 1 token")
        if self.passages < 1:
            raise UsageError(f"evidence.passages is {self.passages}: retrieve at least 1, 20 are usual")
        if not 0 <= self.distractors <= self.passages:
            raise UsageError(
                f"evidence.distractors is {self.distractors}: from 0 to as many as are retrieved, evidence.passages="
                f"{self.passages}"
            )
        self._check_order()

    def _check_order(self) -> None:
        if self.kind == ORACLE and self.reranker:
            raise UsageError(
                f"evidence.reranker={self.reranker} has nothing to order with evidence.kind=oracle, whose passages are "
                "annotated: leave it empty, or evidence.kind=retrieved"
            )
        if not 0 <= self.retriever_weight < math.inf:
            raise UsageError(
                f"evidence.retriever_weight is {self.retriever_weight}: it cannot be negative, and 0 to 1 are usual"
            )
        if self.retriever_weight and not self.reranker:
            raise UsageError(
                f"evidence.retriever_weight={self.retriever_weight} counts beside a re-ranker's scores, and there is "
                "none: name one (evidence.reranker), or leave it 0"
            )


class RetrieverChoice(Protocol):
    """What finds passages, as recipes name it; `EvidenceChoice` says what each is."""

    @property
    def retriever(self) -> str:
        """One of "sparse", "dense", "hybrid" or "rrf"."""
        ...

    @property
    def weight(self) -> float:
        """Of sparse scores in the hybrid sum."""
        ...

    @property
    def dense(self) -> str:
        """Name of the vectors, if the index has several."""
        ...

    @property
    def engine(self) -> str:
        """Address of a server that is searched."""
        ...

    @property
    def collection(self) -> str:
        """Of that server."""
        ...


def check_retriever(choice: RetrieverChoice, prefix: str = "") -> None:
    """Raise `UsageError` for values that name no retriever; they are called `prefix` and their name."""
    if choice.retriever not in RETRIEVERS:
        raise UnknownName(f"{prefix}retriever", choice.retriever, RETRIEVERS)
    if not 0 <= choice.weight < math.inf:
        raise UsageError(f"{prefix}weight is {choice.weight}: it cannot be negative, and 1 to 10 are usual")
