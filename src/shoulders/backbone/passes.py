"""One pass of a decoder stack over vectors, what a decode remembers between passes, and a check that both work."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from shoulders.errors import SourceNotFound, first_line
from shoulders.records import KeysValues


class PassMemory:
    """Keys and values of one pass through a stack of layers, with the mask of the positions they belong to.

    The cache is made when a stack first reads into it: only then are the kinds of its layers known.

    Attributes:
        cache: transformers' own, None until the first read.
        seen: columns of the batch so far, padding included.
        mask: which of them are real; None while all are.
        weights: trained weights of the stack in the type that this decode multiplies in, kept between steps.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self.cache = cache
        self.seen = 0
        self.mask: Bool[Tensor, "B N"] | None = None
        self.weights: Mapping[str, Tensor] | None = None
        self._known: KeysValues | None = None

    @classmethod
    def holding(cls, known: KeysValues, length: int, mask: Bool[Tensor, "B N"] | None) -> Self:
        """Return a memory of `length` columns whose keys and values are known; they are not written to."""
        made = cls()
        made.seen, made.mask, made._known = length, mask, known
        return made

    def cache_for(self, config: PreTrainedConfig) -> Cache:
        """Return the cache, made for a stack of this configuration if there is none yet."""
        if self.cache is None:
            self.cache = DynamicCache(config=config)
            if self._known is not None:
                _fill(self.cache, self._known, self.seen)
                self._known = None
        return self.cache

    def lengths(self, rows: int) -> Int[Tensor, "B"]:
        """Return how many real positions each row has, padding left out."""
        return torch.full((rows,), self.seen) if self.mask is None else self.mask.sum(1)

    def extend(self, rows: int, new: int, mask: Bool[Tensor, "B N"] | None, device: torch.device) -> None:
        """Note `new` columns that are about to be computed."""
        seen, self.seen = self.seen, self.seen + new
        # A stack without blocks has no keys that transformers could count positions by: the mask tells it.
        if mask is None and self.mask is None and self.cache is not None and self.cache.layers:
            return
        before = self.mask if self.mask is not None else torch.ones(rows, seen, dtype=torch.bool, device=device)
        after = mask if mask is not None else torch.ones(rows, new, dtype=torch.bool, device=device)
        self.mask = torch.cat([before, after], dim=1)

    def select(self, rows: Int[Tensor, "B"]) -> None:
        """Keep these rows, in this order; a row named several times becomes several branches of one beginning."""
        if self.cache is not None:
            self.cache.reorder_cache(rows)  # type: ignore[arg-type] (a LongTensor is no type of its own)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, rows)


class Memory:
    """The memories of all passes that one scaffold asks for, in the nested order of its program.

    A scaffold of one pass uses `single`. One that wraps another hands it `of_pass(number)` for each pass and keeps what
    its Connectors have read in `between(number)`. Memories are made when they are first asked for, so an empty one
    serves any scaffold. A decode goes through it once; start each decode with a new one.
    """

    def __init__(self) -> None:
        self.single = PassMemory()
        self._passes: dict[int, Memory] = {}
        self._between: dict[int, PassMemory] = {}

    def of_pass(self, number: int) -> "Memory":
        """Return the memory of one pass, as the scaffold inside that pass sees it."""
        return self._passes.setdefault(number, Memory())

    def between(self, number: int) -> PassMemory:
        """Return the memory of one place where trained blocks stand between passes."""
        return self._between.setdefault(number, PassMemory())

    def __iter__(self) -> Iterator[PassMemory]:
        """Yield every memory that has been used."""
        if self.single.seen:
            yield self.single
        for inner in self._passes.values():
            yield from inner
        yield from self._between.values()

    @property
    def started(self) -> bool:
        """Whether a text has been read into it."""
        return any(one.seen for one in self)

    @property
    def seen(self) -> int:
        """Columns of the longest of its memories."""
        return max((one.seen for one in self), default=0)

    def select(self, rows: Int[Tensor, "B"]) -> None:
        """Keep these rows in every pass."""
        for one in self:
            one.select(rows)


