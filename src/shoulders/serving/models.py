"""The models that a server knows by name: scaffolds, readers, cascades, retrievers and re-rankers over one backbone.

They are loaded and checked once, from folders and the hub, by whoever runs the server; what clients send is text, and a
name is only ever looked up among these.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, final
from weakref import WeakValueDictionary

import numpy as np
from torch import nn

from shoulders import answering
from shoulders.answering.answerer import Answerer, ModelAnswerer
from shoulders.answering.cascade import CascadeAnswerer
from shoulders.answering.models import RETRIEVER, model_info, rival_folder
from shoulders.answering.spec import LONGEST
from shoulders.answering.stages import is_cascade, read
from shoulders.backbone.encoder import FrozenEncoder
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.inference import Answering
from shoulders.errors import CorruptFile, UnknownName, UsageError, first_line
from shoulders.evidence.candidates import Candidates, FirstPass
from shoulders.records import Placement
from shoulders.retrieval.bi_encoder import OURS, BiEncoder
from shoulders.retrieval.cross_encoder import load_ranker
from shoulders.retrieval.reranker import is_reranker
from shoulders.retrieval.scoring import Pair, Ranker
from shoulders.scaffolds.base import BARE, Scaffold
from shoulders.scaffolds.peft import CONFIG as ADAPTER
from shoulders.scaffolds.peft import from_peft
from shoulders.scaffolds.recursion import Recursion
from shoulders.serving.http import ApiError
from shoulders.store.files import BEST, RECIPE, check_finite, read_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}")
HUB = "hub"  # in the list of allowed folders: names on the hub
FIRST = ":first"  # name of the first pass of a model, after the model's own
ROLES = ("", RETRIEVER, "reranker")
ANSWERING = ("completions", "chat", "answer")

Opened = Answerer | BiEncoder | Ranker


@final
@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is served under a name.

    Attributes:
        name: the name that clients use.
        source: folder or hub name that it was loaded from.
        opened: what answers, encodes or ranks.
        created: Unix time of its loading.
        first: what answers with the first of several passes alone; None if there is no such thing.
    """

    name: str
    source: str
    opened: Opened
    first: ModelAnswerer | None = None
    created: float = field(default_factory=time.time)

    @property
    def scaffold(self) -> Scaffold | None:
        """The scaffold of one model; None for cascades, retrievers and re-rankers."""
        return self.opened.scaffold if isinstance(self.opened, ModelAnswerer) else None

    @property
    def scaffolds(self) -> Sequence[Scaffold]:
        """The scaffolds that run in the engine: that of one model, or those of a cascade's stages."""
        if isinstance(self.opened, CascadeAnswerer):
            return [stage.scaffold for stage in self.opened.adaptive.stages]
        return () if self.scaffold is None else (self.scaffold,)

    @property
    def kind(self) -> str:
        """The kind of the scaffold, or of what else this is."""
        if self.scaffold is not None:
            return self.scaffold.kind
        if isinstance(self.opened, CascadeAnswerer):
            return "cascade"
        return RETRIEVER if isinstance(self.opened, BiEncoder) else "reranker"

    @property
    def passes(self) -> int:
        """Passes through the frozen model for a text; 0 where it depends on the text, or there are none."""
        return self.opened.passes if isinstance(self.opened, ModelAnswerer) else 0

    @property
    def endpoints(self) -> Sequence[str]:
        """The endpoints that take it."""
        if isinstance(self.opened, ModelAnswerer):
            return ANSWERING
        return {"cascade": ("answer",), RETRIEVER: ("embeddings",)}.get(self.kind, ("rerank",))

    @property
    def size(self) -> int:
        """Bytes of its trained weights, beside the backbone."""
        weights = self.scaffold.state_dict().values() if self.scaffold is not None else ()
        return sum(weight.numel() * weight.element_size() for weight in weights)

    @property
    def fingerprint(self) -> str:
        """A hash over its trained weights."""
        if self.scaffold is not None:
            return identity(self.scaffold)
        found: Any = getattr(self.opened, "fingerprint", "")
        return str(found() if callable(found) else found)

    def card(self, lm: FrozenLM) -> dict[str, Any]:
        """Return what `/v1/models` tells of it."""
        scaffold, spec = self.scaffold, self.opened.spec if isinstance(self.opened, _SPECIFIED) else None
        threshold = spec.threshold.as_json() if spec and spec.threshold else None
        bare = self.name == BARE
        return {
            "id": self.name,
            "object": "model",
            "created": int(self.created),
            "owned_by": "shoulders",
            "root": lm.name if bare else Path(self.source).name,
            "parent": None if bare else BARE,
            "max_model_len": lm.context,
            "kind": self.kind,
            "label": type(scaffold).label if scaffold is not None else self.kind,
            "length": scaffold.length if scaffold is not None else 0,
            "placement": (scaffold.placement if scaffold is not None else Placement.PREFIX).value,
            "passes": self.passes,
            "endpoints": list(self.endpoints),
            "wording": spec.wording if spec else "",
            "reads_passages": isinstance(self.opened, Answerer) and self.opened.reads_passages,
            "threshold": threshold and {"found": threshold["standing"], "not_found": threshold["elsewhere"]},
            "first_pass": f"{self.name}{FIRST}" if self.first else None,
        }


