"""What is asked over HTTP and what is answered: requests, whose bodies may still be coming in, answers and refusals."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import unquote

from collector.events import DOT_SEGMENTS

WITHOUT_CONTENT = {204, 304}
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class Sender(Protocol):
    """The connection a request comes over, as far as reading its body needs it."""

    is_local: bool
    buffered_bytes: int

    def send_continue(self) -> None:
        """The client may send its body."""
        ...

    def regulate(self) -> None:
        """Reads on where little enough waits to be taken."""
        ...


class Refusal(Exception):
    """A request that is not served: the status, the reason for the client, a label for the metric, more headers."""

    def __init__(self, status: int, reason: str, label: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.label = label
        self.headers = headers or {}


class ClientGone(ConnectionError):
    """The client closed the connection before the end of its request."""


class AnswerBroken(Exception):
    """An answer that has begun cannot be completed."""


class Answer(NamedTuple):
    """Status, content, and more header fields as `header_lines` writes them.

    Content that is not bytes is sent as it comes, in pieces that are not empty; where it does not come to its end, it
    raises AnswerBroken.
    """

    status: int
    content: bytes | AsyncGenerator[bytes]
    headers: bytes = b""

    def head(self, date_line: bytes, *, version: str, is_last: bool) -> bytes:
        """All that comes before the content, to a client of this version of HTTP."""
        length = len(self.content) if isinstance(self.content, bytes) else None
        return _head(self.status, length, self.headers, date_line, version, is_last)


@functools.lru_cache(maxsize=256)  # one second's answers are much alike
def _head(status: int, length: int | None, headers: bytes, date_line: bytes, version: str, is_last: bool) -> bytes:
    ends_by_itself = True
    if status in WITHOUT_CONTENT:  # and a length would be that of a 200, or wrong (RFC 9110 section 8.6)
        framing = b""
    elif length is not None:
        framing = b"Content-Length: %d\r\n" % length
    else:
        ends_by_itself = version == "1.1"
        framing = b"Transfer-Encoding: chunked\r\n" if ends_by_itself else b""
    if is_last or not ends_by_itself:
        framing += b"Connection: close\r\n"
    elif version == "1.0":
        framing += b"Connection: keep-alive\r\n"
    start = b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b""))
    return b"%b%b%b%b\r\n" % (start, date_line, headers, framing)


def path_name(quoted: str) -> str:
    """What a segment of a path says. Raises Refusal (400) where that is no text, or would lead to another path."""
    try:
        name = unquote(quoted, errors="strict")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"{quoted[:80]} in the path is not UTF-8", "malformed") from error
    if name in DOT_SEGMENTS:
        raise Refusal(400, f"{quoted[:80]} cannot stand in a path", "malformed")
    return name


def chunk(piece: bytes) -> bytes:
    """A piece of content in chunked coding; an empty one is the end (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def header_lines(fields: Mapping[str, str]) -> bytes:
    """Header fields as they stand in a message."""
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("latin-1")


class Request:
    """One request; `headers` are by lower-case name, and those that came several times are joined by commas."""

    __slots__ = (
        "_arrived",
        "_connection",
        "_failure",
        "_parts",
        "buffered_bytes",
        "expects_continue",
        "headers",
        "is_complete",
        "keeps_alive",
        "method",
        "target",
        "version",
    )

    def __init__(self, connection: Sender, method: str, target: str, version: str, headers: dict[str, str]) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.is_complete = False
        self.keeps_alive = False  # known at its end
        self.expects_continue = False
        self.buffered_bytes = 0
        self._connection = connection
        self._parts: list[bytes] = []
        self._arrived: asyncio.Future[None] | None = None
        self._failure: Exception | None = None

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def is_local(self) -> bool:
        """It came over a Unix socket."""
        return self._connection.is_local

    async def read(self) -> bytes:
        """What has come of the body since the last read, after waiting for some; b"" at its end.

        Raises Refusal (too slow, not HTTP) and ClientGone.
        """
        while not self._parts:
            if self._failure is not None:
                raise self._failure
            if self.is_complete:
                return b""
            if self.expects_continue:
                self.expects_continue = False
                self._connection.send_continue()
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        body = self.take()
        if not self.is_complete:
            self._connection.regulate()
        return body

    def take(self) -> bytes:
        """What has come of the body since the last read."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._connection.buffered_bytes -= self.buffered_bytes
        self.buffered_bytes = 0
        return body

    def fits(self, size: int) -> bool:
        """Whether the body is there and no larger than this, or is on its way, and its head says so."""
        if self.is_complete:
            return self.buffered_bytes <= size
        digits = self.headers.get("content-length")
        return digits is not None and int(digits.lstrip("0") or "0") <= size and not self.expects_continue

    def feed(self, part: bytes) -> None:
        """More of the body has come."""
        self._parts.append(part)
        self.buffered_bytes += len(part)
        self._wake()

    def complete(self) -> None:
        """The body has ended."""
        self.is_complete = True
        self._wake()

    def fail(self, failure: Exception) -> None:
        """Nothing more will come; who reads what has come so far gets `failure` then."""
        self._failure = failure
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
