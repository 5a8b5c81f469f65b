"""`shoulders serve`: an OpenAI-compatible API over one frozen model; `shoulders serve-key`: its keys."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoulders.cli.show import inform, need, quiet_libraries, warn
from shoulders.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from socket import socket

    from shoulders.serving.config import ServerConfig
    from shoulders.serving.models import Models
    from shoulders.serving.service import Service

PROCESS, VLLM = ENGINES = ("process", "vllm")


def serve(  # noqa: PLR0913, PLR0917 (one for each option)
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="folders of runs, scaffolds, readers, cascades, retrievers or re-rankers, or names on the hub; "
            "NAME=FOLDER serves it under another name. The bare model is always served",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="name or folder of the frozen model [default: the one that the first scaffold names]")
    ] = "",
    retriever: Annotated[list[str] | None, typer.Option(help="encoder for /v1/embeddings; may be repeated")] = None,
    reranker: Annotated[list[str] | None, typer.Option(help="re-ranker for /v1/rerank; may be repeated")] = None,
    index: Annotated[
        str, typer.Option(help="index of the passages for readers [default: that of their training]")
    ] = "",
    host: Annotated[str, typer.Option(help="address to listen at; other than loopback only with --keys")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen at; 0 for any free one", min=0, max=65535)] = 8000,
    keys: Annotated[Path | None, typer.Option(help="file of API keys (`shoulders serve-key`)")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="folder that an admin may load scaffolds from while it runs, or 'hub'; may be repeated"),
    ] = None,
    memory: Annotated[
        int, typer.Option(help="megabytes for keys and values: of running requests, and of texts kept for reuse", min=1)
    ] = 1024,
    rows: Annotated[int, typer.Option(help="number of texts that are generated at the same time", min=1)] = 32,
    queue: Annotated[int, typer.Option(help="requests that may wait; one more is refused with 429", min=1)] = 256,
    deadline: Annotated[float, typer.Option(help="seconds after which a request is given up")] = 120.0,
    dtype: Annotated[
        str, typer.Option(help="number type of the frozen model: auto, float32, bfloat16 or float16")
    ] = "auto",
    quantize: Annotated[
        str | None,
        typer.Option(
            help="quantise the frozen model: nf4, int8, or '' not at all [default: as for the training of the first "
            "scaffold; not at all with --backbone]",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(metavar="process|vllm", help="what runs the frozen model: this process, or vLLM (extra vllm)"),
    ] = "process",
    max_body: Annotated[int, typer.Option(help="largest request in bytes, uploads excepted")] = 1_000_000,
    max_upload: Annotated[int, typer.Option(help="largest upload of documents in bytes")] = 20_000_000,
    max_tokens: Annotated[int, typer.Option(help="largest number of tokens that a request may generate")] = 1024,
    log_text: Annotated[bool, typer.Option("--log-text", help="write prompts and answers into the log, too")] = False,
) -> None:
    """Serve scaffolds, readers and cascades over one frozen model, by an OpenAI-compatible API and a web page.

    Requests to different scaffolds are batched into the same forward passes. The log is lines of JSON on standard
    error.

    Open http://127.0.0.1:8000/ in a browser to compare them side by side. Without names the bare model alone is served;
    `--backbone` then says which.

    Example: `shoulders serve runs/first runs/second --port 8000`
    """
    need("fastapi", "serve")
    quiet_libraries()
    from shoulders.serving.config import ServerConfig
    from shoulders.serving.service import in_ending_thread

    config = ServerConfig(
        host=host,
        port=port,
        keys=keys,
        allow=tuple(allow or ()),
        max_body=max_body,
        max_upload=max_upload,
        max_tokens=max_tokens,
        deadline=deadline,
        queue=queue,
        log_text=log_text,
    )
    roles = [*((name, "") for name in names or ()), *((name, "retriever") for name in retriever or ())]
    roles += [(name, "reranker") for name in reranker or ()]
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ENGINES)
    sizes = {"memory_bytes": memory * 1_000_000, "rows": rows, "queue": queue}

    def service() -> "Service":
        models = _models(config, roles, backbone=backbone, dtype=dtype, quantize=quantize, index=index)
        return _service(config, models, engine, sizes)

    with config.bound() as sockets:
        _run(in_ending_thread(service), sockets)


def _models(
    config: "ServerConfig",
    names: list[tuple[str, str]],
    *,
    backbone: str,
    dtype: str,
    quantize: str | None,
    index: str,
) -> "Models":
    """Load the backbone and everything that is named; what is broken is named, and the rest is served."""
    from shoulders.backbone.frozen import FrozenLM
    from shoulders.serving.config import read_keys
    from shoulders.serving.models import Models, backbone_of, served_name

    if config.keys:
        read_keys(config.keys)  # refused before a model is loaded
    backbone, scheme = (backbone, "") if backbone else backbone_of([name for name, role in names if not role])
    lm = FrozenLM.load(backbone, dtype=dtype, quantize=scheme if quantize is None else quantize)
    models = Models(lm.settled(), allow=config.allow, index=index)
    for named, role in names:
        name, source = served_name(named)
        models.try_add(name, source, role)
    for name, (source, error) in models.broken.items():
        warn(f"not served: {name} ({source}): {error}")
    if names and len(models.broken) == len(names):
        raise UsageError(f"none of the {len(names)} models can be served: the reasons are above")
    return models


def _service(config: "ServerConfig", models: "Models", engine: str, sizes: dict[str, int]) -> "Service":
    """Return the models with the engine that runs them."""
    from shoulders.engine.scheduler import Scheduler
    from shoulders.engine.vllm import VllmEngine
    from shoulders.serving.service import Service

    if engine == PROCESS:
        return Service(models.lm, Scheduler(models.lm, **sizes), models, config)
    served = [(served.name, scaffold) for served in models for scaffold in served.scaffolds]
    over_vllm = VllmEngine(models.lm, served, **sizes).start()
    models.check = over_vllm.check
    return Service(models.lm, over_vllm, models, config)


def _run(service: "Service", sockets: "list[socket]") -> None:
    """Serve at the sockets until a signal comes."""
    import gc
    import signal
    import sys

    from shoulders.serving.app import Server, log_to_stderr

    log_to_stderr()
    served = ", ".join(sorted(one.name for one in service.models))
    server = Server(service, lambda address: inform(f"serving {served} at {address} (page: {address}/)"))
    gc.freeze()  # a search for garbage among all that was loaded would stop every answer for a fifth of a second
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which uvicorn raises again at its end
    with suppress(SystemExit):
        server.run(sockets)
    if not server.started:
        raise UsageError("the server did not start: its log says why")


def serve_key(
    name: Annotated[str, typer.Argument(help="whom the key is for; a key of that name is replaced")],
    keys: Annotated[Path, typer.Option(help="file of API keys; made if there is none")],
    admin: Annotated[bool, typer.Option("--admin", help="the key may load and unload scaffolds")] = False,
    requests_per_minute: Annotated[int, typer.Option(help="0 for no limit", min=0)] = 0,
    tokens_per_minute: Annotated[int, typer.Option(help="tokens read and generated; 0 for no limit", min=0)] = 0,
    at_once: Annotated[int, typer.Option(help="requests that may run or wait at a time; 0 for no limit", min=0)] = 0,
) -> None:
    """Make an API key for `shoulders serve --keys FILE` and print it, once: the file keeps only its hash.

    Example: `shoulders serve-key alice --keys keys.json --requests-per-minute 60`
    """
    from shoulders.serving.config import add_key

    key = add_key(
        keys,
        name,
        admin=admin,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        at_once=at_once,
    )
    inform(key)
