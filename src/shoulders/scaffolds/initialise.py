"""What a prompt starts from (Lester et al. 2021, section 3.2, and PEFT's text initialisation): functions passed in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import UnknownName, UsageError
from shoulders.scaffolds.base import NO_DATA, ScaffoldConfig, TrainingData
from shoulders.scaffolds.weaving import Placement

PromptInit = Callable[[int], Float[Tensor, "P D"]]
INITS = ("vocabulary", "text", "labels", "normal")
FREQUENT = 5000  # rows that a vocabulary sample is drawn from (Lester et al. 2021)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig(ScaffoldConfig):
    """What a recipe says of any prompt.

    Attributes:
        length: P, vectors of the prompt.
        placement: prefix (the paper), infix or suffix.
        init: what learned vectors start from: "vocabulary", "text", "labels" or "normal".
        init_text: the text, or the labels separated by "|"; without any, the class labels of the suite.
    """

    length: int = 100
    placement: Placement = Placement.PREFIX
    init: str = "vocabulary"
    init_text: str = ""

    def __post_init__(self) -> None:
        if self.length < 0:
            raise UsageError(f"scaffold.length is {self.length}: it cannot be negative, and 20 to 100 are usual")
        if self.init not in INITS:
            raise UnknownName("scaffold.init", self.init, INITS)
        if self.init == "text" and not self.init_text:
            raise UsageError("scaffold.init=text needs scaffold.init_text")

    @property
    def taken(self) -> int:
        """As many positions as it has vectors."""
        return self.length

    @property
    def untrainable(self) -> str:
        """A prompt of no vectors has nothing to train."""
        return "" if self.length else "scaffold.length=0: give the prompt a vector at least"


def chosen(config: PromptConfig, lm: FrozenLM, seed: int = 0, data: TrainingData = NO_DATA) -> PromptInit:
    """What the config says that a prompt starts from; on the meta device vectors without values.

    Raises:
        UsageError: it should start from class labels, and there are none.
    """
    if lm.device.type == "meta":
        return lambda length: torch.empty(length, lm.width, device=lm.device)
    if config.init == "text":
        return from_text(lm, config.init_text)
    if config.init == "labels":
        labels = config.init_text.split("|") if config.init_text else data.class_labels()
        if not labels:
            raise UsageError("no task has class labels to start from: name some, scaffold.init_text='yes|no'")
        return from_labels(lm, labels, seed)
    return {"vocabulary": from_vocabulary, "normal": from_normal}[config.init](lm, seed)


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
