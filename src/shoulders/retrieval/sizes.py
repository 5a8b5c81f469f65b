"""Disk, memory and time that an index of a given size needs, by engine: formulas, checked against real files.

Figures of a passage are of Wikipedia's passages of 100 words with their titles (87 words, 536 characters on average),
measured on 60,250 of them; times are those of one core, or of two for matrix products.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from shoulders.errors import UsageError

TEXT_BYTES = 791  # of a passage in SQLite: text, hashes and the indexes over them
POSTING_BYTES = 132  # of a passage in tantivy: its postings and its share of the dictionary
TERMS = 48.8  # different terms of a passage
TOKENS = 121  # word pieces that an encoder reads of a passage with its title
INDEXED, SENT = 5_100, 4_700  # passages that a core cuts and indexes in a second, or makes weights of and sends
MATRIX_WORK = 150e9  # floating-point operations that two cores do in a second in products of matrices
NUMBER = 8  # bytes of a passage's number
FLOAT, HALF, BYTE = 4, 2, 1

# Heaps' law: the 60,000 first passages have 104,146 terms, and twice as many passages 2 ** 0.526 as many.
VOCABULARY, OF_PASSAGES, GROWTH = 104_146, 60_000, 0.526
TERM_BYTES, SENT_BYTES = 37, 10  # of a term and of a passage in the record of an upload
CACHE = 128 << 20  # bytes that SQLite keeps of its pages (`store.files`)

# FAISS, as `retrieval.dense` builds it.
CELLS = 4  # times the square root of the number of passages
TRAINED_ON = 64  # vectors of each cell
ROUNDS = 10  # of k-means: FAISS's default for inverted files
CODES = 256  # of each part of a vector in product quantization
PART = 8  # numbers of a part
RABITQ_FACTORS = 2 * FLOAT  # beside a bit for each number. Source: Gao and Long 2024, section 3
KINDS = ("flat", "sq8", "ivf-sq8", "ivf-pq", "ivf-rabitq")

# Milvus. Source: Knowhere's inverted index keeps a dimension's postings as pairs of a row (4 bytes) and a value (4).
PAIR = 4 + 4
ROW = NUMBER + 8  # number and time stamp
LINKS = 2 * 30  # neighbours of a vector on the lowest layer of HNSW with M = 30 (Malkov and Yashunin 2018, section 4)


@dataclass(frozen=True, slots=True)
class Need:
    """Disk, memory and time of one part of an index.

    Attributes:
        disk: bytes.
        memory: bytes that searching allocates, or maps and reads all the time.
        seconds: time to build it; None if that depends on the encoder's unknown speed.
        note: on the memory, or on what the figures leave out.
    """

    part: str
    disk: float
    memory: float
    seconds: float | None
    note: str = ""


def needs(passages: int, dimension: int, tokens_per_second: float = 0) -> list[Need]:
    """Return the needs of an index's parts and of the engines that can search it.

    Args:
        dimension: of dense vectors.
        tokens_per_second: speed of the encoder; 0 if unknown.

    Raises:
        UsageError: a number is too small.
    """
    if passages < 1 or dimension < 1 or tokens_per_second < 0:
        raise UsageError(
            "sizes must be at least 1 passage, 1 number of a vector and 0 tokens a second, got "
            f"{passages}, {dimension} and {tokens_per_second}"
        )
    encoding = passages * TOKENS / tokens_per_second if tokens_per_second else None
    return [
        Need(
            "texts (SQLite) and BM25 (tantivy)",
            passages * (TEXT_BYTES + POSTING_BYTES),
            CACHE + passages * POSTING_BYTES,
            passages / INDEXED,
            "BM25's part is mapped",
        ),
        Need("vectors (float16)", passages * (HALF * dimension + NUMBER), 0, encoding, "read to build an engine"),
        *(_faiss(kind, passages, dimension) for kind in KINDS),
        _milvus_weights(passages),
        *_milvus_vectors(passages, dimension),
    ]


def faiss_bytes(kind: str, passages: int, dimension: int) -> int:
    """Return the size of a FAISS index of one of `KINDS`, the numbers of the passages included."""
    cells = faiss_cells(passages)
    code = {
        "flat": FLOAT * dimension,
        "sq8": BYTE * dimension,
        "ivf-sq8": BYTE * dimension,
        "ivf-pq": _parts(dimension),
        "ivf-rabitq": -(-dimension // 8) + RABITQ_FACTORS,
    }[kind]
    size = passages * (code + NUMBER)
    if kind.startswith("ivf-"):
        size += passages * NUMBER + cells * dimension * FLOAT  # each cell names its rows, and has a centre
    if kind == "ivf-pq":
        size += CODES * dimension * FLOAT
    if kind == "ivf-rabitq":
        size += dimension * dimension * FLOAT  # vectors are turned at random
    return size


def faiss_cells(passages: int) -> int:
    """Return the number of cells of an inverted file over so many passages."""
    return max(1, min(int(CELLS * math.sqrt(passages)), passages // 39))


def _faiss(kind: str, passages: int, dimension: int) -> Need:
    size = faiss_bytes(kind, passages, dimension)
    work = 0.0
    if kind.startswith("ivf-"):
        cells = faiss_cells(passages)
        compared = min(passages, cells * TRAINED_ON) * ROUNDS + passages
        work = 2.0 * dimension * cells * compared
    if kind == "ivf-pq":
        work += 2.0 * dimension * CODES * passages
    note = "mapped; every query reads all of it" if kind in KINDS[:2] else "mapped; a query reads the cells near it"
    return Need(f"FAISS {kind}", size, size, work / MATRIX_WORK, note)


def _milvus_weights(passages: int) -> Need:
    postings = passages * TERMS * PAIR
    vocabulary = VOCABULARY * (passages / OF_PASSAGES) ** GROWTH
    record = vocabulary * TERM_BYTES + passages * SENT_BYTES
    rows = passages * ROW
    return Need(
        "Milvus, BM25 weights",
        2 * postings + rows + record,
        postings + rows,
        passages / SENT,
        f"disk: rows, index, and {record / 1e9:.1f} GB of record beside the index",
    )


def _milvus_vectors(passages: int, dimension: int) -> Iterator[Need]:
    raw, rows = passages * dimension * FLOAT, passages * ROW
    cells = faiss_cells(passages)
    quantized = passages * dimension * BYTE + cells * dimension * FLOAT
    graph = raw + passages * LINKS * FLOAT
    for kind, index in (("FLAT", raw), ("IVF_SQ8", quantized), ("HNSW", graph)):
        yield Need(
            f"Milvus, vectors {kind}", raw + rows + index, index + rows, None, "disk: rows and index, one replica"
        )


def _parts(dimension: int) -> int:
    return max(part for part in range(1, max(1, dimension // PART) + 1) if dimension % part == 0)
