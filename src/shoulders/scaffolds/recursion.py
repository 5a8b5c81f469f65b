"""LM-Connector-LM: the frozen model run over its own output, in vectors, with a trained Connector in between."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoulders.backbone.encoder import embedding_norm
from shoulders.backbone.frozen import FrozenLM, copy_layers, new_blocks
from shoulders.backbone.passes import Memory, PassMemory
from shoulders.errors import UsageError
from shoulders.records import ScaffoldInput
from shoulders.scaffolds.base import KINDS, NO_DATA, Bare, BareConfig, Scaffold, ScaffoldConfig, TrainingData
from shoulders.scaffolds.program import Blocks, Program


@final
class Connector(nn.Module):
    """Takes the final states of one pass to the input vectors of the next, causally.

    Its blocks are of the backbone's family and shape. They are kept in fp32 and multiplied in the backbone's type.

    Args:
        lm: the backbone, whose blocks it is like; not a child.
        layers: number of blocks; with 0 the trained final norm alone.
        norm: the length that its vectors start with: that of what they stand for.
        residual: add to what would stand there without it, times a gate that starts at 0, instead of replacing it.
            Not in the paper: training then starts exactly at the model without a Connector.
        copied: blocks start as copies of the backbone's last ones instead of random. Not in the paper.

    Source: the paper, section 4.2 and figure 5c.
    """

    def __init__(self, lm: FrozenLM, layers: int, *, norm: float, residual: bool = False, copied: bool = False) -> None:
        super().__init__()
        self.blocks = new_blocks(lm, layers)
        if copied:
            copy_layers(lm, self.blocks, range(lm.config.num_hidden_layers - layers, lm.config.num_hidden_layers))
        # The blocks end in a norm, with entries of variance 1. As in ID-PT the constant stands outside the weights.
        self.scale = norm / lm.width**0.5
        self.register_parameter("gate", None)
        if residual:
            self.gate = nn.Parameter(torch.zeros(()))

    def placed(self, moved: Float[Tensor, "B T D"], instead_of: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the vectors for the next pass.

        Args:
            moved: what the blocks made of the final states of the pass before.
            instead_of: what would stand there without a Connector.
        """
        moved = moved * self.scale
        return moved if self.gate is None else instead_of + self.gate.to(moved.dtype) * moved

    def weights(self, dtype: torch.dtype, memory: PassMemory | None) -> Mapping[str, Tensor] | None:
        """Return the blocks' weights in the type they are multiplied in; a decode carries them in its memory.

        None where they have that type already.
        """
        if memory is not None and memory.weights is not None:
            return memory.weights
        if all(weight.dtype == dtype for weight in self.blocks.parameters()):
            return None
        weights = {name: weight.to(dtype) for name, weight in self.blocks.named_parameters()}
        if memory is not None:
            memory.weights = weights
        return weights


@dataclass(frozen=True, slots=True)
class RecursionShape:
    """How passes and Connectors follow each other; the default is the paper's LM-Connector-LM.

    Attributes:
        passes: through the frozen model.
        layers: blocks of a Connector (paper: 1 and 2 of a model of 32).
        before: a Connector before the first pass: with one pass the paper's Connector-LM.
        after: a Connector after the last pass: with one pass the paper's LM-Connector.
        shared: one Connector between all passes instead of one each.
        residual, copied: see `Connector`.
    """

    passes: int = 2
    layers: int = 2
    before: bool = False
    after: bool = False
    shared: bool = False
    residual: bool = False
    copied: bool = False

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise UsageError(f"scaffold.recursion.passes is {self.passes}: the model runs at least once")
        if self.layers < 0:
            raise UsageError(f"scaffold.recursion.layers is {self.layers}: it cannot be negative")
        if self.shared and (self.before or self.after):
            raise UsageError("scaffold.recursion.shared is for Connectors between passes, not before or after them")

    @property
    def places(self) -> list[str]:
        """Where a Connector stands, in order."""
        return ["before"] * self.before + ["between"] * (self.passes - 1) + ["after"] * self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class RecursionConfig(ScaffoldConfig):
    """What a recipe says of several passes.

    Attributes:
        recursion: order and sizes of passes and Connectors.
        inner: the scaffold that each pass stands under: its kind (`scaffold.inner=soft_prompt`) and that kind's values
            (`scaffold.inner.length=8`).
    """

    kind: str = field(default="recursion", init=False)
    recursion: RecursionShape = field(default_factory=RecursionShape)
    inner: ScaffoldConfig = field(default_factory=BareConfig)

    def __post_init__(self) -> None:
        if self.inner.kind == self.kind:
            raise UsageError("scaffold.inner=recursion: passes cannot stand under a recursion, add to its own passes")
        if self.inner.start:
            raise UsageError(
                f"scaffold.inner.start={self.inner.start}: a recursion starts as a whole, name a trained one "
                "(scaffold.start)"
            )

    @property
    def taken(self) -> int:
        """As many positions as the inner scaffold takes in each pass."""
        return self.inner.taken

    @property
    def untrainable(self) -> str:
        """Without a Connector, whatever the inner scaffold lacks."""
        if self.recursion.places or not self.inner.untrainable:
            return ""
        return "scaffold.recursion.passes=1 and no Connector: add one"


