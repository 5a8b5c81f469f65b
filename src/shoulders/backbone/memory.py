"""What a decode carries between steps: keys and values of every pass, and which of their positions are real."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from shoulders.records import KeysValues


class PassMemory:
    """Keys and values of one pass through a stack, with the mask of the positions they belong to."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.cache = DynamicCache(config=config)
        self.seen = 0  # positions
        self.mask: Bool[Tensor, "B N"] | None = None  # None: every position so far is real
        self.weights: Mapping[str, Tensor] | None = None  # trained ones, in the type that this decode multiplies in

    @classmethod
    def holding(
        cls, config: PreTrainedConfig, known: KeysValues, length: int, mask: Bool[Tensor, "B N"] | None
    ) -> Self:
        """A memory of `length` positions whose keys and values are known; they are not written to."""
        made = cls(config)
        made.seen, made.mask = length, mask
        for layer, (keys, values) in zip(made.cache.layers, known.layers, strict=True):
            assert isinstance(layer, DynamicLayer)
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = length
        return made

    @property
    def recurrent(self) -> bool:
        """Whether some layers carry a state that they change in place, not keys and values."""
        return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self.cache.layers)

    def extend(self, rows: int, new: int, mask: Bool[Tensor, "B N"] | None, device: torch.device) -> None:
        """Note `new` positions that are about to be computed."""
        seen, self.seen = self.seen, self.seen + new
        # A stack without blocks has no keys that transformers could count positions by: the mask tells it.
        if mask is None and self.mask is None and self.cache.layers:
            return
        before = self.mask if self.mask is not None else torch.ones(rows, seen, dtype=torch.bool, device=device)
        after = mask if mask is not None else torch.ones(rows, new, dtype=torch.bool, device=device)
        self.mask = torch.cat([before, after], dim=1)

    def select(self, rows: Int[Tensor, "B"]) -> None:
        """Keep these rows, in this order; a row named several times becomes several branches of one beginning."""
        self.cache.reorder_cache(rows)  # type: ignore[arg-type] (a LongTensor is no type of its own)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, rows)


class Memory(Cache):
    """One `PassMemory` per pass, in a shape that transformers' generation accepts as its cache.

    Lengths are counted in text positions: where a scaffold has put prompt vectors is its own affair. A decode goes
    through it once; start each with a new one.

    Args:
        configs: of the stacks that the passes go through, in order; the passes of a Connector are among them.
    """

    def __init__(self, configs: Sequence[PreTrainedConfig]) -> None:
        super().__init__(layers=[])
        self.passes = [PassMemory(config) for config in configs]
        self.length = 0  # text positions seen

    def of_pass(self, number: int) -> "Memory":
        """This memory as the scaffold of a single pass sees it: that pass alone, at the same length."""
        one = Memory([])
        one.passes, one.length = [self.passes[number]], self.length
        return one

    @property
    def started(self) -> bool:
        """True once a first call has placed its prompt and read its text."""
        return self.length > 0

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Text positions seen so far, as transformers counts them."""
        return self.length

    def select(self, rows: Int[Tensor, "B"]) -> None:
        """Keep these rows in every pass."""
        for one in self.passes:
            one.select(rows)

    def reorder_cache(self, beam_idx: Int[Tensor, "B"]) -> None:
        """`select`, by the name that beam search calls it."""
        self.select(beam_idx)
