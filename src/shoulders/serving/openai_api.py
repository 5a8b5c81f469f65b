"""OpenAI's API: models, completions and chat completions, whole or streamed, in the shapes of its clients."""

import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, final
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from shoulders.backbone.chat import conversation
from shoulders.engine.batches import EncodedQuestion, encode
from shoulders.engine.requests import Request as EngineRequest
from shoulders.engine.requests import SamplingParameters
from shoulders.records import Message, Question
from shoulders.serving.http import About, ApiError, event_stream
from shoulders.serving.models import ServedModel
from shoulders.serving.service import INCOMPLETE, Piece, Service, TokenLog, Usage

SEEDS = 2**63
Stop = Annotated[str, Field(min_length=1, max_length=200)]
IGNORED = (  # fields that concern OpenAI's own platform, or whose usual values change nothing
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
)  # fmt: skip


class Body(BaseModel):
    """A request body: fields that are null count as left out, and unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {name: value for name, value in content.items() if value is not None and name not in IGNORED}


class StreamOptions(Body):
    """OpenAI's options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Generation(Body):
    """What completions and chat completions share."""

    model: str = Field(description="name of a served model (GET /v1/models)")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, description="sample among this many of the likeliest tokens; 0 and -1 for all")
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = []
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS)
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="over generated tokens")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="over generated tokens")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="over the tokens of the text and generated ones")
    min_tokens: int = Field(0, ge=0)
    logit_bias: dict[str, float] = Field(default={}, max_length=0, description="not supported")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, logprobs: int) -> SamplingParameters:
        """Return how tokens are chosen."""
        return SamplingParameters(
            temperature=self.temperature,
            top_k=max(0, self.top_k),
            top_p=self.top_p,
            seed=None if self.seed is None else self.seed % SEEDS,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logprobs=logprobs,
        )


class CompletionBody(Generation):
    """A request of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="text or token ids; several share a batch"
    )
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20, description="number of likeliest tokens to report")
    echo: bool = Field(default=False, description="begin the text with the prompt; not with logprobs")
    best_of: int | None = Field(None, ge=1, description="only as large as n")
    suffix: str = Field("", max_length=0, description="not supported")
    evidence: str = Field("", description="ours: text that is read before the prompt; an infix prompt stands between")

    @model_validator(mode="after")
    def _possible(self) -> "CompletionBody":
        if self.best_of not in (None, self.n):
            raise ValueError("best_of other than n is not supported: ask for n texts and choose")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported: leave one of them out")
        return self


class TextPart(Body):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str = ""
    refusal: str = Field("", max_length=0)
    tool_calls: list[Any] = Field(default=[], max_length=0, description="not supported")

    @property
    def text(self) -> str:
        """The text of all parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Body):
    """The format of an answer: only text."""

    type: Literal["text"]


class ChatBody(Generation):
    """A request of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Any] = Field(default=[], max_length=0, description="not supported")
    functions: list[Any] = Field(default=[], max_length=0, description="not supported")
    tool_choice: Literal["none", "auto"] = "none"
    modalities: list[Literal["text"]] = []

    def question(self) -> Question:
        """Return the conversation: its last message is the question, the others come before it."""
        roles = {"developer": "system"}
        return conversation([Message(roles.get(one.role, one.role), one.text) for one in self.messages])


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of the answers of one endpoint.

    Attributes:
        prefix: of the answer's id.
        whole: `object` of a whole answer.
        chunk: `object` of a chunk of a stream.
        choice: returns a choice of a whole answer from its number, text, log-probabilities and finish.
        delta: returns a choice of a chunk, likewise.
        logs: returns the log-probabilities of tokens, given the function that decodes a token and the characters
            before them.
        opening: returns a choice of the first chunk; None if there is none.
    """

    prefix: str
    whole: str
    chunk: str
    choice: Callable[[int, str, Any, str | None], dict[str, Any]]
    delta: Callable[[int, str, Any, str | None], dict[str, Any]]
    logs: Callable[[Callable[[int], str], Sequence[TokenLog], int], dict[str, Any]]
    opening: Callable[[int], dict[str, Any]] | None = None


