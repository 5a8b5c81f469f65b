"""Choosing the next token, greedily or by sampling, with its probability. `Choice` suits transformers' loop, too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from shoulders.errors import UsageError

BLOCK = 64  # tokens of the vocabulary whose maximum is looked at first


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the token ids that end an answer when one of them is generated; chat models have several."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))


def until_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens before the first that ends an answer."""
    return list(takewhile(lambda token: token not in ends, ids))


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated continuation of one text.

    Attributes:
        ids: its tokens, without the end token.
        log_probability: log-probability of these tokens and the end token, under the model at temperature 1.
        margin: the smallest lead, in log-probability, of a chosen token over the best other one; negative if a sampled
            token was not the likeliest.
    """

    ids: list[int]
    log_probability: float
    margin: float


@final
class Choice(LogitsProcessor):
    """Chooses the next tokens of a batch, greedily or by numbers drawn beforehand, and adds up their probabilities.

    It serves one batch, from its first token on. Draws are numbers and not a random generator's state, so that the
    sample of a text depends neither on the device nor on the rest of the batch.

    Args:
        ends: token ids that end a text; nothing is counted after one.
        draws: numbers uniform on [0, 1), one for each row and step; None for greedy decoding.
        temperature: divides the logits before sampling.
        top_k: sample among this many of the likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens whose probabilities add up to this.

    Raises:
        UsageError: temperature, top_k or top_p cannot be sampled with.
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
        check_sampling(temperature, top_k, top_p)
        self.ends = torch.tensor(ends)
        self.draws = draws
        self.settings = temperature, top_k, top_p
        self.step = 0
        self.open = torch.ones(1, dtype=torch.bool)
        self.log_probability = self.margin = torch.zeros(1)

    def __call__(self, input_ids: Int[Tensor, "N L"], scores: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:  # noqa: ARG002
        """Return scores that leave only the chosen token of each row; of a row that has ended, the end token."""
        if self.step == 0:
            self._start(len(scores), scores.device)
        rows = self.open.nonzero()[:, 0]
        every = self.ends[0].repeat(len(scores))
        every[rows] = self.choose(scores[rows], rows)
        return torch.full_like(scores, -torch.inf).scatter(1, every[:, None], 0.0)

    def choose(self, logits: Float[Tensor, "M V"], rows: Int[Tensor, "M"], *, may_end: bool = True) -> Int[Tensor, "M"]:
        """Return the next token of some rows (all of them in the first step), and add up its probability.

        Args:
            logits: of each of these rows.
            rows: their numbers in the batch.
            may_end: whether an end token may be chosen; the probability is the model's own in any case.
        """
        if self.step == 0:
            self._start(len(rows), logits.device)
        logits = logits.float()
        allowed = logits if may_end else logits.index_fill(1, self.ends, -torch.inf)
        sampled, draws = None, torch.empty(0)
        if self.draws is not None:
            sampled, draws = torch.arange(len(rows), device=logits.device), self.draws[rows, self.step]
        settings = (torch.full((len(draws),), value, device=logits.device) for value in self.settings)
        chosen, lead = pick(allowed, sampled, draws, *settings)
        value = logits.gather(1, chosen[:, None])[:, 0]
        self.log_probability[rows] += value - logits.logsumexp(-1)
        self.margin[rows] = self.margin[rows].minimum(lead)
        self.open[rows] = ~torch.isin(chosen, self.ends)
        self.step += 1
        return chosen

    def generated(self, rows: Sequence[list[int]]) -> list[Generated]:
        """Return the tokens of each row with their probability and margin."""
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


def pick(
    scores: Float[Tensor, "N V"], sampled: Int[Tensor, "M"] | None, draws: Float[Tensor, "M"], *settings: Tensor
) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
    """Return the next token of each row, and its lead over the best other one; every decode chooses by this.

    Args:
        scores: logits of each row, after penalties; -inf for what may not be chosen.
        sampled: rows whose token is sampled; None if all have the likeliest one.
        draws: of these rows, see `draw`.
        settings: temperature, top_k and top_p of these rows.
    """
    best, likeliest = two_best(scores)
    tokens = likeliest[:, 0]
    if sampled is not None:
        tokens = tokens.index_copy(0, sampled, draw(scores[sampled], draws, *settings))
    value = scores.gather(1, tokens[:, None])[:, 0]
    return tokens, value - torch.where(tokens == likeliest[:, 0], best[:, 1], best[:, 0])


def two_best(scores: Float[Tensor, "N V"]) -> tuple[Float[Tensor, "N 2"], Int[Tensor, "N 2"]]:
    """Return the two highest scores of each row, and their tokens.

    They are among the two blocks with the highest maxima: `topk` over the whole vocabulary takes ten times as long.
    """
    missing = -scores.shape[1] % BLOCK
    blocks = (F.pad(scores, (0, missing), value=-torch.inf) if missing else scores).unflatten(1, (-1, BLOCK))
    at = blocks.amax(-1).topk(min(2, blocks.shape[1])).indices.sort(-1).values  # of equal scores the first wins
    best = blocks.gather(1, at[:, :, None].expand(-1, -1, BLOCK)).flatten(1).topk(2)
    return best.values, at.gather(1, best.indices // BLOCK) * BLOCK + best.indices % BLOCK


def draw(
    logits: Float[Tensor, "N V"],
    draws: Float[Tensor, "N"],
    temperature: Float[Tensor, "N"],
    top_k: Int[Tensor, "N"],
    top_p: Float[Tensor, "N"],
) -> Int[Tensor, "N"]:
    """Return the token in whose share of its row's distribution each draw falls.

    Args:
        logits: of each row.
        draws: uniform on [0, 1).
        temperature, top_k, top_p: of each row, see `Choice`.
    """
    scores = logits / temperature[:, None]
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        scores = _cut(scores, top_k, top_p)
    sums = scores.softmax(-1).double().cumsum(-1)
    # The last sum is 1 up to rounding. A token of probability 0 is never chosen.
    chosen = torch.searchsorted(sums, (draws.double() * sums[:, -1])[:, None], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[1] - 1)  # a row of NaN falls into no share and must not stop the others


def _cut(scores: Float[Tensor, "N V"], top_k: Int[Tensor, "N"], top_p: Float[Tensor, "N"]) -> Float[Tensor, "N V"]:
    """Return the scores of the likeliest tokens, by number and then by probability; those of the others are -inf."""
    ordered, tokens = scores.sort(-1, descending=True)
    last = torch.where(top_k > 0, top_k, scores.shape[1]).clamp(max=scores.shape[1]) - 1
    ordered = ordered.masked_fill(ordered < ordered.gather(1, last[:, None]), -torch.inf)
    shares = ordered.softmax(-1)
    more_likely = shares.cumsum(-1) - shares  # the probability of all tokens before each
    cut = (more_likely >= top_p[:, None]) & (top_p < 1)[:, None]
    cut[:, 0] = False
    return torch.empty_like(scores).scatter_(1, tokens, ordered.masked_fill(cut, -torch.inf))


def check_sampling(temperature: float, top_k: int = 0, top_p: float = 1.0) -> None:
    """Raise `UsageError` for values that cannot be sampled with."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature must be above 0, got {temperature}: 1 samples the model's own distribution")
    if top_k < 0:
        raise UsageError(f"top_k must be at least 0, got {top_k}: 0 samples among all tokens")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p must be above 0 and at most 1, got {top_p}: 1 samples among all tokens")
