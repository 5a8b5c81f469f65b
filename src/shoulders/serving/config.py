"""Settings of a server, and the API keys that it accepts, as frozen, self-validating records."""

import errno
import hashlib
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, final

from pydantic import TypeAdapter, ValidationError

from shoulders.errors import CorruptFile, UsageError, first_line, misfit
from shoulders.store.files import read_json, write_json

KEYS_FORMAT = 1
MEGABYTE = 1_000_000
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address that this machine lacks, such as ::1 without IPv6


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
        host, port: the address that it listens at.
        keys: file of the API keys (`shoulders serve-key`); None: no key is needed, on a loopback address only.
        allow: folders from which the admin may load scaffolds at run time; "hub" allows names on the hub.
        max_body: bytes of a request, uploads excepted.
        max_upload: bytes of an upload of documents.
        max_uploads: indexes of uploaded documents that are kept at a time.
        upload_seconds: time after which uploaded documents are deleted.
        max_tokens: largest number of tokens that a request may generate.
        max_choices: largest number of continuations of a request (`n` times its prompts).
        deadline: seconds after which a request is given up.
        body_seconds: seconds that a client may take to send a request.
        queue: requests that may wait; one more is refused with 429.
        log_text: whether prompts and answers are logged.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    allow: tuple[str, ...] = ()
    max_body: int = MEGABYTE
    max_upload: int = 20 * MEGABYTE
    max_uploads: int = 64
    upload_seconds: float = 3600.0
    max_tokens: int = 1024
    max_choices: int = 64
    deadline: float = 120.0
    body_seconds: float = 30.0
    queue: int = 256
    log_text: bool = False

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise UsageError(
                f"--host {self.host} can be reached from other machines and no key is asked for: make one (shoulders "
                "serve-key NAME --keys FILE) and add --keys FILE, or listen at 127.0.0.1"
            )
        for name in ("max_body", "max_upload", "max_uploads", "max_tokens", "max_choices", "queue"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if min(self.deadline, self.body_seconds, self.upload_seconds) <= 0:
            raise UsageError("deadline, body_seconds and upload_seconds must be above 0 seconds")

    def address(self, port: int) -> str:
        """Return the host and a port as they stand in a URL."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def cannot_listen(self, error: Exception) -> UsageError:
        """Return the error of an address at which nothing can listen."""
        return UsageError(
            f"the server cannot listen at {self.address(self.port)} ({first_line(error)}): choose another --port or "
            "--host"
        )

    @contextmanager
    def bound(self) -> Iterator[list[socket.socket]]:
        """Hold the server's address for as long as the context lasts: a socket for each address of the host.

        No other process can take it meanwhile. Until the server listens, connections are refused at once.

        Raises:
            UsageError: the address is taken, or is none of this machine.
        """
        with ExitStack() as opened:
            try:
                sockets = _bound(self.host, self.port, opened)
            except (OSError, UnicodeError) as error:  # that of a host that is no name
                raise self.cannot_listen(error) from error
            yield sockets


def _bound(host: str, port: int, opened: ExitStack) -> list[socket.socket]:
    """Return a bound socket for each address of a host that this machine has, all with the same port."""
    found: list[socket.socket] = []
    failed: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ):
        try:
            one = opened.enter_context(socket.socket(family, kind, protocol))
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = _bind(one, (address[0], port, *address[2:]))
            found.append(one)
        except OSError as error:
            failed = error
            if error.errno not in NOT_HERE:
                raise
    if failed and not found:
        raise failed
    return found


def _bind(one: socket.socket, address: tuple[Any, ...]) -> int:
    """Bind a socket, so that no other can be bound to its address, and return the port.

    Linux binds two sockets to one address if both may reuse it and neither listens. So reuse is allowed only where
    connections that have just ended hold the address.
    """
    try:
        one.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)
    return one.getsockname()[1]


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key as the file of keys holds it: never the key itself.

    Attributes:
        name: whom it was given to; named in logs and metrics.
        hash: SHA-256 of the key. A key is 256 random bits, so that a slow hash would add nothing.
        admin: whether it may load and unload scaffolds.
        requests_per_minute: of the whole key; 0 for no limit.
        tokens_per_minute: read and generated; 0 for no limit.
        at_once: requests that may run or wait at a time; 0 for no limit.
    """

    name: str
    hash: str
    admin: bool = False
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    at_once: int = 0


ANYONE = ApiKey(name="", hash="", admin=True)  # of a server without keys


def hash_of(key: str) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def read_keys(path: Path) -> Mapping[str, ApiKey]:
    """Read the keys of a file, by their hashes.

    Raises:
        SourceNotFound: there is no such file.
        CorruptFile: it is no file of keys.
    """
    content = read_json(path)
    try:
        if content.get("format") != KEYS_FORMAT:
            raise CorruptFile(f"{path} has format {content.get('format')}, this version reads {KEYS_FORMAT}")
        keys = TypeAdapter(list[ApiKey]).validate_python(content.get("keys"))
    except ValidationError as error:
        raise CorruptFile(
            f"{path} is no file of API keys ({misfit('', error.errors())}): make one (shoulders serve-key)"
        ) from error
    return {key.hash: key for key in keys}


def add_key(path: Path, name: str, **limits: Any) -> str:
    """Add a new key to a file, which is made if there is none, and return the key: it is stored nowhere.

    Args:
        path: file of keys.
        name: whom the key is for; another key of that name is replaced.
        limits: see `ApiKey`.

    Raises:
        SaveFailed: the file cannot be written.
        CorruptFile: it is no file of keys.
    """
    key = f"sk-{secrets.token_urlsafe(32)}"
    known: Sequence[ApiKey] = [*read_keys(path).values()] if path.exists() else []
    kept = [*(one for one in known if one.name != name), ApiKey(name=name, hash=hash_of(key), **limits)]
    write_json(path, {"format": KEYS_FORMAT, "keys": [asdict(one) for one in kept]})
    return key
