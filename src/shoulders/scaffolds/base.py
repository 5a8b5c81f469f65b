"""What stands around the frozen model: the only thing that trains, and exactly what is saved."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self, final

from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.encoder import Encoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import Memory
from shoulders.errors import CorruptFile, UnknownName, UsageError
from shoulders.files import whole_folder
from shoulders.records import LMInput
from shoulders.scaffolds.storage import CONFIG, MODEL_CARD, Fetching, Origin, Stored, fetch, read_files, write_files
from shoulders.scaffolds.weaving import Placement

REPOSITORY = "https://github.com/shoulders-lm/shoulders"


class Scaffold(
    nn.Module,
    ModelHubMixin,
    ABC,
    library_name="shoulders",
    repo_url=REPOSITORY,
    model_card_template=MODEL_CARD,
    tags=["frozen-language-model", "prompt-tuning"],
):
    """Trained vectors around a frozen language model.

    `parameters()` is exactly what trains and `state_dict()` exactly what is saved: the language model is an argument,
    never a child. Nothing is remembered on `self` between calls; what a decode carries is in its `Memory`.

    `load` reads one from a folder or the hub; `save_pretrained`, `from_pretrained`, `push_to_hub` are Hugging Face's.

    Attributes:
        kind: its name on disk.
        placement: where a prompt stands; decides how rows are padded around it.
        encoder: what reads the source of an input-dependent scaffold; None for all others.
        source_room: positions of the encoder that the scaffold itself takes.
        origin: the backbone it was made for and how; None until `made_for`.
    """

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type["Scaffold"]]] = {}
    placement: Placement = Placement.PREFIX
    encoder: Encoder | None = None
    source_room: int = 0
    origin: Origin | None = None

    def __init_subclass__(cls, *, kind: str = "", **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.kind = kind
        Scaffold.kinds[kind] = cls

    @property
    @abstractmethod
    def length(self) -> int:
        """P, the positions of the context that it takes."""

    @property
    def passes(self) -> int:
        """Through the frozen model that reading a text costs; one more where the model is its own encoder."""
        return 2 if isinstance(self.encoder, FrozenLM) else 1

    @abstractmethod
    def states(self, lm: FrozenLM, given: LMInput, memory: Memory | None = None) -> Float[Tensor, "B T D"]:
        """For each text position the final hidden state that predicts the text position after it.

        With a memory that has not started, reads the text into it; with one that has, continues it. A whole sequence at
        once and the same one step by step agree to rounding.

        With `given.before` the text before the slot is not read again: states of positions that come before the one
        whose next stands at the slot are zeros, and nothing there can be scored.
        """

    def memory(self, lm: FrozenLM) -> Memory:
        """An empty memory for one decode: keys and values for each pass."""
        return lm.memory()

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What `rebuilt` needs beside the weights, as JSON."""

    @classmethod
    @abstractmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """A scaffold of this description, its weights yet to be filled in."""

    def learning_rates(self, rate: float, base_rate: float | None = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """Optimizer groups: the parameters at `rate`, those of a prompt under others at `base_rate` if it is given."""
        return [{"params": list(self.parameters()), "lr": rate}]

    def forward(self, lm: FrozenLM, given: LMInput, memory: Memory | None = None) -> Float[Tensor, "B T D"]:
        """`states`, by the name that wrappers of modules (distributed training) call."""
        return self.states(lm, given, memory)

    def made_for(
        self,
        lm: FrozenLM,
        recipe: Mapping[str, Any] | None = None,
        scores: Mapping[str, Any] | None = None,
        answering: Mapping[str, Any] | None = None,
    ) -> Self:
        """Note the backbone it was trained around, how, and how it is asked; saving needs to know."""
        self.origin = Origin(lm.name, lm.fingerprint(), lm.width, recipe or {}, scores or {}, answering or {})
        return self

    @staticmethod
    @final
    def load(name: str | Path, lm: FrozenLM, *, revision: str | None = None) -> "Scaffold":
        """A saved scaffold, from a folder or a hub repository, for the backbone it was trained around.

        Raises:
            SourceNotFound, HubUnreachable, CorruptFile: it cannot be read.
            WrongBackbone: `lm` is another model.
        """
        return Scaffold._loaded(fetch(name, Fetching(revision)), lm)

    @staticmethod
    def _loaded(folder: Path, lm: FrozenLM) -> "Scaffold":
        stored = read_files(folder)
        if stored.kind not in Scaffold.kinds:
            raise UnknownName("kind of scaffold", stored.kind, Scaffold.kinds)
        stored.origin.check(lm)
        try:
            scaffold = Scaffold.kinds[stored.kind].rebuilt(stored.description, lm)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(
                f"the description in {folder / CONFIG} is not that of a {stored.kind}: {error!r}"
            ) from error
        try:
            scaffold.load_state_dict(dict(stored.weights))
        except RuntimeError as error:
            raise CorruptFile(f"the weights in {folder} are not those of its {CONFIG}: {error}") from error
        scaffold.origin = stored.origin
        return scaffold.to(lm.device).eval()

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> str | None:
        """Write the folder as a whole: a process killed half-way or a full disk leaves what was there before.

        Raises:
            SaveFailed: it cannot be written, or the folder holds something else than a scaffold.
        """
        target = Path(save_directory).expanduser()
        with whole_folder(target, CONFIG) as scratch:
            return super().save_pretrained(scratch, **{"repo_id": target.name, **arguments})

    def generate_model_card(self, *_: Any, **rest: Any) -> ModelCard:
        """A README for the hub that says which backbone the scaffold needs."""
        origin = self._known_origin()
        return super().generate_model_card(
            kind=self.kind.replace("_", " "),
            backbone=origin.backbone,
            fingerprint=origin.fingerprint,
            parameters=f"{sum(weight.numel() for weight in self.parameters()):,}",
            **rest,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        write_files(save_directory, Stored(self.kind, self.description(), self._known_origin(), self.state_dict()))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, lm: FrozenLM | None = None, **arguments: Any) -> Self:
        if lm is None:
            raise UsageError(f"a scaffold needs its frozen model: {cls.__name__}.from_pretrained({model_id!r}, lm=lm)")
        options = {item.name: arguments[item.name] for item in fields(Fetching) if item.name in arguments}
        found = Scaffold._loaded(fetch(model_id, Fetching(**options)), lm)
        if not isinstance(found, cls):
            raise UsageError(
                f"{model_id!r} holds a scaffold of kind {found.kind!r}, not {cls.kind!r}: Scaffold.from_pretrained "
                "reads any kind"
            )
        return found

    def _known_origin(self) -> Origin:
        if self.origin is None:
            raise UsageError("a scaffold is saved with its backbone's fingerprint: call scaffold.made_for(lm) first")
        return self.origin


@final
class Bare(Scaffold, kind="bare"):
    """No scaffold: the language model as it is.

    Args:
        room: positions of the context to leave free, so that it reads what a prompt of so many vectors leaves room for.
    """

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self.room = room

    @property
    def length(self) -> int:
        """None is taken, beside those that are to be left free."""
        return self.room

    def states(self, lm: FrozenLM, given: LMInput, memory: Memory | None = None) -> Float[Tensor, "B T D"]:
        """The backbone's own states."""
        if memory is None:
            return lm.states(given.embeds, given.mask)
        memory.length += given.embeds.shape[1]
        return lm.states(given.embeds, given.mask, memory.passes[0])

    def description(self) -> dict[str, Any]:
        """The room."""
        return {"room": self.room}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:  # noqa: ARG003
        """Another one."""
        return cls(description.get("room", 0))
