"""Configuration of the built-in kinds of evidence, as one frozen, self-validating record."""

import math
from dataclasses import dataclass
from typing import Protocol

from shoulders.engine.inference import Sampling
from shoulders.errors import UnknownName, UsageError
from shoulders.evidence.base import CANDIDATES, ORACLE, RETRIEVED, EvidenceConfig
from shoulders.retrieval.search import RETRIEVERS, SPARSE

PASSAGES = (RETRIEVED, ORACLE)  # kinds that read the passages of an index
BUILT_IN = ("", CANDIDATES, *PASSAGES)


@dataclass(frozen=True, slots=True)
class EvidenceChoice(EvidenceConfig):
    """Values of a recipe's `evidence` for the built-in kinds.

    Attributes:
        kind: "candidates": answers that the frozen model sampled itself (textual recursion); "retrieved": passages of
            an index, as many as fit into suite.lengths.input tokens with the question; "oracle": the same, with the
            passages that are annotated for the question (gold_passage_ids) first; "": no evidence.
        scaffold: run, folder or hub name of the scaffold that candidates are sampled with, p1; "bare" for none.
        across: two more such prompts for cross-fitting, trained with suite.fold=a and suite.fold=b: training questions
            of a half get the candidates of the prompt that was trained on the other half. The paper does not say
            whether it did so.
        count: number of answers sampled for a question (the paper: 1, 8, 16, 64).
        temperature: sampling temperature.
        longest: maximum length of a candidate, in tokens.
        seed: seed of the samples.
        before: list candidates before the question instead of after it.
        probabilities: show the model's own probability behind each candidate.
        store: SQLite file that caches candidates and re-ranker's scores; "": candidates are kept for this run only, and
            scores in the cache folder.
        index: folder of the index (`shoulders index`) that passages are retrieved from.
        retriever: "sparse" (BM25), "dense", "hybrid" (sum of both scores) or "rrf" (reciprocal rank fusion).
        weight: weight of sparse scores in the hybrid sum.
        dense: name of the vectors (`shoulders encode`), if the index has several.
        engine: address of a Milvus server that the index was uploaded to (`shoulders upload`), to search it there; its
            token is read from the environment (MILVUS_TOKEN).
        collection: collection on that server, if there are several; "SPARSE,DENSE" for a hybrid retriever.
        passages: number of passages retrieved for a question, before packing.
        truncate: truncate the first passage that does not fit, instead of leaving it out (as in the paper).
        reranker: a re-ranker of shoulders, a cross-encoder, or a folder with three cross-fitted re-rankers (a and b,
            trained on either half of the training examples, and all); "lm:question" or "lm:yes" for the frozen model
            itself (`LanguageModelRanker`); "" for none.
        retriever_weight: weight of the retriever's scores beside the re-ranker's, both standardised over the passages
            of a question; 0 (as in the paper) ranks by the re-ranker alone. `shoulders train reranker` reports what
            did best.
        distractors: for "oracle", number of retrieved passages after the annotated ones, at most `passages`.
    """

    kind: str = ""
    scaffold: str = ""
    across: tuple[str, ...] = ()
    count: int = 16
    temperature: float = 1.0
    longest: int = 16
    seed: int = 0
    before: bool = False
    probabilities: bool = False
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
            raise UsageError(f"evidence.longest is {self.longest}: it must be at least 1 token")
        if self.passages < 1:
            raise UsageError(f"evidence.passages is {self.passages}: it must be at least 1; 20 is usual")
        if not 0 <= self.distractors <= self.passages:
            raise UsageError(
                f"evidence.distractors is {self.distractors}: it must be from 0 to evidence.passages={self.passages}"
            )
        self._check_order()

    def _check_order(self) -> None:
        if self.kind == ORACLE and self.reranker:
            raise UsageError(
                f"evidence.reranker={self.reranker} has no effect with evidence.kind=oracle, whose passages are "
                "annotated: leave it empty, or set evidence.kind=retrieved"
            )
        if not 0 <= self.retriever_weight < math.inf:
            raise UsageError(
                f"evidence.retriever_weight is {self.retriever_weight}: it must be at least 0; 0 to 5 is usual"
            )
        if self.retriever_weight and not self.reranker:
            raise UsageError(
                f"evidence.retriever_weight={self.retriever_weight} needs a re-ranker: name one (evidence.reranker), "
                "or leave it 0"
            )


class RetrieverChoice(Protocol):
    """Configuration of a retriever; `EvidenceChoice` documents its values."""

    @property
    def retriever(self) -> str:
        """Name of the retriever: "sparse", "dense", "hybrid" or "rrf"."""
        ...

    @property
    def weight(self) -> float:
        """Weight of sparse scores in the hybrid sum."""
        ...

    @property
    def dense(self) -> str:
        """Name of the vectors, if the index has several."""
        ...

    @property
    def engine(self) -> str:
        """Address of a server to search; "" to search here."""
        ...

    @property
    def collection(self) -> str:
        """Collection on that server."""
        ...


def check_retriever(choice: RetrieverChoice, prefix: str = "") -> None:
    """Raise `UsageError` for values of no retriever; messages name them with `prefix`."""
    if choice.retriever not in RETRIEVERS:
        raise UnknownName(f"{prefix}retriever", choice.retriever, RETRIEVERS)
    if not 0 <= choice.weight < math.inf:
        raise UsageError(f"{prefix}weight is {choice.weight}: it must be at least 0; 1 to 10 is usual")
