"""What stands around the frozen model: the only thing that trains, and exactly what is saved."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, final

from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.encoder import Encoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import Memory
from shoulders.errors import CorruptFile, UsageError
from shoulders.plugins import Registry
from shoulders.records import Placement, ScaffoldInput
from shoulders.scaffolds.program import Pass, Program, direct
from shoulders.scaffolds.storage import (
    CONFIG,
    MODEL_CARD,
    Fetching,
    Origin,
    Stored,
    fetch,
    read_files,
    scaffold_folder,
    write_files,
)
from shoulders.store.files import whole_folder

REPOSITORY = "https://github.com/shoulders-lm/shoulders"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaffoldConfig:
    """What a recipe says of a scaffold (`scaffold.length=20`). Each kind has its own, which checks its values.

    Attributes:
        kind: of the scaffold; the config of each kind sets it as the default.
        start: run, folder or hub name of a trained scaffold of the same kind and sizes to start from instead; for an
            input prompt over a `base`, also of a soft prompt, that the base starts as.
    """

    kind: str = field(default="", init=False)
    start: str = ""

    @property
    def taken(self) -> int:
        """Positions of the context that its prompt takes."""
        return 0

    @property
    def untrainable(self) -> str:
        """Why there is nothing to train; empty where there is something."""
        return ""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a new scaffold may ask of the data that it is to be trained on.

    Attributes:
        class_labels: reads the answers that the tasks offer for every example.
    """

    class_labels: Callable[[], Sequence[str]] = tuple


NO_DATA = TrainingData()


def _fault(name: str, found: Any) -> str:
    """What is wrong with a scaffold of another package."""
    if not (isinstance(found, type) and issubclass(found, Scaffold)):
        return "is no subclass of shoulders.Scaffold"
    if found.kind != name or found.Config().kind != name:
        return f"has kind {found.kind!r}, its Config kind {found.Config().kind!r}: both are to be {name!r}"
    return ""


# By the name that recipes and saved folders call them.
KINDS: Registry[type["Scaffold"]] = Registry(
    "shoulders.scaffolds",
    "kind of scaffold",
    {
        "bare": "shoulders.scaffolds.base:Bare",
        "input_prompt": "shoulders.scaffolds.input_prompt:InputPrompt",
        "prefix_tuning": "shoulders.scaffolds.peft:PrefixTuning",
        "recursion": "shoulders.scaffolds.recursion:Recursion",
        "soft_prompt": "shoulders.scaffolds.soft_prompt:SoftPrompt",
    },
    _fault,
)


# Values of a scaffold that older recipes record whatever its kind is.
_OF_ALL_KINDS = {
    *("length", "placement", "init", "init_text", "encoder", "encoder_length", "layers", "head_width", "query_std"),
    *("base", "recursion", "inner"),
}


