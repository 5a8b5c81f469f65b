"""The client of Milvus: collections of vectors by passage number, each with its description.

A local file (milvus-lite, inside this process) serves as a server does: for trying things out and for tests.
"""

import atexit
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient, MilvusException

from shoulders.errors import SaveFailed, SourceNotFound, UsageError, first_line
from shoulders.retrieval.search import ScoredPassage

NUMBER, VECTOR, ABOUT = "passage", "vector", "shoulders"
TOKEN_VARIABLE = "MILVUS_TOKEN"  # noqa: S105 (the variable's name)
LIMIT = 16_384  # passages of one answer, and numbers of one request: Milvus's own
QUERIES = 100  # of one request
FLAT, HNSW, IVF_FLAT, IVF_SQ8 = "FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8"
CELLS = 1024  # of an "IVF_" index
BUILT: dict[str, dict[str, int]] = {  # how Milvus's indexes over dense vectors are made
    FLAT: {},
    HNSW: {"M": 16, "efConstruction": 200},
    IVF_FLAT: {"nlist": CELLS},
    IVF_SQ8: {"nlist": CELLS},
}
PROBED = 64  # cells
BREADTH = 128  # candidates of a search of HNSW, at least
SCHEMES = ("http", "https", "tcp")
MESSAGE = re.compile(r"message=(.*?)\)?>?(?:, <.*)?$", re.DOTALL)
UNREACHABLE, TOKEN, FULL = (
    ("fail connecting", "unavailable", "deadline"),
    ("unauthenticated", "auth check failure", "permission deny"),
    ("no space left", "quota", "file too large"),
)

Vector = Mapping[int, float] | NDArray[Any]  # sparse by dimension, or dense


