"""What passes remember: keys and values of the positions that they have read, in transformers' caches.

Only this module, `passes` and `banks` know these caches.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from shoulders.backbone.edits import Edits, LayerEdits
from shoulders.records import KeysValues

if TYPE_CHECKING:
    from shoulders.backbone.banks import Bank


class PassMemory:
    """Keys and values of one pass through a stack of layers, with the mask of their positions.

    The cache is made on the first forward of a stack: only then are the kinds of its layers known.

    Attributes:
        cache: transformers' cache; None before the first forward.
        seen: number of columns of the batch so far, padding included.
        mask: False at padding; None while no column is padding.
        weights: trained weights of the stack, cast to the type of the multiplication once and kept between steps.
        whole: keep all positions of a text also in layers with a sliding window.
        lent: whether another run reads its keys and values (`Beside`), so that no bank may take them over.
        bank: the bank that holds the keys and values instead of the cache, if one does; they are its row `row`.
        layers: edits of linear layers for the columns to come.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self.cache = cache
        self.seen = 0
        self.mask: Bool[Tensor, "B N"] | None = None
        self.weights: Mapping[str, Tensor] | None = None
        self.whole = False
        self.lent = False
        self.bank: Bank | None = None
        self.row = 0
        self.layers: LayerEdits = {}
        self._known: KeysValues | None = None
        self._room: Room | None = None

    @classmethod
    def holding(cls, known: KeysValues, length: int, mask: Bool[Tensor, "B N"] | None) -> Self:
        """Return a memory of `length` columns with known keys and values; these tensors are never written to."""
        memory = cls()
        memory.seen, memory.mask, memory._known = length, mask, known
        return memory

    def cache_for(self, config: PreTrainedConfig) -> Cache:
        """Return the cache; make one for a stack of this configuration if there is none yet."""
        if self.cache is None:
            self.cache = whole_cache(config) if self.whole else _Cache(config=config)
            if self._known is not None:
                _fill(self.cache, self._known, self.seen, self._room)
                self._known = self._room = None
        return self.cache

    def extend(self, rows: int, new: int, mask: Bool[Tensor, "B N"] | None, device: torch.device) -> None:
        """Add `new` columns, which are about to be computed, to the count and the mask."""
        seen, self.seen = self.seen, self.seen + new
        # transformers counts positions by the keys of the cache. A stack without layers has none and needs the mask.
        if mask is None and self.mask is None and self.cache is not None and self.cache.layers:
            return
        before = self.mask if self.mask is not None else torch.ones(rows, seen, dtype=torch.bool, device=device)
        after = mask if mask is not None else torch.ones(rows, new, dtype=torch.bool, device=device)
        self.mask = torch.cat([before, after], dim=1)

    def add_known(self, known: KeysValues, length: int, config: PreTrainedConfig, room: "Room | None" = None) -> None:
        """Add `length` columns whose keys and values are known, and are never written over.

        Args:
            room: free columns after them, if they are the first; what comes next is written there.
        """
        if self.seen:
            cache = self.cache_for(config)
            for number, (keys, values) in enumerate(known.layers):
                cache.update(keys, values, number)
        else:
            self._known, self._room = known, room
        self.seen += length

    def keys_values(self, config: PreTrainedConfig) -> KeysValues:
        """Return the keys and values of all columns; the layers of the stack are plain, and keep all positions."""
        layers = self.cache_for(config).layers
        return KeysValues(tuple((layer.keys, layer.values) for layer in layers))  # type: ignore[attr-defined]

    def branch(self) -> Self:
        """Return a memory of the same columns; what is added to one is not in the other."""
        other = copy(self)
        vars(other)["_room"] = None  # one memory alone may write there
        if self.cache is not None and is_plain(self.cache):  # what its tensors hold is never written over
            other.cache = copy(self.cache)
            other.cache.layers = [copy(layer) for layer in self.cache.layers]
        elif self.cache is not None:
            other.cache = deepcopy(self.cache)
        return other

    def make_room(self, columns: int) -> None:
        """Give layers that have none left free columns after their own, so that what comes next copies no others."""
        for number, layer in enumerate([] if self.cache is None else self.cache.layers):
            whole = isinstance(layer, DynamicLayer) and keeps_all(layer) and layer.is_initialized
            if whole and not getattr(layer, "free", 0):
                self.cache.layers[number] = _RoomyLayer.around(layer, columns)  # type: ignore[union-attr]

    def begin(self, edits: Edits, config: PreTrainedConfig, rows: int) -> None:
        """Add the columns of a deep prompt that stands before a pass, and keep the edits of layers."""
        self.layers = edits.layers or self.layers
        if edits.prompt is None or edits.slot:
            return
        keys = edits.prompt.layers[0][0]
        cache = self.cache_for(config)
        self.extend(rows, keys.shape[2], None, keys.device)
        for number, (keys, values) in enumerate(edits.prompt.layers):
            place = getattr(cache.layers[number], "keys", keys) if number < len(cache.layers) else keys
            place = keys.device if place is None else place.device
            cache.update(keys.to(place), values.to(place), number)

    def select(self, rows: Int[Tensor, "B"]) -> None:
        """Keep these rows, in this order; an index that is repeated gives several copies of a row."""
        if self.cache is not None:
            self.cache.reorder_cache(rows)  # type: ignore[arg-type] (a LongTensor is no type of its own)
        if self._known is not None:
            layers = self._known.layers
            self._known, self._room = KeysValues(tuple((keys[rows], values[rows]) for keys, values in layers)), None
        if self.mask is not None:
            self.mask = self.mask.index_select(0, rows)
        self.layers = {name: edit.select(rows) for name, edit in self.layers.items()}


