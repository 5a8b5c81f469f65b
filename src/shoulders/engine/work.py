"""What a scheduler works on: requests, the rows that continue their texts, and the choice of each row's next token."""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.backbone.caches import Memory
from shoulders.backbone.choosing import pick
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.decode import Scored
from shoulders.engine.pool import Demand
from shoulders.engine.requests import Event, Finish, Request, Ticket
from shoulders.errors import RequestFailed, UsageError, first_line
from shoulders.scaffolds import program
from shoulders.scaffolds.program import Blocks, Encode, Pass, Program

SCORED_AT_ONCE = 8  # continuations of a text that are scored in a step, while others' rows wait


@dataclass(slots=True, eq=False)
class Work:
    """A request that is in the queue or worked on.

    Attributes:
        demand: what it asks of the pool.
        memory: keys and values of its text; a second row has its own, which begins as a copy.
        rows: rows that continue the text; none before it has been read.
        depth: number of layers of the frozen model.
        layers: number of layers that its passes went through.
        cached, read: see `Completed`.
        last: state of the last position of a text whose continuations are being scored.
        scores: those of the first continuations.
        ended: whether it has been answered or refused.
    """

    request: Request
    ticket: Ticket
    demand: Demand
    memory: Memory = field(default_factory=Memory)
    rows: "list[Row]" = field(default_factory=list)
    depth: int = 1
    layers: int = 0
    cached: int = 0
    read: int = 0
    last: Float[Tensor, "1 1 D"] | None = None
    scores: list[Scored] = field(default_factory=list)
    ended: bool = False

    @classmethod
    def of(cls, request: Request, ticket: Ticket, lm: FrozenLM) -> "Work":
        """Return the work of a request, with the memory that it needs."""
        scaffold, depth = request.scaffold, lm.config.num_hidden_layers
        columns = request.given.embeds.shape[1] + scaffold.length + request.room
        rows = min(len(request.continuations), SCORED_AT_ONCE) or request.count
        return cls(request, ticket, Demand(rows, columns, scaffold.kept_layers(depth)), depth=depth)

    @property
    def passes(self) -> int:
        """Number of passes through the frozen model; those through some of its layers round up together."""
        return -(-self.layers // self.depth)

    def forget(self) -> None:
        """Let go of all keys and values: rows and their work refer to each other, and nobody frees them at once."""
        self.memory = Memory()
        for row in self.rows:
            row.memory = Memory()

    def add_pass(self, asked: program.Request) -> None:
        """Count a pass of the frozen model."""
        part = asked.part if isinstance(asked, Pass) else None
        self.layers += part.end - part.begin if part else self.depth


@dataclass(slots=True, eq=False)
class Row:
    """One continuation of a text.

    Attributes:
        draws: numbers that decide its tokens; None for the likeliest ones.
        ids: its tokens so far, without the end token.
        uses: how often its program has used each stack in this step.
        finish: why it ended; None while it goes on.
    """

    work: Work
    branch: int
    memory: Memory
    draws: Float[Tensor, "L"] | None
    ids: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    log_probability: float = 0.0
    margin: float = math.inf
    uses: Counter[Hashable] = field(default_factory=Counter)
    finish: Finish | None = None


@dataclass(slots=True)
class Counts:
    """What a scheduler has done so far (`Stats`)."""

    steps: int = 0
    forwards: int = 0
    passes: int = 0
    tokens: int = 0
    finished: int = 0
    failed: int = 0
    hits: int = 0
    misses: int = 0
    labels: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Returned:
    """The states that a program returned at its end."""

    states: Float[Tensor, "1 T D"]


def resume(running: Program, result: Tensor | None, lm: FrozenLM) -> program.Request | Returned:
    """Send a program the result of its last request, None at the beginning; return its next request, or its states.

    Raises:
        UsageError: it asks for something that cannot share a batch.
    """
    try:
        asked = running.send(result)  # type: ignore[arg-type] (None starts it)
    except StopIteration as end:
        states = end.value
        _check_vectors("returned states", states, lm.width)
        return Returned(states)
    program.check_kind(asked)
    vectors = asked.states if isinstance(asked, Blocks) else asked.embeds
    width = lm.width
    if isinstance(asked, Encode):
        width = asked.encoder.width
    elif isinstance(asked, Pass) and asked.part:
        width = asked.part.width_in
    _check_vectors(f"asked for {type(asked).__name__} with vectors", vectors, width)
    return asked


def _check_vectors(what: str, vectors: object, width: int) -> None:
    shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
    if not isinstance(shape, tuple) or len(shape) != 3 or shape[0] != 1 or not shape[1] or shape[2] != width:
        raise UsageError(
            f"a scaffold's program {what} of shape {shape} for one row: it must be (1, positions, {width})"
        )


def failure(error: Exception) -> UsageError:
    """Return the error of a request whose scaffold raised an exception."""
    if isinstance(error, UsageError):
        return error
    failed = RequestFailed(f"the scaffold failed ({type(error).__name__}: {first_line(error)})")
    failed.__cause__ = error
    return failed


class Chosen(NamedTuple):
    """The next token of a row.

    Attributes:
        log_probability: under the model at temperature 1.
        lead: over the best other token, in log-probability.
        top: the likeliest tokens with their log-probabilities, as many as the row reports.
    """

    token: int
    log_probability: float
    lead: float
    top: tuple[tuple[int, float], ...]


def choose(logits: Float[Tensor, "M V"], rows: Sequence[Row], ends: Sequence[int]) -> list[Chosen]:
    """Return the next token of each row, from the logits of all, which change."""
    logits = logits.float()
    shares = logits.log_softmax(-1)
    _allow(logits, rows, ends)
    numbers = [number for number, row in enumerate(rows) if row.draws is not None]
    sampled = torch.tensor(numbers, device=logits.device) if numbers else None
    tokens, lead = pick(logits, sampled, *_draws([rows[number] for number in numbers], logits.device))
    own = shares.gather(1, tokens[:, None])[:, 0]
    return [Chosen(*one) for one in zip(tokens.tolist(), own.tolist(), lead.tolist(), _tops(shares, rows), strict=True)]


def _draws(rows: Sequence[Row], device: torch.device) -> Iterator[Tensor]:
    """Yield the draws of rows that are sampled, and their temperatures, top_k and top_p."""
    draws = [float(row.draws[len(row.ids)]) for row in rows if row.draws is not None]
    yield torch.tensor(draws, dtype=torch.float64, device=device)
    for name in ("temperature", "top_k", "top_p"):
        yield torch.tensor([getattr(row.work.request.sampling, name) for row in rows], device=device)


def _tops(shares: Float[Tensor, "M V"], rows: Sequence[Row]) -> list[tuple[tuple[int, float], ...]]:
    """Return the likeliest tokens of the rows that report some."""
    counts = [min(row.work.request.sampling.logprobs, shares.shape[1]) for row in rows]
    if not any(counts):
        return [()] * len(rows)
    best = shares.topk(max(counts))
    pairs = zip(best.indices.tolist(), best.values.tolist(), counts, strict=True)
    return [tuple(zip(tokens[:count], values[:count], strict=True)) for tokens, values, count in pairs]


def _allow(logits: Float[Tensor, "M V"], rows: Sequence[Row], ends: Sequence[int]) -> None:
    """Subtract penalties from the logits, and forbid end tokens where they may not be chosen yet."""
    for number, row in enumerate(rows):
        if row.work.request.sampling.penalises:
            _penalise(logits[number], row)
    early = [number for number, row in enumerate(rows) if len(row.ids) < row.work.request.shortest]
    if early:
        logits[torch.tensor(early)[:, None], torch.tensor(ends)] = -torch.inf


def _penalise(logits: Float[Tensor, "V"], row: Row) -> None:
    """Change the logits of tokens that were generated, or that the text has."""
    how, device = row.work.request.sampling, logits.device
    if how.repetition_penalty != 1.0 and (known := {*row.work.request.ids, *row.ids}):
        at = torch.tensor(sorted(known), device=device)
        some = logits[at]
        logits[at] = torch.where(some < 0, some * how.repetition_penalty, some / how.repetition_penalty)
    if row.ids:
        at, counts = torch.tensor(row.ids, device=device).unique(return_counts=True)
        logits[at] -= how.presence_penalty + how.frequency_penalty * counts
