"""From what recipes say of a retriever to what searches an index."""

import math
from typing import TYPE_CHECKING, Protocol

from shoulders.corpus.searching import RETRIEVERS
from shoulders.errors import SourceNotFound, UnknownName, UsageError

if TYPE_CHECKING:
    from shoulders.corpus.index import Index
    from shoulders.corpus.searching import Searcher


class RetrieverChoice(Protocol):
    """What finds passages, as recipes name it; `shoulders.recipes.recipe.EvidenceChoice` says what each is."""

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


def searcher_of(choice: RetrieverChoice, index: "Index") -> "Searcher":
    """What searches an index as a recipe chooses: here, or on a server.

    Raises:
        SourceNotFound, UsageError: there are no vectors, or not the encoder that made them; the server does not answer,
            or was not sent all of the index as it is now.
    """
    from shoulders.corpus.retrievers import retriever_of

    if not choice.engine:
        return retriever_of(index, choice.retriever, choice.dense, choice.weight)
    try:
        from shoulders.corpus.distributed import server_retriever
        from shoulders.corpus.milvus import shared
    except ImportError as error:
        raise SourceNotFound(f"a server (engine) needs {error.name}: pip install 'shoulders[distributed]'") from None
    server = shared(choice.engine)
    served = server_retriever(index, server, choice.retriever, choice.collection, choice.dense, choice.weight)
    if served.stale:
        raise UsageError(
            f"what is at {choice.engine} is not all of {index.folder} as it is now: shoulders upload {index.folder} "
            f"--to {choice.engine}"
        )
    return served.searcher
