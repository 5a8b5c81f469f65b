"""The scheduler: requests of many scaffolds around one frozen model, which share its forwards from step to step.

In each step, every row that continues a text runs its scaffold's program for one token, and texts that have yet to be
read are read up to a number of columns (`reading`). Rows join and leave between steps; the `pool` has their keys and
values. What a row generates is what it generates alone.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields
from threading import Condition, Thread
from typing import Self, final

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.backbone.banks import Bank, fits
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.passes import StackInput
from shoulders.engine import decode
from shoulders.engine.pool import Pool
from shoulders.engine.reading import Reader
from shoulders.engine.requests import (
    Branch,
    Completed,
    Event,
    Finish,
    Request,
    Stats,
    Submitting,
    Ticket,
)
from shoulders.engine.work import SCORED_AT_ONCE, Chosen, Counts, Returned, Row, Work, choose, failure, resume
from shoulders.errors import PoolTooSmall, QueueFull, RequestFailed, Stopped, UsageError
from shoulders.scaffolds.program import Blocks, Encode, Pass, Program, fulfil

log = logging.getLogger("shoulders.engine")

ALONE = 8  # times as many columns are read in a step while no row is continued, or one for many that wait


def compute_on(cores: int) -> None:
    """Let the calling thread compute on so many cores."""
    torch.get_num_threads()  # a thread's first question or product sets the number that was set last in any thread
    torch.set_num_threads(cores)


@final
class Scheduler(Submitting):
    """Runs requests around one frozen model, from any number of threads.

    >>> with Scheduler(lm) as scheduler:  # doctest: +SKIP
    ...     ticket = scheduler.submit(Request(scaffold=scaffold, given=given, longest=64))
    ...     for event in ticket: ...

    It is an `engine.inference.Engine`, too (`Submitting`): whatever asks the model can go through it.

    Args:
        lm: the frozen model.
        memory_bytes: bound of the keys and values of all requests and of the texts that are kept.
        rows: largest number of texts that are continued at a time.
        prefill_tokens: number of columns of texts that are read in a step while as many others are continued.
        queue: number of requests that may wait.
    """

    def __init__(
        self,
        lm: FrozenLM,
        *,
        memory_bytes: int = 1 << 30,
        rows: int = 32,
        prefill_tokens: int = 256,
        queue: int = 256,
    ) -> None:
        sizes = {"memory_bytes": memory_bytes, "rows": rows, "prefill_tokens": prefill_tokens, "queue": queue}
        for name, size in sizes.items():
            if size < 1:
                raise UsageError(f"{name} must be at least 1, got {size}")
        self.lm = lm
        self.rows, self.prefill_tokens, self.queue = rows, prefill_tokens, queue
        self._pool = Pool(lm, memory_bytes)
        self._counts = Counts()
        self._reader = Reader(lm, self._pool, self._counts)
        self._changed = Condition()  # guards the queue and what follows it here
        self._queue: deque[Work] = deque()
        self._thread: Thread | None = None
        self._stopped = False
        self._active: list[Work] = []
        self._rows: list[Row] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop(finish=False)

    def submit(self, request: Request, *, wait: bool = False) -> Ticket:
        """Put a request into the queue; return its ticket.

        Args:
            request: the request.
            wait: wait for a place if the queue is full.

        Raises:
            QueueFull: all places are taken.
            PoolTooSmall, ContextFull: it can never be answered.
            Stopped: the scheduler has been stopped.
        """
        ticket = Ticket(self._wake)
        work = Work.of(request, ticket, self.lm)
        self._check(work)
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._stopped or len(self._queue) < self.queue)
            if self._stopped:
                raise Stopped("the scheduler has been stopped: start another one")
            if len(self._queue) >= self.queue:
                raise QueueFull(self.queue)
            self._queue.append(work)
            self._changed.notify_all()
        return ticket

    def start(self) -> Self:
        """Start the thread that runs the steps."""
        if self._thread is None:
            cores = torch.get_num_threads()
            self._thread = Thread(target=self._run, args=(cores,), name="shoulders-scheduler", daemon=True)
            self._thread.start()
        return self

    def stop(self, finish: bool = True) -> None:
        """Take no more requests, end the thread, and wait for it.

        Args:
            finish: answer what was asked before; otherwise these requests end with `Stopped`.
        """
        with self._changed:
            self._stopped = True
            if not finish:
                for work in (*self._queue, *self._active):
                    work.ticket.stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        while self.step():
            pass

    def stats(self) -> Stats:
        """Return counts and sizes."""
        cache = self._pool.texts.nbytes
        with self._changed:
            counts = {one.name: getattr(self._counts, one.name) for one in fields(self._counts)}
            return Stats(
                running=len(self._active),
                waiting=len(self._queue),
                memory_bytes=self._pool.memory_bytes,
                used_bytes=self._pool.reserved + cache,
                cache_bytes=cache,
                **{**counts, "labels": dict(self._counts.labels)},
            )

    @torch.inference_mode()
    def step(self) -> bool:
        """Run one step; return whether there was anything to do.

        The thread does this. Without it, steps can be run by hand.
        """
        self._end_early()
        self._admit()
        if not self._active:
            return False
        self._counts.steps += 1
        ready = self._continued()
        for work, result in self._reader.read(self._columns()):
            ready += self._begun(work, result)
        self._choose(ready)
        for work in [one for one in self._active if one.last is not None]:
            self._score(work)
        return True

    def _columns(self) -> int:
        """Return how many columns are read in this step.

        Meanwhile the rows that are continued wait. The more requests wait for each of these rows, the longer that may
        take: many requests that come at once are then read at once, and a document among many rows stalls none.
        """
        waiting = sum(not work.rows for work in self._active)
        return self.prefill_tokens * (min(ALONE, max(1, waiting // len(self._rows))) if self._rows else ALONE)

    def _check(self, work: Work) -> None:
        """Raise a `UsageError` for a request that can never be answered."""
        request = work.request
        text, prompt = request.given.embeds.shape[1], request.scaffold.length
        self.lm.check_room(
            f"a text of {text} tokens with a prompt of {prompt} and {request.room} to come",
            work.demand.columns,
            "shorten it, or ask for less",
        )
        if request.count > self.rows:
            raise UsageError(
                f"{request.count} continuations are asked for at once, and the scheduler has {self.rows} rows: ask for "
                "fewer"
            )
        needed = self._pool.bytes_for([work.demand], [work.demand])
        if needed > self._pool.memory_bytes:
            raise PoolTooSmall(wanted=needed, room=self._pool.memory_bytes)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self, cores: int) -> None:
        """Run steps in the scheduler's own thread; whatever ends it, no request waits for ever."""
        try:
            compute_on(cores)
            self._run_steps()
        except BaseException:
            log.exception("the scheduler's thread has ended")
        finally:
            with self._changed:
                self._stopped = True
                left = [*self._queue, *self._active]
                self._queue.clear()
                self._active, self._rows = [], []
                self._changed.notify_all()
            for work in left:
                work.ended = True
                work.ticket.end(Stopped("the scheduler's thread has ended: start the server or the scheduler anew"))

    def _run_steps(self) -> None:
        """Run steps for as long as there are requests."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._active or self._stopped)
                if self._stopped and not self._queue and not self._active:
                    return
            try:
                self.step()
            except Exception as error:  # a fault here must end neither the thread nor later requests
                for work in list(self._active):
                    self._fail(work, failure(error))

    def _end_early(self) -> None:
        """End requests that were cancelled, are late, or whose scheduler was stopped."""
        now = time.monotonic()
        with self._changed:
            works = [*self._queue, *self._active]
        for work in works:
            deadline = work.request.deadline
            if work.ticket.stopped:
                self._fail(work, Stopped("the scheduler was stopped before the request was answered"))
            elif work.ticket.cancelled:
                self._end(work, "cancelled")
            elif deadline is not None and now >= deadline:
                self._end(work, "deadline")
        if any(work.ended for work in works):
            with self._changed:
                self._queue = deque(work for work in self._queue if not work.ended)
                self._changed.notify_all()

    def _admit(self) -> None:
        """Begin requests from the queue, in order, for as long as there are rows and memory."""
        while True:
            with self._changed:
                work = self._queue[0] if self._queue else None
            if work is None or not self._fits(work):
                return
            with self._changed:
                self._queue.popleft()
                self._active.append(work)
                self._changed.notify_all()
            try:
                self._reader.add(work)
            except Exception as error:  # whatever a scaffold of another package raises
                self._fail(work, failure(error))

    def _fits(self, work: Work) -> bool:
        works = [*self._active, work]
        if sum(one.request.count for one in works) > self.rows:
            return False
        reading = [one.demand for one in works if not one.rows]
        return self._pool.reserve(self._pool.bytes_for([one.demand for one in works], reading))

    def _continued(self) -> list[tuple[Row, Float[Tensor, "1 D"]]]:
        """Run the program of every row for its last token; return the states that predict the next."""
        rows = self._rows
        if not rows:
            return []
        last = torch.tensor([row.ids[-1] for row in rows], device=self.lm.device)
        programs: dict[Row, Program] = {}
        for row, embeds in zip(rows, self.lm.embed(last[:, None]).split(1), strict=True):
            request = row.work.request
            row.uses.clear()
            programs[row] = request.scaffold.program(request.given.continued(embeds), row.memory)
        return self._run_programs(programs)

    def _run_programs(self, programs: Mapping[Row, Program]) -> list[tuple[Row, Float[Tensor, "1 D"]]]:
        """Run programs to their ends, in step; a pass waits for all that can share it."""
        results: dict[Row, Tensor | None] = dict.fromkeys(programs)
        asked: dict[Row, Pass | Encode | Blocks] = {}
        states: list[tuple[Row, Tensor]] = []
        while results:
            for row, result in results.items():
                try:
                    found = resume(programs[row], result, self.lm)
                except Exception as error:  # whatever a scaffold of another package raises
                    self._fail(row.work, failure(error))
                    continue
                if isinstance(found, Returned):
                    states.append((row, found.states[:, -1]))
                else:
                    asked[row] = found
            asked = {row: one for row, one in asked.items() if not row.work.ended}
            due = {row: one for row, one in asked.items() if not isinstance(one, Pass)} or asked
            results = dict(self._fulfil(due))
            asked = {row: one for row, one in asked.items() if row not in due}
        return states

    def _fulfil(self, asked: Mapping[Row, Pass | Encode | Blocks]) -> Iterator[tuple[Row, Tensor]]:
        """Yield the result of each request; those of rows in one bank share a forward."""
        groups: dict[Bank | Row, list[Row]] = {}
        for row, request in asked.items():
            groups.setdefault(self._bank(row, request) or row, []).append(row)
        for place, rows in groups.items():
            requests = [asked[row] for row in rows]
            try:
                results = _step(place, requests) if isinstance(place, Bank) else fulfil(requests, self.lm)
            except Exception as error:
                for row in rows:
                    self._fail(row.work, failure(error))
                continue
            if isinstance(requests[0], Pass):
                self._counts.forwards += 1
                self._counts.passes += len(rows)
                for row in rows:
                    row.work.add_pass(asked[row])
            yield from zip(rows, results, strict=True)

    def _bank(self, row: Row, request: Pass | Encode | Blocks) -> Bank | None:
        """Return the bank in which a pass shares a forward; None if it runs alone."""
        if isinstance(request, Encode) or request.memory is None:
            return None
        memory, vectors = request.memory, request.states if isinstance(request, Blocks) else request.embeds
        edits = request.edits if isinstance(request, Pass) else None
        alone = isinstance(request, Pass) and (request.beside is not None or (edits is not None and edits.begins))
        stack = request.connector.blocks if isinstance(request, Blocks) else request.part or self.lm.model.base_model
        usual = request.mask is None and not alone and vectors.shape[1] == 1
        if not (self._pool.shares and usual and fits(memory, stack)):
            if memory.bank is not None:
                memory.bank.take_out(memory)
            return None
        key: Hashable = (row.uses[id(stack)], row.work.demand.length_class)
        row.uses[id(stack)] += 1
        bank = self._pool.bank(key, stack)
        if isinstance(request, Blocks):
            bank.weights = self._pool.weights(request.connector, vectors.dtype)
        return bank

    def _begun(self, work: Work, result: Float[Tensor, "1 T D"] | Exception) -> list[tuple[Row, Float[Tensor, "1 D"]]]:
        """Return the rows that continue a text that has been read, with the state that predicts their first token."""
        if isinstance(result, Exception):
            self._fail(work, result)
            return []
        request, last = work.request, result[:, -1:]
        if not work.memory.started:
            self._fail(work, decode.forgotten(request.scaffold))
            return []
        if request.continuations:
            work.last = last
            return []
        numbers = request.numbers()
        memories = [work.memory, *(work.memory.branch() for _ in range(request.count - 1))]
        work.rows = [
            Row(work, branch, memory, None if numbers is None else numbers[branch])
            for branch, memory in enumerate(memories)
        ]
        self._rows += work.rows
        return [(row, last[:, 0]) for row in work.rows]

    def _score(self, work: Work) -> None:
        """Score the next continuations of a text that has been read; the others wait for later steps."""
        request, done = work.request, len(work.scores)
        some = [[list(ids) for ids in request.continuations[done : done + SCORED_AT_ONCE]]]
        columns = work.demand.rows * work.demand.columns
        memory = work.memory.branch()
        try:
            assert work.last is not None
            (scores,) = decode.score_from(self.lm, request.scaffold, request.given, memory, work.last, some, columns)
        except Exception as error:  # whatever a scaffold of another package raises
            self._fail(work, failure(error))
            return
        if not all(math.isfinite(one.log_likelihood) for one in scores):
            self._fail(work, _no_numbers())
            return
        work.scores += scores
        work.layers += len(scores) * request.scaffold.passes * work.depth
        if len(work.scores) == len(request.continuations):
            self._close(work, Completed((), tuple(work.scores), work.passes, work.cached, work.read))

    def _choose(self, ready: Sequence[tuple[Row, Float[Tensor, "1 D"]]]) -> None:
        """Choose the next token of each row, from one multiplication with the vocabulary."""
        ready = [(row, state) for row, state in ready if not row.work.ended]
        if ready:
            rows = [row for row, _ in ready]
            logits = self.lm.logits(torch.cat([state for _, state in ready]))
            for row, chosen in zip(rows, choose(logits, rows, self.lm.ends), strict=True):
                self._take(row, chosen)
        for work in {id(row.work): row.work for row, _ in ready}.values():
            if not work.ended and all(row.finish for row in work.rows):
                self._close(work, self._completed(work))
        self._rows = [row for row in self._rows if row.finish is None and not row.work.ended]

    def _take(self, row: Row, chosen: Chosen) -> None:
        """Add a token to a row, and end the row if it is the last."""
        work, request = row.work, row.work.request
        if work.ended:
            return
        if not math.isfinite(chosen.log_probability):
            self._fail(work, _no_numbers())
            return
        row.log_probability += chosen.log_probability
        row.margin = min(row.margin, chosen.lead)
        if chosen.token in self.lm.ends:
            self._finish(row, "stop", chosen.log_probability)
            return
        row.ids.append(chosen.token)
        self._counts.tokens += 1
        self._report(row, Event(row.branch, chosen.token, chosen.log_probability, chosen.top))
        if request.stops and decode.stopped(self.lm, row.ids, request.stops):
            self._finish(row, "stop")
        elif len(row.ids) >= request.longest:
            self._finish(row, "length")

    def _report(self, row: Row, event: Event) -> None:
        row.events.append(event)
        row.work.ticket.report(event)

    def _finish(self, row: Row, reason: Finish, log_probability: float = 0.0) -> None:
        """End a row; its place is free at once."""
        row.finish = reason
        self._pool.release(row.memory)
        self._report(row, Event(row.branch, None, log_probability, finish=reason))

    def _end(self, work: Work, reason: Finish) -> None:
        """End a request before its time, with what it has."""
        if not work.rows and not work.request.continuations:
            work.rows = [Row(work, branch, work.memory, None) for branch in range(work.request.count)]
        for row in work.rows:
            if row.finish is None:
                self._finish(row, reason)
        self._close(work, self._completed(work))

    def _completed(self, work: Work) -> Completed:
        branches = [
            Branch(row.ids, row.log_probability, row.margin, row.finish or "cancelled", tuple(row.events))
            for row in work.rows
        ]
        return Completed(tuple(branches), (), work.passes, work.cached, work.read)

    def _fail(self, work: Work, error: Exception) -> None:
        """End a request with an error; its rows leave no values behind that are no numbers."""
        if work.ended:
            return
        for row in work.rows:
            self._pool.release(row.memory, broken=True)
        self._counts.failed += 1
        self._close(work, error)

    def _close(self, work: Work, result: Completed | Exception) -> None:
        """Give a request its result, and its memory to others."""
        work.ended, work.last = True, None
        with self._changed:
            self._active = [one for one in self._active if one is not work]
            self._counts.finished += 1
            self._counts.labels[work.request.label] += 1
            self._changed.notify_all()
        try:
            self._rows = [row for row in self._rows if row.work is not work]
            self._reader.drop(work)
            work.forget()
            works = self._active
            reading = [one.demand for one in works if not one.rows]
            self._pool.reserve(self._pool.bytes_for([one.demand for one in works], reading))
        finally:
            work.ticket.end(result)  # whatever fails here, whoever waits for this result gets it

    def check_runs(self) -> None:
        """Raise `UsageError` unless the thread runs."""
        if self._thread is None:
            raise UsageError("the scheduler does not run: start it (Scheduler.start)")
        if not self._thread.is_alive():
            raise UsageError("the scheduler's thread has ended: its last error is in the log; start another one")


def _step(bank: Bank, requests: Sequence[Pass | Encode | Blocks]) -> list[Tensor]:
    """Return the results of passes or of Connectors whose rows are in one bank."""
    parts = [
        StackInput(one.states, memory=one.memory)
        if isinstance(one, Blocks)
        else StackInput(one.embeds, memory=one.memory, edits=one.edits)  # type: ignore[union-attr]
        for one in requests
    ]
    outputs = bank.step(parts)
    return [
        one.connector.placed(output, one.instead_of) if isinstance(one, Blocks) else output
        for one, output in zip(requests, outputs, strict=True)
    ]


def _no_numbers() -> RequestFailed:
    return RequestFailed("the scaffold's states are no numbers (NaN or infinite): train it anew, or load another")