_SPECIFIED = (ModelAnswerer, CascadeAnswerer)


@final
class Models:
    """The models of a server by name; they can be added, replaced and removed while requests run with the old ones.

    Args:
        lm: the backbone of all of them.
        allow: folders that models may be loaded from at run time, and "hub" for the hub.
        index: folder of the index that those read which read passages; empty: the one of their training.

    Attributes:
        broken: why a name that the server was started with is not served.
        check: raises `UsageError` for a scaffold that the engine cannot run.
    """

    def __init__(self, lm: FrozenLM, *, allow: Sequence[str] = (), index: str = "") -> None:
        self.lm, self._allow, self._index = lm, tuple(allow), index
        self.broken: dict[str, tuple[str, str]] = {}
        self._served: dict[str, ServedModel] = {}
        self._encoders: WeakValueDictionary[str, FrozenEncoder] = WeakValueDictionary()
        self._writing = Lock()
        self.check: Callable[[str, Scaffold], None] = lambda *_: None
        self.add(BARE, BARE)

    def __iter__(self) -> Any:
        return iter(list(self._served.values()))

    def __len__(self) -> int:
        return len(self._served)

    def add(self, name: str, source: str, *, role: str = "", replacing: bool = False) -> ServedModel:
        """Load a model, check it, and serve it from now on.

        Args:
            name: to serve it under.
            source: folder or hub name.
            role: "retriever" or "reranker" for a model that does not say so itself.
            replacing: it may take the place of another of that name.

        Raises:
            ApiError: the name cannot be used.
            UsageError: it cannot be loaded, is broken, or is of another backbone.
        """
        check_name(name)
        self._check_free(name, replacing=replacing)
        try:
            served = self._loaded(name, source, role)
        except ApiError:
            raise
        except UsageError as error:
            if type(error) not in (UsageError, UnknownName) or source in str(error):
                raise
            raise UsageError(f"{source}: {error}") from error  # a value in one of its files, which names no folder
        except Exception as error:  # whatever a library raises over a broken file
            what = f"{type(error).__name__}: {first_line(error)}"
            raise CorruptFile(f"{source} cannot be loaded ({what}): a file of it seems broken") from error
        with self._writing:
            self._check_free(name, replacing=replacing)
            self._served[name] = served
            self.broken.pop(name, None)
        return served

    def _loaded(self, name: str, source: str, role: str) -> ServedModel:
        """Return a model that was loaded and checked."""
        opened = self._open(source, role)
        served = ServedModel(name, source, opened, _first_pass(opened))
        for scaffold in served.scaffolds:
            check_finite(scaffold.state_dict(), source)
            self._share_encoders(scaffold)
            self.check(name, scaffold)
        if not isinstance(opened, Answerer):
            _check_measures(opened, source)
        return served

    def try_add(self, name: str, source: str, role: str = "") -> None:
        """Add a model, unless it is the bare one; if it cannot be loaded, note why among the broken ones."""
        if source == BARE:
            return
        try:
            self.add(name, source, role=role)
        except (UsageError, ApiError) as error:
            self.broken[name] = (source, first_line(error))

    def remove(self, name: str) -> ServedModel:
        """Stop serving a model; requests that are running finish with it.

        Raises:
            ApiError: there is none of that name, or it is the bare model.
        """
        if name == BARE:
            raise ApiError(400, "the bare model is always served: name a scaffold", param="name")
        with self._writing:
            if name not in self._served:
                raise _unknown(name)
            return self._served.pop(name)

    def get(self, name: str, endpoint: str = "") -> ServedModel:
        """Return the model of a name, or of the backbone's name the bare one.

        Raises:
            ApiError: there is none, or the endpoint does not take it.
        """
        served = self._served.get(BARE if name == self.lm.name else name)
        if served is None and name.endswith(FIRST):
            owner = self._served.get(name.removesuffix(FIRST))
            served = owner and owner.first and ServedModel(name, owner.source, owner.first, None, owner.created)
        if served is None:
            raise _unknown(name)
        if endpoint and endpoint not in served.endpoints:
            takes = ", ".join(served.endpoints)
            raise ApiError(
                400,
                f"the model {name!r} (kind {served.kind}) takes requests for {takes}, not for {endpoint}: name another "
                "(GET /v1/models)",
                param="model",
                code="unsupported",
            )
        return served

    def allowed_source(self, source: str) -> str:
        """Return the source of a model that is loaded at run time, as an absolute path or a name on the hub.

        Raises:
            ApiError: it lies outside the allowed folders.
        """
        folders = [Path(folder).expanduser().resolve() for folder in self._allow if folder != HUB]
        try:
            places = [(folder / Path(source).expanduser()).resolve() for folder in folders]
            for place, folder in zip(places, folders, strict=True):
                if place.is_relative_to(folder) and place != folder and place.exists():
                    return str(place)
        except (OSError, ValueError, RuntimeError):  # a name that no file can have
            places = []
        if HUB in self._allow and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and ".." not in source:
            return source
        if any(place.is_relative_to(folder) for place, folder in zip(places, folders, strict=False)):
            raise ApiError(404, f"there is no folder {source!r} in the allowed folders", param="path", code="not_found")
        raise ApiError(
            403,
            f"{source!r} lies outside the folders that may be loaded from: start the server with --allow FOLDER"
            + ("" if HUB in self._allow else " (or --allow hub for names on the hub)"),
            param="path",
            code="path_not_allowed",
        )

    def _check_free(self, name: str, *, replacing: bool) -> None:
        if name in self._served and (name == BARE or not replacing):
            replace_it = "" if name == BARE else 'replace it ("replace": true), or '
            raise ApiError(
                409,
                f"a model {name!r} is served already: {replace_it}take another name",
                param="name",
                code="name_taken",
            )

    def _share_encoders(self, scaffold: Scaffold) -> None:
        """Give a scaffold the encoder of another if it is the same: it is held once, and texts share its passes."""
        for part in scaffold.modules():
            if isinstance(part, Scaffold) and isinstance(part.encoder, FrozenEncoder):
                part.encoder = self._encoders.setdefault(part.encoder.fingerprint(), part.encoder)

    def _open(self, source: str, role: str) -> Opened:
        """Return the opened model of a source.

        Raises:
            UsageError: it cannot be opened, or has a backbone of its own.
        """
        folder, device = Path(source).expanduser(), str(self.lm.device)
        if role not in ROLES:
            raise UsageError(f"the role {role!r} is none: leave it out, or name one of {', '.join(ROLES[1:])}")
        if role == RETRIEVER or _is_retriever(folder):
            inner = folder / BEST
            return BiEncoder.load(str(inner) if (inner / OURS).exists() else source, device=device)
        if role or is_reranker(folder):
            return load_ranker(source, device=device)
        if (folder / ADAPTER).exists() and not rival_folder(source):
            scaffold = from_peft(folder, self.lm).to(self.lm.device).eval()
            return ModelAnswerer(self.lm, scaffold, Answering(LONGEST))
        opened = answering.open(source, lm=self.lm)
        if self._index and isinstance(opened, ModelAnswerer) and opened.reads_passages:
            opened = answering.open(source, lm=self.lm, index=self._index)
        if isinstance(opened, ModelAnswerer) and opened.lm is not self.lm:
            raise UsageError(
                f"{source} is a changed copy of the whole backbone, and a server has one backbone for all: train a "
                "scaffold, or a LoRA, instead"
            )
        return opened


