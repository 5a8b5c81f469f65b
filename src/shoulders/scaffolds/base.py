"""The base class of scaffolds, the registry of their kinds, and the scaffold that adds nothing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, final

from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.caches import Memory
from shoulders.backbone.encoder import Encoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import CorruptFile, UsageError
from shoulders.plugins import Registry
from shoulders.records import Example, Placement, ScaffoldInput
from shoulders.scaffolds.program import Pass, Program, direct
from shoulders.scaffolds.storage import (
    CONFIG,
    MODEL_CARD,
    HubOptions,
    Origin,
    SavedScaffold,
    fetch,
    read_files,
    scaffold_folder,
    write_files,
)
from shoulders.store.files import atomic_folder

REPOSITORY = "https://github.com/shoulders-lm/shoulders"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaffoldConfig:
    """Values of a scaffold in a recipe (`scaffold.length=20`). Each kind has its own class, which checks its values.

    Attributes:
        kind: kind of the scaffold; the class of each kind sets it.
        start: run, folder or hub name of a trained scaffold of the same kind and sizes to start from; for an input
            prompt with a `base`, also of a soft prompt that the base starts from.
    """

    kind: str = field(default="", init=False)
    start: str = ""

    @property
    def taken(self) -> int:
        """Number of positions of the context that the prompt takes."""
        return 0

    @property
    def untrainable(self) -> str:
        """The reason why there is nothing to train; empty if there is something."""
        return ""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Facts about the training data for a new scaffold.

    Attributes:
        class_labels: function that reads the answers that the tasks offer for every example.
        examples: function that reads the training examples, in a random order.
    """

    class_labels: Callable[[], Sequence[str]] = tuple
    examples: Callable[[], Iterable[Example]] = tuple


NO_DATA = TrainingData()


def _fault(name: str, found: Any) -> str:
    """Return what is wrong with a scaffold of another package; empty if nothing is."""
    if not (isinstance(found, type) and issubclass(found, Scaffold)):
        return "is not a subclass of shoulders.Scaffold"
    if found.kind != name or found.Config().kind != name:
        return f"has kind {found.kind!r}, its Config kind {found.Config().kind!r}: both must be {name!r}"
    return ""


# By their names in recipes and saved folders.
KINDS: Registry[type["Scaffold"]] = Registry(
    "shoulders.scaffolds",
    "kind of scaffold",
    {
        "bare": "shoulders.scaffolds.base:Bare",
        "deep_prompt": "shoulders.scaffolds.deep_prompt:DeepPrompt",
        "gated_low_rank": "shoulders.scaffolds.low_rank:GatedLowRank",
        "gated_scales": "shoulders.scaffolds.low_rank:GatedScales",
        "input_deep_prompt": "shoulders.scaffolds.deep_prompt:InputDeepPrompt",
        "input_prompt": "shoulders.scaffolds.input_prompt:InputPrompt",
        "low_rank": "shoulders.scaffolds.low_rank:LowRank",
        "recursion": "shoulders.scaffolds.recursion:Recursion",
        "scales": "shoulders.scaffolds.low_rank:Scales",
        "soft_prompt": "shoulders.scaffolds.soft_prompt:SoftPrompt",
    },
    _fault,
)


