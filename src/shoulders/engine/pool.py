"""The memory of a scheduler, bounded in bytes: banks of rows that are continued, and texts found by content."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import final
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from shoulders.backbone.banks import Bank, columns_for, rows_for
from shoulders.backbone.caches import Memory, PassMemory, Room, plain, with_room
from shoulders.backbone.edits import LayerEdits
from shoulders.backbone.frozen import FrozenLM
from shoulders.records import KeysValues
from shoulders.scaffolds.connectors import Connector

ROOMY, SPARE = 128, 8  # texts from so many columns on are kept with free ones after them, an eighth of their own
SHORT = 10  # rows of up to 2 ** SHORT columns share a bank, those of up to four times as many the next, and so on


def content_keys(root: bytes, vectors: Float[Tensor, "T D"]) -> list[bytes]:
    """Return for each column a digest of all vectors up to it, after what `root` is a digest of.

    The keys and values of a column depend on these vectors alone: token embeddings, the vectors of prompts where they
    stand, and states of an earlier pass. So texts that begin alike have the same first keys, whatever their scaffolds
    are called, and two prompts of the same name or the same tokens have different keys as soon as a vector differs.
    """
    raw = vectors.contiguous().view(torch.uint8).cpu().numpy()
    digest, keys = blake2b(root, digest_size=16), []
    for row in raw:
        digest.update(row)
        keys.append(digest.copy().digest())
    return keys


def digest_of(known: KeysValues) -> bytes:
    """Return a digest of keys and values that a text is read after."""
    return blake2b(b"".join(_digest(side) for layer in known.layers for side in layer), digest_size=16).digest()


@final
class Digests:
    """Digests of edits of layers; those of trained weights are computed once, until they change."""

    def __init__(self) -> None:
        self._known: dict[StorageWeakRef, tuple[int | None, bytes]] = {}

    def of_edits(self, layers: LayerEdits) -> bytes:
        """Return a digest of all tensors of edits, and of where they belong."""
        digest = blake2b(digest_size=16)
        for name, edit in layers.items():
            own = {one for one, _ in edit.by_row()}
            for part in fields(edit):
                value = getattr(edit, part.name)
                digest.update(f"{name}/{part.name}/{None if isinstance(value, Tensor) else value}".encode())
                if isinstance(value, Tensor):
                    digest.update(_digest(value) if part.name in own else self._of_shared(value))
        return digest.digest()

    def _of_shared(self, tensor: Tensor) -> bytes:
        """Return a digest of a tensor that many requests use, such as a part of trained weights."""
        storage = tensor.untyped_storage()
        key = StorageWeakRef(storage)
        version = None if tensor.is_inference() else tensor._version  # noqa: SLF001 (counts writes in place)
        known = self._known.get(key)
        if known is None or known[0] != version:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self._known = {one: value for one, value in self._known.items() if not one.expired()}
            known = self._known[key] = (version, _digest(whole))
        place = f"{tensor.dtype}{tensor.storage_offset()}{tuple(tensor.shape)}{tensor.stride()}"
        return known[1] + place.encode()


def _digest(tensor: Tensor) -> bytes:
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
    return blake2b(raw.data, digest_size=16).digest()


def common_beginning(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Return the number of first columns that two texts share."""
    return _first(min(len(one), len(other)), lambda number: one[number] != other[number])


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """Return the first number below `count` from which on a condition holds; `count` if it holds for none."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


@dataclass(slots=True, eq=False)
class _Part:
    """Columns that were read after those of another part.

    Attributes:
        before: the part before, of which the first `start` columns in all are used; None at the beginning.
        keys: digest of each column.
        layers: keys and values, and free columns after those of a part that nothing comes before.
        states: final states.
        lent: the free columns, while a memory writes there.
    """

    before: "_Part | None"
    start: int
    keys: list[bytes]
    layers: KeysValues
    states: Float[Tensor, "1 N D"]
    lent: "ReferenceType[Room] | None" = None

    @property
    def nbytes(self) -> int:
        """Size of keys, values and states."""
        return self.states.nbytes + sum(keys.nbytes + values.nbytes for keys, values in self.layers.layers)

    def lend(self, columns: int) -> Room | None:
        """Return the free columns if there are so many; None while another memory has them."""
        free = self.layers.layers[0][0].shape[2] - len(self.keys)
        if free < columns or (self.lent is not None and self.lent() is not None):
            return None
        room = Room(self.layers)
        self.lent = ref(room)
        return room


@dataclass(frozen=True, slots=True)
class Known:
    """The beginning of a text that has been read before.

    Attributes:
        length: number of its columns.
        part: the part that its last column belongs to; None if nothing is known.
    """

    length: int = 0
    part: _Part | None = None

    def read(self, free: int = 0) -> tuple[KeysValues, Room | None]:
        """Return keys and values, and a place for so many columns after them, if there is one.

        A text that was read in parts is joined in tensors of its own. The place after a text of one part is given to
        one at a time, and only after its last column.
        """
        parts, count = self._parts(), self.length
        lengths = [length for _, length in parts]
        by_layer = zip(*(one.layers.layers for one, _ in parts), strict=True)
        sides = (zip(*some, strict=True) for some in by_layer)
        whole = KeysValues(
            tuple((_joined(keys, lengths, 2, free), _joined(values, lengths, 2, free)) for keys, values in sides)
        )
        known = KeysValues(tuple((keys[:, :, :count], values[:, :, :count]) for keys, values in whole.layers))
        first = parts[0][0]
        if not free or (len(parts) == 1 and count < len(first.keys)):
            return known, None
        return known, first.lend(free) if len(parts) == 1 else Room(whole)

    def states(self) -> Float[Tensor, "1 N D"]:
        """Return the final states."""
        return torch.cat([one.states[:, :length] for one, length in self._parts()], dim=1)

    def _parts(self) -> list[tuple[_Part, int]]:
        """Return the parts in their order, and how many columns of each belong to the beginning."""
        parts: list[tuple[_Part, int]] = []
        part, end = self.part, self.length
        while part is not None:
            parts.append((part, end - part.start))
            part, end = part.before, part.start
        return parts[::-1]


def _joined(parts: Sequence[Tensor], lengths: Sequence[int], dim: int, free: int) -> Tensor:
    """Return the first columns of each part one after the other, with so many free ones; of one part itself."""
    if len(parts) == 1:
        return parts[0]
    cut = [part.narrow(dim, 0, length) for part, length in zip(parts, lengths, strict=True)]
    shape = list(cut[0].shape)
    shape[dim] = free
    return torch.cat([*cut, cut[0].new_empty(shape)], dim)


@final
class ContentCache:
    """Keys, values and final states of texts, found by content, least recently used dropped first.

    With the states of all columns, even a pass whose states go on into another pass is not read again.

    Attributes:
        nbytes: size of what is kept.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._by_key: dict[bytes, _Part] = {}
        self._parts: OrderedDict[int, _Part] = OrderedDict()  # every part comes before the part that it is read after

    def find(self, keys: Sequence[bytes]) -> Known:
        """Return the longest beginning of a text that is known."""
        length = _first(len(keys), lambda number: keys[number] not in self._by_key)
        if not length:
            return Known()
        part = self._by_key[keys[length - 1]]
        self._use(part)
        return Known(length, part)

    def has(self, known: Known) -> bool:
        """Return whether a known beginning is still kept."""
        return known.part is None or id(known.part) in self._parts

    def add(self, known: Known, keys: Sequence[bytes], layers: KeysValues, states: Tensor) -> Known:
        """Keep columns that were read after a known beginning; return the beginning with them."""
        part = _Part(known.part, known.length, list(keys), layers, states)
        self._by_key |= dict.fromkeys(keys, part)  # also those of a text that begins alike, and is dropped sooner
        self._parts[id(part)] = part
        self.nbytes += part.nbytes
        self._use(part)
        return Known(known.length + len(keys), part)

    def shrink(self, limit: int) -> None:
        """Drop what was not used for longest, until at most `limit` bytes are kept."""
        while self.nbytes > max(limit, 0):
            _, part = self._parts.popitem(last=False)
            self.nbytes -= part.nbytes
            for key in part.keys:
                if self._by_key.get(key) is part:  # texts read at the same time may begin alike: one has those keys
                    del self._by_key[key]

    def _use(self, part: _Part | None) -> None:
        """Count a part and those before it as just used."""
        while part is not None:
            self._parts.move_to_end(id(part))
            part = part.before


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of the pool.

    Attributes:
        rows: number of its rows.
        columns: largest number of columns of a row.
        stacks: number of layers of each stack that keeps keys and values of its rows (`Scaffold.kept_layers`).
    """

    rows: int
    columns: int
    stacks: Mapping[Hashable, int]

    @property
    def length_class(self) -> int:
        """Number of the banks for rows of about this length."""
        return max(0, ((self.columns - 1).bit_length() - SHORT + 1) // 2)


@final
class Pool:
    """Keys and values of all requests of a scheduler, within a number of bytes.

    Rows that are continued come first; texts that were read are kept in what they leave.

    Args:
        lm: the frozen model.
        memory_bytes: the bound.

    Attributes:
        shares: whether all layers keep nothing but keys and values, so that rows can be in banks and texts be shared.
        texts: texts that have been read.
        digests: of what texts are read with.
        reserved: bytes that rows need at most.
    """

    def __init__(self, lm: FrozenLM, memory_bytes: int) -> None:
        self.lm, self.memory_bytes, self.reserved = lm, memory_bytes, 0
        self.shares = plain(lm.config)
        self.texts = ContentCache()
        self.digests = Digests()
        self.layers = lm.config.num_hidden_layers
        self.column_bytes = _column_bytes(lm)
        self._banks: dict[Hashable, Bank] = {}
        self._weights: WeakKeyDictionary[Connector, tuple[Hashable, Mapping[str, Tensor] | None]] = WeakKeyDictionary()

    @property
    def bank_bytes(self) -> int:
        """Size of all banks."""
        return sum(bank.nbytes for bank in self._banks.values())

    @property
    def room(self) -> int:
        """Number of bytes that rows leave for texts."""
        return self.memory_bytes - max(self.reserved, self.bank_bytes)

    def bank(self, key: Hashable, stack: nn.Module) -> Bank:
        """Return the bank of a key; a new one for this stack if there is none."""
        return self._banks.setdefault((id(stack), key), Bank(stack))

    def weights(self, connector: Connector, dtype: torch.dtype) -> Mapping[str, Tensor] | None:
        """Return the weights of a Connector in the type of the multiplication, cast once until they change."""
        # PyTorch counts the changes of a tensor in place.
        state = (dtype, *((id(weight), weight._version) for weight in connector.blocks.parameters()))  # noqa: SLF001
        known = self._weights.get(connector)
        if known is None or known[0] != state:
            known = self._weights[connector] = (state, connector.weights(dtype, None))
        return known[1]

    def release(self, memories: Memory, *, broken: bool = False) -> None:
        """Free the rows of memories (`Bank.remove`)."""
        for memory in memories:
            if memory.bank is not None:
                memory.bank.remove(memory, broken=broken)
        self._banks = {key: bank for key, bank in self._banks.items() if bank.memories}

    def bytes_for(self, demands: Sequence[Demand], reading: Sequence[Demand] = ()) -> int:
        """Return the number of bytes that requests need at most, some of which have yet to be read."""
        if not self.shares:
            return sum(one.rows * self._private(one) for one in demands)
        total = sum(self._private(one) for one in reading)
        for number in {one.length_class for one in demands}:
            alike = [one for one in demands if one.length_class == number]
            width = columns_for(max(one.columns for one in alike))
            stacks = {stack: layers for one in alike for stack, layers in one.stacks.items()}
            for stack, layers in stacks.items():
                rows = rows_for(sum(one.rows for one in alike if stack in one.stacks))
                total += rows * width * self.column_bytes * layers // self.layers
        return total

    def reserve(self, needed: int) -> bool:
        """Set the bytes that rows need in all, for which texts make room; return whether the pool has them."""
        if needed > self.memory_bytes:
            return False
        self.reserved = needed
        if self.bank_bytes > needed and self.texts.nbytes > self.room:  # some banks have become too large
            for bank in self._banks.values():
                bank.trim()
        self.texts.shrink(self.room)
        return True

    def keep(
        self, known: Known, keys: Sequence[bytes], memory: PassMemory, states: Tensor, *, later: int, ends: bool
    ) -> Known | None:
        """Keep columns of a memory, which were read after a known beginning, as far as there is room.

        After a known beginning that is short, the beginning is kept once more with them: what is one part is never
        copied to be read.

        Args:
            known: the beginning.
            keys: the digests of all columns up to the last of these.
            memory: has both.
            states: final states of the new columns.
            later: number of columns of the memory that come after these.
            ends: whether other scaffolds may go on after the last of them, for which free columns are kept.

        Returns:
            The beginning with the new columns; None if they are not kept, and what comes after them cannot be either.
        """
        if 0 < known.length <= states.shape[1] // SPARE:
            states = torch.cat([known.states(), states], dim=1)
            known = Known()
        layers, count = memory.keys_values(self.lm.config).layers, states.shape[1]
        end = layers[0][0].shape[2] - later
        alone = end == count and count >= ROOMY  # nothing is before them, not even a prompt in every layer
        spare = count // SPARE if ends and alone else 0
        size = (count + spare) * self.column_bytes + states.nbytes
        # After one forward with vectors that are no numbers, the columns before them are none either.
        if size > self.room or not self.texts.has(known) or not bool(states.isfinite().all()):
            return None
        begin = end - count
        new = tuple(
            (with_room(keys_[:, :, begin:end], spare), with_room(values[:, :, begin:end], spare))
            for keys_, values in layers
        )
        found = self.texts.add(known, keys[known.length :], KeysValues(new), states.clone())
        self.texts.shrink(self.room)
        return found

    def _private(self, one: Demand) -> int:
        """Return the size of the keys and values of one row by itself."""
        return one.columns * self.column_bytes * sum(one.stacks.values()) // self.layers


@torch.no_grad()
def _column_bytes(lm: FrozenLM) -> int:
    """Return the size of the keys and values of one position in all layers."""
    memory = PassMemory()
    lm.states(lm.embed(torch.zeros(1, 1, dtype=torch.long, device=lm.device)), memory=memory)
    assert memory.cache is not None
    sides = [getattr(layer, name, None) for layer in memory.cache.layers for name in ("keys", "values")]
    return sum(side.nbytes for side in sides if side is not None)
