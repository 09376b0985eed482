"""The load: events over a few connections, each waiting for its answer before it sends on. Runs as a process.

Everything is built before the clock starts. Prints one JSON object: seconds, acknowledged events, latencies in ms.
"""

import argparse
import asyncio
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import cast

import uvloop

from bench.http1 import message_length, post

BEGIN_MS = 1_600_000_000_000
"""The timestamps of a load are of the past, as those of live traffic are: up to seed 180,000."""

TRACE = "traceparent: 00-%032x-%016x-01"
"""A field as W3C Trace Context has it: no two requests have the same."""

ACCEPTED = re.compile(rb'"accepted":(\d+)')


def events(count: int, seed: int, disorder_ms: int = 0) -> Iterator[str]:
    """Distinct events, as live traffic has them: time goes on, people and actions repeat. Two are of one millisecond.

    With `disorder_ms` they come up to so much later than their timestamps say; where that is longer than all of them
    take, they are of any time in it.
    """
    start_ms = BEGIN_MS + seed * 1_000_000
    milliseconds: Sequence[int] = range(count // 2 + 1)
    chance = random.Random(seed)
    if disorder_ms > len(milliseconds):
        milliseconds = chance.sample(range(-disorder_ms, 0), len(milliseconds))
    elif disorder_ms:
        milliseconds = sorted(milliseconds, key=lambda at_ms: at_ms + chance.randrange(disorder_ms))
    for number in range(count):
        yield (
            f'{{"timestamp":{start_ms + milliseconds[number // 2]},"email":"person{number % 5000}@example.com",'
            f'"eventName":"document_opened_{number % 20}"}}'
        )


def requests(
    events_per_request: int, count: int, seed: int, disorder_ms: int = 0, *, traced: bool = False
) -> list[bytes]:
    """Posts of so many events each; of those that are traced each has a number of its own in its head."""
    source = events(events_per_request * count, seed, disorder_ms)
    bodies = (
        next(source) if events_per_request == 1 else f'{{"events":[{",".join(islice(source, events_per_request))}]}}'
        for _ in range(count)
    )
    return [
        post("/v1/events", "application/json", body.encode(), [TRACE % (seed, number)] if traced else ())
        for number, body in enumerate(bodies)
    ]


class Connection(asyncio.Protocol):
    """Sends the next request whenever the last one was answered."""

    def __init__(self, source: Iterator[bytes], latencies: list[float], answers: list[bytes]) -> None:
        self._source = source
        self._latencies = latencies
        self._answers = answers
        self._received = bytearray()
        self._sent_at = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send_next(self) -> None:
        request = next(self._source, None)
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        length = message_length(self._received)
        if length is not None and len(self._received) >= length:
            self._latencies.append(time.perf_counter() - self._sent_at)
            self._answers.append(bytes(self._received[:length]))
            del self._received[:length]
            self.send_next()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the connection was closed before the answer"))


async def drive(host: str, port: int, connections: int, to_send: list[bytes]) -> tuple[float, list[float], list[bytes]]:
    """Seconds from the first request to the last answer, each request's latency in seconds, and the answers."""
    source = iter(to_send)
    latencies: list[float] = []
    answers: list[bytes] = []
    loop = asyncio.get_running_loop()
    protocols = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(lambda: Connection(source, latencies, answers), host, port)
        protocols.append(protocol)
    started = time.perf_counter()
    for protocol in protocols:
        protocol.send_next()
    await asyncio.gather(*(protocol.done for protocol in protocols))
    return time.perf_counter() - started, latencies, answers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--events-per-request", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--disorder-ms", type=int, default=0)
    parser.add_argument("--traced", action="store_true")
    options = parser.parse_args()
    to_send = requests(
        options.events_per_request, options.requests, options.seed, options.disorder_ms, traced=options.traced
    )
    seconds, latencies, answers = uvloop.run(drive("127.0.0.1", options.port, options.connections, to_send))
    refused = [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200 ")]
    assert not refused, refused[0]
    latencies.sort()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "events": len(to_send) * options.events_per_request,
                "stored": sum(int(count) for answer in answers for count in ACCEPTED.findall(answer)),
                "p50_ms": latencies[len(latencies) // 2] * 1000,
                "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