class Memory:
    """The memories of all passes of one scaffold's program over one batch.

    A scaffold with one pass uses `single`. A scaffold around another one gives it `of_pass(number)` for each pass, and
    uses `between(number)` for its Connectors. Memories are made on first use, so a new `Memory` suits any scaffold.
    Each batch that is decoded needs a new one.
    """

    def __init__(self) -> None:
        self.single = PassMemory()
        self._passes: dict[int, Memory] = {}
        self._between: dict[int, PassMemory] = {}

    def of_pass(self, number: int) -> "Memory":
        """Return the memory for the inner scaffold in one pass."""
        return self._passes.setdefault(number, Memory())

    def between(self, number: int) -> PassMemory:
        """Return the memory of one Connector, by its place in the order of Connectors."""
        return self._between.setdefault(number, PassMemory())

    def __iter__(self) -> Iterator[PassMemory]:
        """Yield the memory of every pass and Connector that has been used."""
        if self.single.seen:
            yield self.single
        for inner in self._passes.values():
            yield from inner
        yield from self._between.values()

    @property
    def started(self) -> bool:
        """Whether the text has been read."""
        return any(one.seen for one in self)

    @property
    def seen(self) -> int:
        """Number of columns of its longest memory."""
        return max((one.seen for one in self), default=0)

    def branch(self) -> "Memory":
        """Return a memory of the same text, which can be continued in another way."""
        other = Memory()
        other.single = self.single.branch()
        other._passes = {number: inner.branch() for number, inner in self._passes.items()}
        other._between = {number: one.branch() for number, one in self._between.items()}
        return other

    def make_room(self, columns: int) -> None:
        """Make room for what comes next in the memory of every pass and Connector (`PassMemory.make_room`)."""
        for one in self:
            one.make_room(columns)

    def select(self, rows: Int[Tensor, "B"]) -> None:
        """Keep these rows, in this order, in the memory of every pass and Connector."""
        for one in self:
            one.select(rows)


@dataclass(frozen=True, eq=False)
class Room:
    """Free columns after known keys and values, in the same tensors, for the one memory that is given them.

    They are free again as soon as nothing refers to this record any more.

    Attributes:
        whole: the known columns and the free ones.
    """

    whole: KeysValues


class _Cache(DynamicCache):
    """A cache whose keys and values follow each layer to its device: layers of one model may lie on several."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values; return all of the layer."""
        if layer_idx < len(self.layers):
            _follow(self.layers[layer_idx], key_states.device)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _follow(layer: Any, device: torch.device) -> None:
    """Bring the keys and values that a layer of a cache has to the device of new ones."""
    if isinstance(layer, DynamicLayer) and layer.is_initialized and layer.keys.device != device:  # type: ignore[union-attr]
        layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)  # type: ignore[union-attr]


class Unkept(DynamicCache):
    """A cache that keeps nothing.

    Without one transformers looks for packed sequences in the values, which tensors on the meta device do not have.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Return the new keys and values."""
        return key_states, value_states


