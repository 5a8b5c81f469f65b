"""Edits of the linear layers around untouched weights: low-rank updates (LoRA), and factors of activations ((IA)³).

Each has a form that the generator of ID-PT weights for every input.

Sources: Hu et al. 2022 (LoRA), Kalajdzievski 2023 (its scale for high ranks), Liu et al. 2022 ((IA)³); edits from the
last token of a question on, so that the text before it is read by the bare model: Greenewald et al. 2025 (aLoRA).
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.caches import Memory, windows
from shoulders.backbone.edits import Edits, LayerEdit, in_type, layer_sizes, linear_layers
from shoulders.backbone.encoder import Encoder
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UnknownName, UsageError
from shoulders.records import Placement, ScaffoldInput
from shoulders.scaffolds.base import NO_DATA, Scaffold, ScaffoldConfig, TrainingData
from shoulders.scaffolds.deep_prompt import edited_from
from shoulders.scaffolds.input_prompt import (
    GeneratorConfig,
    InputDependent,
    InputPromptShape,
    encoder_named,
    rebuilt_encoder,
)
from shoulders.scaffolds.program import Pass, Program

ALL_LINEAR = "all-linear"
SPREAD = 0.1  # of a gate around 1, over what the generator writes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEditConfig(ScaffoldConfig):
    """Values of any scaffold that edits linear layers.

    Attributes:
        placement: prefix: all tokens are read with the edits; suffix: the last token of the question and the answer.
    """

    placement: Placement = Placement.PREFIX

    def __post_init__(self) -> None:
        if self.placement is Placement.INFIX:
            raise UsageError(
                f"scaffold.placement=infix does not suit {self.kind}: prefix edits all tokens, suffix those from the "
                "last of the question on"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankConfig(LayerEditConfig):
    """Values of low-rank updates in a recipe.

    Attributes:
        rank: r, the rank of the updates.
        alpha: their scale is alpha / rank.
        root: divide by the square root of the rank instead (rsLoRA).
        targets: linear layers to update, by the end of their names; "all-linear" for all but the output head.
    """

    kind: str = field(default="low_rank", init=False)
    rank: int = 16
    alpha: float = 32.0
    root: bool = False
    targets: tuple[str, ...] = (ALL_LINEAR,)

    def __post_init__(self) -> None:
        LayerEditConfig.__post_init__(self)
        if self.rank < 1:
            raise UsageError(f"scaffold.rank must be at least 1, got {self.rank}: 16 is usual")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"scaffold.alpha must be above 0, got {self.alpha}: twice the rank is usual")
        if not self.targets:
            raise UsageError(f"scaffold.targets is empty: name a layer; {ALL_LINEAR} takes all")


def targets_of(lm: FrozenLM, ends: Sequence[str], what: str = "scaffold.targets") -> tuple[str, ...]:
    """Return the names of the linear layers that end in one of some names.

    Raises:
        UnknownName: the model has no such layer.
    """
    layers = linear_layers(lm.model.base_model)
    if tuple(ends) == (ALL_LINEAR,):
        return tuple(layers)
    for end in ends:
        if not any(_ends(name, end) for name in layers):
            raise UnknownName(
                f"linear layer of {lm.name!r} ({what}) called", end, {name.split(".")[-1] for name in layers}
            )
    return tuple(name for name in layers if any(_ends(name, end) for end in ends))


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _sizes(lm: FrozenLM, names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the numbers of inputs and outputs of linear layers, given their whole names.

    Raises:
        UnknownName: the model has no such layer.
    """
    layers = linear_layers(lm.model.base_model)
    for name in names:
        if name not in layers:
            raise UnknownName(f"linear layer of {lm.name!r} called", name, layers)
    return [layer_sizes(layers[name]) for name in names]


