"""Documents that clients upload to ask: an index in a temporary folder, deleted after its time or with the server."""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, final
from uuid import uuid4

from shoulders.answering.answerer import ModelAnswerer
from shoulders.errors import DataError, SourceNotFound
from shoulders.evidence.base import RETRIEVED
from shoulders.evidence.choice import EvidenceChoice
from shoulders.retrieval.building import BuildResult, build
from shoulders.retrieval.documents import KNOWN, texts_source
from shoulders.retrieval.passages import Cutting
from shoulders.retrieval.search import SPARSE
from shoulders.serving.config import ServerConfig
from shoulders.serving.http import ApiError
from shoulders.serving.models import ServedModel
from shoulders.store.files import save_failed

SAFE = re.compile(r"[^\w. -]+")  # what does not stay in the name of an uploaded file
LONGEST_NAME = 100  # bytes, without its ending
READ = tuple(ending for ending in KNOWN if not ending.endswith(".gz"))  # a few bytes can unpack to any number
DOUBT = "the threshold for 'no answer' was chosen over other passages than the uploaded ones"


@final
@dataclass(frozen=True, slots=True)
class Upload:
    """Uploaded documents, indexed.

    Attributes:
        id: the name that clients use.
        owner: name of the key that they were uploaded with.
        name: of the files.
        folder: of the index, and of the files beside it.
        built: what was indexed, and what was not.
        created, expires: Unix times.
        answerers: those that read its passages, by model and time of its loading.
    """

    id: str
    owner: str
    name: str
    folder: Path
    built: BuildResult
    created: float
    expires: float
    answerers: dict[tuple[str, float], ModelAnswerer] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what clients are told of it."""
        counts = self.built.counts
        return {
            "id": self.id,
            "object": "documents",
            "name": self.name,
            "created": int(self.created),
            "expires": int(self.expires),
            "documents": counts.documents,
            "passages": counts.passages,
            "skipped": [{"place": one.place, "reason": one.reason} for one in self.built.skipped],
        }


@final
class Uploads:
    """The uploaded documents of all clients; each sees its own."""

    def __init__(self, config: ServerConfig, clock: Callable[[], float] = time.time) -> None:
        self._config, self._clock = config, clock
        self._root = Path(tempfile.mkdtemp(prefix="shoulders-uploads-"))
        self._kept: dict[str, Upload] = {}
        self._lock = Lock()

    def add(self, owner: str, name: str, files: Mapping[str, bytes], texts: Sequence[str]) -> Upload:
        """Index files and texts, and keep them for their time.

        Raises:
            ApiError: as many are kept as may be, or nothing in them can be read.
            SaveFailed: the disk is full.
        """
        self._drop_expired()
        if len(self._kept) >= self._config.max_uploads:
            wait = min(one.expires for one in self._kept.values()) - self._clock()
            raise ApiError(
                429, f"{len(self._kept)} uploads are kept: delete one, or wait", code="uploads_full", retry_after=wait
            )
        folder = self._root / uuid4().hex
        try:
            built = _indexed(folder, files, texts)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        now = self._clock()
        upload = Upload(f"doc-{uuid4().hex}", owner, name, folder, built, now, now + self._config.upload_seconds)
        with self._lock:
            self._kept[upload.id] = upload
        return upload

    def of(self, owner: str) -> list[Upload]:
        """Return the uploads of a key."""
        self._drop_expired()
        return [one for one in list(self._kept.values()) if one.owner == owner]

    def get(self, name: str, owner: str) -> Upload:
        """Return an upload.

        Raises:
            ApiError: there is none of that name, or it is another key's.
        """
        self._drop_expired()
        found = self._kept.get(name)
        if found is None or found.owner != owner:
            raise ApiError(
                404, f"there are no documents {name[:80]!r}: they may have expired, upload them again",
                param="documents", code="documents_not_found",
            )  # fmt: skip
        return found

    def delete(self, name: str, owner: str) -> None:
        """Delete an upload.

        Raises:
            ApiError: there is none of that name, or it is another key's.
        """
        self._drop(self.get(name, owner))

    def answerer(self, upload: Upload, served: ServedModel) -> ModelAnswerer:
        """Return a model that reads its passages from an upload.

        Raises:
            ApiError: it is no single model.
        """
        key = (served.name, served.created)
        if key not in upload.answerers:
            if not isinstance(served.opened, ModelAnswerer):
                raise ApiError(
                    400, f"{served.name!r} is a {served.kind} and reads what its stages were made with: ask one model",
                    param="documents", code="unsupported",
                )  # fmt: skip
            upload.answerers[key] = _reading(served.opened, upload.folder / "index")
        return upload.answerers[key]

    def close(self) -> None:
        """Delete everything."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _drop_expired(self) -> None:
        for upload in [one for one in list(self._kept.values()) if one.expires <= self._clock()]:
            self._drop(upload)

    def _drop(self, upload: Upload) -> None:
        with self._lock:
            self._kept.pop(upload.id, None)
        shutil.rmtree(upload.folder, ignore_errors=True)  # who reads it now has its files open


def safe_name(name: str) -> str:
    """Return the last part of a file's name, without anything that a path could be made of.

    Raises:
        ApiError: it is not of a type that can be read.
    """
    last = SAFE.sub("_", re.split(r"[/\\]", name)[-1]).strip(" .")
    stem, dot, ending = last.rpartition(".")
    short = stem.encode()[:LONGEST_NAME].decode(errors="ignore")  # file systems count bytes
    kept = f"{short or 'document'}{dot}{ending}"
    if not kept.lower().endswith(READ):
        raise ApiError(
            400,
            f"{last[:LONGEST_NAME]!r} is not of a type that can be read: {', '.join(READ)}",
            param="file",
            code="unsupported",
        )
    return kept


def _indexed(folder: Path, files: Mapping[str, bytes], texts: Sequence[str]) -> BuildResult:
    """Write files into a folder, and index them and the texts."""
    sources = folder / "files"
    try:
        for number, (name, content) in enumerate(files.items()):
            place = sources / str(number) / safe_name(name)
            place.parent.mkdir(parents=True)
            place.write_bytes(content)
    except OSError as error:
        raise save_failed(folder, error, option="TMPDIR of the server") from error
    names = [*([str(sources)] if files else []), *([texts_source(texts)] if texts else [])]
    try:
        return build(names, folder / "index", Cutting())
    except (DataError, SourceNotFound) as error:
        reason = str(error).replace(f"{sources}", "the upload")
        raise ApiError(400, f"nothing in it can be read: {reason}", param="file", code="no_text") from error


def _reading(answerer: ModelAnswerer, index: Path) -> ModelAnswerer:
    """Return a model that reads passages of an index, found by BM25."""
    spec = answerer.spec.with_options(index=str(index))
    if isinstance(spec.evidence, EvidenceChoice):
        found = replace(spec.evidence, kind=RETRIEVED, retriever=SPARSE, dense="", engine="", collection="")
        spec = replace(spec, evidence=found)
    how = replace(answerer.how, longest=spec.longest)
    source = spec.source(answerer.lm, answerer.scaffold.length)
    return replace(answerer, spec=spec, evidence=source, how=how, doubt=DOUBT if spec.threshold else "")