def plain(config: PreTrainedConfig) -> bool:
    """Return whether every layer keeps nothing but keys and values, of the whole text or of a sliding window."""
    return is_plain(DynamicCache(config=config))


def is_plain(cache: Cache) -> bool:
    """Return whether a cache holds keys and values in every layer, of all columns or of a window."""
    return all(keeps_all(layer) or type(layer) is DynamicSlidingWindowLayer for layer in cache.layers)


def keeps_all(layer: object) -> bool:
    """Return whether a layer of a cache holds keys and values of all columns, and nothing else."""
    return type(layer) in (DynamicLayer, _RoomyLayer)


def whole_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache that keeps all positions of a text in every layer; `plain` layers only."""
    cache = DynamicCache()
    layers: list[Any] = [DynamicLayer() for _ in DynamicCache(config=config).layers]
    cache.layers = layers
    return cache


def recurrent(config: PreTrainedConfig) -> bool:
    """Return whether some layers keep a state that changes in place (linear attention) instead of keys and values."""
    layers = DynamicCache(config=config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def windows(config: PreTrainedConfig) -> list[int]:
    """Return the sliding window of each layer, in positions; 0 for a layer that attends to the whole text."""
    return [getattr(layer, "sliding_window", 0) for layer in DynamicCache(config=config).layers]


class JoinedCache(DynamicCache):
    """The caches of several memories as one, for one forward: their rows in one batch, aligned at the right.

    Each memory keeps its own new keys and values, so that rows join and leave a batch between two forwards.

    Args:
        caches: one for each memory, for the same stack; every layer is plain.
        rows: number of rows of each.
        seen: number of columns that each has read.
        new: number of columns that each is about to read.
    """

    def __init__(self, caches: Sequence[Cache], rows: Sequence[int], seen: Sequence[int], new: Sequence[int]) -> None:
        super().__init__()
        by_layer = zip(*(cache.layers for cache in caches), strict=True)
        self.layers = [_JoinedLayer(layers, rows, max(seen), new) for layers in by_layer]


class _JoinedLayer(DynamicLayer):
    """One layer of a `JoinedCache`."""

    def __init__(self, layers: Sequence[DynamicLayer], rows: Sequence[int], seen: int, new: Sequence[int]) -> None:
        super().__init__()
        self._layers, self._rows, self._seen, self._new = layers, rows, seen, new
        self.is_sliding = layers[0].is_sliding
        window = getattr(layers[0], "sliding_window", 0)
        self._kept = min(seen, window - 1) if window else seen

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Add to each memory its own new keys and values; return those of all rows, aligned at the right."""
        length = self._kept + key_states.shape[-2]
        for layer in self._layers:
            _follow(layer, key_states.device)
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
        """Return the number of columns that attention gets, and the index of the first."""
        return self._kept + query_length, self._seen - self._kept

    def get_seq_length(self) -> int:
        """Return the number of columns before the new ones."""
        return self._seen


def pad_left(rows: Tensor, length: int, dim: int) -> Tensor:
    """Return rows with zeros (False) before them along `dim`, so that they have `length` columns."""
    missing = length - rows.shape[dim]
    if missing == 0:
        return rows
    shape = list(rows.shape)
    shape[dim] = missing
    return torch.cat([rows.new_zeros(shape), rows], dim=dim)