def openai_routes(service: Service) -> APIRouter:
    """Return the routes of OpenAI's API."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the models that are served."""
        return {"object": "list", "data": [served.card(service.lm) for served in service.models]}

    @router.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        """Show one model."""
        return service.models.get(name).card(service.lm)

    @router.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Continue texts."""
        served = service.models.get(body.model, "completions")
        job = _Job(service, request.state.about, served, body, _COMPLETION, _rows(service, body), body.max_tokens)
        return await job.response(body.logprobs, echo=body.echo)

    @router.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Continue a conversation."""
        served = service.models.get(body.model, "chat")
        if service.lm.template is None:
            way_out = "use /v1/completions"
            raise ApiError(
                400, f"the tokenizer of the backbone has no chat template: {way_out}", code="no_chat_template"
            )
        row = encode(body.question(), service.lm)
        room = service.lm.context - (served.scaffold.length if served.scaffold is not None else 0) - len(row.ids)
        longest = body.max_completion_tokens or body.max_tokens or max(1, min(service.config.max_tokens, room))
        job = _Job(service, request.state.about, served, body, _CHAT, [row], longest)
        return await job.response(body.top_logprobs if body.logprobs else None)

    return router


def _rows(service: Service, body: CompletionBody) -> list[EncodedQuestion]:
    """Return the prompts of a request as token ids."""
    given: Any = body.prompt
    prompts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not prompts:
        raise ApiError(400, "prompt is an empty list: give at least one text", param="prompt")
    return [_row(service, one, body.evidence) for one in prompts]


def _row(service: Service, prompt: str | Sequence[int], evidence: str) -> EncodedQuestion:
    """Return a prompt as token ids; token ids as they are."""
    if isinstance(prompt, str):
        if not prompt:
            raise ApiError(400, "a prompt is empty: give a text to continue", param="prompt")
        return encode(Question(prompt, evidence), service.lm)
    most = service.lm.vocabulary - 1
    if not prompt or min(prompt) < 0 or max(prompt) > most:
        raise ApiError(400, f"token ids of a prompt must be from 0 to {most}, and at least one", param="prompt")
    if evidence:
        raise ApiError(400, "evidence goes before prompts that are texts: leave it out", param="evidence")
    return EncodedQuestion(Question(service.lm.text(list(prompt)) or " "), list(prompt), 0)


