"""Models by name: the bare model, a scaffold around it, or a rival (LoRA, prefix tuning, full fine-tuning)."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from shoulders.answering.spec import AnswerSpec, spec_from_json
from shoulders.answering.stages import is_cascade
from shoulders.backbone.fingerprint import identity
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.quantizing import SCHEMES
from shoulders.errors import CorruptFile, UsageError
from shoulders.evidence.demonstrations import DemonstrationsConfig
from shoulders.evidence.reranked import ALL
from shoulders.records import Chat
from shoulders.retrieval.reranker import is_reranker
from shoulders.scaffolds.base import BARE, Bare, Scaffold, scaffold_named
from shoulders.scaffolds.peft import FULL, PREFIX, from_peft, read_adapter
from shoulders.scaffolds.storage import Origin, read_origin, scaffold_folder, versions
from shoulders.store.files import BEST, RECIPE, read_json, recover_folder, write_json

# Ways to ask a frozen model that nothing was trained for, by name: as it is; through its chat template, told what to
# do; after worked examples of the training part.
INSTRUCTED, FEW_SHOT = "instructed", "few-shot"
INSTRUCTION = "Answer with the answer alone, in as few words as possible."
UNTRAINED: Mapping[str, AnswerSpec] = {
    BARE: AnswerSpec(),
    INSTRUCTED: AnswerSpec(chat=Chat.of(INSTRUCTION)),
    FEW_SHOT: AnswerSpec(evidence=DemonstrationsConfig()),
}
RIVAL, RIVAL_FORMAT = "rival.json", 2
FID = "fid"  # kind of the rival of `paper.fid`
RETRIEVER = "retriever"  # kind of a run that trained a retriever


@final
@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A frozen model, or a rival in its place, with its scaffold.

    Attributes:
        lm: the model.
        scaffold: around it; `Bare` for a rival in its weights.
        unload: takes adapters out of the model again; None if it has none, or if its weights themselves changed.
    """

    lm: FrozenLM
    scaffold: Scaffold
    unload: Callable[[], object] | None = field(default=None, compare=False, repr=False)

    def taken_off(self) -> "LoadedModel | None":
        """Return the model after what was trained has been taken off it; None if that cannot be (full fine-tuning).

        Adapters are taken out of this model itself.
        """
        if not isinstance(self.scaffold, Bare):
            return LoadedModel(self.lm, Bare())
        if self.unload is None:
            return None
        self.unload()
        return LoadedModel(self.lm, self.scaffold)

    def fingerprint(self) -> str:
        """Return the fingerprint of the trained part: the scaffold, or the whole model where there is none."""
        return identity(self.lm.model if isinstance(self.scaffold, Bare) else self.scaffold)


@final
@dataclass(frozen=True, slots=True)
class RivalInfo:
    """The description of a rival, stored beside its weights.

    Attributes:
        folder: of the rival.
        kind: "lora", "prefix_tuning", "full" or "fid".
        room: length of the prompt that the rival is compared with.
        trained: number of trained parameters.
        origin: backbone, recipe and scores of the rival, and how it is asked.
    """

    folder: Path
    kind: str
    room: int
    trained: int
    origin: Origin

    def write(self) -> None:
        """Write the description into the folder."""
        content = {"kind": self.kind, "room": self.room, "trained": self.trained, "origin": asdict(self.origin)}
        write_json(self.folder / RIVAL, {"format": RIVAL_FORMAT, **content, "versions": versions()})

    def load(self, lm: FrozenLM, room: int | None = None, attention: str = "auto") -> LoadedModel:
        """Return the rival, in the number type and on the device of the backbone.

        Args:
            lm: the backbone that the rival was trained from; its weights do not change.
            room: positions of the context to leave free; None: as many as in its recipe.
            attention: attention kernel of a fully fine-tuned model (`FrozenLM.load`).

        Raises:
            UsageError: it is not made from a causal language model (FiD).
            WrongBackbone: the rival was trained from another backbone.
            CorruptFile: the weights cannot be read.
        """
        if self.kind == FID:
            raise UsageError(
                f"{self.folder} holds a sequence-to-sequence model that reads passages apart ({FID}), which is a rival "
                "to be measured only: shoulders evaluate, with the recipe of a reader"
            )
        self.origin.check(lm)
        bare = Bare(self.room if room is None else room)
        if self.kind == FULL:
            dtype = str(lm.dtype).removeprefix("torch.")
            own = FrozenLM.load(str(self.folder), dtype=dtype, device=str(lm.device), attention_kernel=attention)
            return LoadedModel(own, bare)
        if self.kind == PREFIX:
            return LoadedModel(lm, from_peft(self.folder, lm).to(lm.device).eval())
        copy = lm.copied()
        return LoadedModel(copy, bare, read_adapter(copy, self.folder).unload)


