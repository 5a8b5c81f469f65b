"""LM-Connector-LM: several passes through the frozen model, with trained Connectors between them."""

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
    """Turns the final states of one pass into the input vectors of the next, causally.

    Its blocks have the backbone's family and shape. They are kept in fp32 and multiply in the backbone's type.

    Args:
        lm: the backbone; not a child.
        layers: number of blocks; with 0 the trained final norm alone.
        norm: length of its vectors at the start: that of the vectors they replace.
        residual: add its vectors, times a gate that starts at 0, to those that would be there without it. Not in the
            paper: training then starts exactly at the model without a Connector.
        copied: start the blocks as copies of the backbone's last ones instead of at random. Not in the paper.

    Source: the paper, section 4.2 and figure 5c.
    """

    def __init__(self, lm: FrozenLM, layers: int, *, norm: float, residual: bool = False, copied: bool = False) -> None:
        super().__init__()
        self.blocks = new_blocks(lm, layers)
        if copied:
            copy_layers(lm, self.blocks, range(lm.config.num_hidden_layers - layers, lm.config.num_hidden_layers))
        # The blocks end in a norm: entries have variance 1. As in ID-PT, the scale is a constant outside the weights.
        self.scale = norm / lm.width**0.5
        self.register_parameter("gate", None)
        if residual:
            self.gate = nn.Parameter(torch.zeros(()))

    def placed(self, output: Float[Tensor, "B T D"], instead_of: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the vectors for the next pass.

        Args:
            output: output of the blocks for the final states of the pass before.
            instead_of: the vectors that would be there without a Connector.
        """
        output = output * self.scale
        return output if self.gate is None else instead_of + self.gate.to(output.dtype) * output

    def weights(self, dtype: torch.dtype, memory: PassMemory | None) -> Mapping[str, Tensor] | None:
        """Return the blocks' weights in the type of the multiplication; None if they have that type already.

        A decode keeps them in its memory.
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
    """Order and sizes of passes and Connectors; the default is the paper's LM-Connector-LM.

    Attributes:
        passes: number of passes through the frozen model.
        layers: number of blocks of a Connector (paper: 1 and 2, for a model of 32).
        before: put a Connector before the first pass; with one pass this is the paper's Connector-LM.
        after: put a Connector after the last pass; with one pass this is the paper's LM-Connector.
        shared: use one Connector between all passes instead of one each.
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
            raise UsageError(f"scaffold.recursion.passes must be at least 1, got {self.passes}: 2 is usual")
        if self.layers < 0:
            raise UsageError(f"scaffold.recursion.layers must be at least 0, got {self.layers}: 2 is usual")
        if self.shared and (self.before or self.after):
            raise UsageError("scaffold.recursion.shared is for Connectors between passes, not before or after them")

    @property
    def places(self) -> list[str]:
        """Places of the Connectors, in order."""
        return ["before"] * self.before + ["between"] * (self.passes - 1) + ["after"] * self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class RecursionConfig(ScaffoldConfig):
    """Values of several passes in a recipe.

    Attributes:
        recursion: order and sizes of passes and Connectors.
        inner: the scaffold of each pass: its kind (`scaffold.inner=soft_prompt`) and the values of that kind
            (`scaffold.inner.length=8`).
    """

    kind: str = field(default="recursion", init=False)
    recursion: RecursionShape = field(default_factory=RecursionShape)
    inner: ScaffoldConfig = field(default_factory=BareConfig)

    def __post_init__(self) -> None:
        if self.inner.kind == self.kind:
            raise UsageError(
                "scaffold.inner=recursion: a recursion cannot be the inner scaffold, raise scaffold.recursion.passes"
            )
        if self.inner.start:
            raise UsageError(
                f"scaffold.inner.start={self.inner.start}: only the whole recursion can start from a trained one, name "
                "it (scaffold.start)"
            )

    @property
    def taken(self) -> int:
        """Number of positions that the inner scaffold takes in each pass."""
        return self.inner.taken

    @property
    def untrainable(self) -> str:
        """The reason why there is nothing to train: no Connector, and an inner scaffold without trained weights."""
        if self.recursion.places or not self.inner.untrainable:
            return ""
        return "scaffold.recursion.passes=1 and no Connector: add one"


@final
class Recursion(Scaffold, kind="recursion"):
    """Several passes through the frozen model, with trained Connectors around and between them.

    Args:
        lm: the backbone; not a child.
        shape: order and sizes.
        inner: the scaffold of each pass; the paper has none.
        norms: length of each Connector's vectors at the start; by default that of the vectors they replace (token
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
        """Number of positions that the inner scaffold takes in each pass."""
        return self.inner.length

    @property
    def trained_before(self) -> str:
        """The recipe value of what trains before the end of the first pass; empty if its states are constants."""
        if self.shape.before:
            return "scaffold.recursion.before=true"
        return "" if isinstance(self.inner, Bare) else f"scaffold.inner={self.inner.kind}"

    @property
    def passes(self) -> int:
        """Number of passes, each as often as its inner scaffold takes one."""
        return self.shape.passes * self.inner.passes

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for each pass and the Connectors around and between them; return the last states."""
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
        """Return the Connectors at `rate`, the inner scaffold and the gates at `base_rate`."""
        named = list(self.named_parameters())
        beside = [weight for name, weight in named if name.startswith("inner.") or name.endswith(".gate")]
        blocks = [weight for name, weight in named if not name.startswith("inner.") and not name.endswith(".gate")]
        groups: list[dict[str, Any]] = [{"params": blocks, "lr": rate}]
        if beside:
            groups.append({"params": beside, "lr": rate if base_rate is None else base_rate, "weight_decay": 0.0})
        return groups

    def description(self) -> dict[str, Any]:
        """Return order and sizes, norms, and the description of the inner scaffold."""
        inner = {"kind": self.inner.kind, "description": self.inner.description()}
        return {"shape": asdict(self.shape), "norms": self.norms, "inner": inner}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return the same passes, with random Connectors."""
        inner = description["inner"]
        scaffold = KINDS[inner["kind"]].rebuilt(inner["description"], lm)
        return cls(lm, RecursionShape(**description["shape"]), scaffold, description["norms"])

    def _passed(self, given: ScaffoldInput, vectors: Float[Tensor, "B T D"], memory: Memory | None) -> Program:
        """Ask for one pass over the vectors, unless they are the text's own embeddings and their states are known."""
        known = given.first if vectors is given.embeds and isinstance(self.inner, Bare) and memory is None else None
        if known is not None:
            return known
        return (yield from self.inner.program(replace(given, embeds=vectors, first=None), memory))

    def _connected(
        self,
        place: int,
        states: Float[Tensor, "B T D"],
        instead_of: Float[Tensor, "B T D"],
        given: ScaffoldInput,
        memory: Memory | None,
    ) -> Blocks:
        """Return the request for the Connector at a place, counted from 0."""
        connector = self.connectors[0 if self.shape.shared else place]
        assert isinstance(connector, Connector)
        return Blocks(connector, states, instead_of, given.mask, None if memory is None else memory.between(place))

    @classmethod
    def new(cls, config: RecursionConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """Return passes with new Connectors and a new inner scaffold."""
        inner = KINDS[config.inner.kind].new(config.inner, lm, seed=seed, data=data)
        return cls(lm, config.recursion, inner)


@torch.no_grad()
def starting_norms(lm: FrozenLM, shape: RecursionShape) -> dict[str, float]:
    """Return the mean length of the vectors that each kind of Connector replaces."""
    before = embedding_norm(lm)
    if not shape.after or lm.device.type == "meta":
        return {"before": before, "between": before, "after": 1.0}
    ids = torch.linspace(0, lm.vocabulary - 1, 64, device=lm.device).long()
    states = lm.states(lm.embed(ids[None])).float()
    return {"before": before, "between": before, "after": torch.linalg.vector_norm(states, dim=-1).mean().item()}
