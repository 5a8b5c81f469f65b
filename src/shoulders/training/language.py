"""Language modelling: what a Connector is pretrained on before it is trained on a task (the paper, section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from accelerate import PartialState
from jaxtyping import Int
from torch import Tensor, nn

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.states import StateStore
from shoulders.data.counts import Counts
from shoulders.data.text import PackedText, text_batch
from shoulders.errors import UsageError
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.contexts import check_first_pass
from shoulders.training.loop import LossOf


@dataclass(frozen=True, slots=True)
class TextStep:
    """One step's sequences, this process's share divided into micro-batches."""

    parts: Sequence[Int[Tensor, "B T"]]
    terms: int
    positions: int


@final
class TextSource:
    """Steps of `batch_size` sequences of a packed text. Every process draws the same ones and takes its share."""

    def __init__(self, text: PackedText, batch_size: int, positions_at_once: int, prompt_length: int) -> None:
        self.text, self.batch_size = text, batch_size
        self.length = text.length + prompt_length
        self.rows_at_once = max(1, positions_at_once // self.length)
        self.counts: Counts = {}

    @property
    def position(self) -> int:
        """Where the next sequence begins."""
        return self.text.position

    @position.setter
    def position(self, value: int) -> None:
        self.text.position = value

    def step(self) -> TextStep:
        """The next step."""
        state = PartialState()
        rows = [self.text.take() for _ in range(self.batch_size)][state.process_index :: state.num_processes]
        parts = torch.tensor(rows).split(self.rows_at_once)
        return TextStep(parts, self.batch_size * (self.text.length - 1), len(rows) * self.length)


def language_loss(lm: FrozenLM, scaffold: Scaffold, first_pass: StateStore | None = None) -> LossOf[Int[Tensor, "B T"]]:
    """The summed cross-entropy of every next token of a micro-batch, through the scaffold and the frozen model.

    Args:
        first_pass: where the states of a recursion's first pass are kept.

    Raises:
        UsageError: the scaffold reads its input as a whole, and so what it is to predict; or stored states are asked
            for, and something trains before the first pass ends.
    """
    if scaffold.encoder is not None:
        raise UsageError(
            "an input-dependent prompt would read the text that it is to predict: pretrain with scaffold.inner=bare or "
            "soft_prompt"
        )
    if first_pass is not None:
        check_first_pass(scaffold)

    def loss(module: nn.Module, ids: Int[Tensor, "B T"]) -> Tensor:
        batch = text_batch(ids, lm)
        given = batch.given
        if first_pass is not None:
            given = replace(given, first=first_pass.states(ids[:, :-1].tolist()))
        return lm.nll(module(lm, given), batch.labels).sum()

    return loss
