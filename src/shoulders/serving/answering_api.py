"""Answers with what they come from, documents to ask, embeddings and re-ranking."""

import base64
import math
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated, Any, Literal, final
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from shoulders.answering.answerer import Answerer, ModelAnswerer, ModelInput, trimmed
from shoulders.answering.cascade import CascadeAnswerer
from shoulders.engine import inference
from shoulders.engine.batches import EncodedQuestion, encode
from shoulders.engine.requests import SamplingParameters
from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound
from shoulders.records import Answer, Passage, Question
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.scoring import Pair, Ranker
from shoulders.serving.http import About, ApiError, event_stream
from shoulders.serving.models import ServedModel
from shoulders.serving.openai_api import SEEDS, Body
from shoulders.serving.service import Service, Usage
from shoulders.store.files import save_failed

PAGE = re.compile(r" > page (\d+)$")  # in the title of a passage of a PDF
MOST_TEXTS = 2048  # of one request for embeddings or scores
UPLOADS = frozenset({"/v1/documents"})
Text = Annotated[str, Field(min_length=1)]


class AnswerBody(Body):
    """A request of `/v1/answer`."""

    model: str = Field(description="name of a served model (GET /v1/models)")
    question: Text
    choices: list[Text] = Field(default=[], max_length=64, description="choose one of these instead of generating")
    documents: str = Field("", description="id of uploaded documents to read, instead of the model's own index")
    evidence: str = Field("", description="text that is read before the question")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy")
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS, description="decides the sample if temperature is above 0")
    stream: bool = False

    @property
    def sampling(self) -> SamplingParameters:
        """How tokens are chosen."""
        seed = None if self.seed is None else self.seed % SEEDS
        return SamplingParameters(temperature=self.temperature, seed=seed)


class TextsBody(Body):
    """Texts to index, if they are no files."""

    texts: list[str] = Field(min_length=1, max_length=10_000)
    name: str = "texts"


class EmbeddingBody(Body):
    """A request of `/v1/embeddings`."""

    model: str
    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="only as many as the encoder has")
    task: Literal["retrieval.query", "retrieval.passage"] = "retrieval.query"
    input_type: Literal["query", "passage", "document"] | None = None

    @property
    def passages(self) -> bool:
        """Whether the texts are passages, and not questions."""
        return (self.input_type or self.task.removeprefix("retrieval.")) != "query"


class RankedText(Body):
    """A document to rank."""

    text: str
    title: str = ""


class RerankBody(Body):
    """A request of `/v1/rerank`."""

    model: str
    query: Text
    documents: list[str | RankedText] = Field(min_length=1, max_length=MOST_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True


def answering_routes(service: Service) -> APIRouter:
    """Return the routes of answers and uploaded documents."""
    router = APIRouter(tags=["Answers"])

    @router.post("/v1/answer")
    async def answer(body: AnswerBody, request: Request) -> Response:
        """Answer a question, and tell which passages or candidates the answer is based on."""
        about: About = request.state.about
        served = service.models.get(body.model, "answer")
        about.model = served.name
        if (body.max_tokens or 0) > service.config.max_tokens:
            what = (
                f"max_tokens is {body.max_tokens}, this server generates at most {service.config.max_tokens}: lower it"
            )
            raise ApiError(400, what, param="max_tokens")
        asked = _Asked(service, about, served, body, await service.in_thread(_answerer, service, about, served, body))
        if body.stream:
            return event_stream(asked.events(), about)
        told = [event async for event in asked.events()]
        return JSONResponse({name: value for name, value in told[-1].items() if name != "type"})

    @router.post("/v1/documents", status_code=201, openapi_extra=_UPLOAD_BODY)
    async def upload(request: Request) -> Response:
        """Upload documents, to be named in requests of `/v1/answer`."""
        name, files, texts = await _uploaded(request)
        owner = request.state.about.key.name
        kept = await service.in_thread(service.uploads.add, owner, name, files, texts, heavy=True)
        return JSONResponse(kept.as_json(), 201)

    @router.get("/v1/documents")
    async def list_documents(request: Request) -> dict[str, Any]:
        """List the documents that were uploaded with this key."""
        found = service.uploads.of(request.state.about.key.name)
        return {"object": "list", "data": [upload.as_json() for upload in found]}

    @router.delete("/v1/documents/{name}")
    async def delete_documents(name: str, request: Request) -> dict[str, Any]:
        """Delete uploaded documents."""
        service.uploads.delete(name, request.state.about.key.name)
        return {"id": name, "object": "documents", "deleted": True}

    return router


def retrieval_routes(service: Service) -> APIRouter:
    """Return the routes of embeddings and re-ranking."""
    router = APIRouter(tags=["Retrieval"])

    @router.post("/v1/embeddings")
    async def embed(body: EmbeddingBody, request: Request) -> dict[str, Any]:
        """Return the vectors of texts, by a retriever's encoder."""
        served = service.models.get(body.model, "embeddings")
        request.state.about.model = served.name
        return await service.in_thread(_embedded, served.opened, body, request.state.about, heavy=True)

    async def rerank(body: RerankBody, request: Request) -> dict[str, Any]:
        """Put documents in the order of their relevance to a query, by a re-ranker."""
        served = service.models.get(body.model, "rerank")
        request.state.about.model = served.name
        return await service.in_thread(_reranked, served.opened, body, request.state.about, heavy=True)

    router.post("/v1/rerank")(rerank)
    for path in ("/rerank", "/v2/rerank"):  # where vLLM and Cohere have it
        router.post(path, include_in_schema=False)(rerank)
    return router


_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {"schema": TextsBody.model_json_schema()},
        },
    }
}


