"""A load on an OpenAI endpoint: many clients at once, what each was answered, and how fast.

The endpoint may be ours, vLLM's or anybody's. Neither PyTorch nor a server's library is imported.
"""

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import httpx2
import numpy as np

from shoulders.errors import SourceNotFound, UsageError, first_line

BUSY = (429, 503)  # a server that is full, or about to stop: the same request may succeed later
SOON = 1.0  # seconds to wait where a full server does not say how long
WORDS = """
the of and to in is was for on that as with by at from it an be this which are or his had not but have one first its new
after who also their two has were when there all can more other into only some time between under most while part over
city state year world war system number group water people music house river school road
""".split()  # noqa: SIM905 (a list of words is easier to read so)


@dataclass(frozen=True, slots=True)
class Request:
    """A completion to ask for.

    Attributes:
        model: name of the model.
        prompt: text, or token ids.
        max_tokens: largest number of tokens of the answer.
        leaves: whether the client leaves after half of them.
        fields: further fields of the request, e.g. `temperature`.
        streamed: whether the answer is to come token by token; otherwise it comes as a whole.
    """

    model: str
    prompt: str | Sequence[int]
    max_tokens: int
    leaves: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    streamed: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request; times are in seconds.

    Attributes:
        request: the request.
        begun: time at which it was first sent (`time.perf_counter`).
        first: time from then to the first token; None if there was none, or the answer came as a whole.
        seconds: time from then to the end.
        text: the answer, or what had come of it when the client left.
        tokens: number of tokens of the answer; of one that was left, number of pieces.
        refused: how often the server was full, and the request sent again.
        error: what went wrong; empty if nothing did.
    """

    request: Request
    begun: float
    first: float | None
    seconds: float
    text: str = ""
    tokens: int = 0
    refused: int = 0
    error: str = ""

    @property
    def ended(self) -> float:
        """Time of its end (`time.perf_counter`)."""
        return self.begun + self.seconds


@dataclass(frozen=True, slots=True)
class Load:
    """The outcomes of a load, in the order in which they ended, and the seconds that it took."""

    outcomes: Sequence[Outcome]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return counts, throughput, and percentiles of times in seconds; the latency is that of whole answers."""
        answered = [one for one in self.outcomes if not one.error]
        whole = [one for one in answered if not one.request.leaves]
        waited = [one.first for one in answered if one.first is not None]
        paces = [(one.seconds - one.first) / (one.tokens - 1) for one in whole if one.first and one.tokens > 1]
        return {
            "requests": len(self.outcomes),
            "answered": len(whole),
            "left": len(answered) - len(whole),
            "failed": len(self.outcomes) - len(answered),
            "refused": sum(one.refused for one in self.outcomes),
            "seconds": self.seconds,
            "requests_per_second": len(answered) / self.seconds,
            "tokens_per_second": sum(one.tokens for one in answered) / self.seconds,
            **_percentiles("first_token", waited),
            **_percentiles("latency", [one.seconds for one in whole]),
            **_percentiles("token", paces),
            "errors": dict(Counter(one.error for one in self.outcomes if one.error)),
        }


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """Return median and 95th percentile; None of nothing."""
    return {f"{name}_p{at}": float(np.percentile(seconds, at)) if seconds else None for at in (50, 95)}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI endpoint.

    Attributes:
        url: address, with or without "/v1".
        key: API key; empty without one.
        chat: whether to ask for chat completions.
        timeout: seconds without a byte after which a request has failed.
        attempts: how often a request is sent to a full server before it has failed.
    """

    url: str
    key: str = ""
    chat: bool = False
    timeout: float = 600.0
    attempts: int = 1000

    def client(self) -> httpx2.AsyncClient:
        """Return a client with as many connections as are needed."""
        return httpx2.AsyncClient(**self._settings, limits=httpx2.Limits())

    def models(self) -> list[str]:
        """Return the names of the models that complete texts.

        Raises:
            SourceNotFound: nothing answers at the address, or it is no OpenAI endpoint.
        """
        try:
            with httpx2.Client(**self._settings) as client:
                response = client.get("models")
            if response.status_code >= 400:
                raise SourceNotFound(f"{self.url} does not list its models: {_fault(response)}")
            listed = response.json()["data"]
            return [str(one["id"]) for one in listed if "completions" in one.get("endpoints", ["completions"])]
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise SourceNotFound(
                f"nothing answers at {self.url} ({first_line(error)}): start a server (shoulders serve NAME), or give "
                "its address"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise SourceNotFound(f"{self.url} is no OpenAI endpoint: its list of models cannot be read") from error

    @property
    def _settings(self) -> dict[str, Any]:
        base = self.url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"base_url": f"{base}/v1/", "headers": headers, "timeout": self.timeout}


def run(
    endpoint: Endpoint,
    requests: Iterable[Request],
    *,
    clients: int = 1,
    rate: float = 0.0,
    seed: int = 0,
) -> Load:
    """Send requests and return what became of them.

    Args:
        endpoint: where to.
        requests: in this order; they may be made while others run.
        clients: number of clients, each of which sends the next request once its last has ended.
        rate: requests a second, at random times (a Poisson process), however many run; 0: `clients` decides.
        seed: seed of the random times.
    """
    return asyncio.run(load(endpoint, requests, clients=clients, rate=rate, seed=seed))


async def load(
    endpoint: Endpoint, requests: Iterable[Request], *, clients: int = 1, rate: float = 0.0, seed: int = 0
) -> Load:
    """Send requests as `run` does, beside what else runs in the event loop."""
    begun, outcomes = perf_counter(), []
    async with endpoint.client() as client, asyncio.TaskGroup() as group:

        async def one(request: Request) -> None:
            outcomes.append(await _send(client, endpoint, request))

        async def several(coming: Iterator[Request]) -> None:
            for request in coming:
                await one(request)

        if rate:
            due, draws = perf_counter(), random.Random(seed)
            for request in requests:
                group.create_task(one(request))
                due += draws.expovariate(rate)
                await asyncio.sleep(max(0.0, due - perf_counter()))
        else:
            coming = iter(requests)
            for _ in range(clients):
                group.create_task(several(coming))
    return Load(outcomes, perf_counter() - begun)


async def _send(client: httpx2.AsyncClient, endpoint: Endpoint, request: Request) -> Outcome:
    """Send a request, again while the server is full, and read the answer."""
    begun = perf_counter()
    reading = _Reading()
    refused, error = 0, ""
    try:
        for _ in range(endpoint.attempts):
            error, wait = await _attempt(client, endpoint, request, reading)
            if wait is None:
                break
            refused += 1
            await asyncio.sleep(wait)
    except (httpx2.HTTPError, ValueError, KeyError, TypeError, IndexError) as fault:
        error = f"{type(fault).__name__}: {first_line(fault)}"
    first = None if reading.first is None else reading.first - begun
    return Outcome(
        request,
        begun,
        first,
        perf_counter() - begun,
        "".join(reading.pieces),
        reading.counted or len(reading.pieces),
        refused,
        error,
    )


async def _attempt(
    client: httpx2.AsyncClient, endpoint: Endpoint, request: Request, reading: "_Reading"
) -> tuple[str, float | None]:
    """Send a request once; return what went wrong, and for a full server the seconds to wait."""
    path, body = "chat/completions" if endpoint.chat else "completions", _body(request, chat=endpoint.chat)
    if not request.streamed:
        response = await client.post(path, json=body)
        if response.status_code >= 400:
            return _fault(response), _wait(response) if response.status_code in BUSY else None
        reading.take_whole(response.json())
        return "", None
    async with client.sse(path, method="POST", json=body) as events:
        response = events.response
        if response.status_code >= 400:
            await response.aread()
            wait = _wait(response) if response.status_code in BUSY else None
            return _fault(response), wait
        async for event in events:
            if reading.take(event.data, leave_after=request.max_tokens // 2 if request.leaves else None):
                return reading.error, None
    return "the answer broke off", None


@dataclass(slots=True)
class _Reading:
    """What has come of an answer."""

    pieces: list[str] = field(default_factory=list)
    first: float | None = None
    counted: int = 0
    error: str = ""

    def take(self, data: str, leave_after: int | None) -> bool:
        """Take an event; return whether it was the last that this client waits for."""
        if data == "[DONE]":
            return True
        content = json.loads(data)
        if "error" in content:
            self.error = str(content["error"]["message"])
            return True
        self.counted = (content.get("usage") or {}).get("completion_tokens", self.counted)
        for choice in content["choices"]:
            piece = choice.get("text") or choice.get("delta", {}).get("content")
            if piece:
                self.first = self.first or perf_counter()
                self.pieces.append(piece)
        return leave_after is not None and len(self.pieces) >= max(1, leave_after)

    def take_whole(self, content: Mapping[str, Any]) -> None:
        """Take an answer that came as a whole."""
        self.counted = content["usage"]["completion_tokens"]
        self.pieces = [one["text"] if "text" in one else one["message"]["content"] for one in content["choices"]]


def _body(request: Request, *, chat: bool) -> dict[str, Any]:
    """Return the body of a request."""
    asked = {"messages": [{"role": "user", "content": request.prompt}]} if chat else {"prompt": request.prompt}
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if request.streamed else {}
    return {"model": request.model, **asked, **streamed, "max_tokens": request.max_tokens, **request.fields}


def _wait(response: httpx2.Response) -> float:
    """Return the seconds after which a full server wants to be asked again."""
    said = response.headers.get("retry-after", "")
    return float(said) if said.replace(".", "", 1).isdecimal() else SOON


def _fault(response: httpx2.Response) -> str:
    """Return status and message of an error."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text
    return f"{response.status_code} {' '.join(message.split())[:200]}"


