"""LM-Connector-LM: several passes through the frozen model or through some of its layers, with trained Connectors."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shoulders.backbone.caches import Beside, Memory, PassMemory, plain, windows
from shoulders.backbone.edits import Edits, in_type, layer_sizes, writing_layers
from shoulders.backbone.encoder import embedding_norm
from shoulders.backbone.frozen import FrozenLM
from shoulders.errors import UnknownName, UsageError
from shoulders.records import ScaffoldInput
from shoulders.scaffolds.base import KINDS, NO_DATA, Bare, BareConfig, Scaffold, ScaffoldConfig, TrainingData
from shoulders.scaffolds.connectors import Connector, KeyValueConnector, LowRankConnector
from shoulders.scaffolds.program import Blocks, Pass, Program

REPEATS = ("", "damped", "gated", "gated_layers")


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
        rank: make each Connector a `LowRankConnector` of this rank instead of blocks; 0 for blocks.
        keys_values: make each a `KeyValueConnector` of this rank: it adds to the keys and values of the next pass,
            which reads the same vectors as the first. Where one layer writes queries, too (GPT-2), they change as well.
        into: the layer that later passes begin at (and a Connector before the first pass): the layers below it read the
            text once, and what they give stands where the paper has the token embeddings.
        out_of: number of layers after which a pass's states go on to the next; 0 for all, with the final norm.
        repeat: what a later pass is. "": the layers from `into` to the last, over the Connector's vectors. Else the
            layers from `into` to `out_of` run again, F, over their own output h, which moves towards what they give,
            h + g(F(h) - h), and the layers after them go on from there; a Connector changes the input of F. "damped": g
            is `damping`, and nothing needs training; "gated": g is a trained vector that starts at 0; "gated_layers":
            every layer has one for itself. All but the first are exactly one pass at the start.
        damping: see `repeat`.
        beside: layers that run again attend to the keys and values of the first run, too, up to each position.
    """

    passes: int = 2
    layers: int = 2
    before: bool = False
    after: bool = False
    shared: bool = False
    residual: bool = False
    copied: bool = False
    rank: int = 0
    keys_values: bool = False
    into: int = 0
    out_of: int = 0
    repeat: str = ""
    damping: float = 0.5
    beside: bool = False

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise UsageError(f"scaffold.recursion.passes must be at least 1, got {self.passes}: 2 is usual")
        if self.layers < 0:
            raise UsageError(f"scaffold.recursion.layers must be at least 0, got {self.layers}: 2 is usual")
        if self.shared and (self.before or self.after):
            raise UsageError("scaffold.recursion.shared is for Connectors between passes, not before or after them")
        if self.keys_values and (not self.rank or self.repeat or self.before or self.after):
            raise UsageError(
                "scaffold.recursion.keys_values is for low-rank Connectors between passes: set scaffold.recursion.rank "
                "and leave repeat, before and after at their defaults"
            )
        self._check_layers()

    def _check_layers(self) -> None:
        """Raise `UsageError` for numbers of layers, a rank or a repetition that make no sense."""
        for name in ("rank", "into", "out_of"):
            if getattr(self, name) < 0:
                raise UsageError(f"scaffold.recursion.{name} must be at least 0, got {getattr(self, name)}")
        if self.out_of and self.into >= self.out_of:
            raise UsageError(
                f"scaffold.recursion.into={self.into} must be below scaffold.recursion.out_of={self.out_of}: the "
                "layers between them run again"
            )
        if self.repeat not in REPEATS:
            raise UnknownName("way to repeat layers (scaffold.recursion.repeat) called", self.repeat, REPEATS)
        if self.repeat and self.before:
            raise UsageError(
                f"scaffold.recursion.repeat={self.repeat} has Connectors between its runs and after the last: leave "
                "scaffold.recursion.before at false"
            )
        if self.beside and not self.repeat:
            raise UsageError("scaffold.recursion.beside is for layers that run again: set scaffold.recursion.repeat")
        if self.repeat and not (self.into and self.out_of):
            raise UsageError(
                f"scaffold.recursion.repeat={self.repeat} runs layers again between others: say which "
                "(scaffold.recursion.into, at least 1, and out_of, fewer than the model has)"
            )

    @property
    def places(self) -> list[str]:
        """Places of the Connectors, in order."""
        between = 0 if self.repeat and not self.rank else self.passes - 1
        return ["before"] * self.before + ["between"] * between + ["after"] * self.after

    @property
    def whole(self) -> bool:
        """Whether every pass goes through all layers."""
        return not (self.into or self.out_of)

    @property
    def inside(self) -> bool:
        """Whether it reaches into the passes of the inner scaffold: runs some layers, or adds to keys and values."""
        return self.keys_values or not self.whole

    def check(self, depth: int) -> None:
        """Raise `UsageError` if a model of so many layers cannot have this shape."""
        last = depth - bool(self.repeat)
        if self.out_of > last or self.into >= depth:
            raise UsageError(
                f"scaffold.recursion.into={self.into} and out_of={self.out_of}, and the model has {depth} layers: into "
                f"is at most {depth - 1}, out_of at most {last}"
            )
        if self.layers > depth and self.copied:
            raise UsageError(f"{self.layers} blocks cannot be copied from a model of {depth}")

    def sections(self, depth: int) -> list[tuple[int, int]]:
        """Return the layers (begin, end) of each run through layers, in order, with a memory of its own."""
        into, out_of, later = self.into, self.out_of or depth, self.passes - 1
        if not self.repeat:
            return [(0, into)] * (into > 0) + [(into, out_of)] * later + [(into, depth)]
        again = [(into, out_of)]
        if self.repeat == "gated_layers":
            again = [(number, number + 1) for number in range(into, out_of)]
        return [(0, out_of), *again * later, (out_of, depth)]


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
        """The reason why there is nothing to train: no Connector or gate, and an inner scaffold without weights."""
        gates = self.recursion.repeat.startswith("gated") and self.recursion.passes > 1
        if self.recursion.places or gates or not self.inner.untrainable:
            return ""
        if self.recursion.repeat:
            return "scaffold.recursion.repeat=damped has no weights: measure it, or add a rank"
        return "scaffold.recursion.passes=1 and no Connector: add one"


