"""How the next token is chosen, and how sure the model was of it; works in transformers' generation loop, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token ids that end an answer when one of them is generated; chat models have several."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))


def until_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    return list(takewhile(lambda token: token not in ends, ids))


@dataclass(frozen=True, slots=True)
class Generated:
    """What was generated after one text.

    Attributes:
        ids: tokens, the end token left out.
        log_probability: of these tokens and the end that followed, under the model at temperature 1.
        margin: the smallest lead, in log-probability, that a chosen token had over the best other one; negative where a
            sample was not the likeliest token.
    """

    ids: list[int]
    log_probability: float
    margin: float


@final
class Choice(LogitsProcessor):
    """Chooses the likeliest token, or the one that a number drawn beforehand points at, and keeps account of it.

    Draws are numbers and not a random generator's state: what is sampled for a text then depends on neither the device
    nor on what else is in the batch.

    Args:
        ends: tokens that end a text; nothing is counted after one.
        draws: uniform on [0, 1), one for each row and step; None for the likeliest tokens.
        temperature: what logits are divided by before one is drawn.
        top_k: draw among so many of the likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens whose probabilities add up to this.
    """

    def __init__(
        self,
        ends: Sequence[int],
        draws: Float[Tensor, "N L"] | None = None,
        temperature: float = 1.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        self.ends = torch.tensor(ends)
        self.draws, self.temperature = draws, temperature
        self.cuts = LogitsProcessorList()
        if top_k:
            self.cuts.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self.cuts.append(TopPLogitsWarper(top_p))
        self.step = 0
        self.open = torch.ones(1, dtype=torch.bool)
        self.log_probability = self.margin = torch.zeros(1)

    def __call__(self, input_ids: Int[Tensor, "N L"], scores: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:  # noqa: ARG002
        """Return scores that leave only the chosen tokens; of rows that have ended, the end."""
        if self.step == 0:
            self._start(len(scores), scores.device)
        rows = self.open.nonzero()[:, 0]
        every = self.ends[0].repeat(len(scores))
        every[rows] = self.choose(scores[rows], rows)
        return torch.full_like(scores, -torch.inf).scatter(1, every[:, None], 0.0)

    def choose(self, logits: Float[Tensor, "M V"], rows: Int[Tensor, "M"]) -> Int[Tensor, "M"]:
        """Return the next token of some rows, all of them in the first step, and note how likely it was."""
        if self.step == 0:
            self._start(len(rows), logits.device)
        logits = logits.float()
        best = logits.topk(2)
        chosen = best.indices[:, 0] if self.draws is None else self._drawn(logits, self.draws[rows, self.step])
        value = logits.gather(1, chosen[:, None])[:, 0]
        lead = value - torch.where(chosen == best.indices[:, 0], best.values[:, 1], best.values[:, 0])
        self.log_probability[rows] += value - logits.logsumexp(-1)
        self.margin[rows] = self.margin[rows].minimum(lead)
        self.open[rows] = ~torch.isin(chosen, self.ends)
        self.step += 1
        return chosen

    def generated(self, rows: Sequence[list[int]]) -> list[Generated]:
        """The rows that the loop returned, with what is known of each."""
        return [
            Generated(ids, log_probability, margin)
            for ids, log_probability, margin in zip(
                rows, self.log_probability.tolist(), self.margin.tolist(), strict=True
            )
        ]

    def _start(self, rows: int, device: torch.device) -> None:
        self.ends = self.ends.to(device)
        self.draws = None if self.draws is None else self.draws.to(device)
        self.open = torch.ones(rows, dtype=torch.bool, device=device)
        self.log_probability = torch.zeros(rows, device=device)
        self.margin = torch.full((rows,), torch.inf, device=device)

    def _drawn(self, logits: Float[Tensor, "N V"], draws: Float[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Return the token in whose share of the distribution each draw falls."""
        logits = self.cuts(None, logits / self.temperature)  # type: ignore[arg-type] (they read the scores alone)
        sums = logits.softmax(-1).double().cumsum(-1)
        # Rounding leaves the last sum beside 1; a token without any share is never pointed at.
        return torch.searchsorted(sums, (draws.double() * sums[:, -1])[:, None], right=True)[:, 0]
