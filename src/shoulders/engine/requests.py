"""Requests to a scheduler, the tickets that are given out for them, and what comes back."""

import math
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.backbone.choosing import Generated, check_sampling
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine import decode
from shoulders.engine.batches import rows_of
from shoulders.engine.decode import Scored
from shoulders.errors import Stopped, UsageError
from shoulders.records import ScaffoldInput
from shoulders.scaffolds.base import Scaffold

Finish = Literal["stop", "length", "deadline", "cancelled"]
SEEDS = 1 << 63  # seeds are whole numbers below this, either sign


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How the tokens of one request are chosen.

    Attributes:
        temperature: 0 chooses the likeliest tokens; 1 samples the model's own distribution.
        top_k: sample among this many of the likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens whose probabilities add up to this.
        seed: decides the sample, whatever else runs; None for a random one.
        presence_penalty: subtracted from the logits of tokens that were generated before.
        frequency_penalty: subtracted from the logit of a token each time that it was generated.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens of the text or generated.
        logprobs: number of likeliest tokens to report beside each token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int = 0

    def __post_init__(self) -> None:
        check_sampling(1.0 if self.temperature == 0 else self.temperature, self.top_k, self.top_p)
        if self.seed is not None and not -SEEDS < self.seed < SEEDS:
            raise UsageError(f"seed must be between -2^63 and 2^63, got {self.seed}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} must be a number, got {getattr(self, name)}: 0 is none")
        if not 0 < self.repetition_penalty < math.inf:
            raise UsageError(f"repetition_penalty must be above 0, got {self.repetition_penalty}: 1 is none")
        if self.logprobs < 0:
            raise UsageError(f"logprobs must be at least 0, got {self.logprobs}: 0 reports none")

    @property
    def penalises(self) -> bool:
        """Whether any penalty changes logits."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A text to continue, or continuations of it to score, through one scaffold.

    Attributes:
        scaffold: the scaffold, on the device of the frozen model.
        given: a single row (`engine.batches.question_batch`, `rows_of`).
        ids: token ids of the text, which a repetition penalty counts.
        longest: largest number of tokens to generate.
        shortest: number of tokens before an end token may be chosen.
        stops: texts that end a row once they have been generated; they stay in its tokens.
        count: number of continuations, which share one reading of the text.
        sampling: how tokens are chosen.
        draws: numbers uniform on [0, 1) that decide each sample, instead of a seed.
        deadline: time (`time.monotonic`) at which the request ends with what it has.
        continuations: token ids of continuations to score; if there are any, nothing is generated.
        label: name of its count in the statistics; it decides nothing.
    """

    scaffold: Scaffold
    given: ScaffoldInput
    ids: tuple[int, ...] = ()
    longest: int = 1
    shortest: int = 0
    stops: tuple[str, ...] = ()
    count: int = 1
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    draws: Float[Tensor, "N L"] | None = None
    deadline: float | None = None
    continuations: tuple[tuple[int, ...], ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        rows, columns = self.given.embeds.shape[:2]
        if rows != 1 or (self.given.mask is not None and not bool(self.given.mask.all())):
            raise UsageError(f"a request is one row without padding, got {rows}: make one for each (rows_of)")
        if not columns:
            raise UsageError("there is no token to continue: give a text, if only the model's beginning token")
        if isinstance(self.stops, str) or not all(self.stops):
            raise UsageError(f"the stop texts are {self.stops!r:.80}: give a list of texts, none of them empty")
        if self.longest < 1 or self.count < 1:
            raise UsageError(f"longest and count must be at least 1, got {self.longest} and {self.count}")
        if self.draws is not None and not self.sampling.temperature:
            raise UsageError("draws sample tokens, and temperature 0 chooses the likeliest ones: set a temperature")
        if self.draws is not None and self.draws.shape != (self.count, self.longest):
            wanted, found = (self.count, self.longest), tuple(self.draws.shape)
            raise UsageError(f"the draws have shape {found}: give one for each continuation and token, {wanted}")
        if not all(self.continuations):
            raise UsageError("a continuation to score has no token: give each at least one")

    @property
    def room(self) -> int:
        """Number of positions after the text and the prompt."""
        return max(map(len, self.continuations)) if self.continuations else self.longest

    def numbers(self) -> Float[Tensor, "N L"] | None:
        """Return the numbers that decide the samples; None for the likeliest tokens."""
        if self.draws is not None or not self.sampling.temperature:
            return self.draws
        seed = secrets.randbelow(SEEDS) if self.sampling.seed is None else self.sampling.seed
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.count, self.longest, generator=generator, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Event:
    """A token that was generated, or the end of a continuation.

    Attributes:
        branch: number of the continuation.
        token: the token; None at the end. An end token is no token of the text.
        log_probability: of the token, or of the end token, under the model at temperature 1 without penalties; 0 if
            neither was chosen.
        top: the likeliest tokens with their log-probabilities.
        finish: why the continuation ends; None if it does not.
    """

    branch: int
    token: int | None
    log_probability: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Branch(Generated):
    """One continuation of a text.

    Attributes:
        finish: why it ended: "stop" (an end token or a stop text), "length", "deadline" or "cancelled".
        events: its tokens and its end, as they were reported.
    """

    finish: Finish
    events: tuple[Event, ...]

    @property
    def generated(self) -> Generated:
        """Its tokens alone."""
        return Generated(self.ids, self.log_probability, self.margin)


@dataclass(frozen=True, slots=True)
class Completed:
    """The result of a request.

    Attributes:
        branches: the continuations that were generated.
        scores: the scores of the continuations that were given.
        passes: passes through the frozen model, of all rows together; reading the text is one for each of its passes.
        cached: columns of the text and the prompt that had been read before, in the first pass.
        read: columns of the text and the prompt, in the first pass.
    """

    branches: tuple[Branch, ...]
    scores: tuple[Scored, ...]
    passes: int
    cached: int
    read: int

    @property
    def events(self) -> list[Event]:
        """The events of all continuations, one continuation after the other."""
        return [event for branch in self.branches for event in branch.events]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of a scheduler since it was made, and sizes as they are.

    Attributes:
        running, waiting: requests that are worked on, and that are in the queue.
        steps: steps.
        forwards: forwards of the frozen model, each shared by several rows.
        passes: rows of these forwards.
        tokens: tokens generated.
        finished, failed: requests that ended, and those whose scaffold failed.
        memory_bytes, used_bytes: the bound of the pool, and what rows and texts take of it.
        cache_bytes: size of the texts that have been read.
        hits, misses: columns of texts and prompts that had been read before, and that were read.
        labels: number of requests that ended, by label.
    """

    running: int
    waiting: int
    steps: int
    forwards: int
    passes: int
    tokens: int
    finished: int
    failed: int
    memory_bytes: int
    used_bytes: int
    cache_bytes: int
    hits: int
    misses: int
    labels: Mapping[str, int]


@final
class Ticket:
    """The place of a request in a scheduler, from which its tokens and its result are taken.

    Iterating yields events as they come. There is one reader: either an iteration or `on_event`.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = Condition()
        self._events: deque[Event] = deque()
        self._listener: Callable[[Event | None], None] | None = None
        self._result: Completed | None = None
        self._error: Exception | None = None
        self.cancelled = self.stopped = False  # what the scheduler is to do

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._result is not None or self._error is not None

    def __iter__(self) -> Iterator[Event]:
        """Yield events as they come; at the end raise the error, if the request failed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self.done)
                event = self._events.popleft() if self._events else None
            if event is None:
                break
            yield event
        self.result()

    def on_event(self, listener: Callable[[Event | None], None]) -> None:
        """Call a function with each event, those so far at once, and with None at the end.

        It is called in the scheduler's thread and must return at once; if it raises, the request is cancelled.
        """
        with self._changed:
            self._listener = listener
            while self._events:
                self._tell(self._events.popleft())
            if self.done:
                self._tell(None)

    def result(self, timeout: float | None = None) -> Completed:
        """Return the result, as soon as there is one; after `cancel`, what had been generated.

        Raises:
            RequestFailed: its scaffold failed.
            Stopped: the scheduler was stopped first.
            TimeoutError: there is none after so many seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"the request has not ended after {timeout} seconds")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def cancel(self) -> None:
        """End the request; its rows are free in the next step."""
        self.cancelled = True
        self._wake()

    def report(self, event: Event) -> None:
        """Pass an event on (the scheduler does)."""
        with self._changed:
            if self._listener is None:
                self._events.append(event)
                self._changed.notify_all()
            else:
                self._tell(event)

    def end(self, result: Completed | Exception) -> None:
        """Set the result or the error (the scheduler does)."""
        with self._changed:
            if isinstance(result, Exception):
                self._error = result
            else:
                self._result = result
            self._changed.notify_all()
            self._tell(None)

    def _tell(self, event: Event | None) -> None:
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:  # whoever listened is gone, and the other requests go on
            self.cancelled = True