@final
class Recursion(Scaffold, kind="recursion"):
    """Several passes through the frozen model, with trained Connectors around and between them.

    Args:
        lm: the backbone whose blocks the Connectors are like; not a child.
        shape: order and sizes.
        inner: the scaffold that each pass stands under. The paper's: none.
        norms: the length that the vectors of each Connector start with; by default that of what they stand for (token
            embeddings before a pass, final states after the last).

    Source: the paper, section 4.2, figure 5c and table 6.
    """

    label = "recursion"
    Config = RecursionConfig
    may_differ = frozenset({"norms"})

    def __init__(
        self,
        lm: FrozenLM,
        shape: RecursionShape,
        inner: Scaffold | None = None,
        norms: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = lm
        if shape.layers > lm.config.num_hidden_layers and shape.copied:
            raise UsageError(f"{shape.layers} blocks cannot be copied from a model of {lm.config.num_hidden_layers}")
        self.shape = shape
        self.norms = dict(norms or starting_norms(lm, shape))
        self.inner = inner or Bare()
        kinds = ["between"] if shape.shared and shape.passes > 1 else shape.places
        self.connectors = nn.ModuleList(
            Connector(lm, shape.layers, norm=self.norms[kind], residual=shape.residual, copied=shape.copied)
            for kind in kinds
        )
        self.placement, self.encoder = self.inner.placement, self.inner.encoder
        self.source_room = self.inner.source_room

    @property
    def length(self) -> int:
        """Positions that the inner scaffold takes in each pass."""
        return self.inner.length

    @property
    def trained_before(self) -> str:
        """What trains before the first pass ends, by its recipe value; empty: the states of that pass are constants."""
        if self.shape.before:
            return "scaffold.recursion.before=true"
        return "" if isinstance(self.inner, Bare) else f"scaffold.inner={self.inner.kind}"

    @property
    def passes(self) -> int:
        """Those of the shape, each at the price of its inner scaffold."""
        return self.shape.passes * self.inner.passes

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for each pass, and for the Connectors before, between and after them; return the last states."""
        vectors = states = given.embeds
        place = 0
        if self.shape.before:
            vectors, place = (yield self._connected(place, vectors, vectors, given, memory)), 1
        for number in range(self.shape.passes):
            inner = None if memory is None else memory.of_pass(number)
            states = yield from self._passed(given, vectors, inner)
            if number + 1 < self.shape.passes:
                vectors, place = (yield self._connected(place, states, given.embeds, given, memory)), place + 1
        if self.shape.after:
            states = yield self._connected(place, states, states, given, memory)
        return states

    def learning_rates(self, rate: float, base_rate: float | None = None) -> list[dict[str, Any]]:
        """The Connectors at `rate`, the inner scaffold and the gates at `base_rate`."""
        named = list(self.named_parameters())
        beside = [weight for name, weight in named if name.startswith("inner.") or name.endswith(".gate")]
        blocks = [weight for name, weight in named if not name.startswith("inner.") and not name.endswith(".gate")]
        groups: list[dict[str, Any]] = [{"params": blocks, "lr": rate}]
        if beside:
            groups.append({"params": beside, "lr": rate if base_rate is None else base_rate, "weight_decay": 0.0})
        return groups

    def description(self) -> dict[str, Any]:
        """Order and sizes, and what the inner scaffold is."""
        inner = {"kind": self.inner.kind, "description": self.inner.description()}
        return {"shape": asdict(self.shape), "norms": self.norms, "inner": inner}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """The same passes, with Connectors at a random start."""
        inner = description["inner"]
        made = KINDS[inner["kind"]].rebuilt(inner["description"], lm)
        return cls(lm, RecursionShape(**description["shape"]), made, description["norms"])

    def _passed(self, given: ScaffoldInput, vectors: Float[Tensor, "B T D"], memory: Memory | None) -> Program:
        """Ask for one pass over the vectors, unless they are the text's own and its states are known."""
        known = given.first if vectors is given.embeds and isinstance(self.inner, Bare) and memory is None else None
        if known is not None:
            return known
        return (yield from self.inner.program(replace(given, embeds=vectors, first=None), memory))

    def _connector(self, place: int) -> Connector:
        found = self.connectors[0 if self.shape.shared else place]
        assert isinstance(found, Connector)
        return found

    def _connected(
        self,
        place: int,
        states: Float[Tensor, "B T D"],
        instead_of: Float[Tensor, "B T D"],
        given: ScaffoldInput,
        memory: Memory | None,
    ) -> Blocks:
        kept = None if memory is None else memory.between(place)
        return Blocks(self._connector(place), states, instead_of, given.mask, kept)

    @classmethod
    def new(cls, config: RecursionConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """Passes under a new inner scaffold."""
        inner = KINDS[config.inner.kind].new(config.inner, lm, seed=seed, data=data)
        return cls(lm, config.recursion, inner)


@torch.no_grad()
def starting_norms(lm: FrozenLM, shape: RecursionShape) -> dict[str, float]:
    """The length of what stands where each kind of Connector puts its vectors."""
    before = embedding_norm(lm)
    if not shape.after or lm.device.type == "meta":
        return {"before": before, "between": before, "after": 1.0}
    ids = torch.linspace(0, lm.vocabulary - 1, 64, device=lm.device).long()
    states = lm.states(lm.embed(ids[None])).float()
    return {"before": before, "between": before, "after": torch.linalg.vector_norm(states, dim=-1).mean().item()}
