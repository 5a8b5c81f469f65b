"""From a sequence of any length to a fixed number of vectors (Jaegle et al. 2021, Perceiver IO)."""

from typing import final

from jaxtyping import Bool, Float
from torch import Tensor, nn


@final
class AttentionBlock(nn.Module):
    """Pre-norm attention and a GELU network, both residual on the query stream: 12 d^2 weights and 13 d others.

    With `across`, keys and values come from another sequence and have a norm of their own (2 d more).
    """

    def __init__(self, width: int, heads: int, *, across: bool, widening: int = 4) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width) if across else None
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.network_norm = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, widening * width), nn.GELU(), nn.Linear(widening * width, width))

    def forward(
        self,
        queries: Float[Tensor, "B P E"],
        read: Float[Tensor, "B S E"] | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B P E"]:
        """Queries after one block; they attend to `read` (False in `mask` = padding), or to each other."""
        normed = self.query_norm(queries)
        keys = normed if read is None or self.key_norm is None else self.key_norm(read)
        hidden = None if mask is None else ~mask
        mixed, _ = self.attention(normed, keys, keys, key_padding_mask=hidden, need_weights=False)
        queries = queries + mixed
        return queries + self.network(self.network_norm(queries))
