"""Frozen records that cross module borders.

Shape letters, one glossary for the whole project: B batch, T text positions, P prompt positions, S source positions
(what an encoder reads), D width of the language model, E width of the encoder, V vocabulary, C answer choices.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = -100  # label of a position that is not scored, as everywhere in Hugging Face


@dataclass(frozen=True, slots=True)
class Question:
    """What a user or an example asks: text that comes first (passages, candidates) and the question itself.

    Attributes:
        gold: ids of the documents that are annotated as holding the answer, where the data set says.
    """

    text: str
    evidence: str = ""
    gold: tuple[str, ...] = ()

    @property
    def whole(self) -> str:
        """The text the language model reads, evidence first."""
        return f"{self.evidence}{self.text}"


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a task seen through one template."""

    task: str
    template: str
    id: str
    question: Question
    target: str  # what training teaches
    references: tuple[str, ...]  # all answers that count as right; the target is among them
    choices: tuple[str, ...] | None = None  # closed set of answers, the target among them


@dataclass(frozen=True, slots=True)
class Tokens:
    """A padded batch of token ids."""

    ids: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"] | None = None  # False = padding; None: there is none

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on another device."""
        return Tokens(self.ids.to(device), None if self.mask is None else self.mask.to(device))


@dataclass(frozen=True, slots=True)
class KeysValues:
    """What the attention of one pass keeps of a batch of texts: keys and values (B, heads, positions, width) by layer.

    Rows end in one column, with zeros before the shorter ones. A layer whose window is shorter than the texts has the
    positions of its window only.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class LMInput:
    """What every scaffold is given: embedded text, where a prompt may go, and what its encoder reads.

    `mask` is None when padding, if there is any, stands only at the end of rows: a causal model never sees it there, so
    the backbone needs no mask at all. `slot` holds one column per row: a prompt is placed before that text position,
    and padding never lies between the two. `source` is what an input-dependent scaffold's encoder reads. `first` are
    the final states of the bare model's pass over `embeds`, and `before` its keys and values of the text before the
    slot (one column for all rows), where they are known already.
    """

    embeds: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None = None
    slot: tuple[int, ...] = ()
    source: Tokens | None = None
    first: Float[Tensor, "B T D"] | None = None
    before: KeysValues | None = None

    def continued(self, embeds: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None) -> "LMInput":
        """The next positions of a sequence whose beginning is in a memory already."""
        return replace(self, embeds=embeds, mask=mask, source=None, first=None, before=None)


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of training examples."""

    given: LMInput
    labels: Int[Tensor, "B T"]  # the token to be predicted at each text position; IGNORE where none is scored