@final
class Recursion(Scaffold, kind="recursion"):
    """Several passes through the frozen model, with trained Connectors around and between them.

    Args:
        lm: the backbone; not a child.
        shape: order and sizes.
        inner: the scaffold of each pass; the paper has none.
        norms: length of each Connector's vectors at the start; by default that of the vectors they replace (token
            embeddings before a pass, final states after the last); of `shape.keys_values`, `KeyValueConnector.scales`.

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
        shape.check(lm.config.num_hidden_layers)
        self.shape = shape
        self.norms = dict(norms or starting_norms(lm, shape))
        self.inner = inner or Bare()
        if shape.inside and self.inner.kind not in INNER:
            raise UsageError(
                f"scaffold.inner={self.inner.kind} reaches every layer, and scaffold.recursion.into, out_of, repeat "
                f"and keys_values reach into its pass: take one of {', '.join(INNER)}, or leave these at their defaults"
            )
        if shape.beside:
            check_beside(lm)
        places = shape.places
        kinds = places[:1] if shape.shared else places
        self.connectors = nn.ModuleList(self._connector(kind) for kind in kinds)
        self.gates = nn.ParameterList(torch.zeros(lm.config.hidden_size) for _ in range(self._gate_count()))
        self.placement, self.encoder = self.inner.placement, self.inner.encoder
        self.source_room = self.inner.source_room

    def _connector(self, place: str) -> nn.Module:
        """Return a new Connector for a kind of place."""
        lm, shape = self._lm, self.shape
        depth, inner, outer = lm.config.num_hidden_layers, lm.config.hidden_size, lm.width
        below, above = inner if shape.into else outer, inner if shape.out_of < depth and shape.out_of else outer
        sizes = {
            "before": (below, below),
            "between": (above, above if shape.repeat else below),
            "after": (outer, outer),
        }
        reads, adds = sizes[place]
        if shape.keys_values:
            outputs = {name: layer_sizes(layer)[1] for name, layer in writing_layers(_later_stack(lm, shape)).items()}
            return KeyValueConnector(reads, shape.rank, outputs, self.norms)
        norm = self.norms[place]
        if shape.rank:
            return LowRankConnector(reads, adds, shape.rank, norm=norm)
        if (reads, adds) != (outer, outer):
            raise UsageError(
                f"{lm.name!r} has embeddings of {outer} and states of {inner} entries: between its layers a Connector "
                "is a low-rank network (scaffold.recursion.rank)"
            )
        return Connector(lm, shape.layers, norm=norm, residual=shape.residual, copied=shape.copied)

    def _gate_count(self) -> int:
        shape = self.shape
        each = {"gated": 1, "gated_layers": shape.out_of - shape.into}.get(shape.repeat, 0)
        return each * (shape.passes - 1)

    @property
    def _lm(self) -> FrozenLM:
        assert self.backbone is not None
        return self.backbone

    @property
    def length(self) -> int:
        """Number of positions that the inner scaffold takes in each pass."""
        return self.inner.length

    @property
    def trained_before(self) -> str:
        """The recipe value of what trains before the end of the first pass; empty if its states are constants."""
        if not self.shape.whole:
            return "scaffold.recursion.into or out_of"
        if self.shape.before:
            return "scaffold.recursion.before=true"
        return "" if isinstance(self.inner, Bare) else f"scaffold.inner={self.inner.kind}"

    @property
    def passes(self) -> int:
        """Number of passes, each as often as its inner scaffold takes one; runs through some layers round up."""
        depth = self._lm.config.num_hidden_layers
        layers = sum(end - begin for begin, end in self.shape.sections(depth))
        return -(-layers // depth) * self.inner.passes

    def kept_layers(self, depth: int) -> Mapping[Hashable, int]:
        """Return the number of layers of each run through layers, and of each Connector."""
        found: dict[Hashable, int] = {}
        uses: Counter[tuple[int, int]] = Counter()
        for begin, end in self.shape.sections(depth) * self.inner.passes:
            use = uses[begin, end]
            found[use if (begin, end) == (0, depth) else (use, begin, end)] = end - begin
            uses[begin, end] += 1
        for place in range(len(self.shape.places)):
            connector = self.connectors[0 if self.shape.shared else place]
            if isinstance(connector, Connector):
                found[id(connector), place] = connector.blocks.config.num_hidden_layers * self.inner.passes
        return found

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for each pass and the Connectors around and between them; return the last states."""
        if self.shape.inside:
            return (yield from self._in_parts(given, memory))
        vectors = states = given.embeds
        place = 0
        if self.shape.before:
            vectors, place = (yield from self._connected(place, vectors, vectors, given.mask, memory)), 1
        for number in range(self.shape.passes):
            inner = None if memory is None else memory.of_pass(number)
            states = yield from self._passed(given, vectors, inner)
            if number + 1 < self.shape.passes:
                vectors = yield from self._connected(place, states, given.embeds, given.mask, memory)
                place += 1
        if self.shape.after:
            states = yield from self._connected(place, states, states, given.mask, memory)
        return states

    def _in_parts(self, given: ScaffoldInput, memory: Memory | None) -> Program:
        """Run the inner scaffold's program, whose passes are taken apart; return its states."""
        taken = self._repeated if self.shape.repeat else self._returned
        if self.shape.keys_values:
            taken = partial(self._written, known=self._known(given, given.embeds, memory))
        inner, result = self.inner.program(given, None if memory is None else memory.of_pass(0)), None
        while True:
            try:
                request = next(inner) if result is None else inner.send(result)
            except StopIteration as end:
                return end.value
            result = (yield from taken(request, memory)) if isinstance(request, Pass) else (yield request)

    def _returned(self, request: Pass, memory: Memory | None) -> Program:
        """Take a pass whose states return to the layer `into`, beside what the layers below it gave."""
        runs = self._runs(request, memory)
        lowest = request.embeds if not self.shape.into else (yield next(runs)(request.embeds))
        vectors, place = lowest, 0
        if self.shape.before:
            vectors, place = (yield from self._connected(0, lowest, lowest, request.mask, memory)), 1
        for _ in range(self.shape.passes - 1):
            states = yield next(runs)(vectors)
            vectors = yield from self._connected(place, states, lowest, request.mask, memory)
            place += 1
        states = yield next(runs)(vectors)
        if self.shape.after:
            states = yield from self._connected(place, states, states, request.mask, memory)
        return states

    def _written(self, request: Pass, memory: Memory | None, known: Float[Tensor, "B T D"] | None) -> Program:
        """Take a pass, and others over the same vectors with keys and values that the states before add to."""
        runs, vectors = self._runs(request, memory), request.embeds
        if self.shape.into:
            vectors = yield next(runs)(vectors)
        first = next(runs)(vectors)
        states = known if known is not None else (yield first)
        for place in range(self.shape.passes - 1):
            connector: Any = self.connectors[0 if self.shape.shared else place]
            run = next(runs)(vectors)
            begun = run.memory is not None and run.memory.seen
            layers = {} if begun else connector.layers(states.dtype, "stack." if run.part else "")
            states = yield replace(run, edits=Edits(layers=layers, vectors=connector.vectors(states)))
        return states

    def _repeated(self, request: Pass, memory: Memory | None) -> Program:
        """Take a pass whose layers `into` to `out_of` run again, over their own output."""
        shape, runs = self.shape, self._runs(request, memory)
        states, gate = (yield next(runs)(request.embeds)), 0
        for place in range(shape.passes - 1):
            again = states
            if shape.rank:
                again = yield from self._connected(place, states, states, request.mask, memory)
            if shape.repeat == "gated_layers":
                states = again
                for _ in range(shape.into, shape.out_of):
                    states = self._moved(states, (yield next(runs)(states)), gate)
                    gate += 1
            else:
                states, gate = self._moved(states, (yield next(runs)(again)), gate), gate + 1
        states = yield next(runs)(states)
        if shape.after:
            states = yield from self._connected(len(self.connectors) - 1, states, states, request.mask, memory)
        return states

    def _runs(self, request: Pass, memory: Memory | None) -> Iterator[Callable[[Float[Tensor, "B T E"]], Pass]]:
        """Yield for each run through layers a function that makes its request; the first uses the pass's own memory."""
        sections = self.shape.sections(self._lm.config.num_hidden_layers)
        first = request.memory or (PassMemory() if self.shape.beside else None)
        if first is not None:
            first.lent = self.shape.beside
        for number, (begin, end) in enumerate(sections):
            later = None if memory is None else memory.of_pass(number).single
            again = self.shape.beside and 0 < number < len(sections) - 1
            yield partial(
                self._run,
                replace(request, constant=0 if number else request.constant, part=self._lm.part(begin, end)),
                later if number else first,
                Beside(first, begin) if again and first is not None else None,
            )

    @staticmethod
    def _run(like: Pass, memory: PassMemory | None, beside: Beside | None, vectors: Float[Tensor, "B T E"]) -> Pass:
        return replace(like, embeds=vectors, memory=memory, beside=beside)

    def _moved(
        self, states: Float[Tensor, "B T E"], found: Float[Tensor, "B T E"], gate: int
    ) -> Float[Tensor, "B T E"]:
        """Return states moved towards what was found, as far as the damping or the trained gate of this number says."""
        share = in_type(self.gates[gate], states.dtype) if self.gates else self.shape.damping
        return states + share * (found - states)

    def learning_rates(self, rate: float, base_rate: float | None = None) -> list[dict[str, Any]]:
        """Return the Connectors at `rate`, the inner scaffold and the gates at `base_rate`."""
        beside, blocks = [], []
        for name, weight in self.named_parameters():
            other = name.startswith(("inner.", "gates.")) or name.endswith(".gate")
            (beside if other else blocks).append(weight)
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
        known = self._known(given, vectors, memory)
        if known is not None:
            return known
        return (yield from self.inner.program(replace(given, embeds=vectors, first=None), memory))

    def _known(
        self, given: ScaffoldInput, vectors: Float[Tensor, "B T D"], memory: Memory | None
    ) -> Float[Tensor, "B T D"] | None:
        """Return the states of a pass over these vectors if they have been computed already."""
        bare = vectors is given.embeds and isinstance(self.inner, Bare) and self.shape.whole
        return given.first if bare and memory is None else None

    def _connected(
        self,
        place: int,
        states: Float[Tensor, "B T D"],
        instead_of: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"] | None,
        memory: Memory | None,
    ) -> Program:
        """Return the vectors of the Connector at a place, counted from 0; its blocks are asked for."""
        connector = self.connectors[0 if self.shape.shared else place]
        if isinstance(connector, LowRankConnector):
            return connector(states, instead_of)
        assert isinstance(connector, Connector)
        one = None if memory is None else memory.between(place)
        return (yield Blocks(connector, states, instead_of, mask, one))

    @classmethod
    def new(cls, config: RecursionConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """Return passes with new Connectors and a new inner scaffold."""
        inner = KINDS[config.inner.kind].new(config.inner, lm, seed=seed, data=data)
        return cls(lm, config.recursion, inner)


def check_beside(lm: FrozenLM) -> None:
    """Raise `UsageError` for a model whose layers cannot attend to the keys and values of two runs."""
    config = lm.config
    biased = config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False)  # positions in the mask
    if biased or any(windows(config)) or not plain(config):
        raise UsageError(
            f"{lm.name!r} ({config.model_type}) has layers with a sliding window, without keys and values, or with "
            "positions in their mask: scaffold.recursion.beside needs attention over the whole text"
        )


