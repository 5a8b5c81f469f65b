"""An index: a folder with passages, the engines that search them, and a manifest.

manifest.json      format, analyser, cutting, counts, engine; written last
passages.sqlite    documents and passages (WAL)
tantivy/           the sparse engine
dense/NAME/        vectors of a dense retriever, if there are any (`shoulders.retrieval.vectors`)
milvus/KEY.sqlite  what a server was sent, a file for each collection (`shoulders.retrieval.milvus_upload`)
"""

import atexit
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, final, overload

import regex

from shoulders.errors import SourceNotFound, UsageError
from shoulders.retrieval.bm25 import SPACELESS, Analyser, SparseSearcher
from shoulders.retrieval.passages import PassageStore
from shoulders.retrieval.search import ScoredPassage, Searcher
from shoulders.store.files import check_format, read_json

MANIFEST, PASSAGES, SPARSE = "manifest.json", "passages.sqlite", "tantivy"
FORMAT, VERSION = "shoulders-index", 1
RUN = "run"  # number of the last command that wrote it
CHANGED = "changed"  # number of the last one that changed a passage
# "docs/", "notes.txt": no text looks so, but in scripts without spaces one may have a slash or a point in it.
PATH = re.compile(r"\S+[/\\]\S*|[/\\~]\S*|\S+\.[A-Za-z]\w{1,5}")
SPACELESS_TEXT = regex.compile(rf"{SPACELESS}(?!.*(?:[/\\]|\.[A-Za-z]\w{{1,5}})$)", regex.DOTALL)
UNFINISHED = "unfinished"  # set while a build runs, and left behind by one that was killed


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a search returned."""

    id: int
    title: str
    text: str
    score: float


@final
class Index:
    """An index opened for searching.

    Raises:
        SourceNotFound: the folder holds no index, or its first build was interrupted.
        UsageError: the index has another format, or another analyser than queries have.
        CorruptFile: a part of the index is broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder = Path(folder).expanduser()
        self.manifest = read_manifest(folder)
        self.analyser = Analyser()
        self.analyser.check(self.manifest.get("analyser") or {}, str(folder))
        self.store = PassageStore(folder / PASSAGES)
        self.sparse = SparseSearcher(folder / SPARSE, self.analyser)

    @classmethod
    def build(cls, sources: str | Path | Sequence[str | Path], folder: str | Path | None = None) -> Self:
        """Return an index of files, folders, hub data sets (`hub:NAME`), or of texts themselves.

        >>> shoulders.Index.build(["Rome is in Italy.", "Bern is in Switzerland."])  # doctest: +SKIP

        A string that names no file and no hub data set is a text, unless it looks like a path. Building again in a
        folder brings it up to date. A warning names the first part of the sources that could not be read.

        Args:
            folder: of the index; None for a temporary folder, which is deleted when the process ends.

        Raises:
            SourceNotFound, DataError, SaveFailed: as in `building.build`.
            UsageError: a source is neither text nor path, or a text is no UTF-8.
        """
        from shoulders.backbone.tokenizing import check_characters
        from shoulders.retrieval.building import build  # which reads indexes itself
        from shoulders.retrieval.documents import Source, texts_source
        from shoulders.retrieval.passages import Cutting

        given = _listed(sources)
        named = [isinstance(one, Path) or _is_source(one) for one in given]
        names: list[str | Source] = [str(one) for one, is_name in zip(given, named, strict=True) if is_name]
        texts = [str(one) for one, is_name in zip(given, named, strict=True) if not is_name]
        check_characters(texts)
        place = _temporary() if folder is None else Path(folder).expanduser()
        built = build([*names, *([texts_source(texts)] if texts else [])], place, Cutting(), prune=True)
        if built.skipped:
            first = built.skipped[0]
            warnings.warn(
                f"{built.done['skipped']} parts of the sources are not in the index; the first: {first.place}: "
                f"{first.reason}",
                stacklevel=2,
            )
        return cls(place)

    @property
    def unfinished(self) -> bool:
        """Whether the last command that wrote the index was interrupted or is still running."""
        return bool(self.store.state(UNFINISHED))

    @property
    def passages(self) -> int:
        """Number of passages that can be found, when the index was last finished."""
        return self.manifest["counts"]["passages"]

    @property
    def fingerprint(self) -> str:
        """A value that every `shoulders index` changes that changed a passage; it does not depend on the time."""
        said = {key: value for key, value in self.manifest.items() if key != "time"}
        parts = [said, self.store.state(CHANGED)]
        return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    @overload
    def search(  # pyright: ignore[reportOverlappingOverload] (a string is a sequence of strings)
        self, queries: str, k: int = 10, searcher: Searcher | None = None
    ) -> list[Hit]: ...

    @overload
    def search(self, queries: Sequence[str], k: int = 10, searcher: Searcher | None = None) -> list[list[Hit]]: ...

    def search(
        self, queries: str | Sequence[str], k: int = 10, searcher: Searcher | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """Return at most k passages for a query, best first; a list of such lists for several queries.

        Args:
            searcher: the retriever; None for BM25 on tantivy.

        Raises:
            UsageError: k is below 1.
        """
        if isinstance(queries, str):
            return self.search([queries], k, searcher)[0]
        if k < 1:
            raise UsageError(f"number of passages must be at least 1, got {k}")
        found = (searcher or self.sparse).search(queries, k)
        return [self._hits(some) for some in found]

    def _hits(self, found: Sequence[ScoredPassage]) -> list[Hit]:
        stored = self.store.get([one.passage for one in found])  # one that was deleted meanwhile is not in it
        passages = [(stored[one.passage], one.score) for one in found if one.passage in stored]
        return [Hit(passage.id, passage.title, passage.text, score) for passage, score in passages]


def _listed(sources: Any) -> list[str | Path]:
    """Return sources as a list.

    Raises:
        UsageError: there are none, or one is neither text nor path.
    """
    way_out = "give texts, files, folders or hub:NAME"
    if isinstance(sources, Mapping) or not isinstance(sources, str | Path | Iterable):
        raise UsageError(f"the sources of an index are a {type(sources).__name__}: {way_out}")
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise UsageError(f"there are no sources to index: {way_out}")
    for number, one in enumerate(given):
        if not isinstance(one, str | Path):
            raise UsageError(f"source {number} of the index is a {type(one).__name__}: {way_out}")
    return given


def _is_source(name: str) -> bool:
    """Return whether a name is that of a file, folder or hub data set, and not a text."""
    if not name.strip():
        return False  # as a path it would be the current folder
    try:
        looks = bool(PATH.fullmatch(name)) and not SPACELESS_TEXT.search(name)
        return name.startswith("hub:") or looks or Path(name).expanduser().exists()
    except (OSError, ValueError):  # longer than a name may be, or with a character that none has
        return False


def _temporary() -> Path:
    """Return a folder that goes when the process ends: what an index is opened for may outlive the object."""
    scratch = tempfile.mkdtemp(prefix="shoulders-index-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return Path(scratch, "index")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an index.

    Raises:
        SourceNotFound: there is no index, or its first build was interrupted.
        UsageError: it has another format.
        CorruptFile: the manifest is broken.
    """
    if not (folder / MANIFEST).exists():
        if (folder / PASSAGES).exists():
            raise SourceNotFound(f"the index {folder} is not finished: run the same `shoulders index` command again")
        raise SourceNotFound(f"{folder} is not an index (it has no {MANIFEST}): build one with `shoulders index`")
    manifest = read_json(folder / MANIFEST)
    check_format(manifest, (FORMAT, VERSION), folder, "build it again in a new folder")
    return manifest
