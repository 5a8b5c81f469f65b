"""Prompt tuning: one trained prompt for every input, what it starts from, and how a prompt is inserted into texts.

Sources: Lester et al. 2021, section 3.2; starting from a text: PEFT.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shoulders.backbone.caches import Memory, PassMemory
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import UnknownName, UsageError
from shoulders.records import KeysValues, Placement, ScaffoldInput
from shoulders.scaffolds.base import NO_DATA, Scaffold, ScaffoldConfig, TrainingData
from shoulders.scaffolds.program import Pass, Program

PromptInit = Callable[[int], Float[Tensor, "P D"]]
INITS = ("vocabulary", "text", "labels", "normal")
FREQUENT = 5000  # number of tokens that a vocabulary sample is drawn from (Lester et al. 2021)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig(ScaffoldConfig):
    """Values of any prompt in a recipe.

    Attributes:
        length: P, number of vectors of the prompt.
        placement: prefix (the paper), infix or suffix.
        init: start of the trained vectors: "vocabulary", "text", "labels" or "normal".
        init_text: the text, or the labels separated by "|"; if empty, the class labels of the suite.
        inits: known names of starts.
    """

    inits: ClassVar[Sequence[str]] = INITS
    length: int = 100
    placement: Placement = Placement.PREFIX
    init: str = "vocabulary"
    init_text: str = ""

    def __post_init__(self) -> None:
        if self.length < 0:
            raise UsageError(f"scaffold.length must be at least 0, got {self.length}: 20 to 100 are usual")
        if self.init not in self.inits:
            raise UnknownName("scaffold.init", self.init, self.inits)
        if self.init in ("text", "document") and not self.init_text:
            raise UsageError(f"scaffold.init={self.init} needs scaffold.init_text")

    @property
    def taken(self) -> int:
        """Number of vectors of the prompt."""
        return self.length

    @property
    def untrainable(self) -> str:
        """The reason why there is nothing to train: the prompt has no vectors."""
        return "" if self.length else "scaffold.length=0: give the prompt at least one vector"


def chosen(config: PromptConfig, lm: FrozenLM, seed: int = 0, data: TrainingData = NO_DATA) -> PromptInit:
    """Return the start of a prompt that the config names; on the meta device vectors without values.

    Raises:
        UsageError: it is to start from class labels, and the tasks have none.
    """
    if lm.device.type == "meta":
        return lambda length: torch.empty(length, lm.width, device=lm.device)
    if config.init == "text":
        return from_text(lm, config.init_text)
    if config.init == "labels":
        labels = config.init_text.split("|") if config.init_text else data.class_labels()
        if not labels:
            raise UsageError("no task has class labels to start from: name some (scaffold.init_text='yes|no')")
        return from_labels(lm, labels, seed)
    return {"vocabulary": from_vocabulary, "normal": from_normal}[config.init](lm, seed)


def from_vocabulary(lm: FrozenLM, seed: int = 0) -> PromptInit:
    """Return a start from embeddings of the most frequent tokens, drawn without replacement.

    Sub-word vocabularies list their merges by frequency: frequent tokens come first, after the special ones.
    """
    return lambda length: _rows(lm, frequent_tokens(lm, length, seed))


def frequent_tokens(lm: FrozenLM, count: int, seed: int = 0) -> Int[Tensor, "N"]:
    """Return ids of some of the most frequent tokens, drawn without replacement as long as there are enough."""
    special = set(lm.tokenizer.all_special_ids)
    rows = [row for row in range(min(lm.vocabulary, FREQUENT + len(special))) if row not in special][:FREQUENT]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(rows)[order].repeat(-(-count // len(rows)))[:count]


def from_text(lm: FrozenLM, text: str) -> PromptInit:
    """Return a start from the embeddings of a text's tokens, repeated or cut to the prompt's length."""
    ids = _tokens(lm, text)

    def init(length: int) -> Float[Tensor, "P D"]:
        return _rows(lm, torch.tensor(ids).repeat(-(-length // len(ids)))[:length])

    return init


def from_labels(lm: FrozenLM, labels: Sequence[str], seed: int = 0) -> PromptInit:
    """Return a start of one vector for each class label, the mean of its tokens' embeddings.

    The vectors after those of the labels are a vocabulary sample.

    Source: Lester et al. 2021, section 3.2.
    """
    if not labels:
        raise UsageError("a prompt needs at least one label to start from, got none")
    ids = [_tokens(lm, label) for label in labels]

    def init(length: int) -> Float[Tensor, "P D"]:
        means = [_rows(lm, torch.tensor(some)).mean(0, keepdim=True) for some in ids[:length]]
        return torch.cat([*means, from_vocabulary(lm, seed)(length - len(means))])

    return init


def _tokens(lm: FrozenLM, text: str) -> list[int]:
    """Return the token ids of a text that a prompt starts from."""
    ids: list[int] = tokenized(lm.tokenizer, lm.vocabulary, text, add_special_tokens=False).input_ids
    if not ids:
        raise UsageError("a prompt needs a text of at least one token to start from, got none")
    return ids


def from_normal(lm: FrozenLM, seed: int = 0) -> PromptInit:
    """Return a start from random vectors with the standard deviation of the vocabulary's embeddings."""

    def init(length: int) -> Float[Tensor, "P D"]:
        generator = torch.Generator().manual_seed(seed)
        scale = _rows(lm, torch.arange(min(lm.vocabulary, FREQUENT))).std()
        return torch.randn(length, lm.width, generator=generator) * scale

    return init