def served_name(named: str) -> tuple[str, str]:
    """Return the name to serve a model under, and its source, from `NAME=SOURCE` or a source alone."""
    name, equals, source = named.partition("=")
    if equals and NAME.fullmatch(name):
        return name, source
    last = Path(named.rstrip("/")).name if not named.startswith("package:") else named.partition(":")[2]
    return last or named, named


def backbone_of(names: Sequence[str]) -> tuple[str, str]:
    """Return the name of the backbone that the first of some models names, and how it was quantised in training.

    Raises:
        UsageError: none of them names one.
    """
    why = "no scaffold is named"
    for named in names:
        _, source = served_name(named)
        try:
            if is_cascade(source):
                return read(Path(source)).backbone, ""
            info = model_info(source)
            return info.backbone, info.quantized
        except UsageError as error:
            why = first_line(error)
    raise UsageError(f"no backbone is known ({why}): add --backbone NAME")


def check_name(name: str) -> None:
    """Raise `ApiError` for a name that cannot be served."""
    if not NAME.fullmatch(name) or ".." in name or "//" in name or name.endswith(("/", FIRST)):
        raise ApiError(
            400,
            f"{name[:200]!r} cannot be the name of a model: begin with a letter or digit, go on with at most 199 "
            "more of letters, digits and . _ - : / @",
            param="name",
            code="invalid_name",
        )


