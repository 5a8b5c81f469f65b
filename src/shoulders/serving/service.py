"""What the routes of a server share, and text from the engine: requests in, pieces of text out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar, final

import torch

from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import EncodedQuestion, question_batch
from shoulders.engine.inference import Engine
from shoulders.engine.requests import Completed, Event, Request, Stats, Ticket
from shoulders.engine.scheduler import compute_on
from shoulders.serving.config import ServerConfig
from shoulders.serving.http import About, ApiError
from shoulders.serving.metrics import Metrics
from shoulders.serving.models import Models, ServedModel
from shoulders.serving.uploads import Uploads

Result = TypeVar("Result")

CORES = torch.get_num_threads()  # of what computes; the engine's thread, and threads that end
THREADS = 16  # of answers that read evidence, choose, or go through several stages; they mostly wait for the engine
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no whole character yet are decoded as


def in_ending_thread(call: Callable[..., Result], *given: Any) -> Result:
    """Run a function that computes in a thread of its own, which ends; return its result.

    A thread that computes on several cores keeps workers of its own (OpenMP). While those of one thread are all that
    there are, they wait actively for its next product; those of two threads sleep instead, and each small product of
    the engine, such as a step of a decode of one row, then waits for them to wake up.
    """
    future: Future[Result] = Future()

    def run() -> None:
        compute_on(CORES)
        try:
            future.set_result(call(*given))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()  # a daemon, so that Ctrl-C ends a long loading
    return future.result()


def _answering_threads() -> ThreadPoolExecutor:
    """Return threads that leave the cores to the engine (`in_ending_thread`)."""
    return ThreadPoolExecutor(THREADS, "answer", initializer=compute_on, initargs=(1,))


class ServingEngine(Protocol):
    """What a server needs of an engine, such as the scheduler."""

    def submit(self, request: Request) -> Ticket:
        """Put a request into the queue; return its ticket."""
        ...

    def bound(self, *, deadline: float | None, label: str, on_ticket: Callable[[Ticket], object]) -> Engine:
        """Return an engine of the requests of one client (`engine.requests.Submitting.bound`)."""
        ...

    def stats(self) -> Stats:
        """Return counts and sizes."""
        ...

    def start(self) -> Any:
        """Begin to run requests."""
        ...

    def check_runs(self) -> None:
        """Raise `UsageError` if nothing runs the requests."""
        ...

    def stop(self, finish: bool = True) -> None:
        """Take no more requests, and end what was taken."""
        ...


@final
@dataclass(frozen=True, slots=True)
class TokenLog:
    """A generated token with its log-probability, and those of the likeliest tokens in its place."""

    token: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of one of the texts that a request generates.

    Attributes:
        index: number of the text.
        text: whole characters; may be empty.
        tokens: the tokens that it is made of.
        finish: why the text ends here, "stop" or "length"; "" if it goes on.
    """

    index: int
    text: str
    tokens: tuple[TokenLog, ...] = ()
    finish: str = ""