class Submitting(ABC):
    """What takes requests, as an `engine.inference.Engine` for threads that wait for their answers.

    Attributes:
        lm: the frozen model; what asks another one is run in its own thread.
        rows: largest number of continuations of one request.
    """

    lm: FrozenLM
    rows: int

    @abstractmethod
    def submit(self, request: Request, *, wait: bool = False) -> Ticket:
        """Put a request into the queue; return its ticket.

        Args:
            request: the request.
            wait: wait for a place if the queue is full.
        """

    @abstractmethod
    def check_runs(self) -> None:
        """Raise `UsageError` if nothing runs the requests, so that their threads would wait for ever."""

    def bound(
        self, *, deadline: float | None, label: str, on_ticket: Callable[[Ticket], object] = lambda _: None
    ) -> "Submitting":
        """Return an engine of the requests of one client.

        Args:
            deadline, label: of each request (`Request`).
            on_ticket: called with the ticket of each request, for example to cancel it later.
        """
        return _Bound(self, deadline, label, on_ticket)

    def likeliest(
        self, lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, *, longest: int, stops: Sequence[str] = ()
    ) -> list[Generated]:
        """Return the greedy continuation of each row (`decode.likeliest`)."""
        if lm is not self.lm:
            return decode.likeliest(lm, scaffold, given, longest=longest, stops=stops)
        asked = [Request(scaffold=scaffold, given=row, longest=longest, stops=tuple(stops)) for row in rows_of(given)]
        return [done.branches[0].generated for done in self._ask(asked)]

    def sampled(
        self,
        lm: FrozenLM,
        scaffold: Scaffold,
        given: ScaffoldInput,
        draws: Float[Tensor, "B N L"],
        *,
        temperature: float = 1.0,
        stops: Sequence[str] = (),
    ) -> list[list[Generated]]:
        """Return N continuations of each row of at most L tokens (`decode.sampled`)."""
        if lm is not self.lm:
            return decode.sampled(lm, scaffold, given, draws, temperature=temperature, stops=stops)
        settings: dict[str, Any] = {"sampling": SamplingParameters(temperature=temperature), "stops": tuple(stops)}
        asked = [
            Request(scaffold=scaffold, given=row, longest=len(one[0]), count=len(some), draws=some, **settings)
            for row, one in zip(rows_of(given), draws, strict=True)
            for some in one.split(self.rows)
        ]
        found = iter([branch.generated for done in self._ask(asked) for branch in done.branches])
        return [[next(found) for _ in one] for one in draws]

    def score(
        self,
        lm: FrozenLM,
        scaffold: Scaffold,
        given: ScaffoldInput,
        continuations: Sequence[Sequence[list[int]]],
        *,
        positions_at_once: int = 1 << 30,
    ) -> list[list[Scored]]:
        """Return the log-likelihood of each row's continuations (`decode.score`)."""
        if lm is not self.lm:
            return decode.score(lm, scaffold, given, continuations, positions_at_once=positions_at_once)
        asked = [
            Request(scaffold=scaffold, given=row, continuations=tuple(map(tuple, some)))
            for row, some in zip(rows_of(given), continuations, strict=True)
        ]
        return [list(done.scores) for done in self._ask(asked)]

    def stream(
        self, lm: FrozenLM, scaffold: Scaffold, given: ScaffoldInput, *, longest: int, stops: Sequence[str] = ()
    ) -> Iterator[str]:
        """Yield the text generated after a single row in pieces (`decode.stream`)."""
        if lm is not self.lm:
            yield from decode.stream(lm, scaffold, given, longest=longest, stops=stops)
            return
        (row,) = rows_of(given)
        self.check_runs()
        ticket = self.submit(Request(scaffold=scaffold, given=row, longest=longest, stops=tuple(stops)))
        try:
            yield from decode.pieces(lm, _growing(ticket))
            _whole(ticket)
        finally:
            ticket.cancel()

    def _ask(self, requests: Sequence[Request]) -> list[Completed]:
        """Return the results of requests; only the first has to find a place in the queue at once.

        Raises:
            Stopped: one of them was cancelled.
            TimeoutError: the deadline of one of them has passed.
        """
        self.check_runs()
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self.submit(request, wait=bool(tickets)))
            return [_whole(ticket) for ticket in tickets]
        finally:
            for ticket in tickets:
                ticket.cancel()


