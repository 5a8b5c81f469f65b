"""`shoulders upload`, and opening what it sent for searching."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import regex

from shoulders.cli.show import console, counting, need
from shoulders.errors import UsageError

if TYPE_CHECKING:
    from shoulders.corpus.milvus import Milvus
    from shoulders.corpus.uploading import Sent


@dataclass(frozen=True, slots=True)
class Engine:
    """A server, its collection and the variable that holds its token, as options name them."""

    address: str
    collection: str = ""
    token_variable: str = ""


def run(folder: Path, engine: Engine, k1: float, b: float) -> None:
    """Send an index to a server, or what changed of it, and say what was done."""
    need("tantivy", "search")
    with connected(engine) as server:
        from shoulders.corpus.index import Index
        from shoulders.corpus.uploading import Target, upload_weights

        index = Index(folder)
        target = Target(server, engine.collection or _name(folder))
        with counting("sending", "passages") as on_sent:
            sent = upload_weights(index, target, k1, b, on_sent)
    _tell(sent, f"{target}: {sent.passages:,} passages, BM25 with k1 = {k1} and b = {b}")


def run_vectors(folder: Path, engine: Engine, dense: str, kind: str) -> None:
    """Send the vectors of an index of that name, or what changed of them."""
    need("tantivy", "search")
    with connected(engine) as server:
        from shoulders.corpus.index import Index
        from shoulders.corpus.uploading import Target, upload_vectors
        from shoulders.corpus.vectors import VectorStore, vectors_in

        index, vectors = Index(folder), VectorStore(vectors_in(folder, dense))
        vectors.check(index.store)
        target = Target(server, engine.collection or _name(folder, dense))
        with counting("sending", "passages") as on_sent:
            sent = upload_vectors(index, vectors, target, kind, on_sent)
    _tell(sent, f"{target}: {sent.passages:,} vectors of {vectors.dimension} numbers by {vectors.encoder}")


def _tell(sent: "Sent", holds: str) -> None:
    renewed = f", {sent.renewed:,} sent anew (their mean length moved)" if sent.renewed else ""
    console.print(
        f"passages: {sent.added:,} added, {sent.deleted:,} deleted, {sent.unchanged:,} unchanged{renewed}\n{holds}",
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def connected(engine: Engine) -> Iterator["Milvus"]:
    """The server, while within.

    Raises:
        UsageError: the token's variable is not set.
    """
    need("pymilvus", "distributed")
    from shoulders.corpus.milvus import TOKEN_VARIABLE, Milvus

    variable = engine.token_variable
    if variable and variable not in os.environ:
        raise UsageError(f"the environment has no variable {variable}: put the server's token into it (--token-env)")
    with Milvus(engine.address, os.environ.get(variable or TOKEN_VARIABLE, "")) as server:
        yield server


def _name(folder: Path, *parts: str) -> str:
    """A name that Milvus takes: letters, digits and underscores, a letter first."""
    name = regex.sub(r"[^A-Za-z0-9_]+", "_", "_".join([folder.resolve().name, *parts]))[:200]
    return name if name[:1].isalpha() else f"index_{name}"