@final
class GrowingText:
    """A text that grows by tokens and is passed on in whole characters, without the stop texts that end it.

    Args:
        lm: has the tokenizer.
        index: number of the text.
        stops: the stop texts.
        whole: pass it on at its end; its tokens are then decoded together, unless a stop text may end it before.
    """

    def __init__(self, lm: FrozenLM, index: int, stops: Sequence[str], *, whole: bool = False) -> None:
        self._lm, self._index, self._stops, self._whole = lm, index, tuple(stops), whole
        self._ids: list[int] = []
        self._begin = self._read = 0  # tokens from `begin` on are decoded; the text holds those before `read`
        self._text, self._sent = "", 0
        self._held: list[tuple[int, TokenLog]] = []  # tokens that were not passed on, and where in the text they begin
        self._stopped = False

    def add(self, event: Event) -> Piece | None:
        """Return what a token adds to the text that was passed on; None if that is nothing yet."""
        if event.token is None or self._stopped:
            return None
        self._held.append((len(self._text), TokenLog(event.token, event.log_probability, event.top)))
        self._ids.append(event.token)
        if self._whole and not self._stops:
            return None
        self._decode(whole=True)
        found = [place for stop in self._stops if (place := self._text.find(stop, self._sent)) >= 0]
        if found:
            self._stopped = True
            return self._passed_on(min(found))
        return self._passed_on(len(self._text) - self._kept_back())

    def end(self, finish: str) -> Piece:
        """Return the rest of the text, which ends for this reason."""
        if not self._stopped:
            self._decode(whole=False)
        rest = self._passed_on(len(self._text), everything=True) if not self._stopped else None
        return Piece(self._index, rest.text if rest else "", rest.tokens if rest else (), finish)

    def _decode(self, *, whole: bool) -> None:
        """Add the newest tokens to the text, unless they end within a character and only whole ones are wanted."""
        # Decoding the last few tokens with and without the newest costs the same for any length of the text.
        before = self._lm.text(self._ids[self._begin : self._read])
        now = self._lm.text(self._ids[self._begin :])
        if whole and now.endswith(INCOMPLETE):
            return
        self._text += now[len(before) :]
        self._begin, self._read = self._read, len(self._ids)

    def _kept_back(self) -> int:
        """Return the length of the longest end of the text with which a stop text may begin."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        lengths = range(min(longest, len(self._text) - self._sent), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._text[-n:]) for stop in self._stops)), 0)

    def _passed_on(self, until: int, *, everything: bool = False) -> Piece | None:
        """Return the text up to a place that was not passed on yet, with its tokens."""
        ready = [log for start, log in self._held if everything or start < until]
        text = self._text[self._sent : max(self._sent, until)]
        if not text and not (everything and ready):
            return None
        self._held = [] if everything else [(start, log) for start, log in self._held if start >= until]
        self._sent = max(self._sent, until)
        return Piece(self._index, text, tuple(ready))


@final
@dataclass(slots=True)
class Usage:
    """What a request has used.

    Attributes:
        prompt: tokens of its texts, without prompt vectors.
        generated: tokens generated.
        cached: positions whose keys and values were there already.
        forwards: passes of its rows through the frozen model.
        passes: passes for each text.
        results: what the engine returned for each text.
    """

    prompt: int = 0
    generated: int = 0
    cached: int = 0
    forwards: int = 0
    passes: int = 0
    results: list[Completed] = field(default_factory=list)

    def add(self, completed: Completed) -> None:
        """Add what one of its texts has used."""
        self.results.append(completed)
        self.cached += completed.cached
        self.forwards += completed.passes

    def as_json(self) -> dict[str, Any]:
        """Return OpenAI's `usage`, and passes through the frozen model."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": min(self.cached, self.prompt)},
            "lm_passes": self.passes,
            "lm_forwards": self.forwards,
        }


