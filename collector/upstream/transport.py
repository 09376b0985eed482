"""The one place that talks to the network on the way out."""

import asyncio
import io
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from collector.errors import CollectorError, MalformedAnswer, NotDone, Unanswered, Unusable
from collector.upstream.wire import Request, Response

MAX_RESPONSE_BYTES = 256 * 1024
"""More of an answer than anybody could want where the contract states none."""

PIECE_BYTES = 2**20
"""A larger body is written in pieces, so that sending it does not hold up the loop; a file is read in such pieces."""

FAILURES = (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, UnicodeError)
"""Of a request: TimeoutError is an OSError, and UnicodeError is what looking up an impossible host name raises."""

TRUST_REMEDY = "Is the host right? A CA of your own belongs into a file that SSL_CERT_FILE names"


class Streamed(NamedTuple):
    """One HTTP answer whose content has yet to come; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: AsyncGenerator[bytes]
    close: Callable[[], None]


class Transport:
    """Sends requests over pooled connections. `open` and `close` it inside the loop that uses it."""

    def __init__(self, *, timeout_seconds: float, unix_socket: Path | None = None) -> None:
        """With a `unix_socket` every request goes to whoever listens there, whatever its URL's host."""
        self._timeout_seconds = timeout_seconds
        self._unix_socket = unix_socket
        self._session: aiohttp.ClientSession | None = None

    def use_timeout(self, seconds: float) -> None:
        """From now on a request may take so long."""
        self._timeout_seconds = seconds

    async def open(self) -> None:
        """Ready to send."""
        connector: aiohttp.BaseConnector
        if self._unix_socket is None:
            connector = aiohttp.TCPConnector(limit=0)
        else:
            connector = aiohttp.UnixConnector(str(self._unix_socket), limit=0)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), connector=connector)

    async def close(self) -> None:
        """All connections are closed; harmless where there are none."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self,
        request: Request,
        *,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        on_sent: Callable[[int], object] | None = None,
    ) -> Response:
        """The answer, whatever its status; of a longer one only so many bytes are read.

        A request may take the timeout, and one that sends a file may take it for each piece. After each `on_sent` hears
        how many bytes have gone.
        Redirects are not followed: they would carry the token elsewhere.

        Raises NotDone where upstream was not reached, Unusable where its certificate is not trusted or the file cannot
        be read, and Retryable where there is no whole answer: then nobody knows whether upstream acted on the request.
        """
        if self._session is None:
            raise NotDone("the connection to upstream is closed")
        deadline = asyncio.timeout(self._timeout_seconds)

        def sent(total: int) -> None:
            deadline.reschedule(asyncio.get_running_loop().time() + self._timeout_seconds)
            if on_sent is not None:
                on_sent(total)

        file: _File | None = None
        data: Any = request.body
        headers = request.headers
        if isinstance(data, Path):
            file = _File(data)
            data, headers = file.pieces(sent), {**headers, "Content-Length": str(file.size)}
        elif len(data) >= PIECE_BYTES:
            data = io.BytesIO(data)
        try:
            async with (
                deadline,
                self._session.request(
                    request.method,
                    _as_signed(request.url) if request.has_secret_url else request.url,
                    data=data,
                    headers=headers,
                    skip_auto_headers=("Content-Type",),  # a signature can be over that of the request, or over none
                    allow_redirects=False,
                ) as answer,
            ):
                content = await _read(answer.content, max_response_bytes)
                return Response(answer.status, {name.lower(): value for name, value in answer.headers.items()}, content)
        except FAILURES as error:
            raise self._meaning(error, request) from error
        finally:
            if file is not None:
                file.close()

    async def stream(self, request: Request) -> Streamed:
        """The answer as it comes; `close` it, or take it to its end. Each piece of it may take the timeout.

        Raises as `send` does, and so does taking the content.
        """
        if self._session is None:
            raise NotDone("the connection to upstream is closed")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await self._session.request(
                    request.method, request.url, data=request.body, headers=request.headers, allow_redirects=False
                )
        except FAILURES as error:
            raise self._meaning(error, request) from error
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Streamed(answer.status, headers, self._content(answer, request), answer.close)

    async def _content(self, answer: aiohttp.ClientResponse, request: Request) -> AsyncGenerator[bytes]:
        try:
            while True:
                async with asyncio.timeout(self._timeout_seconds):
                    piece = await answer.content.readany()
                if not piece:
                    return
                yield piece
        except FAILURES as error:
            raise self._meaning(error, request) from error
        finally:
            answer.close()

    def _meaning(self, error: Exception, request: Request) -> CollectorError:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
            return Unusable(f"{request.name}: the certificate is not trusted: {why}. {TRUST_REMEDY}")
        if isinstance(error.__cause__, CollectorError):  # raised where the body is read, and wrapped by aiohttp
            return error.__cause__
        if isinstance(error, UnicodeError):
            return Unusable(f"{request.name}: the URL's host cannot be a host's name")
        if isinstance(error, TimeoutError):
            return Unanswered(f"{request.name}: no answer within {self._timeout_seconds:g} s")
        said = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError):
            place = self._unix_socket or f"{error.host}:{error.port}"
            return NotDone(f"{request.name}: cannot connect to {place}: {why_unconnected(error)}")
        if request.has_secret_url and isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
            return MalformedAnswer(f"{request.name}: the uploadUrl that upstream gave is no http:// or https:// URL")
        if isinstance(error, aiohttp.ClientResponseError):
            # Its own words name a status that nobody has sent, and the URL.
            said = "what answers there does not speak HTTP"
        elif isinstance(error, aiohttp.ClientPayloadError):
            said = "the answer broke off, or cannot be decoded"
        elif request.has_secret_url:
            said = type(error).__name__
        was_sent = not isinstance(error, aiohttp.InvalidURL)
        return (Unanswered if was_sent else NotDone)(f"{request.name}: {said}")


def why_unconnected(error: aiohttp.ClientConnectorError) -> str:
    """The system's word for why there is no connection; asyncio has a sentence of its own in its place."""
    why = error.os_error
    said = why.strerror or str(why)
    return os.strerror(why.errno) if said.startswith("Connect call failed") and why.errno else said


