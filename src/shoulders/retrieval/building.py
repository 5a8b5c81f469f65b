"""Building an index, and bringing one up to date.

The passages in SQLite are the truth; the engine follows them. A batch of documents is first kept there together with
the numbers of the passages that changed, then the engine is given these, then they are struck off. Whenever a process
is killed, the next one begins with what was not struck off.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import final

from shoulders.errors import DataError, SaveFailed, first_line
from shoulders.retrieval.bm25 import ENGINE, Analyser, SparseWriter
from shoulders.retrieval.documents import INTERRUPTIONS, Document, Skipped, Source, open_source
from shoulders.retrieval.index import (
    CHANGED,
    FORMAT,
    MANIFEST,
    PASSAGES,
    RUN,
    SPARSE,
    UNFINISHED,
    VERSION,
    read_manifest,
)
from shoulders.retrieval.passages import AT_ONCE, Counts, Cutting, KnownDocument, NewPassage, PassageStore, text_key
from shoulders.store.files import LOCK, lock_folder, write_json

ANALYSER = "analyser"
LIBRARIES = ("shoulders", "tantivy", "PyStemmer", "regex", "unicode-segmentation-rs")  # that make terms and passages
CHARACTERS, DOCUMENTS, SECONDS = 16_000_000, 20_000, 10  # a batch is full at the first of these
REMEMBERED = 100_000  # passages of a batch whose terms are not worked out twice
NAMED = 20  # of what was skipped

Item = Document | Skipped


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a build is done and kept, even if the process is killed.

    Attributes:
        read: bytes of all sources that have been read.
        size: bytes of all sources; 0 if unknown.
    """

    read: int
    size: int
    documents: int
    skipped: int


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Counts of what a build did.

    Attributes:
        done: documents added, replaced, deleted and unchanged; parts of sources skipped.
        skipped: the first of the parts skipped.
        unpruned: sources from which nothing was deleted, because a part of them could not be read.
    """

    counts: Counts
    done: Counter[str]
    skipped: Sequence[Skipped]
    unpruned: Sequence[str]


def build(
    names: Sequence[str | Source],
    folder: Path,
    cutting: Cutting,
    *,
    as_is: bool = False,
    prune: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> BuildResult:
    """Add the documents of some sources to the index in a folder, which is made if there is none.

    Unchanged documents are left alone, changed ones replaced. Running it again finishes an interrupted build.

    Args:
        names: of files, folders and data sets (`open_source`), or sources that are open already.
        as_is: records of JSON Lines and of the hub are passages already.
        prune: delete documents that these sources no longer hold; a source that could not be read to the end keeps all.

    Raises:
        SourceNotFound, HubUnreachable: a source is not there.
        DataError: the sources of a new index hold no text.
        UsageError: another process is writing the index, or it was analysed otherwise.
        SaveFailed: the folder is no index, or cannot be written.
    """
    sources = [name if isinstance(name, Source) else open_source(name, as_is=as_is) for name in dict.fromkeys(names)]
    _check_folder(folder)
    items = [source.items() for source in sources]
    if not (folder / PASSAGES).exists():
        items = _checked(sources, items)
    with lock_folder(folder):
        made = _Build(folder, cutting, sum(s.size for s in sources) if all(s.size for s in sources) else 0)
        try:
            return made.run(sources, items, prune=prune, on_progress=on_progress)
        except BaseException:
            made.abandon()
            raise


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise SaveFailed(f"{folder} is a file: name a new folder (--out)")
    if (folder / MANIFEST).exists():
        read_manifest(folder)
    elif folder.is_dir() and not (folder / PASSAGES).exists() and {path.name for path in folder.iterdir()} - {LOCK}:
        raise SaveFailed(f"{folder} holds other files and no index: name a new folder (--out)")


def _checked(sources: Sequence[Source], items: Sequence[Iterator[Item]]) -> list[Iterator[Item]]:
    """Return the items of all sources, having made sure that there is a text in one of them."""
    looked: list[Iterator[Item]] = []
    skipped: list[Skipped] = []
    for number, some in enumerate(items):
        mine: list[Item] = []
        for item in some:
            mine.append(item)
            if isinstance(item, Document):
                return [*looked, chain(mine, some), *items[number + 1 :]]
            skipped.append(item)
        looked.append(iter(mine))
    why = f"; of {len(skipped)} the first: {skipped[0].place}: {skipped[0].reason}" if skipped else ""
    raise DataError(f"there is no text in {', '.join(source.name for source in sources)}{why}")


@final
class _Build:
    """One run of `build` over an index that no other process writes."""

    def __init__(self, folder: Path, cutting: Cutting, size: int) -> None:
        self.folder, self.cutting, self.size = folder, cutting, size
        self.analyser = Analyser()
        self.store = PassageStore(folder / PASSAGES, write=True)
        identity = self.store.state(ANALYSER)
        if identity:
            self.analyser.check(json.loads(identity), str(folder))
        with self.store.writing():
            self.store.set_state(ANALYSER, json.dumps(self.analyser.identity))
            self.number = int(self.store.state(RUN) or 0) + 1
            self.store.set_state(RUN, str(self.number))
            self.store.set_state(UNFINISHED, datetime.now(UTC).isoformat(timespec="seconds"))
        self.engine = SparseWriter(folder / SPARSE)
        self.done: Counter[str] = Counter()
        self.skipped: list[Skipped] = []
        self._terms: dict[int, str] = {}  # of new passages, by number

    def abandon(self) -> None:
        """Let go of the folder; the next build goes on from what was committed."""
        self.engine.abandon()
        self.store.close()

    def run(
        self,
        sources: Sequence[Source],
        items: Sequence[Iterator[Item]],
        *,
        prune: bool,
        on_progress: Callable[[Progress], None],
    ) -> BuildResult:
        self._follow()
        before, unpruned = 0, []
        for source, some in zip(sources, items, strict=True):
            with self.store.writing():
                key = self.store.source(source.name)
            lost = False
            for batch in _batches(some):
                lost |= any(isinstance(item, Skipped) and item.lost for item in batch)
                with self.store.writing():
                    for item in batch:
                        self._take(key, item)
                self._follow()
                kept = self.done["added"] + self.done["replaced"] + self.done["unchanged"]
                on_progress(Progress(before + batch[-1].read, self.size, kept, self.done["skipped"]))
            before += source.size
            if prune and lost:
                unpruned.append(source.name)
            elif prune:
                self._prune(key)
        return self._finished(unpruned)

    def _take(self, source: int, item: Item) -> None:
        if isinstance(item, Skipped):
            self._skip(item)
            return
        how = "passage" if item.passage else repr(self.cutting)
        sections = [f"{start} {path}" for start, path in item.sections]
        content = blake2b("\0".join([how, item.title, item.text, *sections]).encode(), digest_size=16).digest()
        known = self.store.known(source, item.id)
        if known and known.seen == self.number:
            self._skip(Skipped(item.place, f"the id {item.id!r} stands there a second time", item.read, lost=False))
        elif known and known.hash == content:
            self.store.see(known.key, self.number)
            self.done["unchanged"] += 1
        else:
            self._keep(source, item, content, known)

    def _keep(self, source: int, document: Document, content: bytes, known: KnownDocument | None) -> None:
        """Keep a new document, or one that changed in place of what is known of it."""
        passages = self._passages(document)
        if passages is None:
            if known:  # what is kept of it stays, also when others are pruned
                self.store.see(known.key, self.number)
            return
        if known:
            self.store.delete(known.key)
        self.done["replaced" if known else "added"] += 1
        key = self.store.add(source, document.id, document.title, content, self.number)
        for number, cut in self.store.add_passages(key, self._analysed(document, passages)):
            if len(self._terms) < REMEMBERED:
                self._terms[number] = cut.terms

    def _passages(self, document: Document) -> list[tuple[int, int]] | None:
        """Return the spans of a document's passages; None, and it is skipped, if the library fails that cuts it."""
        try:
            return [(0, len(document.text))] if document.passage else list(self.cutting.spans(document.text))
        except INTERRUPTIONS:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            reason = f"it cannot be cut into passages ({type(error).__name__}: {first_line(error)})"
            self._skip(Skipped(document.place, reason, document.read))
            return None

    def _analysed(self, document: Document, spans: Iterable[tuple[int, int]]) -> Iterator[NewPassage]:
        for start, end in spans:
            text = document.text if document.passage else " ".join(document.text[start:end].split())
            section = document.section(start, end)
            terms = self.analyser.terms(f"{document.title}{section}\n{text}")
            yield NewPassage(text, section, text_key(text), " ".join(terms))

    def _skip(self, item: Skipped) -> None:
        self.done["skipped"] += 1
        if len(self.skipped) < NAMED:
            self.skipped.append(item)

    def _prune(self, source: int) -> None:
        gone = self.store.unseen(source, self.number)
        for start in range(0, len(gone), AT_ONCE):
            some = gone[start : start + AT_ONCE]
            with self.store.writing():
                for document in some:
                    self.store.delete(document)
            self._follow()
            self.done["deleted"] += len(some)

    def _follow(self) -> None:
        """Bring the engine up to date with the passages that changed."""
        pending = self.store.pending()
        if not pending:
            return
        for number, terms in self._terms.items():
            self.engine.add(number, terms)
        others = [number for number in pending if number not in self._terms]
        for start in range(0, len(others), AT_ONCE):
            some = others[start : start + AT_ONCE]
            stored = self.store.get(some)
            for number in some:
                self.engine.remove(number)
                if number in stored:
                    self.engine.add(number, " ".join(self.analyser.terms(stored[number].searched)))
        self.engine.commit()
        with self.store.writing():
            self.store.settle()
            self.store.set_state(CHANGED, str(self.number))
        self._terms.clear()

    def _finished(self, unpruned: Sequence[str]) -> BuildResult:
        self.engine.close()
        counts = self.store.counts()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "analyser": self.analyser.identity,
            "cutting": asdict(self.cutting),
            "counts": asdict(counts),
            "content": self.store.digest(),
            "statistics": {"terms_per_passage": counts.terms / counts.passages if counts.passages else 0},
            "sources": self.store.sources(),
            "sparse": ENGINE,
            "versions": {name: version(name) for name in LIBRARIES},
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.folder / MANIFEST, manifest)
        with self.store.writing():
            self.store.set_state(UNFINISHED, "")
        self.store.close()
        return BuildResult(counts, self.done, self.skipped, unpruned)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    characters, started = 0, time.monotonic()
    for item in items:
        batch.append(item)
        characters += len(item.text) if isinstance(item, Document) else 0
        if characters >= CHARACTERS or len(batch) >= DOCUMENTS or time.monotonic() - started >= SECONDS:
            yield batch
            batch, characters, started = [], 0, time.monotonic()
    if batch:
        yield batch
