"""How the commands that look at a running collector reach it: over its Unix socket, or HTTP.

Little but the standard library: what a container runs every few seconds must start in a moment.
"""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from collector.config import Config
from collector.config.kinds import Address, UnixUrl, is_host
from collector.config.tokens import read_tokens
from collector.errors import UNPARSABLE, CollectorError, ConfigInvalid, Unusable

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask who listens there
MAX_ANSWER_BYTES = 64 * 2**20


class Unreachable(CollectorError):
    """No collector answers there."""


class Busy(Unusable):
    """A collector answers that it has no room for the question."""


class Place(NamedTuple):
    """Where a collector listens, with the token that it asks for, if any."""

    door: Address | UnixUrl
    token: str | None = None

    def __str__(self) -> str:
        return f"http://{self.door}" if isinstance(self.door, Address) else str(self.door)


def place(at: Place | None, token_file: Path | None, config: Callable[[], Config]) -> Place:
    """Where to ask: `at`, which the command line says, else what the configuration does, which is read only then.

    A Unix socket goes first, as it asks for no token. Raises ConfigInvalid.
    """
    token = first_token(token_file)
    if at is not None:
        return at if isinstance(at.door, UnixUrl) else at._replace(token=token)
    settings = config()
    if settings.unix.stream is not None and settings.unix.stream.exists():
        return Place(UnixUrl(settings.unix.stream))
    host, port = settings.http.listen
    return Place(Address(ANYWHERE.get(host, host), port), token or first_token(settings.access.tokens_file))


def parse_place(url: str) -> Place:
    """The place of http://HOST:PORT or unix:PATH. Raises ValueError where the text is neither."""
    if url.startswith("unix:") and url != "unix:":
        return Place(UnixUrl(Path(url.removeprefix("unix:"))))
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not is_host(parts.hostname) or parts.port == 0:
        raise ValueError(url)
    return Place(Address(parts.hostname, parts.port or 80))


def ask(at: Place, path: str, *, timeout_seconds: float) -> tuple[int, bytes]:
    """Status and body of GET `path`. Raises Unreachable."""
    authorization = f"Authorization: Bearer {at.token}\r\n" if at.token else ""
    host = at.door if isinstance(at.door, Address) else "localhost"
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n{authorization}\r\n"
    try:
        with _connected(at, timeout_seconds) as connection:
            connection.sendall(request.encode("latin-1", "replace"))
            answer = bytearray()
            try:
                while (part := connection.recv(2**16)) and len(answer) < MAX_ANSWER_BYTES:
                    answer += part
            except ConnectionResetError:
                if not answer:  # who is refused before the request was read is cut off behind the answer
                    raise
    except OSError as error:
        raise Unreachable(f"{at} does not answer: {error.strerror or error}") from error
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.\d \d{3}\b", head):
        raise Unreachable(f"{at} does not answer as a collector does")
    return int(head[9:12]), body


def reason(body: bytes) -> str | None:
    """Why a collector has answered as it did; None where it does not say so, or is none."""
    try:
        return str(msgspec.json.decode(body)["errors"][0]["reason"])
    except (*UNPARSABLE, LookupError, TypeError):
        return None


def _connected(at: Place, timeout_seconds: float) -> socket.socket:
    if isinstance(at.door, Address):
        return socket.create_connection(at.door, timeout_seconds)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect(str(at.door.path))
    except OSError:
        connection.close()
        raise
    return connection


def first_token(file: Path | None) -> str | None:
    """What is shown to a collector that wants to see a token."""
    if file is None:
        return None
    try:
        return next((token.reveal() for token in read_tokens(file)), None)
    except ConfigInvalid:
        return None  # it may not be for us to read; the collector will say that it wants one
