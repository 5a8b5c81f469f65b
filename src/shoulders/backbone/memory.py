"""What a decode carries between steps: the keys and values of every pass, and which of their positions are real."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

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
