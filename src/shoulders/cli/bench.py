"""`shoulders bench-serve`: throughput and waiting times of a server under load."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from shoulders.cli.common import Out, write_numbers
from shoulders.cli.show import console, say, warn
from shoulders.errors import DataError, SourceNotFound, UnknownName, UsageError

if TYPE_CHECKING:
    from shoulders.serving.load import Endpoint

ROWS = (  # of the table: what is shown, its value or its percentiles, and the unit
    ("requests", "requests_per_second", "/s"),
    ("tokens", "tokens_per_second", "/s"),
    ("time to first token", "first_token", "s"),
    ("time a token after it", "token", "s"),
    ("latency", "latency", "s"),
)


def bench_serve(  # noqa: PLR0913, PLR0917 (one for each option)
    url: Annotated[str, typer.Argument(help="address of the server")] = "http://127.0.0.1:8000",
    model: Annotated[
        list[str] | None,
        typer.Option(help="model to ask; give it several times to ask several in turn [default: all that complete]"),
    ] = None,
    requests: Annotated[int, typer.Option(help="number of requests")] = 64,
    clients: Annotated[int, typer.Option(help="clients at once; each sends its next request after an answer")] = 8,
    rate: Annotated[
        float, typer.Option(help="send so many requests a second at random times (Poisson), instead of --clients")
    ] = 0.0,
    prompts: Annotated[
        Path | None, typer.Option(help="text file with a prompt on each line [default: random common words]")
    ] = None,
    words: Annotated[int, typer.Option(help="length of a random prompt, in words")] = 64,
    max_tokens: Annotated[int, typer.Option(help="largest number of tokens of an answer")] = 64,
    exact: Annotated[bool, typer.Option("--exact", help="answers of exactly --max-tokens (min_tokens)")] = False,
    leaving: Annotated[float, typer.Option(help="share of the clients that leave half-way, 0 to 1")] = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="ask for chat completions")] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    seed: Annotated[int, typer.Option(help="seed of random prompts, times and leaving clients")] = 0,
    key: Annotated[str, typer.Option(help="API key", envvar="OPENAI_API_KEY", show_envvar=True)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    out: Out = None,
) -> None:
    """Measure an OpenAI endpoint under load, ours or any other: throughput, time to first token, latency.

    A request that a full server refuses (429) is sent again when the server says; its times count from its first try.

    Example: `shoulders bench-serve http://127.0.0.1:8000 --model my-prompt --model bare --clients 16`
    """
    import json

    from shoulders.serving.load import Endpoint, Mix, random_prompts, run

    if clients < 1 or rate < 0 or words < 1:
        raise UsageError(
            f"--clients {clients}, --rate {rate} and --words {words}: at least 1 client, 0 a second, 1 word"
        )
    endpoint = Endpoint(url, key, chat=chat)
    models = _models(endpoint, model or [])
    texts = _read_prompts(prompts) if prompts else random_prompts(requests, words, seed)
    fields = {"temperature": temperature, **({"min_tokens": max_tokens} if exact else {})}
    mix = Mix(models, texts, requests, max_tokens, leaving, seed, fields)
    summary = run(endpoint, mix.requests(), clients=clients, rate=rate, seed=seed).summary()
    settings = {"url": url, "models": models, "clients": None if rate else clients, "rate": rate or None}
    content = {**settings, "max_tokens": max_tokens, "leaving": leaving, "seed": seed, **summary}
    if as_json:
        say(json.dumps(content))
    else:
        _print(summary)
    write_numbers(out, content)
    if summary["failed"] == summary["requests"]:
        raise UsageError(f"no request was answered: {next(iter(summary['errors']))}")


def _models(endpoint: "Endpoint", wanted: list[str]) -> list[str]:
    """Return the models to ask."""
    known = endpoint.models()
    for name in wanted:
        if name not in known:
            raise UnknownName("model", name, known)
    return wanted or known


def _read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    from shoulders.store.encodings import decode_strict

    try:
        lines = [line.strip() for line in decode_strict(path.read_bytes()).splitlines()]
    except (OSError, DataError) as error:
        raise SourceNotFound(f"cannot read {path}: {error}") from error
    if not any(lines):
        raise UsageError(f"{path} has no prompt: write one on each line")
    return [line for line in lines if line]


def _print(summary: dict[str, Any]) -> None:
    counts = f"{summary['answered']} of {summary['requests']} answered in {summary['seconds']:.1f} s"
    others = [f"{summary[name]} {name}" for name in ("left", "failed") if summary[name]]
    if summary["refused"]:
        others.append(f"refused {summary['refused']} times and sent again")
    console.print(", ".join([counts, *others]))
    table = Table("", "mean", "p50", "p95", "", box=None, header_style="bold")
    for shown, name, unit in ROWS:
        cells = [summary.get(name), summary.get(f"{name}_p50"), summary.get(f"{name}_p95")]
        table.add_row(shown, *("" if value is None else f"{value:.3f}" for value in cells), unit)
    console.print(table)
    for error, count in summary["errors"].items():
        warn(f"{count} failed: {error}")
