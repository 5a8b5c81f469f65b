"""What a scaffold's training step reads, and its loss: on a mixture of tasks, or on plain text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from accelerate import PartialState
from jaxtyping import Int
from torch import Tensor, nn

from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import plain
from shoulders.data.mixture import Counts
from shoulders.engine.batches import Encoded, by_length, text_batch, training_batch
from shoulders.engine.precomputed import Contexts, StateStore, check_contexts, check_first_pass
from shoulders.errors import UsageError
from shoulders.scaffolds.base import Scaffold
from shoulders.training.loop import LossOf
from shoulders.training.stream import PackedText, Stream


@dataclass(frozen=True, slots=True)
class ExampleStep:
    """One step's examples, this process's share divided into micro-batches of similar length."""

    parts: Sequence[Sequence[Encoded]]
    terms: int
    positions: int


@final
class ExampleSource:
    """Steps of `batch_size` examples from a stream.

    Every process draws the same examples and takes its share. Examples of one step are sorted by length into
    micro-batches: nothing is spent on padding, and the mixture's proportions in a step are untouched.
    """

    def __init__(self, stream: Stream, batch_size: int, positions_at_once: int, prompt_length: int) -> None:
        self.stream, self.batch_size = stream, batch_size
        self.positions_at_once, self.prompt_length = positions_at_once, prompt_length

    @property
    def position(self) -> int:
        """Next example of the mixture."""
        return self.stream.position

    @position.setter
    def position(self, value: int) -> None:
        self.stream.position = value

    @property
    def counts(self) -> Counts:
        """Examples read and left out so far, by data set."""
        return self.stream.counts

    def step(self) -> ExampleStep:
        """The next step."""
        rows = self.stream.take(self.batch_size)
        state = PartialState()
        mine = sorted(rows, key=self._cost)[state.process_index :: state.num_processes]
        parts = list(by_length(mine, self._cost, self.positions_at_once))
        terms = sum(len(row.target) for row in rows)
        return ExampleStep(parts, terms, sum(len(part) * max(map(self._cost, part)) for part in parts))

    def _cost(self, row: Encoded) -> int:
        return row.length + self.prompt_length


def scaffold_loss(
    lm: FrozenLM, scaffold: Scaffold, first_pass: StateStore | None = None, contexts: Contexts | None = None
) -> LossOf[Sequence[Encoded]]:
    """The summed cross-entropy of a micro-batch's answers through the scaffold and the frozen model.

    Args:
        first_pass: where the states of a recursion's first pass are kept.
        contexts: where keys and values of the text before the prompt are kept.

    Raises:
        UsageError: one is asked for, and something trains before the first pass, or before the prompt.
    """
    if first_pass is not None:
        check_first_pass(scaffold)
    if contexts is not None:
        check_contexts(scaffold)
    elif scaffold.reads_before and plain(lm.config):
        contexts = Contexts(lm)

    def loss(module: nn.Module, rows: Sequence[Encoded]) -> Tensor:
        batch = training_batch(rows, lm, scaffold)
        given = batch.given
        if first_pass is not None:
            # Without a prompt all padding stands at the end, where stored rows have it too.
            given = replace(given, first=first_pass.states([row.ids + row.target[:-1] for row in rows]))
        if contexts is not None and given.slot[0] > 0:
            given = replace(given, before=contexts.read([row.ids[: row.slot(scaffold.placement)] for row in rows]))
        return lm.nll(module(lm, given), batch.labels).sum()

    return loss


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