def _check_measures(opened: BiEncoder | Ranker, source: str) -> None:
    """Raise `CorruptFile` for a retriever or a re-ranker that gives numbers for a text that are not finite."""
    if isinstance(opened, nn.Module):
        check_finite(opened.state_dict(), source)  # the encoder of passages, too
    pair = Pair("a", "a", "a")
    found = opened.encode_questions([pair.text]) if isinstance(opened, BiEncoder) else opened.scores([pair])
    if not np.isfinite(found).all():
        raise CorruptFile(f"{source} gives numbers that are not finite (NaN or infinite): train it again")


def _unknown(name: str) -> ApiError:
    return ApiError(
        404, f"there is no model {name[:200]!r} here: GET /v1/models lists them", param="model", code="model_not_found"
    )


def _is_retriever(folder: Path) -> bool:
    """Return whether a folder holds a retriever, or a run that trained one."""
    if (folder / OURS).exists():
        return True
    recipe = folder / RECIPE
    return recipe.exists() and read_json(recipe).get("kind") == RETRIEVER


def _first_pass(opened: Opened) -> ModelAnswerer | None:
    """Return what answers with the first pass of a model of several passes alone."""
    if not isinstance(opened, ModelAnswerer):
        return None
    if isinstance(opened.scaffold, Recursion) and not opened.scaffold.shape.before and opened.scaffold.shape.passes > 1:
        return replace(opened, scaffold=opened.scaffold.inner.eval())
    if isinstance(opened.evidence, Candidates) and isinstance(opened.evidence.sampler, FirstPass):
        return replace(opened, scaffold=opened.evidence.sampler.scaffold, evidence=None)
    return None
