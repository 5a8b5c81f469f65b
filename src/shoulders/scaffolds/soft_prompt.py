"""One learned prompt for every input, and what it starts from (Lester et al. 2021, section 3.2; PEFT's text start)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import Memory
from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import UnknownName, UsageError
from shoulders.records import Placement, ScaffoldInput
from shoulders.scaffolds.base import NO_DATA, Scaffold, ScaffoldConfig, TrainingData
from shoulders.scaffolds.program import Pass, Program
from shoulders.scaffolds.weaving import prompted

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftPromptConfig(PromptConfig):
    """What a recipe says of a soft prompt (`PromptConfig`)."""

    kind: str = field(default="soft_prompt", init=False)


@final
class SoftPrompt(Scaffold, kind="soft_prompt"):
    """Prompt tuning: P vectors in the place of token embeddings, trained while the model stays frozen.

    Args:
        prompt: the vectors to start from (`initialise`), fp32 whatever the backbone's type.
        placement: prefix (the source), infix or suffix.

    Source: Lester et al. 2021, section 2; the paper, figure 1a.
    """

    label = "prompt tuning"
    Config = SoftPromptConfig
    usual_rate = 0.05  # with a rate that falls to 0 (experiments/006)

    def __init__(self, prompt: Float[Tensor, "P D"], placement: Placement = Placement.PREFIX) -> None:
        super().__init__()
        self.prompt = nn.Parameter(prompt.clone().to(torch.float32))
        self.placement = Placement(placement)

    @classmethod
    def from_text(
        cls, lm: FrozenLM, text: str, *, length: int = 16, placement: Placement | str = Placement.PREFIX
    ) -> Self:
        """Return a prompt that starts as the embeddings of a text, repeated or cut to its length.

        Args:
            length: P, vectors of the prompt.
            placement: "prefix", "infix" (between evidence and question) or "suffix".
        """
        return cls(from_text(lm, text)(length), Placement(placement)).around(lm)

    @classmethod
    def from_vocabulary(
        cls, lm: FrozenLM, *, length: int = 16, placement: Placement | str = Placement.PREFIX, seed: int = 0
    ) -> Self:
        """Return a prompt that starts as embeddings of frequent tokens, drawn by the seed."""
        return cls(from_vocabulary(lm, seed)(length), Placement(placement)).around(lm)

    @property
    def length(self) -> int:
        """P, the number of vectors."""
        return self.prompt.shape[0]

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for one pass that also reads the prompt."""
        if memory is not None and memory.started:
            return (yield Pass(given.embeds, given.mask, memory.single))
        return (yield from prompted(self.prompt.expand(given.embeds.shape[0], -1, -1), given, memory))

    def description(self) -> dict[str, Any]:
        """Length and placement."""
        return {"length": self.length, "placement": self.placement.value}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """A prompt of zeros."""
        return cls(torch.zeros(description["length"], lm.width), Placement(description["placement"]))

    @classmethod
    def new(cls, config: SoftPromptConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """A prompt that starts as `config.init` says."""
        return cls(chosen(config, lm, seed, data)(config.length), config.placement).around(lm)

    @property
    def reads_before(self) -> bool:
        """Unless it stands before everything."""
        return self.length > 0 and self.placement is not Placement.PREFIX
