"""A sink for everybody: counts the marks `mark-N-` in what is posted to it, all and different ones. Runs as a process.

Prints its port. `GET /count` answers both; `GET /have?N` how many different marks below N came.
"""

import asyncio
import gzip
import json
import re
from typing import cast

import uvloop

from bench.http1 import HEAD_END, message_length
from bench.sink import TOKEN

MARK = re.compile(rb"mark-(\d+)-")
MOST_EVENTS = 50_000_000


class Sink(asyncio.Protocol):
    events = 0
    seen = bytearray(MOST_EVENTS)

    def __init__(self) -> None:
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (length := message_length(self._received)) is not None and len(self._received) >= length:
            message = bytes(self._received[:length])
            del self._received[:length]
            self._answer(message)

    def _answer(self, message: bytes) -> None:
        head, _, body = message.partition(HEAD_END)
        content = b'{"success":true}'
        if head.startswith(b"GET /count"):
            content = json.dumps({"events": Sink.events, "distinct": Sink.seen.count(1)}).encode()
        elif head.startswith(b"GET /have?"):
            below = int(head[len(b"GET /have?") :].split(b" ", 1)[0])
            content = json.dumps({"distinct": Sink.seen.count(1, 0, below)}).encode()
        elif b"/oauth2/token" in head[:64]:
            content = TOKEN
        else:
            if body.startswith(b"\x1f\x8b"):
                body = gzip.decompress(body)
            marks = [int(mark) for mark in MARK.findall(body)]
            Sink.events += len(marks)
            for mark in marks:
                Sink.seen[mark] = 1
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        self._transport.write(answer + content)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