def plain(config: PreTrainedConfig) -> bool:
    """Return whether keys and values, in a window or not, are all that each layer keeps of a text."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def recurrent(config: PreTrainedConfig) -> bool:
    """Return whether some layers carry a state that they change in place, not keys and values."""
    layers = DynamicCache(config=config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


class JoinedCache(DynamicCache):
    """The caches of several memories side by side for one pass, rows below each other and aligned at the right.

    Each memory goes on growing by itself: rows join and leave a batch without a copy of what they have read.

    Args:
        caches: of the memories, for one kind of stack whose layers are all plain.
        rows: of each.
        seen: columns that each has read.
        new: columns that each is about to read.
    """

    def __init__(self, caches: Sequence[Cache], rows: Sequence[int], seen: Sequence[int], new: Sequence[int]) -> None:
        super().__init__()
        columns = [cache.layers for cache in caches]
        self.layers = [_JoinedLayer(layers, rows, max(seen), new) for layers in zip(*columns, strict=True)]


class _JoinedLayer(DynamicLayer):
    """One layer of a `JoinedCache`."""

    def __init__(self, layers: Sequence[DynamicLayer], rows: Sequence[int], seen: int, new: Sequence[int]) -> None:
        super().__init__()
        self._layers, self._rows, self._seen, self._new = layers, rows, seen, new
        self.is_sliding = layers[0].is_sliding
        window = getattr(layers[0], "sliding_window", 0)
        self._kept = min(seen, window - 1) if window else seen

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Let every memory keep its own new keys and values; return all of them, aligned at the right."""
        length = self._kept + key_states.shape[-2]
        parts = zip(
            self._layers,
            key_states.split(list(self._rows)),
            value_states.split(list(self._rows)),
            self._new,
            strict=True,
        )
        pairs = [layer.update(keys[:, :, -new:], values[:, :, -new:]) for layer, keys, values, new in parts]
        keys, values = (torch.cat([pad_left(one, length, 2) for one in side]) for side in zip(*pairs, strict=True))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns attention is given, and the number of the first."""
        return self._kept + query_length, self._seen - self._kept

    def get_seq_length(self) -> int:
        """Return the columns before the new ones."""
        return self._seen


def pad_left(rows: Tensor, length: int, dim: int) -> Tensor:
    """Return rows with zeros (False) before them along `dim`, so that they have `length` columns."""
    missing = length - rows.shape[dim]
    if missing == 0:
        return rows
    shape = list(rows.shape)
    shape[dim] = missing
    return torch.cat([rows.new_zeros(shape), rows], dim=dim)


def _fill(cache: Cache, known: KeysValues, length: int) -> None:
    for layer, (keys, values) in zip(cache.layers, known.layers, strict=True):
        assert isinstance(layer, DynamicLayer)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = length


@dataclass(frozen=True, slots=True)
class StackInput:
    """What one pass of a stack reads.

    Attributes:
        embeds: the input vectors, in the type of the stack's weights.
        mask: False at padding; None when padding stands at the end of rows only.
        memory: keys and values of what came before; is extended by these positions.
    """

    embeds: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    memory: PassMemory | None = None


def read(
    stack: nn.Module,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | None = None,
    memory: PassMemory | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "B T D"]:
    """Return the final hidden states of a stack; gradients go through to `embeds`.

    Args:
        stack: a Hugging Face model without its vocabulary head.
        embeds, mask, memory: see `StackInput`.
        weights: in the place of the stack's own, by name.
    """
    past = None
    if memory is not None:
        past = memory.cache_for(stack.config)  # type: ignore[arg-type] (a Hugging Face model's)
        memory.extend(embeds.shape[0], embeds.shape[1], mask, embeds.device)
        mask = memory.mask
    return _run(stack, embeds, mask, past, weights)


def read_together(
    stack: nn.Module, parts: Sequence[StackInput], weights: Mapping[str, Tensor] | None = None
) -> list[Float[Tensor, "B T D"]]:
    """Return the final hidden states of several inputs, from one forward of the stack where its layers allow it.

    Rows are aligned at the right, behind padding. Stacks that carry a state which they change in place (linear
    attention) read one input after the other.
    """
    config = stack.config
    if len(parts) == 1 or not plain(config):  # type: ignore[arg-type]
        return [read(stack, part.embeds, part.mask, part.memory, weights) for part in parts]
    memories = [part.memory or PassMemory() for part in parts]
    rows, new = zip(*(part.embeds.shape[:2] for part in parts), strict=True)
    seen, longest = [memory.seen for memory in memories], max(new)
    caches = [memory.cache_for(config) for memory in memories]  # type: ignore[arg-type]
    for part, memory in zip(parts, memories, strict=True):
        memory.extend(part.embeds.shape[0], part.embeds.shape[1], part.mask, part.embeds.device)
    width = max(seen) + longest
    masks = [_mask_of(memory, part.embeds) for memory, part in zip(memories, parts, strict=True)]
    mask = torch.cat([pad_left(one, width, 1) for one in masks])
    embeds = torch.cat([pad_left(part.embeds, longest, 1) for part in parts])
    past = JoinedCache(caches, rows, seen, new)
    states = _run(stack, embeds, None if bool(mask.all()) else mask, past, weights)
    return [one[:, -length:] for one, length in zip(states.split(list(rows)), new, strict=True)]


def _mask_of(memory: PassMemory, embeds: Tensor) -> Bool[Tensor, "B N"]:
    if memory.mask is not None:
        return memory.mask
    return torch.ones(embeds.shape[0], memory.seen, dtype=torch.bool, device=embeds.device)


def _run(
    stack: nn.Module,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B N"] | None,
    past: object | None,
    weights: Mapping[str, Tensor] | None,
) -> Float[Tensor, "B T D"]:
    # Without a cache transformers looks for packed sequences in the values, which meta tensors do not have.
    arguments: dict[str, object] = {"inputs_embeds": embeds, "use_cache": past is not None or embeds.is_meta}
    if past is not None:
        arguments["past_key_values"] = past
    if mask is not None:
        arguments["attention_mask"] = mask.long()
        if _takes_positions(type(stack)):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            arguments["position_ids"] = positions[:, -embeds.shape[1] :]
    if weights is not None:
        return functional_call(stack, dict(weights), kwargs=arguments).last_hidden_state
    return stack(**arguments).last_hidden_state


@cache
def _takes_positions(family: type[nn.Module]) -> bool:
    return "position_ids" in signature(family.forward).parameters


ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # of states, relative


@torch.no_grad()
def check_serves(model: PreTrainedModel) -> None:
    """Refuse a model whose states depend on how a text is read: in two parts, or beside padding.

    State-space models, bidirectional ones and decoders that need an encoder load as causal models and would answer
    wrongly without any error.

    Raises:
        SourceNotFound: this model does.
    """
    if model.device.type == "meta":
        return
    stack = model.base_model
    ids = torch.tensor([[1, 0, 2, 3, 1]], device=model.device)
    with _unfit(model):
        embeds = model.get_input_embeddings()(ids).to(model.dtype)
        whole = read(stack, embeds)
        memory = PassMemory()
        parts = [read(stack, part, memory=memory) for part in embeds.split([3, 1, 1], dim=1)]
        mask = torch.tensor([[False, False, True, True, True, True, True]], device=model.device)
        padded = read(stack, torch.cat([embeds[:, :2], embeds], dim=1), mask)[:, 2:]
    _check_same(model, "read in parts", torch.cat(parts, dim=1), whole)
    _check_same(model, "padded on the left", padded, whole)


@contextmanager
def _unfit(model: PreTrainedModel) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        raise SourceNotFound(
            f"{type(model).__name__} does not run on vectors with a mask and a cache of keys and values, so it cannot "
            f"serve as backbone ({first_line(error)})"
        ) from error


def _check_same(model: PreTrainedModel, how: str, found: Float[Tensor, "B T D"], whole: Float[Tensor, "B T D"]) -> None:
    gap = (torch.linalg.vector_norm(found.float() - whole.float()) / torch.linalg.vector_norm(whole.float())).item()
    if not gap <= ROUNDING[model.dtype]:
        raise SourceNotFound(
            f"{type(model).__name__} gives other states when a text is {how} (they differ by {gap:.1%}): it cannot "
            "serve as backbone; it takes a decoder with causal attention"
        )