INNER = ("bare", "soft_prompt", "input_prompt")  # kinds whose passes can be taken in parts


@torch.no_grad()
def starting_norms(lm: FrozenLM, shape: RecursionShape) -> dict[str, float]:
    """Return the mean length of the vectors that each kind of Connector replaces or adds to.

    For those that add to keys and values it is the length of an entry, by the name of the layer that gives them.
    """
    if shape.keys_values:
        return _scales(lm, shape)
    embedded = embedding_norm(lm)
    norms = {"before": embedded, "between": embedded, "after": 1.0}
    if lm.device.type == "meta":
        return norms
    vectors = _some_embeddings(lm)
    if shape.into:
        norms["before"] = norms["between"] = _length(lm.states(vectors, part=lm.part(0, shape.into)))
    if shape.repeat:
        norms["between"] = _length(lm.states(vectors, part=lm.part(0, shape.out_of)))
    if shape.after:
        norms["after"] = torch.linalg.vector_norm(lm.states(vectors).float(), dim=-1).mean().item()
    return norms


def _later_stack(lm: FrozenLM, shape: RecursionShape) -> nn.Module:
    """Return the stack of the layers that the last pass goes through."""
    part = lm.part(shape.into, lm.config.num_hidden_layers)
    return part.stack if part else lm.model.base_model