@final
@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model by name, as its JSON files describe it; no weights are read.

    Attributes:
        name: folder or hub repository of the scaffold or rival (of a run: its best), or "bare".
        origin: backbone and training of the scaffold or rival; None for the bare model.
        rival: description of the rival, if it is one.
        method: name of the way in which the bare model is asked (`UNTRAINED`).
    """

    name: str
    origin: Origin | None = None
    rival: RivalInfo | None = None
    method: str = BARE

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recorded recipe of the training; empty for the bare model."""
        return self.origin.recipe if self.origin else {}

    @property
    def quantized(self) -> str:
        """Scheme that the backbone was quantised by in training; empty for a checkpoint that came quantised."""
        found = self.origin.quantized if self.origin else ""
        return found if found in SCHEMES else ""

    @property
    def spec(self) -> AnswerSpec:
        """How the model is asked."""
        if self.origin is None:
            return UNTRAINED[self.method]
        return spec_from_json(self.origin.answering, self.name)

    @property
    def backbone(self) -> str:
        """Name of the backbone.

        Raises:
            UsageError: the bare model records no backbone, or the model of a scaffold has no name.
        """
        if self.origin is not None and not self.origin.backbone:
            raise UsageError(
                f"{self.name} was trained around a model that was given as an object, without a name: give the model "
                "(in Python shoulders.open(NAME, lm=lm)), or name a saved copy of it (--backbone, backbone=)"
            )
        if self.origin is None:
            raise UsageError(
                "the bare model has no scaffold to name its backbone: add --backbone NAME (in Python "
                "shoulders.open('bare', backbone=NAME), or lm=)"
            )
        return self.origin.backbone

    def load(self, lm: FrozenLM) -> LoadedModel:
        """Return the model with its weights, in the number type and on the device of the backbone.

        Raises:
            SourceNotFound, CorruptFile, WrongBackbone: as `Scaffold.load` and `RivalInfo.load`.
        """
        return self.rival.load(lm) if self.rival else LoadedModel(lm, scaffold_named(self.name, lm))


def model_info(name: str) -> ModelInfo:
    """Return the description of a model: in the folder of a run, scaffold or rival, on the hub, or in `UNTRAINED`.

    Raises:
        UsageError: the folder holds a cascade, a re-ranker or a retriever.
        SourceNotFound, HubUnreachable, CorruptFile: the folder or repository is missing or broken.
    """
    if name in UNTRAINED:
        return ModelInfo(BARE, method=name)
    if folder := rival_folder(name):
        rival = rival_info(folder)
        return ModelInfo(str(folder), rival.origin, rival)
    _check_answers(name)
    name = scaffold_folder(name)
    return ModelInfo(name, read_origin(name))


def rival_folder(name: str) -> Path | None:
    """Return the folder of the rival in a run's folder or the folder itself; None if there is no rival."""
    for folder in (Path(name).expanduser(), recover_folder(Path(name).expanduser() / BEST)):
        if (folder / RIVAL).exists():
            return folder
    return None


def rival_info(folder: Path) -> RivalInfo:
    """Return the description of the rival in a folder.

    Raises:
        CorruptFile: the file is broken, or of another format.
    """
    content = read_json(folder / RIVAL)
    if content.get("format") != RIVAL_FORMAT:
        raise CorruptFile(
            f"{folder / RIVAL} has format {content.get('format', 1)}, this version reads {RIVAL_FORMAT}: train it anew "
            "(shoulders train --rival)"
        )
    try:
        origin = Origin(**content["origin"])
        return RivalInfo(folder, content["kind"], content["room"], content["trained"], origin)
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{folder / RIVAL} is not a rival's: {error!r}") from error


def _check_answers(name: str) -> None:
    """Raise `UsageError` for a folder of a cascade, a re-ranker or a retriever, and say what to do with it."""
    folder = Path(name).expanduser()
    if is_cascade(folder):
        raise UsageError(f"{name} puts several scaffolds in order of cost: name one of them, a run of its own")
    if is_reranker(folder) or is_reranker(folder / ALL):
        raise UsageError(
            f"{name} holds a re-ranker, which puts passages in order and writes no answers: ask a reader that takes it "
            f"(shoulders train reader evidence.reranker={name}), or measure the spans that it finds (shoulders "
            f"evaluate RERANKER evidence.index=FOLDER)"
        )
    kept = folder / RECIPE
    if kept.exists() and read_json(kept).get("kind") == RETRIEVER:
        raise UsageError(
            f"{name} holds a retriever, which finds passages and writes no answers: encode an index with it (shoulders "
            f"encode INDEX --retriever {folder / 'best'}), and ask a reader (evidence.retriever=dense)"
        )