@final
class _Bound(Submitting):
    """The requests of one client to an engine."""

    def __init__(
        self, engine: Submitting, deadline: float | None, label: str, on_ticket: Callable[[Ticket], object]
    ) -> None:
        self.lm, self.rows = engine.lm, engine.rows
        self._engine, self._deadline, self._label, self._on_ticket = engine, deadline, label, on_ticket

    def submit(self, request: Request, *, wait: bool = False) -> Ticket:
        ticket = self._engine.submit(replace(request, deadline=self._deadline, label=self._label), wait=wait)
        self._on_ticket(ticket)
        return ticket

    def check_runs(self) -> None:
        self._engine.check_runs()


def _whole(ticket: Ticket) -> Completed:
    """Return the result of a request that was answered to its end."""
    done = ticket.result()
    finishes = {branch.finish for branch in done.branches}
    if "deadline" in finishes:
        raise TimeoutError("the deadline of the request has passed")
    if "cancelled" in finishes or not (done.branches or done.scores):
        raise Stopped("the request was cancelled before it was answered")
    return done


def _growing(ticket: Ticket) -> Iterator[list[int]]:
    """Yield the tokens of a request's only continuation so far, after each."""
    ids: list[int] = []
    for event in ticket:
        if event.token is not None:
            ids.append(event.token)
            yield ids
