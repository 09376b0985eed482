"""The null sink: an upstream that takes everything at once and only counts. Runs as a process.

Prints its port. `GET /count` answers how many events came.
"""

import asyncio
import json
from typing import cast

import uvloop

from bench.http1 import HEAD_END, message_length

TOKEN = b'{"access_token":"bench","token_type":"Bearer","expires_in":86400}'


class Sink(asyncio.Protocol):
    """Counts events as they come: no body is ever held."""

    events = 0

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # of the body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        while data:
            if not self._left:
                head, end, data = (self._head + data).partition(HEAD_END)
                if not end:
                    self._head = head
                    return
                self._head = head + end
                self._left = (message_length(self._head) or 0) - len(self._head)
            Sink.events += data.count(b"}", 0, self._left)
            self._left, data = max(0, self._left - len(data)), data[self._left :]
            if not self._left:
                self._answer()

    def _answer(self) -> None:
        head, self._head = self._head, b""
        if head.startswith(b"GET /count"):
            content = json.dumps({"events": Sink.events}).encode()
        elif b"/oauth2/token" in head:
            content = TOKEN
        else:
            Sink.events -= 1  # of the braces that end one, the last is not an event's
            content = b'{"success":true}'
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        self._transport.write(answer + content)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