@final
@dataclass(slots=True)
class _Job:
    """One request for generated text, and its answer.

    Attributes:
        rows: its texts as token ids.
        longest: largest number of tokens to generate after each.
        head: the fields that the answer and all chunks share.
        starts: what each text begins with: its prompt, if that is echoed.
        told: characters of each text whose tokens' log-probabilities were told.
    """

    service: Service
    about: About
    served: ServedModel
    body: Generation
    shape: Shape
    rows: Sequence[EncodedQuestion]
    longest: int
    usage: Usage = field(default_factory=Usage)
    head: dict[str, Any] = field(default_factory=dict)
    starts: dict[int, str] = field(default_factory=dict)
    told: dict[int, int] = field(default_factory=dict)

    async def response(self, logprobs: int | None, *, echo: bool = False) -> Response:
        """Return the answer, whole or as a stream.

        Args:
            logprobs: number of likeliest tokens to report beside each; None to report nothing.
            echo: begin each text with its prompt.
        """
        self._check()
        about, body, shape = self.about, self.body, self.shape
        about.model = self.served.name
        about.prompt_tokens = self.usage.prompt = sum(len(row.ids) for row in self.rows)
        self.usage.passes = self.served.passes
        requests = [self._request(row, body.sampling(logprobs or 0)) for row in self.rows]
        self.head = {
            "id": f"{shape.prefix}-{uuid4().hex}",
            "object": shape.chunk if body.stream else shape.whole,
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"fp_{self.service.lm.fingerprint()[:12]}",
        }
        prompts = [row.question.whole if echo else "" for row in self.rows]
        self.starts = dict(enumerate(prompt for prompt in prompts for _ in range(body.n)))
        pieces = self.service.pieces(about, requests, self.usage, streamed=body.stream)
        if body.stream:
            return event_stream(self._chunks(pieces, logged=logprobs is not None), about)
        texts, ends = dict(self.starts), dict.fromkeys(self.starts, "")
        tokens: dict[int, tuple[TokenLog, ...]] = dict.fromkeys(self.starts, ())
        async for piece in pieces:
            texts[piece.index] += piece.text
            tokens[piece.index] += piece.tokens
            ends[piece.index] = piece.finish
        about.text |= {"prompts": [row.question.whole for row in self.rows], "answers": list(texts.values())}
        logs = {index: self._logs(index, some) if logprobs is not None else None for index, some in tokens.items()}
        choices = [shape.choice(index, text, logs[index], ends[index]) for index, text in texts.items()]
        return JSONResponse({**self.head, "choices": choices, "usage": self.usage.as_json()})

    async def _chunks(self, pieces: AsyncIterator[Piece], *, logged: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a stream."""
        shape, options = self.shape, self.body.stream_options
        counted = options is not None and options.include_usage
        head = {**self.head, **({"usage": None} if counted else {})}
        for index, text in self.starts.items():
            if shape.opening:
                yield {**head, "choices": [shape.opening(index)]}
            elif text:
                yield {**head, "choices": [shape.delta(index, text, None, None)]}
        async for piece in pieces:
            if piece.text or piece.tokens:
                logs = self._logs(piece.index, piece.tokens) if logged else None
                yield {**head, "choices": [shape.delta(piece.index, piece.text, logs, None)]}
            if piece.finish:
                yield {**head, "choices": [shape.delta(piece.index, "", None, piece.finish)]}
        if counted:
            yield {**head, "choices": [], "usage": self.usage.as_json()}

    def _check(self) -> None:
        """Raise `ApiError` unless lengths and numbers are within the server's bounds."""
        config, body, texts = self.service.config, self.body, len(self.rows) * self.body.n
        if self.longest > config.max_tokens:
            what = f"max_tokens is {self.longest}, this server generates at most {config.max_tokens}: lower it"
            raise ApiError(400, what, param="max_tokens")
        if texts > config.max_choices:
            what = f"{len(self.rows)} prompts with n={body.n} are {texts} texts, this server generates at most"
            raise ApiError(400, f"{what} {config.max_choices} at a time: ask for fewer", param="n")
        if body.min_tokens > self.longest:
            what = f"min_tokens is {body.min_tokens}, and at most {self.longest} are generated: lower it"
            raise ApiError(400, what, param="min_tokens")

    def _request(self, row: EncodedQuestion, how: SamplingParameters) -> EngineRequest:
        body = self.body
        settings = {"stops": body.stops, "count": body.n, "sampling": how, "shortest": body.min_tokens}
        return self.service.request(self.served, row, self.longest, self.about, **settings)

    def _logs(self, index: int, tokens: Sequence[TokenLog]) -> dict[str, Any]:
        """Return the log-probabilities of the next tokens of a text."""
        before = self.told.get(index, 0)
        self.told[index] = before + sum(len(self._text(one.token)) for one in tokens)
        return self.shape.logs(self._text, tokens, before)

    def _text(self, token: int) -> str:
        return str(self.service.lm.tokenizer.decode([token], skip_special_tokens=False))


def _completion_logs(text_of: Callable[[int], str], tokens: Sequence[TokenLog], before: int) -> dict[str, Any]:
    """Return log-probabilities as parallel lists, as in OpenAI's completions."""
    texts = [text_of(one.token) for one in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [_number(one.log_probability) for one in tokens],
        "top_logprobs": [{text_of(token): _number(value) for token, value in one.top} for one in tokens],
        "text_offset": [before + sum(map(len, texts[:number])) for number in range(len(texts))],
    }


def _chat_logs(text_of: Callable[[int], str], tokens: Sequence[TokenLog], _: int) -> dict[str, Any]:
    """Return log-probabilities as a record for each token, as in OpenAI's chat completions."""

    def told(token: int, value: float) -> dict[str, Any]:
        text = text_of(token)
        known = None if INCOMPLETE in text else list(text.encode())
        return {"token": text, "logprob": _number(value), "bytes": known}

    content = [
        {**told(one.token, one.log_probability), "top_logprobs": [told(*other) for other in one.top]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def _number(value: float) -> float:
    """Return a log-probability as JSON has it, and as OpenAI gives that of a token that is next to impossible."""
    return value if math.isfinite(value) else -9999.0


def _completion_choice(index: int, text: str, logs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logs, "finish_reason": finish}


def _chat_choice(index: int, text: str, logs: Any, finish: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logs, "finish_reason": finish}


def _chat_delta(index: int, text: str, logs: Any, finish: str | None) -> dict[str, Any]:
    delta = {} if finish else {"content": text}
    return {"index": index, "delta": delta, "logprobs": logs, "finish_reason": finish}


def _chat_opening(index: int) -> dict[str, Any]:
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


_COMPLETION = Shape(
    "cmpl", "text_completion", "text_completion", _completion_choice, _completion_choice, _completion_logs
)
_CHAT = Shape(
    "chatcmpl", "chat.completion", "chat.completion.chunk", _chat_choice, _chat_delta, _chat_logs, _chat_opening
)
