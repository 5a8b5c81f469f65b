"""What every request passes on its way in and out: id, key, limits, deadline, log; and errors in OpenAI's shape."""

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, final
from urllib.parse import urlsplit
from uuid import uuid4

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from shoulders.errors import (
    ContextFull,
    CorruptFile,
    HubUnreachable,
    PoolTooSmall,
    QueueFull,
    RequestFailed,
    SaveFailed,
    SourceNotFound,
    Stopped,
    UsageError,
    WrongBackbone,
    first_line,
)
from shoulders.serving.config import ANYONE, ApiKey, ServerConfig, hash_of, is_loopback, read_keys

log = logging.getLogger("shoulders.serving")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "unavailable_error",
    504: "timeout_error",
    507: "storage_error",
}
TOLD: dict[type[UsageError], tuple[int, str]] = {  # status and code of our own errors; 400 for all others
    ContextFull: (400, "context_length_exceeded"),
    PoolTooSmall: (400, "pool_too_small"),
    WrongBackbone: (400, "wrong_backbone"),
    CorruptFile: (400, "corrupt_file"),
    SourceNotFound: (404, "source_not_found"),
    QueueFull: (429, "queue_full"),
    RequestFailed: (500, "generation_failed"),
    HubUnreachable: (503, "hub_unreachable"),
    Stopped: (503, "stopped"),
    SaveFailed: (507, "storage_failed"),
}
ROUTING = {  # what is told instead of the status's name
    404: "there is no such route: GET /docs describes all of them",
    405: "the route does not take this method: GET /docs describes all routes",
}
LEFT = 499  # status in logs and metrics of a request whose client went away
OPEN = frozenset({"/", "/health", "/ready", "/metrics", "/openapi.json", "/docs", "/v1/info"})  # paths without a key
OPEN_FOLDERS = ("/page/", "/docs/")
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
LONGEST_MESSAGE = 1000  # characters of an error
GRACE = 1.0  # seconds in which a stream may still tell that its deadline has passed


@final
class ApiError(Exception):
    """An error that a client is told, in OpenAI's shape.

    Args:
        status: HTTP status.
        message: what is wrong, and the way out.
        code: a word for programs.
        param: the field of the request that is wrong.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: float = 0
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error")
        param = None if self.param is None else _line(self.param)
        return {"error": {"message": _line(str(self)), "type": kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the HTTP answer."""
        headers = {"Retry-After": str(max(1, math.ceil(self.retry_after)))} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def _line(text: str) -> str:
    """Return a text on one line, not too long, and without halves of characters, which UTF-8 does not have."""
    return " ".join(text.split()).encode(errors="replace").decode()[:LONGEST_MESSAGE]


def as_api_error(error: BaseException) -> ApiError:
    """Return any exception as the error that a client is told; a fault of ours is told without detail."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        what = ROUTING.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, what, code="not_found" if error.status_code == 404 else None)
    if isinstance(error, TimeoutError):
        return ApiError(504, "the deadline of the request has passed: ask for less, or later", code="deadline_exceeded")
    if isinstance(error, UsageError):
        status, code = next((told for kind, told in TOLD.items() if isinstance(error, kind)), (400, None))
        return ApiError(status, str(error), code=code, retry_after=5 if status in (429, 503) else 0)
    return ApiError(500, "the server failed: its log has the details under the request id (X-Request-Id)")


def _invalid(error: RequestValidationError) -> ApiError:
    """Return what the first fault of a request's fields is."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])  # after "body", "query" or "path"
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json"
        )
    hint = ": no such field, leave it out" if first["type"] == "extra_forbidden" else f": {first['msg']}"
    return ApiError(400, f"{place or 'the body'}{hint}", param=place or None, code=first["type"])


@final
@dataclass(slots=True)
class About:
    """What is known of a request while it runs; handlers add to it.

    Attributes:
        id: of the request.
        key: whose it is.
        started: monotonic time of its arrival.
        deadline: time of the event loop at which it is given up.
        status: of its answer.
        answered: whether its answer has been sent to the end.
        model: name of the served model, once it is known to be one.
        prompt_tokens, generated_tokens: read and generated for it.
        first_token: seconds until its first token was generated; None before.
        text: prompt and answer, if they are logged.
        at_end: closed when the request ends, however it ends: before the end of its answer is sent, so that a client
            that has it finds it counted.
    """

    id: str
    key: ApiKey = ANYONE
    started: float = field(default_factory=time.monotonic)
    deadline: float = math.inf
    status: int = 0
    answered: bool = False
    model: str = ""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_token: float | None = None
    text: dict[str, Any] = field(default_factory=dict)
    at_end: ExitStack = field(default_factory=ExitStack)


@final
@dataclass(slots=True)
class _Account:
    """What a key may still use, and how many of its requests run."""

    requests: float
    tokens: float
    at: float
    running: int = 0