def _rows(lm: FrozenLM, ids: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
    """Return embeddings of tokens in fp32 on the CPU."""
    return lm.embed(ids.to(lm.device)).detach().float().cpu().clone()


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftPromptConfig(PromptConfig):
    """Values of a soft prompt in a recipe (`PromptConfig`)."""

    kind: str = field(default="soft_prompt", init=False)


@final
class SoftPrompt(Scaffold, kind="soft_prompt"):
    """P trained vectors among the token embeddings, while the model stays frozen.

    Args:
        prompt: the vectors to start from; kept in fp32 whatever the backbone's type.
        placement: prefix (as in the source), infix or suffix.

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
        """Return a prompt that starts from the embeddings of a text, repeated or cut to its length.

        Args:
            lm: the frozen model.
            text: the text.
            length: P, number of vectors of the prompt.
            placement: "prefix", "infix" (between evidence and question) or "suffix".
        """
        return cls(from_text(lm, text)(length), Placement(placement)).around(lm)

    @classmethod
    def from_vocabulary(
        cls, lm: FrozenLM, *, length: int = 16, placement: Placement | str = Placement.PREFIX, seed: int = 0
    ) -> Self:
        """Return a prompt that starts from embeddings of frequent tokens, drawn by the seed."""
        return cls(from_vocabulary(lm, seed)(length), Placement(placement)).around(lm)

    @property
    def length(self) -> int:
        """P, number of vectors of the prompt."""
        return self.prompt.shape[0]

    def program(self, given: ScaffoldInput, memory: Memory | None = None) -> Program:
        """Ask for one pass over the text with the prompt."""
        if memory is not None and memory.started:
            return (yield Pass(given.embeds, given.mask, memory.single))
        return (yield from pass_with_prompt(self.prompt.expand(given.embeds.shape[0], -1, -1), given, memory))

    def description(self) -> dict[str, Any]:
        """Return length and placement."""
        return {"length": self.length, "placement": self.placement.value}

    @classmethod
    def rebuilt(cls, description: Mapping[str, Any], lm: FrozenLM) -> Self:
        """Return a prompt of zeros of the same length and placement."""
        return cls(torch.zeros(description["length"], lm.width), Placement(description["placement"]))

    @classmethod
    def new(cls, config: SoftPromptConfig, lm: FrozenLM, *, seed: int = 0, data: TrainingData = NO_DATA) -> Self:
        """Return a prompt with the start that `config.init` names."""
        return cls(chosen(config, lm, seed, data)(config.length), config.placement).around(lm)

    @property
    def reads_before(self) -> bool:
        """Whether there is text before the prompt."""
        return self.length > 0 and self.placement is not Placement.PREFIX


def insert_prompt(
    prompt: Float[Tensor, "B P D"], text: Float[Tensor, "B T D"], slot: tuple[int, ...]
) -> tuple[Float[Tensor, "B P+T D"], Int[Tensor, "B T"]]:
    """Insert the prompt before text position `slot[b]` of each row.

    Returns:
        The rows with the prompt, and for each text position the column whose state predicts the next text position: its
        own column, and for the position just before the slot that of the last prompt vector.
    """
    rows, length, text_length = prompt.shape[0], prompt.shape[1], text.shape[1]
    both = torch.cat([prompt.to(text.dtype), text], dim=1)
    at = torch.tensor(slot, device=text.device)[:, None]
    positions = torch.arange(text_length, device=text.device).expand(rows, -1)
    predicting = positions + length * (positions + 1 >= at)
    if not any(slot):
        return both, predicting
    columns = torch.arange(length + text_length, device=text.device).expand(rows, -1)
    source = torch.where(columns < at, columns + length, torch.where(columns < at + length, columns - at, columns))
    return columns_of(both, source), predicting


def columns_of(rows: Float[Tensor, "B N D"], columns: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Return for each row these of its columns, whole vectors at a time (`gather` takes ten times as long)."""
    begins = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]
    return rows.flatten(0, 1).index_select(0, (begins + columns).flatten()).view(*columns.shape, -1)


