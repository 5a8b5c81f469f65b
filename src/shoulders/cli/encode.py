"""`shoulders encode`."""

from pathlib import Path

from shoulders.cli.show import console, counting, need, quiet_libraries


def run(folder: Path, retriever: str, *, name: str, kind: str, pooling: str, dtype: str) -> None:
    """Make the vectors of an index's passages, and what searches them."""
    need("tantivy", "search")
    need("faiss", "search")
    quiet_libraries()
    from shoulders.corpus.dense import KINDS, build_faiss
    from shoulders.corpus.index import Index
    from shoulders.corpus.vectors import encode
    from shoulders.errors import UnknownName
    from shoulders.ranking.bi_encoder import BiEncoder

    if kind and kind not in KINDS:
        raise UnknownName("kind of dense index", kind, KINDS)
    index = Index(folder)
    encoder = BiEncoder.load(retriever, pooling=pooling)
    with counting("encoding", "passages") as show:
        vectors = encode(index, encoder, name, dtype=dtype, on_progress=show)
    kind = build_faiss(vectors, kind)
    told = f"{vectors.folder}: {len(vectors):,} vectors of {vectors.dimension} numbers ({vectors.type}), in {kind}"
    console.print(told, markup=False, soft_wrap=True)