class _File:
    """A file as a body. Raises Unusable where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for whoever writes into it
                raise Unusable(f"{path}: not a regular file, so nobody knows how long it is")
            self._file = path.open("rb")
            self.size = self._file.seek(0, io.SEEK_END)
            self._file.seek(0)
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}") from error

    async def pieces(self, sent: Callable[[int], None]) -> AsyncIterator[bytes]:
        """All of it, and no more than it was at first."""
        left = self.size
        while left:
            try:
                piece = await asyncio.to_thread(self._file.read, min(left, PIECE_BYTES))
            except OSError as error:
                raise Unusable(f"{self._path}: {error.strerror}") from error
            if not piece:
                raise Unusable(f"{self._path}: it became shorter while it was sent")
            yield piece
            left -= len(piece)
            sent(self.size - left)

    def close(self) -> None:
        """The file is closed."""
        self._file.close()


def _as_signed(url: str) -> URL:
    """The URL to the letter, as its signature is over that; aiohttp would send one that is equivalent.

    One with characters that no URL can have is quoted. Raises InvalidURL.
    """
    try:
        quoted = URL(url)
    except ValueError as error:
        raise aiohttp.InvalidURL(url) from error
    return URL(url, encoded=True) if url.isascii() and url.isprintable() and " " not in url else quoted


async def _read(content: aiohttp.StreamReader, max_bytes: int) -> bytes:
    parts = []
    while max_bytes > 0 and (part := await content.read(max_bytes)):
        parts.append(part)
        max_bytes -= len(part)
    return b"".join(parts)