class Scaffold(
    nn.Module,
    ModelHubMixin,
    ABC,
    library_name="shoulders",
    repo_url=REPOSITORY,
    model_card_template=MODEL_CARD,
    tags=["frozen-language-model", "prompt-tuning"],
):
    """Trained weights around a frozen language model.

    Your own scaffold is one file with two classes (docs/scaffold.md has a whole example):

    1. `class Mine(Scaffold, kind="mine")`: its parameters are what trains and what is saved. The language model is an
       argument and never a child; nothing is kept on `self` between calls, since `Memory` holds what a decode needs.
    2. `program` is a generator: it yields requests (`Pass`, `Encode`, `Blocks`), gets their results, and returns for
       each text position the states that predict the next token.
    3. `length` is the number of context positions that it takes.
    4. `description` and `rebuilt` save and load it: sizes as JSON, and an instance of these sizes to fill with weights.
    5. `Config`, a frozen dataclass of type `ScaffoldConfig`, has and checks its values in a recipe; `new` makes a
       scaffold from it. An entry point in the group `shoulders.scaffolds` makes the kind known to the command line.

    `load` reads a scaffold from a folder or the hub; `save_pretrained`, `from_pretrained` and `push_to_hub` are Hugging
    Face's.

    Attributes:
        kind: its name in recipes and on disk.
        label: its name in reports and plots.
        Config: the class of its values in a recipe.
        placement: placement of its prompt, around which rows are padded.
        encoder: encoder that reads the source of an input-dependent scaffold; None for all others.
        source_room: number of positions of the encoder that the scaffold itself takes.
        usual_rate: learning rate where none is given.
        usual_base_rate: that of what lies under a generated part (`learning_rates`).
        backbone: the model that it was made around, if known; not a child.
        origin: the backbone that it was trained around, and how; None until `made_for`.
    """

    kind: ClassVar[str] = ""
    label: ClassVar[str] = ""
    Config: ClassVar[type[ScaffoldConfig]] = ScaffoldConfig
    may_differ: ClassVar[frozenset[str]] = frozenset()  # keys of the description that may differ in `started_from`
    placement: Placement = Placement.PREFIX
    encoder: Encoder | None = None
    source_room: int = 0
    usual_rate: ClassVar[float] = 1e-3
    usual_base_rate: ClassVar[float] = 0.05
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
        """Return a new scaffold, before any training.

        Args:
            config: a `Config` of this class.
            lm: the frozen model; on the meta device (`shoulders plan`) it has no values and no tokenizer.
            seed: seed for own generators; PyTorch's generator is seeded already.
            data: facts about the training data.
        """

    @property
    @abstractmethod
    def length(self) -> int:
        """P, number of positions of the context that it takes."""

    @property
    def passes(self) -> int:
        """Number of passes through the frozen model for each text; one more if the model is its own encoder."""
        return 2 if isinstance(self.encoder, FrozenLM) else 1

    def kept_layers(self, depth: int) -> Mapping[Hashable, int]:
        """Return the number of layers of each stack that keeps keys and values of a text, by a key of the stack.

        Args:
            depth: number of layers of the frozen model.
        """
        return dict.fromkeys(range(self.passes), depth)

    @abstractmethod
    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Yield requests (`scaffolds.program`) and return, for each text position, the state that predicts the next.

        With a new memory, the program reads the text into it; with a started one, it continues the text. The states of
        a sequence in one call and of the same sequence in steps agree up to rounding. Without a memory nothing is kept.

        With `given.before` the text before the slot does not run again: the states of all its positions but the last
        are zeros, and cannot be scored.
        """

    @final
    def states(self, lm: FrozenLM, given: ScaffoldInput, memory: Memory | None = None) -> Float[Tensor, "B T D"]:
        """Run the program over a batch, with gradients, and return its states."""
        return direct(self.program(given, memory), lm)

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return what `rebuilt` needs beside the weights, as JSON values."""

    @classmethod
    @abstractmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return a scaffold of this description, whose weights are loaded afterwards."""

    @property
    def reads_before(self) -> bool:
        """Whether the frozen model alone reads the text before the prompt, as `training.contexts` needs it."""
        return False

    @property
    def trained_before(self) -> str:
        """The recipe value of what trains before the end of the first pass; empty if nothing does.

        Then the states of that pass are the bare model's and can be stored (`training.first_pass`).
        """
        return f"scaffold.kind={self.kind}"

    def started_from(self, trained: "Scaffold", name: str) -> "Scaffold":
        """Return the scaffold that training starts from, given a trained one (`scaffold.start`) of the same sizes.

        Raises:
            UsageError: it is of another kind or has other sizes; the message names both.
        """
        own, other = ({"kind": one.kind, **one.description()} for one in (self, trained))
        for key in own:
            if key not in self.may_differ and own[key] != other.get(key):
                raise UsageError(f"scaffold.start={name} has {key} {other.get(key)}, the recipe asks for {own[key]}")
        return trained

    def learning_rates(self, rate: float, base_rate: float | None = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """Return the optimizer groups: parameters at `rate`, those of an inner prompt at `base_rate` if it is given."""
        return [{"params": list(self.parameters()), "lr": rate}]

    def forward(self, lm: FrozenLM, given: ScaffoldInput, memory: Memory | None = None) -> Float[Tensor, "B T D"]:
        """Return `states`; wrappers of modules (distributed training) call this name."""
        return self.states(lm, given, memory)

    def around(self, lm: FrozenLM) -> Self:
        """Set the model that it was made around, so that it can be saved; return itself, on the model's device."""
        self.backbone = lm
        return self.to(lm.device)

    def print_trainable_parameters(self) -> None:
        """Print the number of trained parameters and, where the frozen model is known, their share (as PEFT does)."""
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
        """Set the backbone that it was trained around, how, and how to ask it, for saving; return itself."""
        told = (recipe or {}, scores or {}, answering or {})
        self.origin = Origin(lm.name, lm.fingerprint(), lm.width, *told, quantized=lm.quantized)
        return self

    @staticmethod
    @final
    def load(name: str | Path, lm: FrozenLM, *, revision: str | None = None) -> "Scaffold":
        """Load a saved scaffold from a folder or hub repository, for the backbone that it was trained around.

        Raises:
            SourceNotFound, HubUnreachable, CorruptFile: it cannot be read.
            WrongBackbone: `lm` is another model.
        """
        return Scaffold._loaded(fetch(name, HubOptions(revision)), lm)

    @staticmethod
    def _loaded(folder: Path, lm: FrozenLM) -> "Scaffold":
        saved = read_files(folder)
        kind = KINDS[saved.kind]
        saved.origin.check(lm)
        try:
            scaffold = kind.rebuilt(saved.description, lm)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(
                f"the description in {folder / CONFIG} is not that of a {saved.kind}: {error!r}"
            ) from error
        try:
            scaffold.load_state_dict(dict(saved.weights))
        except RuntimeError as error:
            raise CorruptFile(
                f"the weights in {folder} are not those of its {CONFIG}: {' '.join(str(error).split())}"
            ) from error
        scaffold.origin = saved.origin
        return scaffold.around(lm).eval()

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> str | None:
        """Write the scaffold's folder, whole or not at all: what was there before stays if writing fails.

        Raises:
            SaveFailed: it cannot be written, or the folder holds something other than a scaffold.
        """
        target = Path(save_directory).expanduser()
        with atomic_folder(target, CONFIG) as scratch:
            return super().save_pretrained(scratch, **{"repo_id": target.name, **arguments})

    def generate_model_card(self, *_: Any, **rest: Any) -> ModelCard:
        """Return a README for the hub that names the backbone of the scaffold."""
        origin = self._known_origin()
        return super().generate_model_card(
            kind=self.kind.replace("_", " "),
            backbone=origin.backbone,
            fingerprint=origin.fingerprint,
            parameters=f"{sum(weight.numel() for weight in self.parameters()):,}",
            **rest,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        write_files(
            save_directory, SavedScaffold(self.kind, self.description(), self._known_origin(), self.state_dict())
        )

    @classmethod
    def _from_pretrained(cls, *, model_id: str, lm: FrozenLM | None = None, **arguments: Any) -> Self:
        if lm is None:
            raise UsageError(f"a scaffold needs its frozen model: {cls.__name__}.from_pretrained({model_id!r}, lm=lm)")
        options = {item.name: arguments[item.name] for item in fields(HubOptions) if item.name in arguments}
        found = Scaffold._loaded(fetch(model_id, HubOptions(**options)), lm)
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
    """Values of the bare model in a recipe: it has none."""

    kind: str = field(default="bare", init=False)

    @property
    def untrainable(self) -> str:
        """The bare model has nothing to train."""
        return "scaffold.kind=bare: measure it with `shoulders evaluate bare`"


@final
class Bare(Scaffold, kind="bare"):
    """The language model alone, without trained weights.

    Args:
        room: number of positions of the context to leave free, to compare it with a prompt of that length.
    """

    label = "bare LM"
    Config = BareConfig

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self.room = room

    @property
    def length(self) -> int:
        """Number of positions to leave free."""
        return self.room

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for one pass over the text."""
        return (yield Pass(given.embeds, given.mask, None if memory is None else memory.single))

    def description(self) -> dict[str, Any]:
        """Return the number of positions to leave free."""
        return {"room": self.room}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:  # noqa: ARG003
        """Return the bare model with the same room."""
        return cls(description.get("room", 0))

    @classmethod
    def new(cls, config: BareConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:  # noqa: ARG003
        """Return the bare model with no positions left free."""
        return cls()


BARE = Bare.kind  # name of the model without a scaffold


def scaffold_named(name: str, lm: FrozenLM) -> Scaffold:
    """Return the scaffold of a run, folder or hub name; for "bare" the bare model.

    Raises:
        SourceNotFound, HubUnreachable, CorruptFile, WrongBackbone: see `Scaffold.load`.
    """
    return Bare() if name == BARE else Scaffold.load(scaffold_folder(name), lm)
