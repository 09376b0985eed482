"""A program that reports events for so many seconds, by a library or over a socket. Runs as a process.

It prints, again and again, how many were accepted so far and since when: what was accepted and is gone after a sudden
death is lost. Who takes the events decides what "accepted" means. At the end it also prints its own CPU time and MiB.
"""

import argparse
import logging
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from http.client import HTTPConnection
from typing import NamedTuple

BATCH, CONNECTIONS = 1000, 4
SAY_SECONDS = 0.05


class Way(NamedTuple):
    """How events are reported; `accept` takes the first number and returns how many were accepted from there on."""

    accept: Callable[[int], int]
    finish: Callable[[], int | None] = lambda: None
    """Waits for what is on its way; how much more was accepted."""


def line(number: int) -> str:
    at = 1_700_000_000_000 + number // 2
    return f'{{"timestamp":{at},"email":"mark-{number}-@example.com","eventName":"document_opened_{number % 20}"}}'


def posts(url: str) -> Way:
    """Posts of a batch each, some on their way at once; they count in the order in which they were sent."""
    host, port = url.removeprefix("http://").split(":")
    idle = [HTTPConnection(host, int(port)) for _ in range(CONNECTIONS)]
    asked: deque[HTTPConnection] = deque()

    def accept(first: int) -> int:
        while idle:
            start = first + BATCH * len(asked)
            body = f"[{','.join(map(line, range(start, start + BATCH)))}]"
            idle[-1].request("POST", "/v1/events", body, {"Content-Type": "application/json"})
            asked.append(idle.pop())
        return answered()

    def answered() -> int:
        answer = asked[0].getresponse()
        content = answer.read()
        assert answer.status == 200, content
        idle.append(asked.popleft())
        return BATCH

    def finish() -> int:
        return sum(answered() for _ in range(len(asked)))

    return Way(accept, finish)


def tcp(url: str) -> Way:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))

    def accept(first: int) -> int:
        connection.sendall("".join(f"{line(number)}\n" for number in range(first, first + BATCH)).encode())
        return BATCH

    return Way(accept, connection.close)


def segment(url: str) -> Way:
    from segment.analytics.client import Client  # noqa: PLC0415 - an extra, and in its own process

    made = Client("key", host=url, max_queue_size=100_000)
    return Way(lambda number: int(made.track(f"mark-{number}-", "document_opened")[0]), made.shutdown)


def posthog(url: str) -> Way:
    from posthog import Posthog  # noqa: PLC0415

    made = Posthog("key", host=url, max_queue_size=100_000)
    return Way(lambda number: made.capture("document_opened", distinct_id=f"mark-{number}-") is not None, made.shutdown)


def snowplow(url: str) -> Way:
    from snowplow_tracker.emitters import AsyncEmitter  # noqa: PLC0415
    from snowplow_tracker.events.structured_event import StructuredEvent  # noqa: PLC0415
    from snowplow_tracker.tracker import Tracker  # noqa: PLC0415

    host, port = url.removeprefix("http://").split(":")
    emitter = AsyncEmitter(host, protocol="http", port=int(port), method="post", batch_size=BATCH)
    tracker = Tracker("bench", emitter)

    def accept(number: int) -> int:
        tracker.track(StructuredEvent("document", "opened", label=f"mark-{number}-"))
        return 1

    return Way(accept, emitter.sync_flush)


WAYS = {"posts": posts, "tcp": tcp, "segment": segment, "posthog": posthog, "snowplow": snowplow}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    logging.disable()
    way = WAYS[options.way](options.url)
    accepted, began = 0, time.perf_counter()
    say_at, until = began, began + options.seconds
    while True:
        now = time.perf_counter()
        if now >= say_at:
            print(accepted, f"{now - began:.3f}", flush=True)
            say_at = now + SAY_SECONDS
        if now >= until:
            break
        try:
            taken = way.accept(options.first + accepted)
        except (OSError, AssertionError) as error:
            print(error, file=sys.stderr)
            break
        accepted += taken
        if not taken:  # the library's memory is full
            time.sleep(0.001)
    took = time.perf_counter() - began
    accepted += way.finish() or 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(accepted, f"{took:.3f}", f"{time.process_time():.3f}", resident, flush=True)


if __name__ == "__main__":
    main()