@final
class Milvus:
    """A connection to a server, or to a local file that no other process has open.

    Args:
        address: http://HOST:PORT, https://, tcp://, or a path that ends in .db.
        token: "" for a server without authentication.
        timeout: seconds to wait for an answer.

    Raises:
        UsageError: the address is invalid, the token is wrong, or another process has the file open.
        SourceNotFound: nobody answers there, or milvus-lite is not installed.
        SaveFailed: the local file cannot be made.
    """

    def __init__(self, address: str, token: str = "", timeout: float = 60) -> None:
        self.address, self.timeout = checked_address(address), timeout
        for library in ("pymilvus", "milvus_lite"):  # they print a stack trace of each error that they raise
            logging.getLogger(library).setLevel(logging.CRITICAL)
        with ExitStack() as held:
            place = address if "://" in address else held.enter_context(_local(Path(address)))
            with self._errors_named():
                self._client = MilvusClient(uri=place, token=token, timeout=timeout)
            held.callback(self._client.close)
            self._held = held.pop_all()

    def close(self) -> None:
        """Close the connection, or the local file."""
        self._held.close()

    def __enter__(self) -> "Milvus":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def about(self, collection: str) -> dict[str, Any] | None:
        """Return the description that `shoulders upload` gave a collection; None if there is no such collection.

        Raises:
            UsageError: the collection was not made by `shoulders upload`.
        """
        with self._errors_named():
            if not self._client.has_collection(collection):
                return None
            described: Any = self._client.describe_collection(collection)
        properties = described.get("properties") or {}
        if ABOUT not in properties:
            raise UsageError(
                f"the collection {collection!r} at {self.address} was not made by `shoulders upload`: name another "
                "(--collection)"
            )
        return json.loads(properties[ABOUT])

    def set_about(self, collection: str, about: Mapping[str, Any]) -> None:
        """Store a collection's description with it."""
        with self._errors_named():
            self._client.alter_collection_properties(collection, {ABOUT: json.dumps(about)}, timeout=self.timeout)

    def create(self, collection: str, about: Mapping[str, Any], dimension: int = 0, kind: str = FLAT) -> None:
        """Create a collection.

        Args:
            dimension: of dense vectors; 0 for sparse ones.
            kind: of the index over dense vectors, one of `BUILT`.
        """
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(NUMBER, DataType.INT64, is_primary=True)
        if dimension:
            schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dimension)
        else:
            schema.add_field(VECTOR, DataType.SPARSE_FLOAT_VECTOR)
        indexes = MilvusClient.prepare_index_params()
        if dimension:
            indexes.add_index(VECTOR, index_type=kind, metric_type="IP", params=BUILT[kind])
        else:
            indexes.add_index(VECTOR, index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        with self._errors_named():
            self._client.create_collection(
                collection, schema=schema, index_params=indexes, properties={ABOUT: json.dumps(about)}
            )

    def load(self, collection: str) -> None:
        """Load a collection on the server, so that it can be searched."""
        with self._errors_named():
            self._client.load_collection(collection, timeout=self.timeout)

    def upsert(self, collection: str, rows: Mapping[int, Vector]) -> None:
        """Insert or replace vectors by passage number; they are durable once the server has acknowledged them."""
        if rows:
            with self._errors_named():
                fields = [{NUMBER: number, VECTOR: vector} for number, vector in rows.items()]
                self._client.upsert(collection, fields, timeout=self.timeout)

    def get(self, collection: str, numbers: Sequence[int]) -> dict[int, Vector]:
        """Return the vectors of those of the numbered passages that exist."""
        with self._errors_named():
            rows = self._client.get(
                collection, ids=list(numbers), output_fields=[NUMBER, VECTOR], consistency_level="Strong"
            )
        return {row[NUMBER]: row[VECTOR] for row in rows}

    def delete(self, collection: str, numbers: Sequence[int]) -> None:
        """Delete passages; numbers without a passage are ignored."""
        with self._errors_named():
            self._client.delete(collection, ids=list(numbers), timeout=self.timeout)

    def flush(self, collection: str) -> None:
        """Have the server write to disk and index what it holds."""
        with self._errors_named():
            self._client.flush(collection)

    def count(self, collection: str) -> int:
        """Return the number of passages in a collection."""
        with self._errors_named():
            rows = self._client.query(collection, "", output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    def search(self, collection: str, vectors: Sequence[Vector], k: int, kind: str = FLAT) -> list[list[ScoredPassage]]:
        """Return for each vector at most k passages of the largest inner product; ties are in no order.

        Args:
            kind: of the collection's index, as it was created.
        """
        how = {HNSW: {"ef": max(BREADTH, 2 * k)}, IVF_FLAT: {"nprobe": PROBED}, IVF_SQ8: {"nprobe": PROBED}}
        found: list[list[ScoredPassage]] = []
        for start in range(0, len(vectors), QUERIES):
            with self._errors_named():
                some = self._client.search(
                    collection,
                    data=list(vectors[start : start + QUERIES]),
                    anns_field=VECTOR,
                    limit=k,
                    output_fields=[NUMBER],
                    search_params={"metric_type": "IP", "params": how.get(kind, {})},
                    timeout=self.timeout,
                )
            found += [[ScoredPassage(int(hit[NUMBER]), float(hit["distance"])) for hit in hits] for hits in some]
        return found

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (MilvusException, OSError) as error:
            raise self._translated(error) from error

    def _translated(self, error: MilvusException | OSError) -> UsageError:
        found = MESSAGE.search(str(error))
        reason = first_line(Exception(found[1] if found else str(error)))
        known = f"{str(error).lower()} {getattr(error, 'code', '')}"
        if any(word in known for word in TOKEN):
            return UsageError(
                f"{self.address} refuses the token ({reason}): put the right one, or USER:PASSWORD, into the "
                f"environment variable {TOKEN_VARIABLE} (or another that --token-env names)"
            )
        if any(word in known for word in FULL):
            return SaveFailed(f"{self.address} is full ({reason}): free space there, then run the same command again")
        if any(word in known for word in UNREACHABLE):
            return SourceNotFound(
                f"no Milvus answers at {self.address} ({reason}): start one there, or name another address; the same "
                "command goes on where it stopped"
            )
        return UsageError(f"Milvus at {self.address} refuses: {reason}")


@cache
def shared_connection(address: str) -> Milvus:
    """Return the process's one connection to an address, with the token of MILVUS_TOKEN: a file opens once."""
    server = Milvus(address, os.environ.get(TOKEN_VARIABLE, ""))
    atexit.register(server.close)
    return server


def checked_address(address: str) -> str:
    """Return the address if it is valid.

    Raises:
        UsageError: it is neither a URL nor a .db file, or it holds a password.
    """
    if "://" not in address:
        if not address.endswith(".db"):
            raise UsageError(
                f"{address!r} is not an address of Milvus: http://HOST:19530, or a local file, NAME.db (milvus-lite)"
            )
        return address
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise UsageError(
            f"{address!r} is not an address of Milvus: http://HOST:19530, https://HOST or tcp://HOST:19530"
        )
    if parts.username or parts.password:
        raise UsageError(
            f"the address of {parts.hostname} holds a password, and addresses are shown and kept: put it into "
            f"the environment variable {TOKEN_VARIABLE} as USER:PASSWORD (or into another that --token-env names)"
        )
    return address


@contextmanager
def _local(path: Path) -> Iterator[str]:
    """Serve a local file within, and yield the address.

    milvus-lite is started here and not by pymilvus, which would keep the file open until the process ends and would not
    give the reason when it cannot be opened.
    """
    try:
        from milvus_lite import DataDirLockedError, MilvusLiteError
        from milvus_lite.adapter.grpc.server import start_server_in_thread
    except ImportError as error:
        raise SourceNotFound(f"a local file needs milvus-lite 3 ({error.name}): pip install 'milvus-lite>=3'") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        server, database, port = start_server_in_thread(str(path.absolute()))
    except DataDirLockedError:
        raise UsageError(f"{path} is open in another process: wait until it is done, or stop it") from None
    except (OSError, MilvusLiteError) as error:
        raise SaveFailed(f"cannot use {path} as a collection ({first_line(error)}): name another file") from error
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(grace=2).wait()
        database.close()