def random_prompts(count: int, words: int, seed: int) -> list[str]:
    """Return different texts of so many common words, drawn by the seed."""
    draws = random.Random(seed)
    return [" ".join(draws.choices(WORDS, k=words)) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Mix:
    """Settings of the requests of a load.

    Attributes:
        models: names of models, asked in turn.
        prompts: texts, asked in turn.
        count: number of requests.
        max_tokens: largest number of tokens of an answer.
        leaving: share of the clients that leave half-way, 0 to 1.
        seed: seed that chooses these clients.
        fields: further fields of each request.
    """

    models: Sequence[str]
    prompts: Sequence[str]
    count: int
    max_tokens: int
    leaving: float = 0.0
    seed: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.models or not self.prompts:
            raise UsageError(f"a load has {len(self.models)} models and {len(self.prompts)} prompts: name one of each")
        for what, value, least in (("requests", self.count, 1), ("max-tokens", self.max_tokens, 1)):
            if value < least:
                raise UsageError(f"--{what} must be at least {least}, got {value}")
        if not 0 <= self.leaving <= 1:
            raise UsageError(f"--leaving is a share of the clients, 0 to 1, got {self.leaving}")

    def requests(self) -> Iterator[Request]:
        """Yield the requests."""
        draws, cycle = random.Random(self.seed), math.lcm(len(self.models), len(self.prompts))
        for number in range(self.count):
            model = self.models[number % len(self.models)]
            # After each common cycle the prompts move on by one, so that every model gets every prompt.
            prompt = self.prompts[(number + number // cycle) % len(self.prompts)]
            yield Request(model, prompt, self.max_tokens, draws.random() < self.leaving, self.fields)