def _scales(lm: FrozenLM, shape: RecursionShape) -> dict[str, float]:
    """Return the mean length of an entry of what each layer that writes keys and values gives; 1 on the meta device."""
    layers = writing_layers(_later_stack(lm, shape))
    scales = dict.fromkeys(layers, 1.0)
    if lm.device.type == "meta":
        return scales

    def measure(name: str, _: nn.Module, __: object, output: Tensor) -> None:
        scales[name] = _length(output) / output.shape[-1] ** 0.5

    hooks = [layer.register_forward_hook(partial(measure, name)) for name, layer in layers.items()]
    vectors = _some_embeddings(lm)
    if shape.into:
        vectors = lm.states(vectors, part=lm.part(0, shape.into))
    lm.states(vectors, part=lm.part(shape.into, lm.config.num_hidden_layers))
    for hook in hooks:
        hook.remove()
    return scales


def _some_embeddings(lm: FrozenLM) -> Float[Tensor, "1 T D"]:
    return lm.embed(torch.linspace(0, lm.vocabulary - 1, 64, device=lm.device).long()[None])


def _length(states: Float[Tensor, "B T E"]) -> float:
    """Return the median length of states between layers: those of a first token may be many times as long as others."""
    return torch.linalg.vector_norm(states.float(), dim=-1).median().item()
