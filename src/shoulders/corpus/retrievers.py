"""The retrievers of an index by their names."""

from shoulders.corpus.dense import dense_of
from shoulders.corpus.hybrid import HybridSearcher, RankFusion
from shoulders.corpus.index import Index
from shoulders.corpus.searching import DENSE, HYBRID, RETRIEVERS, SPARSE, Searcher
from shoulders.errors import UnknownName


def retriever_of(index: Index, kind: str, dense: str = "", weight: float = 1.0) -> Searcher:
    """What searches an index.

    Args:
        kind: "sparse" (BM25), "dense", "hybrid" (the sum of their scores), or "rrf" (of their ranks).
        dense: the name of its vectors, if it has several.
        weight: of sparse scores in the sum.

    Raises:
        UnknownName: there is no such kind, or there are no vectors of that name.
        UsageError, SourceNotFound: the index has no vectors that can be searched (`dense_of`).
    """
    if kind not in RETRIEVERS:
        raise UnknownName("retriever", kind, RETRIEVERS)
    if kind == SPARSE:
        return index.sparse
    vectors = dense_of(index, dense)
    if kind == DENSE:
        return vectors
    return HybridSearcher(vectors, index.sparse, weight) if kind == HYBRID else RankFusion(vectors, index.sparse)
