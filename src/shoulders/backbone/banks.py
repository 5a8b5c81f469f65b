"""Keys and values of many requests side by side: rows that join and leave, and steps that copy none of them."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from shoulders.backbone.caches import PassMemory, keeps_all, whole_cache
from shoulders.backbone.edits import LayerParts, arranged, edited
from shoulders.backbone.passes import StackInput, forward, vectors_of

ROWS = 8  # a bank of several rows grows by so many
SLACK = 128  # free columns of a bank that has just been made or has grown
COLUMNS = 64  # its width is a multiple of this


def rows_for(rows: int) -> int:
    """Return the number of rows that a bank for so many has."""
    return rows if rows <= 1 else -(-rows // ROWS) * ROWS


def columns_for(longest: int) -> int:
    """Return the largest number of columns of a bank whose longest row has so many."""
    return -(-(longest + 1 + SLACK) // COLUMNS) * COLUMNS


def fits(memory: PassMemory, stack: nn.Module) -> bool:
    """Return whether the keys and values of a memory can be a row of a bank, if they are not already."""
    if memory.bank is not None or not memory.seen or memory.mask is not None or memory.lent:
        return memory.bank is not None
    layers = memory.cache_for(stack.config).layers  # type: ignore[arg-type] (a Hugging Face model's)
    return bool(layers) and all(map(keeps_all, layers))


@final
class Bank:
    """Rows of keys and values in one stack of plain layers, all of which read one position in each step.

    All rows end in one column, as in a batch that is padded on the left, so that every family of models can read them.
    A step writes one column in place and hands the layers a view of the columns up to it. Once the columns are used up,
    the rows move back to the beginning.

    Args:
        stack: a Hugging Face model without its vocabulary head.
        weights: weights by name that are used instead of the stack's own.

    Attributes:
        memories: the memory of each row, in the order of the rows.
        longest: number of columns of the longest row.
        column: the column that the next step writes.
    """

    def __init__(self, stack: nn.Module, weights: Mapping[str, Tensor] | None = None) -> None:
        self.stack, self.weights = stack, weights
        self.memories: list[PassMemory] = []
        self.longest = self.column = 0
        self._cache = DynamicCache()
        self._edits: Mapping[str, LayerParts] | None = None  # of the rows; None if rows have joined or left

    @property
    def nbytes(self) -> int:
        """Size of all rows and columns."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers)

    @property
    def _layers(self) -> "list[_BankLayer]":
        return self._cache.layers  # type: ignore[return-value] (made by `_join`)

    def step(self, parts: Sequence[StackInput]) -> list[Float[Tensor, "1 1 D"]]:
        """Return the final states of one new position of each row.

        Rows whose memory is elsewhere join, and those that are not among the parts leave with their keys and values.
        """
        memories = [part.memory for part in parts]
        wanted = {id(memory) for memory in memories}
        for memory in [memory for memory in self.memories if id(memory) not in wanted]:
            self.take_out(memory)
        self._join([memory for memory in memories if memory is not None and memory.bank is not self])
        self._make_room(len(self.memories), self.longest)
        by_memory = {id(part.memory): part for part in parts}
        rows = [by_memory[id(memory)] for memory in self.memories]
        embeds = torch.cat([row.embeds for row in rows])
        if self._edits is None:
            self._edits = arranged([(1, memory.layers) for memory in self.memories], 1)
        with edited(self.stack, self._edits, vectors_of(rows, 1)):
            states = forward(self.stack, embeds, self._mask(embeds.device), self._cache, self.weights)
        self.column, self.longest = self.column + 1, self.longest + 1
        for memory in self.memories:
            memory.seen += 1
        return [states[memory.row : memory.row + 1] for memory in memories if memory is not None]

    def take_out(self, memory: PassMemory) -> None:
        """Give a row its own cache again, and remove it."""
        cache = whole_cache(self.stack.config)  # type: ignore[arg-type] (a Hugging Face model's)
        for number, layer in enumerate(self._layers):
            span = slice(self.column - memory.seen, self.column)
            keys, values = (side[memory.row, None, :, span].clone() for side in (layer.keys, layer.values))
            cache.update(keys, values, number)
        self.remove(memory)
        memory.cache = cache

    def remove(self, memory: PassMemory, *, broken: bool = False) -> None:
        """Remove a row; the last one takes its place.

        Args:
            broken: its keys and values may be no numbers, and must not stay where other rows have padding.
        """
        row, last, self._edits = memory.row, self.memories.pop(), None
        for layer in self._layers:
            for side in (layer.keys, layer.values):
                if broken:
                    side[row].zero_()
                if last is not memory:
                    span = slice(self.column - last.seen, self.column)
                    side[row, :, span] = side[last.row, :, span]
        if last is not memory:
            self.memories[row], last.row = last, row
        memory.bank = None
        self.longest = max((one.seen for one in self.memories), default=0)
        if not self.memories:
            self._cache, self.column = DynamicCache(), 0

    def trim(self) -> None:
        """Give back rows and columns that are not needed."""
        if not self._layers:
            return
        rows, _, width, _ = self._layers[0].keys.shape
        wanted = min(rows, rows_for(len(self.memories))), min(width, columns_for(self.longest))
        if wanted != (rows, width):
            self._move(*wanted, self.longest)

    def _join(self, memories: Sequence[PassMemory]) -> None:
        """Copy the keys and values of memories into new rows; their own caches are dropped."""
        if not memories:
            return
        self._edits = None
        for memory in memories:
            if memory.bank is not None:
                memory.bank.take_out(memory)
        if not self._layers:
            assert memories[0].cache is not None
            self._cache.layers = [_BankLayer(self, layer) for layer in memories[0].cache.layers]  # type: ignore[arg-type]
        self._make_room(len(self.memories) + len(memories), max(self.longest, *(one.seen for one in memories)))
        for memory in memories:
            assert memory.cache is not None
            memory.bank, memory.row = self, len(self.memories)
            span = slice(self.column - memory.seen, self.column)
            for layer, own in zip(self._layers, memory.cache.layers, strict=True):
                layer.keys[memory.row, :, span] = own.keys[0]  # type: ignore[union-attr]
                layer.values[memory.row, :, span] = own.values[0]  # type: ignore[union-attr]
            memory.cache = None
            self.memories.append(memory)
            self.longest = max(self.longest, memory.seen)

    def _make_room(self, rows: int, longest: int) -> None:
        """Make room for so many rows of at most `longest` columns, and for the next column."""
        allocated, _, width, _ = self._layers[0].keys.shape
        full = self.column == width
        if rows > allocated or longest >= width or (full and longest + SLACK // 2 > width):
            self._move(max(rows_for(rows), allocated), max(columns_for(longest), width), longest)
        elif full or longest > self.column:
            self._move(allocated, width, longest)

    def _move(self, rows: int, width: int, column: int) -> None:
        """Let all rows end before another column, in tensors of another size if they have not this one."""
        count, old = len(self.memories), slice(self.column - self.longest, self.column)
        new = slice(column - self.longest, column)
        for layer in self._layers:
            for name in ("keys", "values"):
                side: Tensor = getattr(layer, name)
                held = side[:count, :, old]
                if side.shape[0] != rows or side.shape[2] != width:
                    side = side.new_zeros(rows, side.shape[1], width, side.shape[3])
                    setattr(layer, name, side)
                elif old != new:
                    held = held.clone()  # the two places overlap
                side[:count, :, new] = held
        self.column = column

    def _mask(self, device: torch.device) -> Bool[Tensor, "M N"] | None:
        """Return the mask of all columns and the next one; None if no row has padding."""
        seen = [memory.seen for memory in self.memories]
        if min(seen) == self.longest:
            return None
        begins = self.longest - torch.tensor(seen, device=device)
        return torch.arange(self.longest + 1, device=device) >= begins[:, None]


class _BankLayer(DynamicLayer):
    """One layer of a bank, with the interface of transformers' caches.

    Args:
        bank: the bank.
        like: a layer of a memory, which has the same sizes but for rows and columns.
    """

    def __init__(self, bank: Bank, like: DynamicLayer) -> None:
        super().__init__()
        assert like.keys is not None
        assert like.values is not None
        self.lazy_initialization(like.keys, like.values)
        self._bank = bank
        self.keys: Tensor = like.keys.new_zeros(0, like.keys.shape[1], 0, like.keys.shape[3])
        self.values: Tensor = like.values.new_zeros(0, like.values.shape[1], 0, like.values.shape[3])

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write the new column of every row; return all columns up to it."""
        rows, column = len(key_states), self._bank.column
        begin = column - self._bank.longest
        self.keys[:rows, :, column : column + 1] = key_states
        self.values[:rows, :, column : column + 1] = value_states
        return self.keys[:rows, :, begin : column + 1], self.values[:rows, :, begin : column + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that attention gets, and the index of the first."""
        return self._bank.longest + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of columns before the new one."""
        return self._bank.longest