class _RoomyLayer(DynamicLayer):
    """A layer of a cache that writes new columns after those that it has into the same tensors, as long as they fit.

    Its copies do not: they see the columns up to their own end.

    Args:
        keys, values: of the columns that it has.
        whole: the tensors that these begin.
        room: what keeps others from writing there; its copies hold it, too.
    """

    def __init__(self, keys: Tensor, values: Tensor, whole: tuple[Tensor, Tensor], room: Room | None = None) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._whole, self._room = whole, room
        self._last: Tensor | None = keys  # the keys as this layer left them; None if it may not write

    @classmethod
    def around(cls, layer: DynamicLayer, columns: int) -> Self:
        """Return a layer with the columns of another, and so many free ones."""
        assert layer.keys is not None
        assert layer.values is not None
        keys, values = (with_room(side, columns) for side in (layer.keys, layer.values))
        count = layer.get_seq_length()
        return cls(keys[..., :count, :], values[..., :count, :], (keys, values))

    @property
    def free(self) -> int:
        """Number of columns that it can write."""
        return self._whole[0].shape[-2] - self.get_seq_length() if self._last is self.keys else 0

    def __copy__(self) -> Self:
        """Return a layer with the same columns that does not write after them."""
        fresh = type(self).__new__(type(self))
        vars(fresh).update({**vars(self), "_last": None})
        return fresh

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add new keys and values; return all of the layer."""
        begin, new = self.get_seq_length(), key_states.shape[-2]
        if new > self.free:  # which is 0 once others have put other tensors in the place of its own
            self._last = self._room = None
            self._whole = (key_states, value_states)  # the room is for others
            return super().update(key_states, value_states, *args, **kwargs)
        end, (keys, values) = begin + new, self._whole
        keys[..., begin:end, :], values[..., begin:end, :] = key_states, value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        self._last = self.keys
        return self.keys, self.values


def with_room(columns: Tensor, free: int) -> Tensor:
    """Return a copy of keys or values with so many free columns after them."""
    *before, count, width = columns.shape
    whole = columns.new_empty(*before, count + free, width)
    whole[..., :count, :] = columns
    return whole


def _fill(cache: Cache, known: KeysValues, length: int, room: Room | None) -> None:
    """Put known keys and values of `length` columns into an empty cache."""
    for number, (layer, (keys, values)) in enumerate(zip(cache.layers, known.layers, strict=True)):
        assert isinstance(layer, DynamicLayer)
        if room is not None and type(layer) is DynamicLayer:
            cache.layers[number] = _RoomyLayer(keys, values, room.whole.layers[number], room)
            continue
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = length


def with_written(cache: Cache, edits: Edits | None) -> Cache:
    """Return the cache for one forward in which columns of the pass have known keys and values (`Edits.slot`)."""
    if edits is None or edits.prompt is None or not edits.slot:
        return cache
    whole = DynamicCache()
    for layer, (keys, values) in zip(cache.layers, edits.prompt.layers, strict=True):
        whole.layers.append(_WrittenLayer(layer, keys, values, edits.slot))
    return whole


class _WrittenLayer(DynamicLayer):
    """A layer of a cache in which P of the columns that are added get known keys and values.

    Args:
        layer: the layer of the memory's own cache.
        keys, values: the known ones.
        slot: the first of their columns in each row.
    """

    def __init__(self, layer: Any, keys: Tensor, values: Tensor, slot: Sequence[int]) -> None:
        super().__init__()
        self._layer, self._known = layer, (keys, values)
        columns = torch.tensor(slot, device=keys.device)[:, None] + torch.arange(keys.shape[2], device=keys.device)
        self._columns = columns[:, None, :, None]
        self.is_sliding = layer.is_sliding
        if layer.is_sliding:
            self.sliding_window: int = layer.sliding_window

    def copied(self) -> Self:
        """Return a copy around a copy of the memory's own layer; their tensors are the same."""
        fresh = copy(self)
        vars(fresh)["_layer"] = copy(self._layer)
        return fresh

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Add new keys and values, the known ones in their columns; return those of all columns."""
        place = key_states.device  # the layer's own, which may be another than that of the prompt
        _follow(self._layer, place)
        columns, known = self._columns.to(place), [one.to(place) for one in self._known]
        pairs = zip((key_states, value_states), known, strict=True)
        return self._layer.update(*(new.scatter(2, columns.expand_as(one), one) for new, one in pairs))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that attention gets, and the index of the first."""
        return self._layer.get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        """Return the number of columns before the new ones."""
        return self._layer.get_seq_length()


@dataclass(frozen=True, slots=True)
class Beside:
    """Keys and values of an earlier run over the same positions, to which a run attends beside its own.

    Attributes:
        memory: of the earlier run, which has read these positions already.
        first: the layer of that run that is the stack's first.
    """

    memory: PassMemory
    first: int = 0


class BesideLayer(DynamicLayer):
    """A layer of a cache that gives an earlier run's keys and values before those that it is given."""

    def __init__(self, layer: Any, earlier: Any) -> None:
        super().__init__()
        self._layer, self._earlier = layer, earlier

    def copied(self) -> Self:
        """Return a copy around a copy of the memory's own layer; their tensors are the same."""
        return type(self)(copy(self._layer), self._earlier)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Add new keys and values; return the earlier run's and all of this one."""
        keys, values = self._layer.update(key_states, value_states)
        return torch.cat([self._earlier.keys, keys], dim=2), torch.cat([self._earlier.values, values], dim=2)