@final
class CallsIntoLoop:
    """Calls from the engine's thread that an event loop runs.

    The loop is woken once for all calls that come before it has run them, such as those of a step. Each time that it is
    woken, the engine's thread may have to wait for Python's lock.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: list[Callable[[], object]] = []

    def post(self, loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
        """Let the loop of the server run a call soon; after the server has stopped, never."""
        with self._lock:
            if loop is not self._loop:
                self._loop, self._calls = loop, []
            self._calls.append(call)
            first = len(self._calls) == 1
        if first:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
        for call in calls:
            call()


@final
@dataclass(slots=True)
class Service:
    """What the routes of a server share.

    Attributes:
        lm: the backbone.
        engine: runs passes of all requests.
        models: what is served.
        config: the bounds.
        metrics: what is measured.
        uploads: documents that clients uploaded.
        stopping: whether the server is about to stop.
    """

    lm: FrozenLM
    engine: ServingEngine
    models: Models
    config: ServerConfig
    metrics: Metrics = field(init=False)
    uploads: Uploads = field(init=False)
    stopping: bool = False
    _calls: CallsIntoLoop = field(default_factory=CallsIntoLoop)
    _answers: ThreadPoolExecutor = field(default_factory=_answering_threads)
    _heavy: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encode"))
    _in_threads: int = 0

    def __post_init__(self) -> None:
        def scaffolds() -> tuple[int, int]:
            return len(self.models), sum(served.size for served in self.models)

        self.metrics = Metrics(self.engine.stats, scaffolds)
        self.uploads = Uploads(self.config)

    def submit(self, about: About, request: Request) -> Ticket:
        """Pass a request to the engine; it is cancelled when the request of the client ends before it."""
        ticket = self.engine.submit(request)
        about.at_end.callback(ticket.cancel)
        return ticket

    def bound(self, about: About) -> Engine:
        """Return the engine for the answerer of a request, whose passes end with the request."""
        return self.engine.bound(
            deadline=self.deadline(about),
            label=about.model,
            on_ticket=lambda ticket: about.at_end.callback(ticket.cancel),
        )

    def deadline(self, about: About) -> float:
        """Return the monotonic time at which a request is given up."""
        return about.started + self.config.deadline

    def overloaded(self, what: str) -> ApiError:
        """Return the error of a request that finds the queue full."""
        wait = self.metrics.mean_seconds * (1 + self.engine.stats().waiting / 8)
        return ApiError(429, f"{what}: try again later (Retry-After)", code="queue_full", retry_after=max(1, wait))

    async def in_thread(self, call: Callable[..., Result], *given: Any, heavy: bool = False) -> Result:
        """Run a function that blocks in one of the server's threads.

        Args:
            call: the function.
            given: its arguments.
            heavy: it computes by itself; such functions run one after the other.

        Raises:
            ApiError: as many wait as the queue holds.
        """
        if self._in_threads >= self.config.queue + THREADS:
            raise self.overloaded(f"{self._in_threads} requests wait for a thread")
        job = [partial(in_ending_thread, call, *given) if heavy else partial(call, *given)]
        pool = self._heavy if heavy else self._answers
        self._in_threads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, lambda: job.pop()())
        finally:
            job.clear()  # if the client has left: the pool keeps what it has not begun, and `given` may be large
            self._in_threads -= 1

    async def pieces(
        self, about: About, requests: Sequence[Request], usage: Usage, *, streamed: bool = True
    ) -> AsyncIterator[Piece]:
        """Yield the texts of several requests in pieces; add up what they use.

        Args:
            about: the request of the client.
            requests: those of the engine.
            usage: what they use so far.
            streamed: yield pieces as they are generated; otherwise the texts of each request at its end.

        Raises:
            TimeoutError: the deadline of the request has passed.
            UsageError: the engine refuses or fails.
        """
        texts: dict[int, GrowingText] = {}
        async for number, event in self._events(about, requests, usage, streamed=streamed):
            index, stops = number * requests[number].count + event.branch, requests[number].stops
            text = texts.setdefault(index, GrowingText(self.lm, index, stops, whole=not streamed))
            usage.generated += event.token is not None
            about.generated_tokens += event.token is not None
            if (piece := text.add(event) if event.finish is None else text.end(_finish(event))) is not None:
                yield piece

    async def _events(
        self, about: About, requests: Sequence[Request], usage: Usage, *, streamed: bool
    ) -> AsyncIterator[tuple[int, Event]]:
        """Yield the events of several requests with the number of the request (`pieces`)."""
        queue: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def pass_on(number: int, event: Event | None) -> None:
            if event is not None:
                self.metrics.first_token(about)
            if streamed or event is None:
                self._calls.post(loop, partial(queue.put_nowait, (number, event)))

        tickets = [self.submit(about, request) for request in requests]
        for number, ticket in enumerate(tickets):
            ticket.on_event(partial(pass_on, number))
        running = len(tickets)
        while running:
            async with asyncio.timeout_at(about.deadline):
                number, event = await queue.get()
            if event is not None:
                yield number, event
                continue
            running -= 1
            done = tickets[number].result()
            usage.add(done)
            for one in [] if streamed else done.events:
                yield number, one

    def request(self, served: ServedModel, row: EncodedQuestion, longest: int, about: About, **how: Any) -> Request:
        """Return the engine's request for a text.

        Args:
            served: the model, which has a scaffold.
            row: the text as token ids.
            longest: largest number of tokens to generate.
            about: the request of the client.
            how: further fields of the engine's `Request`.

        Raises:
            ContextFull: text, prompt and room for the answer do not fit the context.
        """
        assert served.scaffold is not None  # of every model that generates
        wanted = len(row.ids) + served.scaffold.length + longest
        self.lm.check_room(
            f"a text of {len(row.ids)} tokens with a prompt of {served.scaffold.length} and {longest} to generate",
            wanted,
            "shorten the text, or lower max_tokens",
        )
        return Request(
            scaffold=served.scaffold,
            given=question_batch([row], self.lm, served.scaffold),
            ids=tuple(row.ids),
            longest=longest,
            deadline=self.deadline(about),
            label=served.name,
            **how,
        )

    def start(self) -> None:
        """Begin to run requests; the thread that calls this leaves the cores to the engine from now on."""
        self.engine.start()
        compute_on(1)

    def stop(self) -> None:
        """Run what was taken to its end, and stop."""
        self.stopping = True
        self.engine.stop(finish=True)
        compute_on(CORES)
        self._answers.shutdown(wait=False, cancel_futures=True)
        self._heavy.shutdown(wait=False, cancel_futures=True)
        self.uploads.close()


def _finish(event: Event) -> str:
    """Return why a text ended, in OpenAI's words."""
    if event.finish == "deadline":
        raise TimeoutError
    if event.finish == "cancelled":
        raise ApiError(
            503, "the server stopped before the answer was complete: ask again", code="stopped", retry_after=5
        )
    return str(event.finish)