class _LayerEdits(Scaffold):
    """A scaffold that edits linear layers and takes no positions; base class.

    Args:
        lm: the backbone; not a child.
        placement: prefix or suffix (`LayerEditConfig`).
    """

    def __init__(self, lm: FrozenLM, placement: Placement | str) -> None:
        super().__init__()
        self.backbone = lm
        self.placement = Placement(placement)
        self._windowed = any(windows(lm.config))

    @property
    @abstractmethod
    def components(self) -> tuple[int, int]:
        """L, number of edits, and r, number of components of each."""

    @abstractmethod
    def edits(self, dtype: torch.dtype, gates: Float[Tensor, "B L r"] | None = None) -> Edits:
        """Return the edits of layers; `gates` are factors of the components of each edit, for each row."""

    @property
    def length(self) -> int:
        """0: it takes no positions."""
        return 0

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for one pass over the text with the edits."""
        if memory is not None and memory.started:
            return (yield Pass(given.embeds, given.mask, memory.single))
        return (yield from self.pass_over(self.edits(given.embeds.dtype), given, memory))

    def pass_over(self, edits: Edits, given: ScaffoldInput, memory: Memory | None) -> Program:
        """Ask for a pass over the text with these edits; with a suffix the text before its last token is bare."""
        column = 0
        if self.placement is Placement.SUFFIX and given.slot:
            column = max(0, min(given.slot[0], given.embeds.shape[1]) - 1)
        return edited_from(column, given, memory, edits)

    @property
    def reads_before(self) -> bool:
        """Whether the bare model reads the text before the last token, whose keys and values a window may cut."""
        return self.placement is Placement.SUFFIX and not self._windowed


@final
class LowRank(_LayerEdits, kind="low_rank"):
    """Low-rank updates of linear layers, B A x beside W x (LoRA), without a copy of the model.

    Updates start at zero (B = 0), and are kept in fp32 whatever the backbone's type. All that has one form is one
    parameter, so that a step of the optimizer is a few operations.

    Args:
        lm: the backbone; not a child.
        targets: names of linear layers in `lm.model.base_model`.
        rank: r, the rank of the updates.
        scale: factor of the updates.
        placement: prefix or suffix (`LayerEditConfig`).

    Raises:
        UsageError: the model has no such layer.
    """

    label = "low-rank updates"
    Config = LowRankConfig
    usual_rate = 2e-4  # Dettmers et al. 2023 (QLoRA)

    def __init__(
        self,
        lm: FrozenLM,
        targets: Sequence[str],
        rank: int,
        scale: float,
        placement: Placement | str = Placement.PREFIX,
    ) -> None:
        super().__init__(lm, placement)
        self.targets, self.rank, self.scale = tuple(targets), rank, scale
        self._sizes = _sizes(lm, targets)
        starts = [torch.empty(rank * inputs).uniform_(-(inputs**-0.5), inputs**-0.5) for inputs, _ in self._sizes]
        self.down = nn.Parameter(torch.cat(starts))
        self.up = nn.Parameter(torch.zeros(rank * sum(outputs for _, outputs in self._sizes)))

    @property
    def components(self) -> tuple[int, int]:
        """Numbers of layers, and of rank-one components of each update."""
        return len(self.targets), self.rank

    def matrices(
        self, dtype: torch.dtype = torch.float32
    ) -> dict[str, tuple[Float[Tensor, "r I"], Float[Tensor, "O r"]]]:
        """Return A and B of each layer."""
        downs = in_type(self.down, dtype).split([self.rank * inputs for inputs, _ in self._sizes])
        ups = in_type(self.up, dtype).split([self.rank * outputs for _, outputs in self._sizes])
        return {
            name: (down.view(self.rank, -1), up.view(-1, self.rank))
            for name, down, up in zip(self.targets, downs, ups, strict=True)
        }

    def edits(self, dtype: torch.dtype, gates: Float[Tensor, "B L r"] | None = None) -> Edits:
        """Return the updates; `gates` are factors of the rank-one components of each layer, for each row."""
        by_layer = [None] * len(self.targets) if gates is None else gates.to(dtype).unbind(1)
        matrices = self.matrices(dtype).items()
        return Edits(
            layers={
                name: LayerEdit(down, up, self.scale, gate)
                for (name, (down, up)), gate in zip(matrices, by_layer, strict=True)
            }
        )

    def description(self) -> dict[str, Any]:
        """Return targets, rank, scale and placement."""
        about = {"rank": self.rank, "scale": self.scale, "placement": self.placement.value}
        return {**about, "targets": list(self.targets)}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return new updates of the same sizes."""
        names = ("targets", "rank", "scale", "placement")
        return cls(lm, *(description[name] for name in names))

    @classmethod
    def new(cls, config: LowRankConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:  # noqa: ARG003
        """Return updates that change nothing yet."""
        scale = config.alpha / (config.rank**0.5 if config.root else config.rank)
        return cls(lm, targets_of(lm, config.targets), config.rank, scale, config.placement)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalesConfig(LayerEditConfig):
    """Values of factors of activations in a recipe; the defaults are (IA)³'s for families with the names of Llama.

    Attributes:
        outputs: linear layers whose output entries get a factor, by the end of their names.
        inputs: linear layers whose input entries get one.
    """

    kind: str = field(default="scales", init=False)
    outputs: tuple[str, ...] = ("k_proj", "v_proj")
    inputs: tuple[str, ...] = ("down_proj",)

    def __post_init__(self) -> None:
        LayerEditConfig.__post_init__(self)
        if not (self.outputs or self.inputs):
            raise UsageError("scaffold.outputs and scaffold.inputs are empty: name a layer")


@final
class Scales(_LayerEdits, kind="scales"):
    """Trained factors, 1 at the start, of the entries that linear layers read or write ((IA)³).

    Args:
        lm: the backbone; not a child.
        outputs, inputs: names of linear layers in `lm.model.base_model`.
        placement: prefix or suffix (`LayerEditConfig`).
    """

    label = "(IA)³"
    Config = ScalesConfig
    usual_rate = 3e-3  # Liu et al. 2022, section 3.3

    def __init__(
        self,
        lm: FrozenLM,
        outputs: Sequence[str],
        inputs: Sequence[str],
        placement: Placement | str = Placement.PREFIX,
    ) -> None:
        super().__init__(lm, placement)
        self.names = {"outputs": tuple(outputs), "inputs": tuple(inputs)}
        self._after = [size for _, size in _sizes(lm, outputs)]
        self._before = [size for size, _ in _sizes(lm, inputs)]
        self.outputs = nn.Parameter(torch.ones(sum(self._after)))
        self.inputs = nn.Parameter(torch.ones(sum(self._before)))

    @property
    def components(self) -> tuple[int, int]:
        """Number of vectors of factors, those of outputs first, and 1: a vector is one component."""
        return len(self._after) + len(self._before), 1

    def edits(self, dtype: torch.dtype, gates: Float[Tensor, "B L 1"] | None = None) -> Edits:
        """Return the factors as edits of layers; `gates` are factors of each layer's vector, for each row."""
        own = dtype if gates is None else torch.float32
        vectors = [*in_type(self.outputs, own).split(self._after), *in_type(self.inputs, own).split(self._before)]
        if gates is not None:
            vectors = [(vector * gate).to(dtype) for vector, gate in zip(vectors, gates.unbind(1), strict=True)]
        after = dict(zip(self.names["outputs"], vectors, strict=False))
        before = dict(zip(self.names["inputs"], vectors[len(after) :], strict=True))
        names = {**after, **before}
        return Edits(layers={name: LayerEdit(before=before.get(name), after=after.get(name)) for name in names})

    def description(self) -> dict[str, Any]:
        """Return the layers and the placement."""
        return {**{what: list(names) for what, names in self.names.items()}, "placement": self.placement.value}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return factors of 1 for the same layers."""
        return cls(lm, description["outputs"], description["inputs"], description["placement"])

    @classmethod
    def new(cls, config: ScalesConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:  # noqa: ARG003
        """Return factors that change nothing yet."""
        outputs = targets_of(lm, config.outputs, "scaffold.outputs") if config.outputs else ()
        inputs = targets_of(lm, config.inputs, "scaffold.inputs") if config.inputs else ()
        return cls(lm, outputs, inputs, config.placement)


@dataclass(frozen=True, kw_only=True)
class GateConfig(GeneratorConfig):
    """Values of a generator that weights edits, in a recipe; without slots, as `GeneratorConfig`.

    Attributes:
        queries: number of trained queries of the generator.
    """

    queries: int = 8

    def check_generator(self) -> None:
        """Raise `UsageError` for a value that does not fit."""
        super().check_generator()
        if self.queries < 1:
            raise UsageError(f"scaffold.queries must be at least 1, got {self.queries}: 8 is usual")


class _Gated(InputDependent):
    """Edits of linear layers whose components the generator of ID-PT weights for each input and layer; base class.

    The factor of a component is 1 + 0.1 g(x), with g(x) = 0 at the start: training starts exactly at the edits that all
    inputs share.

    Args:
        encoder, lm, shape: see `InputDependent`.
        base: the edits that all inputs share.

    Attributes:
        shared: the class of `base`.
    """

    usual_rate = 1e-3  # of the generator
    shared: ClassVar[type[_LayerEdits]]
    base: _LayerEdits

    def __init__(self, encoder: Encoder, lm: FrozenLM, shape: InputPromptShape, base: _LayerEdits) -> None:
        super().__init__(encoder, lm, shape, base.placement)
        self.base = base
        self.project = nn.Linear(encoder.width, math.prod(base.components), bias=False)
        nn.init.zeros_(self.project.weight)

    @property
    def length(self) -> int:
        """0: it takes no positions."""
        return 0

    def applied(self, vectors: Float[Tensor, "B P E"], given: ScaffoldInput, memory: Memory | None) -> Program:
        """Ask for one pass over the text with the edits as this input weights them."""
        gates = 1 + SPREAD * self.project(vectors.mean(1)).unflatten(-1, self.base.components)
        return self.base.pass_over(self.base.edits(given.embeds.dtype, gates), given, memory)

    def description(self) -> dict[str, Any]:
        """Return sizes, encoder, and the description of the shared edits."""
        return {**super().description(), "base": self.base.description()}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return a generator around the same encoder, and new edits."""
        base = cls.shared.rebuilt(description["base"], lm)
        return cls(rebuilt_encoder(description["encoder"], lm), lm, InputPromptShape(**description["shape"]), base)

    @classmethod
    def new(cls, config: GateConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """Return a generator with its encoder, and edits that change nothing yet."""
        base = cls.shared.new(config, lm, seed=seed, data=data)
        return cls(encoder_named(config.encoder, lm), lm, config.generator(config.queries), base)

    @property
    def reads_before(self) -> bool:
        """Whether the bare model reads the text before the last token."""
        return self.base.reads_before


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedLowRankConfig(GateConfig, LowRankConfig):
    """Values of low-rank updates that are weighted for each input, in a recipe."""

    kind: str = field(default="gated_low_rank", init=False)


@final
class GatedLowRank(_Gated, kind="gated_low_rank"):
    """Low-rank updates of which the generator of ID-PT weights the rank-one components for each input and layer."""

    label = "gated low rank"
    Config = GatedLowRankConfig
    usual_base_rate = LowRank.usual_rate
    shared = LowRank


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedScalesConfig(GateConfig, ScalesConfig):
    """Values of factors of activations that are weighted for each input, in a recipe."""

    kind: str = field(default="gated_scales", init=False)


@final
class GatedScales(_Gated, kind="gated_scales"):
    """(IA)³'s vectors of factors, each of which the generator of ID-PT multiplies by one number for each input."""

    label = "gated (IA)³"
    Config = GatedScalesConfig
    usual_base_rate = Scales.usual_rate
    shared = Scales
