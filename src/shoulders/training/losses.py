"""Examples and losses for the training of a scaffold, on a mixture of tasks or on plain text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from accelerate import PartialState
from jaxtyping import Int
from torch import Tensor, nn

from shoulders.backbone.caches import plain
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.placing import FSDP, TENSOR
from shoulders.data.mixture import Counts
from shoulders.engine.batches import EncodedQuestion, by_length, text_batch, training_batch
from shoulders.engine.precomputed import Contexts, StateStore, check_contexts, check_first_pass
from shoulders.errors import UsageError
from shoulders.records import Placement
from shoulders.scaffolds.base import Scaffold
from shoulders.training.distillation import Teacher
from shoulders.training.loop import LossOf
from shoulders.training.plan import EXAMPLES, TOKENS
from shoulders.training.stream import PackedText, Stream


@dataclass(frozen=True, slots=True)
class ExampleStep:
    """The examples of one step; the share of this process is divided into micro-batches of similar length."""

    parts: Sequence[Sequence[EncodedQuestion]]
    terms: int
    positions: int


@final
class ExampleSource:
    """A source of steps of `batch_size` examples from a stream.

    Every process draws the same examples and takes its share. The examples of a step are sorted by length into
    micro-batches, which saves padding and keeps the proportions of the mixture in every step.

    Args:
        average: what the loss is the mean over, as in `scaffold_loss`.
    """

    def __init__(
        self, stream: Stream, batch_size: int, positions_at_once: int, prompt_length: int, average: str = TOKENS
    ) -> None:
        _check_divides(stream.lm, batch_size)
        self.stream, self.batch_size, self.average = stream, batch_size, average
        self.positions_at_once, self.prompt_length = positions_at_once, prompt_length

    @property
    def position(self) -> int:
        """Number of the next example of the mixture."""
        return self.stream.position

    @position.setter
    def position(self, value: int) -> None:
        self.stream.position = value

    @property
    def counts(self) -> Counts:
        """Examples read and left out so far, by data set."""
        return self.stream.counts

    def step(self) -> ExampleStep:
        """Return the examples of the next step."""
        rows = sorted(self.stream.take(self.batch_size), key=self._cost)
        number, processes = _share(self.stream.lm)
        # In turns of one row for each process, so that all divide theirs into the same number of micro-batches.
        turns = [rows[start : start + processes] for start in range(0, len(rows), processes)]
        groups = by_length(turns, lambda turn: self._cost(turn[-1]), self.positions_at_once)
        parts = [[turn[number] for turn in group if number < len(turn)] for group in groups]
        parts = [part for part in parts if part]
        terms = len(rows) if self.average == EXAMPLES else sum(len(row.target) for row in rows)
        return ExampleStep(parts, terms, sum(len(part) * max(map(self._cost, part)) for part in parts))

    def _cost(self, row: EncodedQuestion) -> int:
        return row.length + self.prompt_length


def _share(lm: FrozenLM) -> tuple[int, int]:
    """Return which share of the examples this process takes, of how many; all where processes compute the same."""
    state = PartialState()
    return (0, 1) if lm.copies > 1 else (state.process_index, state.num_processes)


def scaffold_loss(
    lm: FrozenLM,
    scaffold: Scaffold,
    first_pass: StateStore | None = None,
    contexts: Contexts | None = None,
    *,
    teacher: Teacher | None = None,
    average: str = TOKENS,
) -> LossOf[Sequence[EncodedQuestion]]:
    """Return a function: the summed loss of the answers of a micro-batch, through scaffold and frozen model.

    Args:
        first_pass: store of the states of a recursion's first pass.
        contexts: store of the keys and values of the text before the prompt.
        teacher: whose answers are learned beside, or instead of, the targets; None for cross-entropy alone.
        average: "tokens" sums over tokens, "examples" over the mean of each example's tokens (`TrainPlan.average`).

    Raises:
        UsageError: stored states would change, because something trains before the end of the first pass, or before
            the prompt.
    """
    _check_shared(lm, scaffold, first_pass=first_pass is not None, contexts=contexts is not None)
    if first_pass is not None:
        check_first_pass(scaffold)
    if contexts is not None:
        check_contexts(scaffold)
    elif scaffold.reads_before and plain(lm.config) and lm.parallel != FSDP:
        contexts = Contexts(lm)

    def loss(module: nn.Module, rows: Sequence[EncodedQuestion]) -> Tensor:
        batch = training_batch(rows, lm, scaffold)
        given = batch.given
        if first_pass is not None:
            # Without a prompt all padding stands at the end, where stored rows have it too.
            given = replace(given, first=first_pass.states([row.ids + row.target[:-1] for row in rows]))
        if contexts is not None and given.slot[0] > 0:
            given = replace(given, before=contexts.read([row.ids[: row.slot(scaffold.placement)] for row in rows]))
        states = module(lm, given)
        losses = teacher.losses(states, batch.labels, rows) if teacher else lm.nll(states, batch.labels)
        if average == EXAMPLES:
            losses = losses / torch.tensor([len(row.target) for row in rows], device=losses.device)
        return losses.sum() / lm.copies

    return loss


def _check_divides(lm: FrozenLM, batch_size: int) -> None:
    """Raise `UsageError` where processes that gather each layer together would have unequal shares."""
    if lm.parallel != FSDP:
        return
    if batch_size % (processes := PartialState().num_processes):
        raise UsageError(
            f"training.batch_size is {batch_size}: with backbone.parallel=fsdp it must be a multiple of the number of "
            f"processes, {processes}"
        )


def _check_shared(lm: FrozenLM, scaffold: Scaffold, *, first_pass: bool, contexts: bool) -> None:
    """Raise `UsageError` for what is stored, or placed, as processes that share the weights cannot have it."""
    if lm.parallel == TENSOR and contexts:
        raise UsageError(
            "training.contexts keeps keys and values of all heads, and with backbone.parallel=tensor each process has "
            "some: leave it empty"
        )
    if lm.parallel == FSDP and (first_pass or contexts or scaffold.placement is Placement.INFIX):
        raise UsageError(
            "with backbone.parallel=fsdp all processes run each layer equally often, which stored states "
            "(training.contexts, training.first_pass) and an infix prompt, before which some texts have nothing, do "
            "not allow: leave them out, with scaffold.placement=prefix or suffix"
        )


@dataclass(frozen=True, slots=True)
class TextStep:
    """The sequences of one step; the share of this process is divided into micro-batches."""

    parts: Sequence[Int[Tensor, "B T"]]
    terms: int
    positions: int


@final
class TextSource:
    """A source of steps of `batch_size` sequences of packed text; every process draws the same and takes its share."""

    def __init__(self, text: PackedText, batch_size: int, positions_at_once: int, prompt_length: int) -> None:
        _check_divides(text.lm, batch_size)
        self.text, self.batch_size = text, batch_size
        self.length = text.length + prompt_length
        self.rows_at_once = max(1, positions_at_once // self.length)
        self.counts: Counts = {}

    @property
    def position(self) -> int:
        """Position in the text where the next sequence begins."""
        return self.text.position

    @position.setter
    def position(self, value: int) -> None:
        self.text.position = value

    def step(self) -> TextStep:
        """Return the examples of the next step."""
        number, processes = _share(self.text.lm)
        rows = [self.text.take() for _ in range(self.batch_size)][number::processes]
        parts = torch.tensor(rows).split(self.rows_at_once)
        return TextStep(parts, self.batch_size * (self.text.length - 1), len(rows) * self.length)


def language_loss(lm: FrozenLM, scaffold: Scaffold, first_pass: StateStore | None = None) -> LossOf[Int[Tensor, "B T"]]:
    """Return a function: the summed cross-entropy of all next tokens of a micro-batch, through scaffold and model.

    Args:
        first_pass: store of the states of a recursion's first pass.

    Raises:
        UsageError: the scaffold reads its whole input, and so the tokens to predict; or stored states would change,
            because something trains before the end of the first pass.
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
        return lm.nll(module(lm, given), batch.labels).sum() / lm.copies

    return loss