def insert_in_mask(mask: Bool[Tensor, "B T"], length: int, slot: tuple[int, ...]) -> Bool[Tensor, "B P+T"]:
    """Return the mask of rows with the prompt inserted; prompt positions are True."""
    ones = torch.ones(mask.shape[0], length, 1, device=mask.device)
    return insert_prompt(ones, mask[..., None].to(ones.dtype), slot)[0][..., 0].bool()


def pass_with_prompt(prompt: Float[Tensor, "B P D"], given: ScaffoldInput, memory: Memory | None) -> Program:
    """Ask for one pass over the text with the prompt in its slot; return states as `Scaffold.program` does."""
    if given.before is not None:
        return (yield from _after_known_text(prompt, given, given.before))
    one = None if memory is None else memory.single
    if prompt.shape[1] == 0:
        return (yield Pass(given.embeds, given.mask, one))
    rows, predicting = insert_prompt(prompt, given.embeds, given.slot)
    mask = None if given.mask is None else insert_in_mask(given.mask, prompt.shape[1], given.slot)
    states = yield Pass(rows, mask, one, constant=min(given.slot, default=0))
    return columns_of(states, predicting)


def _after_known_text(prompt: Float[Tensor, "B P D"], given: ScaffoldInput, before: KeysValues) -> Program:
    """Ask for a pass over the prompt and the text after it; the states of the text before it are zeros."""
    slot, length = given.slot[0], prompt.shape[1]
    memory = PassMemory.holding(before, slot, None if given.mask is None else given.mask[:, :slot])
    rest = torch.cat([prompt.to(given.embeds.dtype), given.embeds[:, slot:]], dim=1)
    ones = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
    mask = None if given.mask is None else torch.cat([ones, given.mask[:, slot:]], dim=1)
    after = yield Pass(rest, mask, memory)
    # The position just before the slot gets the state of the last prompt vector, which predicts the next position.
    return torch.cat([torch.zeros_like(given.embeds[:, : slot - 1]), after[:, length - 1 :]], dim=1)
