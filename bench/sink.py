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
    events = 0

    def __init__(self) -> None:
        self._received = bytearray()
        self._length: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._length is None:
            self._length = message_length(self._received)
        while self._length is not None and len(self._received) >= self._length:
            message = bytes(self._received[: self._length])
            del self._received[: self._length]
            self._length = message_length(self._received)
            self._answer(message)

    def _answer(self, message: bytes) -> None:
        if message.startswith(b"GET /count"):
            content = json.dumps({"events": Sink.events}).encode()
        elif b"/oauth2/token" in message[:64]:
            content = TOKEN
        else:
            Sink.events += message.count(b"}", message.find(HEAD_END)) - 1  # of flat events in one object
            content = b'{"success":true}'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        self._transport.write(head + content)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