def recorded(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's scaffold, as JSON, as it is recorded today: of an older one the values that its kind has.

    Where an older one has an inner scaffold, the values beside it are those of the inner one.
    """
    kind = content.get("kind", "soft_prompt")
    if kind not in KINDS:
        return dict(content)
    known = {item.name for item in fields(KINDS[kind].Config)}
    own = {key: value for key, value in content.items() if key in known or key not in _OF_ALL_KINDS}
    if "inner" in known and isinstance(content.get("inner"), str):
        beside = {key: value for key, value in content.items() if key not in ("start", "inner")}
        own["inner"] = recorded({**beside, "kind": content["inner"]})
    return own


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
        kind: its name in recipes and on disk.
        label: what reports and plots call it.
        Config: what a recipe says of it, a frozen dataclass.
        placement: where a prompt stands; decides how rows are padded around it.
        encoder: what reads the source of an input-dependent scaffold; None for all others.
        source_room: positions of the encoder that the scaffold itself takes.
        usual_rate: a learning rate to begin with, where nobody names one.
        backbone: the model that it was made around, where that is known; used and never a child.
        origin: the backbone it was trained for and how; None until `made_for`.
    """

    kind: ClassVar[str] = ""
    label: ClassVar[str] = ""
    Config: ClassVar[type[ScaffoldConfig]] = ScaffoldConfig
    may_differ: ClassVar[frozenset[str]] = frozenset()  # in a trained scaffold to start from: keys of its description
    placement: Placement = Placement.PREFIX
    encoder: Encoder | None = None
    source_room: int = 0
    usual_rate: ClassVar[float] = 1e-3
    backbone: FrozenLM | None = None
    origin: Origin | None = None

    def __init_subclass__(cls, *, kind: str = "", **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.kind = kind
        if kind:
            KINDS.add(kind, cls)

    @classmethod
    @abstractmethod
    def new(cls, config: Any, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """A scaffold at the start of its training.

        Args:
            config: a `Config` of this class.
            lm: the frozen model; on the meta device (`shoulders plan`) it has shapes and no values, nor a tokenizer.
            seed: of what is drawn; PyTorch's own generator is seeded already.
            data: that it is to be trained on.
        """

    @property
    @abstractmethod
    def length(self) -> int:
        """P, the positions of the context that it takes."""

    @property
    def passes(self) -> int:
        """Through the frozen model that reading a text costs; one more where the model is its own encoder."""
        return 2 if isinstance(self.encoder, FrozenLM) else 1

    @abstractmethod
    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for passes (`scaffolds.program`) and return, for each text position, the state that predicts the next.

        With a memory that has not started, reads the text into it; with one that has, continues it. A whole sequence at
        once and the same one step by step agree to rounding. Without a memory nothing is kept.

        With `given.before` the text before the slot is not read again: states of positions that come before the one
        whose next stands at the slot are zeros, and nothing there can be scored.
        """

    @final
    def states(self, lm: FrozenLM, given: ScaffoldInput, memory: Memory | None = None) -> Float[Tensor, "B T D"]:
        """Run the program over a batch, with gradients, and return its states."""
        return direct(self.program(given, memory), lm)

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What `rebuilt` needs beside the weights, as JSON."""

    @classmethod
    @abstractmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """A scaffold of this description, its weights yet to be filled in."""

    @property
    def reads_before(self) -> bool:
        """Whether the frozen model alone reads the text before the prompt, so that its keys and values can be stored.

        (`training.contexts`)
        """
        return False

    @property
    def trained_before(self) -> str:
        """What trains before the first pass ends, by recipe value; empty: its states are the bare model's own.

        Those can be stored (`training.first_pass`).
        """
        return f"scaffold.kind={self.kind}"

    def started_from(self, trained: "Scaffold", name: str) -> "Scaffold":
        """What training starts with where a trained scaffold is to go on (`scaffold.start`): that, if it is like this.

        Raises:
            UsageError: it is of another kind or has other sizes; the message names both.
        """
        own, other = ({"kind": one.kind, **one.description()} for one in (self, trained))
        for key in own:
            if key not in self.may_differ and own[key] != other.get(key):
                raise UsageError(f"scaffold.start={name} has {key} {other.get(key)}, the recipe asks for {own[key]}")
        return trained

    def learning_rates(self, rate: float, base_rate: float | None = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """Optimizer groups: the parameters at `rate`, those of a prompt under others at `base_rate` if it is given."""
        return [{"params": list(self.parameters()), "lr": rate}]

    def forward(self, lm: FrozenLM, given: ScaffoldInput, memory: Memory | None = None) -> Float[Tensor, "B T D"]:
        """Call `states`, by the name that wrappers of modules (distributed training) call."""
        return self.states(lm, given, memory)

    def around(self, lm: FrozenLM) -> Self:
        """Note the model that it stands around, so that it can be saved."""
        self.backbone = lm
        return self

    def print_trainable_parameters(self) -> None:
        """Print how many numbers train, beside those of the frozen model where it is known (as PEFT does)."""
        trained = sum(weight.numel() for weight in self.parameters())
        line = f"trainable params: {trained:,}"
        if self.backbone is not None:
            every = trained + sum(weight.numel() for weight in self.backbone.model.parameters())
            line += f" || all params: {every:,} || trainable%: {100 * trained / every:.4f}"
        print(line)  # noqa: T201

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
        kind = KINDS[stored.kind]
        stored.origin.check(lm)
        try:
            scaffold = kind.rebuilt(stored.description, lm)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(
                f"the description in {folder / CONFIG} is not that of a {stored.kind}: {error!r}"
            ) from error
        try:
            scaffold.load_state_dict(dict(stored.weights))
        except RuntimeError as error:
            raise CorruptFile(f"the weights in {folder} are not those of its {CONFIG}: {error}") from error
        scaffold.origin = stored.origin
        return scaffold.around(lm).to(lm.device).eval()

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
        if self.origin is None and self.backbone is not None:
            self.made_for(self.backbone)
        if self.origin is None:
            raise UsageError("a scaffold is saved with its backbone's fingerprint: call scaffold.around(lm) first")
        return self.origin


@dataclass(frozen=True, slots=True, kw_only=True)
class BareConfig(ScaffoldConfig):
    """Nothing is to be chosen."""

    kind: str = field(default="bare", init=False)

    @property
    def untrainable(self) -> str:
        """Nothing trains in the model as it is."""
        return "scaffold.kind=bare: measure it with `shoulders evaluate bare`"


@final
class Bare(Scaffold, kind="bare"):
    """No scaffold: the language model as it is.

    Args:
        room: positions of the context to leave free, so that it reads what a prompt of so many vectors leaves room for.
    """

    label = "bare LM"
    Config = BareConfig

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self.room = room

    @property
    def length(self) -> int:
        """None is taken, beside those that are to be left free."""
        return self.room

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for one pass over the text as it is."""
        return (yield Pass(given.embeds, given.mask, None if memory is None else memory.single))

    def description(self) -> dict[str, Any]:
        """The room."""
        return {"room": self.room}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:  # noqa: ARG003
        """Another one."""
        return cls(description.get("room", 0))

    @classmethod
    def new(cls, config: BareConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:  # noqa: ARG003
        """The bare model, without room to leave."""
        return cls()


BARE = Bare.kind  # names the model without a scaffold


def scaffold_named(name: str, lm: FrozenLM) -> Scaffold:
    """Return the scaffold of that run, folder or hub name around its backbone, or none for "bare".

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile, WrongBackbone: as `Scaffold.load`.
    """
    return Bare() if name == BARE else Scaffold.load(scaffold_folder(name), lm)
