"""The server: its routes together, models at run time, operations, and the process that serves them."""

import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from shoulders.errors import UsageError
from shoulders.serving.answering_api import UPLOADS, answering_routes, retrieval_routes
from shoulders.serving.http import ApiError, Gate, JsonLines, Keys, as_api_error
from shoulders.serving.models import ServedModel
from shoulders.serving.openai_api import Body, openai_routes
from shoulders.serving.service import Service

PAGE = Path(__file__).parent / "page"
PAGE_FILE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)


class ErrorBody(BaseModel):
    """An error, as OpenAI's clients read it."""

    error: dict[str, str | None] = Field(examples=[{"message": "...", "type": "...", "param": None, "code": None}])


class AddBody(Body):
    """A model to serve from now on."""

    name: str
    path: str = Field(description="folder within the allowed ones, or a name on the hub")
    role: str = Field("", description="'retriever' or 'reranker', for a model that does not say so itself")
    replace: bool = False


class LoadBody(Body):
    """A model to serve from now on, as vLLM names it."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadBody(Body):
    """A model not to serve any more, as vLLM names it."""

    lora_name: str
    lora_int_id: int | None = None


def create_app(service: Service) -> Gate:
    """Return the ASGI application of a server; its engine runs from the application's start to its end."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPIOffline(  # whose page of the API asks for nothing from elsewhere
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/files",
        title="shoulders",
        version=version("shoulders"),
        description="Scaffolds around one frozen language model: OpenAI's API, and routes of our own.",
        lifespan=life,
        redirect_slashes=False,
        dependencies=[Depends(HTTPBearer(auto_error=False))],  # for the description alone: the gate asks for the key
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    keys = Keys(service.config)
    for kind in (ApiError, RequestValidationError, HTTPException, UsageError, TimeoutError, Exception):
        app.add_exception_handler(kind, _told)
    for routes in (openai_routes, answering_routes, retrieval_routes):
        app.include_router(routes(service))
    _admin_routes(app, service)
    _operations(app, service, keys)
    _page(app)
    return Gate(app, service.config, keys, uploads=UPLOADS, on_end=service.metrics.ended)


async def _told(_: Request, error: Exception) -> Response:
    return as_api_error(error).response()


async def _admin(request: Request) -> None:
    """Refuse a request whose key is not the admin's."""
    if not request.state.about.key.admin:
        raise ApiError(
            403, "this needs an admin's key (shoulders serve-key NAME --keys FILE --admin)", code="admin_only"
        )


def _admin_routes(app: FastAPI, service: Service) -> None:
    """Add the routes that change what is served."""
    admin: dict[str, Any] = {"dependencies": [Depends(_admin)], "tags": ["Models at run time"]}

    async def add(name: str, path: str, role: str = "", *, replacing: bool = False) -> ServedModel:
        source = service.models.allowed_source(path)
        return await service.in_thread(
            lambda: service.models.add(name, source, role=role, replacing=replacing), heavy=True
        )

    @app.get("/v1/scaffolds", **admin)
    async def list_scaffolds() -> dict[str, Any]:
        """List what is served, where it comes from, and what could not be loaded."""
        broken = service.models.broken.items()
        return {
            "object": "list",
            "data": [_record(served) for served in service.models],
            "broken": [{"name": name, "path": path, "error": error} for name, (path, error) in broken],
        }

    @app.post("/v1/scaffolds", status_code=201, **admin)
    async def add_scaffold(body: AddBody) -> dict[str, Any]:
        """Load a scaffold, a reader, a cascade, a LoRA, a retriever or a re-ranker, and serve it."""
        return _record(await add(body.name, body.path, body.role, replacing=body.replace))

    @app.delete("/v1/scaffolds/{name:path}", **admin)
    async def remove_scaffold(name: str) -> dict[str, Any]:
        """Stop serving a model; requests that are running finish with it."""
        service.models.remove(name)
        return {"name": name, "deleted": True}

    @app.post("/v1/load_lora_adapter", **admin)
    async def load_lora_adapter(body: LoadBody) -> PlainTextResponse:
        """Load a scaffold or a LoRA, as vLLM names it."""
        await add(body.lora_name, body.lora_path, replacing=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", **admin)
    async def unload_lora_adapter(body: UnloadBody) -> PlainTextResponse:
        """Stop serving a scaffold or a LoRA, as vLLM names it."""
        service.models.remove(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _record(served: ServedModel) -> dict[str, Any]:
    """Return what the admin is told of a model."""
    return {
        "name": served.name,
        "path": served.source,
        "kind": served.kind,
        "fingerprint": served.fingerprint,
        "loaded": int(served.created),
        "megabytes": round(served.size / 1e6, 3),
    }


def _operations(app: FastAPI, service: Service, keys: Keys) -> None:
    """Add the routes of operations."""
    config = service.config

    @app.get("/v1/info", tags=["Operations"])
    async def info() -> dict[str, Any]:
        """Tell what is served, and within which limits."""
        return {
            "version": version("shoulders"),
            "backbone": service.lm.name,
            "fingerprint": service.lm.fingerprint(),
            "context": service.lm.context,
            "chat_template": service.lm.template is not None,
            "authentication": keys.needed,
            "engine": type(service.engine).__name__.lower(),
            "limits": {
                "max_body_bytes": config.max_body,
                "max_document_bytes": config.max_upload,
                "max_tokens": config.max_tokens,
                "deadline_seconds": config.deadline,
                "queue": config.queue,
            },
        }

    @app.get("/health", tags=["Operations"])
    async def health() -> dict[str, str]:
        """Tell that the process is alive."""
        return {"status": "ok"}

    @app.get("/ready", tags=["Operations"])
    async def ready() -> Response:
        """Tell whether requests are taken."""
        if service.stopping:
            return ApiError(503, "the server is stopping", code="not_ready", retry_after=5).response()
        try:
            service.engine.check_runs()
        except UsageError as error:
            return ApiError(503, f"no request can be answered: {error}", code="not_ready").response()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["Operations"])
    async def metrics() -> Response:
        """Return the metrics in the form that Prometheus reads."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _page(app: FastAPI) -> None:
    """Add the page, and its files."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        return _file(name)


def _file(name: str) -> Response:
    """Return a file of the page."""
    place = PAGE / name
    if not PAGE_FILE.fullmatch(name) or not place.is_file():
        raise ApiError(404, f"there is no file {name[:80]!r} of the page: open GET /", code="not_found")
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return FileResponse(place, headers={**headers, "Cache-Control": "no-cache"})


class Server(uvicorn.Server):
    """uvicorn's server, which says when it listens, and ends running requests before it stops."""

    def __init__(self, service: Service, on_listening: Callable[[str], None] = lambda _: None) -> None:
        config = service.config
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host=config.host,
                port=config.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(config.deadline) + 2,
                timeout_keep_alive=30,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self._service, self._on_listening = service, on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so.

        Raises:
            UsageError: another process listens at the address.
        """
        config = self._service.config
        try:
            await super().startup(sockets)
        except OSError as error:
            await self.lifespan.shutdown()
            raise config.cannot_listen(error) from error
        if self.started:
            for one in sockets or ():  # its connections may still be ending when the next server takes the address
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._on_listening(f"http://{config.address(self.servers[0].sockets[0].getsockname()[1])}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and end those that run."""
        self._service.stopping = True
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop at the first signal; a second SIGINT gives up what runs."""
        self._service.stopping = True
        super().handle_exit(sig, frame)


def log_to_stderr(level: str = "INFO") -> None:
    """Write the log to standard error as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("shoulders.serving", "uvicorn.error"):
        logging.getLogger(name).setLevel(level)
