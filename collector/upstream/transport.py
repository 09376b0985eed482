"""The one place that talks to the network on the way out."""

import asyncio
import io

import aiohttp

from collector.errors import Retryable
from collector.upstream.wire import Request, Response

MAX_RESPONSE_BYTES = 256 * 1024
"""More of an answer than anybody could want: the operations used here answer with a few bytes."""


STREAMED_BYTES = 2**20
"""A larger body is written in pieces, so that sending it does not hold up the loop."""


class Transport:
    """Sends requests over pooled connections. `open` and `close` it inside the loop that uses it."""

    def __init__(self, *, timeout_seconds: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Ready to send."""
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0))

    async def close(self) -> None:
        """All connections are closed; harmless where there are none."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: Request) -> Response:
        """The answer, whatever its status. Redirects are not followed: they would carry the token elsewhere.

        Raises Retryable where there is no whole answer. Then nobody knows whether upstream acted on the request.
        """
        if self._session is None:
            raise Retryable("the connection to upstream is closed")
        try:
            async with self._session.request(
                request.method,
                request.url,
                data=_streamed(request.body),
                headers=request.headers,
                allow_redirects=False,
            ) as answer:
                body = await answer.content.read(MAX_RESPONSE_BYTES)
                while len(body) < MAX_RESPONSE_BYTES and (
                    more := await answer.content.read(MAX_RESPONSE_BYTES - len(body))
                ):
                    body += more
                return Response(answer.status, {name.lower(): value for name, value in answer.headers.items()}, body)
        except TimeoutError as error:
            raise Retryable(f"{request.method} {request.url}: no answer within {self._timeout.total:g} s") from error
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise Retryable(f"{request.method} {request.url}: {str(error) or type(error).__name__}") from error


def _streamed(body: bytes) -> bytes | io.BytesIO:
    return body if len(body) < STREAMED_BYTES else io.BytesIO(body)
