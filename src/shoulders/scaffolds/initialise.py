"""What a prompt starts from (Lester et al. 2021, section 3.2, and PEFT's text initialisation): functions passed in."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import UsageError

PromptInit = Callable[[int], Float[Tensor, "P D"]]
FREQUENT = 5000  # rows that a vocabulary sample is drawn from (Lester et al. 2021)


def from_vocabulary(lm: FrozenLM, seed: int = 0) -> PromptInit:
    """Embeddings of tokens drawn without replacement from the most frequent ones.

    Sub-word vocabularies list their merges by frequency, so the first rows after the special tokens are the frequent
    ones.
    """

    def init(length: int) -> Float[Tensor, "P D"]:
        special = set(lm.tokenizer.all_special_ids)
        rows = [row for row in range(min(lm.vocabulary, FREQUENT + len(special))) if row not in special][:FREQUENT]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        chosen = torch.tensor(rows)[order]
        return _rows(lm, chosen.repeat(-(-length // len(rows)))[:length])

    return init


def from_text(lm: FrozenLM, text: str) -> PromptInit:
    """Embeddings of a text's tokens, repeated or cut to the prompt's length."""
    ids = _tokens(lm, text)

    def init(length: int) -> Float[Tensor, "P D"]:
        return _rows(lm, torch.tensor(ids).repeat(-(-length // len(ids)))[:length])

    return init


def from_labels(lm: FrozenLM, labels: Sequence[str], seed: int = 0) -> PromptInit:
    """One vector for each class label, the mean of its tokens' embeddings; a vocabulary sample when labels run out.

    Source: Lester et al. 2021, section 3.2.
    """
    if not labels:
        raise UsageError("a prompt cannot start from no labels: give it at least one")
    ids = [_tokens(lm, label) for label in labels]

    def init(length: int) -> Float[Tensor, "P D"]:
        means = [_rows(lm, torch.tensor(some)).mean(0, keepdim=True) for some in ids[:length]]
        return torch.cat([*means, from_vocabulary(lm, seed)(length - len(means))])

    return init


def _tokens(lm: FrozenLM, text: str) -> list[int]:
    ids: list[int] = tokenized(lm.tokenizer, lm.vocabulary, text, add_special_tokens=False).input_ids
    if not ids:
        raise UsageError("a prompt cannot start from an empty text: give it at least one token")
    return ids


def from_normal(lm: FrozenLM, seed: int = 0) -> PromptInit:
    """Random vectors of the vocabulary's own standard deviation."""

    def init(length: int) -> Float[Tensor, "P D"]:
        generator = torch.Generator().manual_seed(seed)
        scale = _rows(lm, torch.arange(min(lm.vocabulary, FREQUENT))).std()
        return torch.randn(length, lm.width, generator=generator) * scale

    return init


def _rows(lm: FrozenLM, ids: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
    return lm.embed(ids.to(lm.device)).detach().float().cpu().clone()