async def _uploaded(request: Request) -> tuple[str, dict[str, bytes], list[str]]:
    """Return the name, the files and the texts of an upload.

    Raises:
        ApiError: the body is neither a form with files nor JSON with texts.
        SaveFailed: the disk is full.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            async with request.form(max_files=100, max_fields=100) as form:
                given = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
                files = {f"{n}/{one.filename or 'document.txt'}": await one.read() for n, one in enumerate(given)}
        except MultiPartException as error:
            raise ApiError(400, f"the form cannot be read: {error.message}", code="invalid_form") from error
        except OSError as error:  # files over a megabyte are kept on the disk while they come
            raise save_failed(Path(gettempdir()), error, option="TMPDIR of the server") from error
        if not files:
            raise ApiError(400, "there is no file in the form: send it as the field 'file'", param="file")
        return ", ".join(name.partition("/")[2] for name in files)[:200], files, []
    try:
        body = TypeAdapter(TextsBody).validate_json(await request.body())
    except ValidationError as error:
        what = f"the body is neither a form with files nor JSON with texts: {error.errors()[0]['msg']}"
        raise ApiError(400, what, code="invalid_json") from error
    return body.name[:200], {}, body.texts


def _answerer(service: Service, about: About, served: ServedModel, body: AnswerBody) -> Answerer:
    """Return what answers a request: the model, reading what is asked for, over the engine."""
    found: Any = served.opened
    if body.documents:
        found = service.uploads.answerer(service.uploads.get(body.documents, about.key.name), served)
    if body.temperature and (body.choices or not isinstance(found, ModelAnswerer)):
        why = "choices are ranked" if body.choices else f"the stages of {served.name!r} choose likeliest tokens"
        raise ApiError(
            400, f"temperature is {body.temperature:g} and {why}: leave it out", param="temperature", code="unsupported"
        )
    if body.max_tokens:
        found = replace(found, how=replace(found.how, longest=body.max_tokens))
    return found.over(service.bound(about))


@final
@dataclass(slots=True)
class _Asked:
    """One question to a model, and the events of its answer."""

    service: Service
    about: About
    served: ServedModel
    body: AnswerBody
    answerer: Answerer
    usage: Usage = field(default_factory=Usage)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what was read, the text in pieces, and the whole answer; its last event has every field."""
        question = Question(self.body.question, self.body.evidence)
        if not isinstance(self.answerer, ModelAnswerer):
            yield await self._by_stages(question)
            return
        given = await self._evidence(self.answerer, question)
        inference.check_asked(given.question)
        row = encode(given.question, self.service.lm)
        self.about.prompt_tokens = self.usage.prompt = len(row.ids)
        if given.passages or given.candidates:
            told = _told(replace(_NOTHING, passages=given.passages, read=given.read, candidates=given.candidates))
            yield {"type": "evidence", **{name: told[name] for name in ("passages", "read", "candidates")}}
        if self.body.choices:
            yield await self._chosen(self.answerer, given)
            return
        async for event in self._generated(self.answerer, given, row):
            yield event

    async def _evidence(self, answerer: ModelAnswerer, question: Question) -> ModelInput:
        """Return the question with what is read before it."""
        try:
            (given,) = await self.service.in_thread(answerer.prepared, [question])
        except (SourceNotFound, CorruptFile, SaveFailed) as error:  # of an index that is moved or built anew
            what = f"what {self.served.name!r} reads cannot be read now ({error}): ask again later"
            raise ApiError(503, what, code="evidence_unavailable", retry_after=5) from error
        return given

    async def _generated(
        self, answerer: ModelAnswerer, given: ModelInput, row: EncodedQuestion
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the answer in pieces, and as a whole."""
        served = replace(self.served, opened=answerer)
        how = {"stops": answerer.how.stops, "sampling": self.body.sampling}
        asked = self.service.request(served, row, answerer.how.longest, self.about, **how)
        whole = shown = ""
        async for piece in self.service.pieces(self.about, [asked], self.usage):
            whole += piece.text
            text = trimmed(whole, first_line=answerer.reads_passages)
            if len(text) > len(shown):
                yield {"type": "delta", "text": text[len(shown) :]}
                shown = text
        (branch,) = self.usage.results[0].branches
        said = inference.as_answer(branch, self.service.lm, answerer.how)
        yield self._whole(answerer.finished(given, said), answerer.doubt)

    async def _chosen(self, answerer: ModelAnswerer, given: ModelInput) -> dict[str, Any]:
        """Return the likeliest of the choices."""
        choices = self.body.choices
        ranked = await self.service.in_thread(
            inference.rank, [given.question], [choices], answerer.lm, answerer.scaffold, answerer.how
        )
        best = answerer.finished(given, inference.likeliest_choice(choices, ranked[0]), chosen=True)
        sums = [score - max(ranked[0]) for score in ranked[0]]
        total = math.log(sum(map(math.exp, sums)))
        told = [
            {"text": text, "log_likelihood": _finite(score), "probability": math.exp(value - total)}
            for text, score, value in zip(choices, ranked[0], sums, strict=True)
        ]
        return {**self._whole(best, answerer.doubt), "choices": told}

    async def _by_stages(self, question: Question) -> dict[str, Any]:
        """Return the answer of a cascade."""
        cascade = self.answerer
        assert isinstance(cascade, CascadeAnswerer)
        choices = [self.body.choices] if self.body.choices else []
        (decided,) = await self.service.in_thread(cascade.decide, [question], choices)
        self.about.prompt_tokens = self.usage.prompt = len(self.service.lm.ids(question.whole))
        return {**self._whole(replace(decided.answer, passes=decided.passes), ""), "stage": decided.stage + 1}

    def _whole(self, answer: Answer, doubt: str) -> dict[str, Any]:
        self.usage.passes = answer.passes
        self.about.text |= {"prompts": [self.body.question], "answers": [answer.text]}
        return {
            "type": "answer",
            "id": f"ans-{uuid4().hex}",
            "object": "answer",
            "created": int(time.time()),
            "model": self.body.model,
            **_told(answer),
            "choices": None,
            "stage": None,
            "doubt": doubt,
            "usage": self.usage.as_json(),
            "seconds": round(time.monotonic() - self.about.started, 4),
        }


_NOTHING = Answer("", 0.0, 0.0)


def _told(answer: Answer) -> dict[str, Any]:
    """Return an answer and what it comes from, as JSON values."""
    places, support = answer.places, answer.support
    return {
        "answer": answer.answer,
        "said": answer.text,
        "probability": answer.probability,
        "margin": _finite(answer.margin),
        "threshold": _finite(answer.least),
        "passes": answer.passes,
        "passages": [{**_passage(one), "read": rank in places} for rank, one in enumerate(answer.passages, start=1)],
        "read": [_passage(one) for one in answer.read],
        "found": support and {"read": support.number, "start": support.start, "end": support.end},
        "candidates": [
            {"text": one.text, "log_probability": _finite(one.score), "probability": math.exp(min(0.0, one.score))}
            for one in answer.candidates
        ],
    }


def _passage(passage: Passage) -> dict[str, Any]:
    page = PAGE.search(passage.title)
    return {
        "title": passage.title,
        "text": passage.text,
        "score": _finite(passage.score),
        "page": int(page[1]) if page else None,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _embedded(encoder: BiEncoder, body: EmbeddingBody, about: About) -> dict[str, Any]:
    """Return the vectors of texts in OpenAI's shape."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    if body.dimensions not in (None, encoder.dimension):
        what = f"dimensions is {body.dimensions}, this encoder has {encoder.dimension}: leave it out"
        raise ApiError(400, what, param="dimensions")
    titles = [""] * len(texts)
    if body.passages:
        rows, vectors = encoder.passage_rows(titles, texts), encoder.encode_passages(titles, texts)
    else:
        rows, vectors = encoder.question_rows(texts), encoder.encode_questions(texts)
    about.prompt_tokens = sum(map(len, rows))
    plain = body.encoding_format == "float"
    told = [row.tolist() if plain else base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    return {
        "object": "list",
        "model": body.model,
        "data": [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(told)],
        "usage": {"prompt_tokens": about.prompt_tokens, "total_tokens": about.prompt_tokens},
    }


def _reranked(ranker: Ranker, body: RerankBody, about: About) -> dict[str, Any]:
    """Return documents by relevance, in the shape of Jina and vLLM."""
    documents = [RankedText(text=one) if isinstance(one, str) else one for one in body.documents]
    pairs = [Pair(body.query, one.title, one.text) for one in documents]
    scores, about.prompt_tokens = ranker.scores(pairs), ranker.tokens(pairs)
    best: Sequence[int] = sorted(range(len(scores)), key=lambda number: -scores[number])[: body.top_n]
    results = [
        {
            "index": number,
            "relevance_score": _probability(scores[number]),
            **({"document": {"text": documents[number].text}} if body.return_documents else {}),
        }
        for number in best
    ]
    usage = {"total_tokens": about.prompt_tokens}
    return {"id": f"rerank-{uuid4().hex}", "model": body.model, "results": results, "usage": usage}


def _probability(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))
