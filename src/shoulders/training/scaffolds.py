"""Training a scaffold on a mixture: what a step reads and what its loss is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from accelerate import PartialState
from torch import Tensor, nn

from shoulders.backbone.contexts import Contexts
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.memory import plain
from shoulders.backbone.states import StateStore
from shoulders.data.batching import Encoded, Stream, by_length, training_batch
from shoulders.data.counts import Counts
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.contexts import check_contexts, check_first_pass
from shoulders.training.loop import LossOf


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