@final
class Keys:
    """The keys that a server accepts, and what each has used; the file of keys is read anew when it changes."""

    def __init__(self, config: ServerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = config.keys, clock
        self._keys: Mapping[str, ApiKey] = read_keys(config.keys) if config.keys else {}
        self._changed = self._stamp()
        self._accounts: dict[str, _Account] = {}

    @property
    def needed(self) -> bool:
        """Whether requests need a key."""
        return self._path is not None

    def key_of(self, header: str) -> ApiKey:
        """Return the key of an Authorization header.

        Raises:
            ApiError: there is none, or it is unknown.
        """
        if self._path is None:
            return ANYONE
        self._read_again(self._path)
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(
                401, "this server needs an API key: send the header 'Authorization: Bearer KEY'", code="missing_api_key"
            )
        found = self._keys.get(hash_of(key.strip()))
        if found is None:
            raise ApiError(
                401, "the API key is not one of this server's: check it, or ask for one", code="invalid_api_key"
            )
        return found

    def enter(self, key: ApiKey) -> None:
        """Count a request of a key.

        Raises:
            ApiError: the key has used up what it may use, for now.
        """
        account = self._account(key)
        if key.at_once and account.running >= key.at_once:
            raise _limited(f"{account.running} requests of this key are running, it may have {key.at_once}", 1)
        if key.requests_per_minute and account.requests < 1:
            wait = (1 - account.requests) * 60 / key.requests_per_minute
            raise _limited(f"this key may send {key.requests_per_minute} requests a minute", wait)
        if key.tokens_per_minute and account.tokens <= 0:
            wait = (1 - account.tokens) * 60 / key.tokens_per_minute
            raise _limited(f"this key may read and generate {key.tokens_per_minute} tokens a minute", wait)
        account.requests -= 1
        account.running += 1

    def leave(self, key: ApiKey, tokens: int) -> None:
        """Count the end of a request of a key, and the tokens that it read and generated."""
        account = self._account(key)
        account.running -= 1
        account.tokens -= tokens

    def _account(self, key: ApiKey) -> _Account:
        """Return the account of a key, with what it gained since it was last looked at."""
        now = self._clock()
        full = _Account(key.requests_per_minute, key.tokens_per_minute, now)
        account = self._accounts.setdefault(key.name, full)
        minutes = (now - account.at) / 60
        account.requests = min(full.requests, account.requests + minutes * full.requests)
        account.tokens = min(full.tokens, account.tokens + minutes * full.tokens)
        account.at = now
        return account

    def _stamp(self) -> tuple[int, int]:
        if self._path is None or not self._path.exists():
            return (0, 0)
        found = self._path.stat()
        return (found.st_mtime_ns, found.st_size)

    def _read_again(self, path: Any) -> None:
        """Read the file of keys anew if it has changed; a broken one leaves the keys as they were."""
        stamp = self._stamp()
        if stamp == self._changed:
            return
        self._changed = stamp
        try:
            self._keys = read_keys(path)
        except UsageError as error:
            log.error(
                "the file of keys is broken, the keys before it stay valid", extra={"fields": {"error": str(error)}}
            )


def _limited(what: str, wait: float) -> ApiError:
    return ApiError(
        429, f"{what}: try again in {max(1, math.ceil(wait))} s", code="rate_limit_exceeded", retry_after=max(wait, 1)
    )


@final
class Gate:
    """The ASGI application around the routes: what every request passes.

    It gives each request an id, asks for its key and counts it, reads its body within bounds, ends it at its deadline
    or when its client leaves, and logs it. Whatever goes wrong is answered in OpenAI's shape.

    Args:
        app: the routes.
        config: the bounds.
        keys: the keys and what they have used.
        uploads: paths whose bodies may be as large as an upload.
        on_end: called with each request that has ended, and its route.
    """

    def __init__(
        self,
        app: App,
        config: ServerConfig,
        keys: Keys,
        *,
        uploads: frozenset[str] = frozenset(),
        on_end: Callable[[About, str], None] = lambda _about, _route: None,
    ) -> None:
        self.app, self.config, self.keys = app, config, keys
        self._uploads, self._on_end = uploads, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; events of the server's own life go to the routes' application."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        sent = headers.get("x-request-id", "")
        about = About(sent if ID.fullmatch(sent) else uuid4().hex)
        about.deadline = asyncio.get_running_loop().time() + self.config.deadline
        scope.setdefault("state", {})["about"] = about
        about.at_end.callback(self._log, about, scope)
        answer = _noting(about, send)
        try:
            async with asyncio.timeout_at(about.deadline + GRACE):
                await self._admitted(scope, headers, receive, answer)
        except _ClientLeft:
            about.status = LEFT
        except Exception as error:  # the last place where the client can be told anything
            if as_api_error(error).status == 500:
                log.exception("a request failed", extra={"fields": {"id": about.id}})
            if not about.status:
                with suppress(OSError):
                    await as_api_error(error).response()(scope, receive, answer)
        finally:
            about.at_end.close()

    async def _admitted(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """Check the key and its limits, then read the body and run the request."""
        about: About = scope["state"]["about"]
        if not (scope["path"] in OPEN or scope["path"].startswith(OPEN_FOLDERS)):
            if not self.keys.needed:
                _check_local(headers)
            about.key = self.keys.key_of(headers.get("authorization", ""))
            self.keys.enter(about.key)
            about.at_end.callback(lambda: self.keys.leave(about.key, about.prompt_tokens + about.generated_tokens))
        await self._run(scope, await self._body(scope, headers, receive), receive, send)

    async def _body(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> bytes:
        """Return the body of a request.

        Raises:
            ApiError: it is larger than allowed, or comes too slowly.
        """
        most = self.config.max_upload if scope["path"] in self._uploads else self.config.max_body
        said = headers.get("content-length", "0")
        if said.isdecimal() and int(said[:20]) > most:
            raise _too_large(said, most)
        body = bytearray()
        try:
            async with asyncio.timeout(self.config.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientLeft
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(f"over {most}", most)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not arrive within {self.config.body_seconds:g} s: send it faster",
                code="body_too_slow",
            ) from None

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the routes on a body that was read, until they end or the client leaves."""
        left = asyncio.Event()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if unread:
                return unread.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        work, watcher = asyncio.ensure_future(self.app(scope, replay, send)), asyncio.ensure_future(watch())
        try:
            await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not (work.done() or scope["state"]["about"].answered):
                raise _ClientLeft
            await work
        finally:
            work.cancel()
            watcher.cancel()
            await asyncio.gather(work, watcher, return_exceptions=True)

    def _log(self, about: About, scope: Scope) -> None:
        route = getattr(scope.get("route"), "path", "")
        self._on_end(about, route)
        fields: dict[str, Any] = {
            "id": about.id,
            "key": about.key.name,
            "method": scope["method"],
            "route": route or "unknown",
            "status": about.status or LEFT,
            "seconds": round(time.monotonic() - about.started, 4),
            "model": about.model,
            "prompt_tokens": about.prompt_tokens,
            "generated_tokens": about.generated_tokens,
            **(about.text if self.config.log_text else {}),
        }
        log.info("request", extra={"fields": fields})


def _noting(about: About, send: Send) -> Send:
    """Return a function that sends an answer, with the request's id, and notes how far it is."""

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            about.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", about.id.encode())]
        elif not message.get("more_body"):
            about.at_end.close()
            about.answered = True
        await send(message)

    return answer


class _ClientLeft(Exception):
    """The client closed its connection."""


def _check_local(headers: Mapping[str, str]) -> None:
    """Check that a request to a server without keys comes from this machine's own programs and pages.

    Such a server trusts whoever reaches it from here. A browser does so for a page of any site: with a plain form, or
    under a name that the site's owner lets point here (DNS rebinding). Then its Origin or its Host says so.

    Raises:
        ApiError: it comes from another site's page.
    """
    host, origin = headers.get("host"), headers.get("origin")
    for sent in (None if host is None else f"//{host}", origin):
        if sent is not None and not _is_local(sent):
            raise ApiError(
                403,
                f"a server without keys answers this machine only, not {sent.removeprefix('//')[:80]!r}: ask "
                "http://127.0.0.1, or start it with --keys",
                code="host_not_allowed",
            )


def _is_local(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def _too_large(size: object, most: int) -> ApiError:
    return ApiError(413, f"the body has {size} bytes, at most {most} are taken: send less", code="body_too_large")


def event_stream(pieces: AsyncIterator[Mapping[str, Any]], about: About) -> StreamingResponse:
    """Return pieces as server-sent events, closed by `[DONE]`; an error is one of them."""

    async def events() -> AsyncIterator[bytes]:
        try:
            async for piece in pieces:
                yield as_event(piece)
        except Exception as error:
            told = as_api_error(error)
            if told.status == 500:
                log.exception("a stream failed", extra={"fields": {"id": about.id}})
            yield as_event(told.body())
        yield b"data: [DONE]\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream; charset=utf-8", headers=headers)


def as_event(content: Mapping[str, Any]) -> bytes:
    """Return JSON as one server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode(errors="replace")


@final
class JsonLines(logging.Formatter):
    """Log records as lines of JSON, with the `fields` that were added to them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            content["error"] = f"{type(record.exc_info[1]).__name__}: {first_line(record.exc_info[1])}"
            content["trace"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False).encode(errors="replace").decode()
