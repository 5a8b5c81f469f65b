"""The retrievers of an index by their names."""

from shoulders.corpus.dense import dense_of
from shoulders.corpus.hybrid import retriever_of_kind
from shoulders.corpus.index import Index
from shoulders.corpus.searching import Searcher


def retriever_of(index: Index, kind: str, dense: str = "", weight: float = 1.0) -> Searcher:
    """What searches an index; `retriever_of_kind` says how.

    Args:
        dense: the name of its vectors, if it has several.

    Raises:
        UnknownName: there is no such kind, or there are no vectors of that name.
        UsageError, SourceNotFound: the index has no vectors that can be searched (`dense_of`).
    """
    return retriever_of_kind(kind, lambda: dense_of(index, dense), lambda: index.sparse, weight)
