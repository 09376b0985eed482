"""What recording an event costs the program that does it: ours beside two analytics libraries, nobody to send to.

Each runs in a process of its own, with the defaults of its library: 10,000 events fit into each one's memory. Two ways
of calling. Steady: the host is at work, and each call comes between two pieces of it. Bursts: the process sleeps, then
calls a hundred times in a row, and so on. There one call in a hundred is the first after a pause, and finds the
processor's caches cold: the p99 of all calls is theirs. So the first ones stand in a column of their own beside the p99
of the others. A function that does nothing, called and timed in the same way, says what of a figure is the machine's
and the clock's.

Prints medians over all rounds of the calls' percentiles, in microseconds; of bursts also the CPU time of the whole
process a call (what the library's threads do is the program's time too), and how many passes of the garbage collector
the calls and those threads set off: nothing else in the process allocates what it counts.
"""

import argparse
import gc
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

CALLS, BURST_CALLS, BURST_PAUSE_SECONDS = 10_000, 100, 0.01
EMAIL, EVENT_NAME = "user@example.com", "page_saved"
DOCUMENT = json.dumps([{"title": f"Page {number}", "tags": ["a", "b"], "words": number} for number in range(40)])
"""What the host is at work on: reading and writing it takes some 100 us and 15 KB."""


class Cost(NamedTuple):
    """Of one call, in microseconds; passes are of all calls."""

    p50_us: float
    p99_us: float
    first_us: float
    """Median of the first calls after a pause."""
    p99_of_others_us: float
    max_us: float
    cpu_us: float
    gc_passes: float


def nothing(*, email: str, event_name: str) -> bool:
    """What timing costs."""
    return bool(email and event_name)


def client(url: str) -> Callable[[], object]:
    from collector.client import Client  # noqa: PLC0415 - no process holds another's library

    made = Client(url)
    return lambda: made.record(email=EMAIL, event_name=EVENT_NAME)


def in_process(url: str, folder: str) -> Callable[[], object]:
    """The collector itself inside the program, which stores what it is given on the disk meanwhile."""
    from collector import SyncCollector  # noqa: PLC0415
    from collector.config import load  # noqa: PLC0415

    made = SyncCollector(
        load(
            environment={
                "COLLECTOR_APPS__DEFAULT": "wiki",
                "COLLECTOR_QUEUE__PATH": f"{folder}/queue",
                "COLLECTOR_UPSTREAM__BASE_URL": url,
                "COLLECTOR_UPSTREAM__TOKEN_URL": url,
                "COLLECTOR_UPSTREAM__CLIENT_ID": "bench",
                "COLLECTOR_UPSTREAM__CLIENT_SECRET": "bench",
            }
        )
    )
    made.start()
    return lambda: made.record_nowait(email=EMAIL, event_name=EVENT_NAME)


def segment(url: str) -> Callable[[], object]:
    from segment.analytics.client import Client as Segment  # noqa: PLC0415 - an extra, and in its own process

    made = Segment("key", host=url)
    return lambda: made.track(EMAIL, EVENT_NAME)


def posthog(url: str) -> Callable[[], object]:
    from posthog import Posthog  # noqa: PLC0415 - an extra, and in its own process

    made = Posthog("key", host=url)
    return lambda: made.capture(EVENT_NAME, distinct_id=EMAIL)


ROWS: dict[str, Callable[[int, str], Callable[[], object]]] = {
    "a function that does nothing": lambda _port, _folder: lambda: nothing(email=EMAIL, event_name=EVENT_NAME),
    "collector.client http: record": lambda port, _: client(f"http://127.0.0.1:{port}"),
    "collector.client udp: record": lambda port, _: client(f"udp://127.0.0.1:{port}"),
    "SyncCollector: record_nowait": lambda port, folder: in_process(f"http://127.0.0.1:{port}", folder),
    "segment-analytics-python: track": lambda port, _: segment(f"http://127.0.0.1:{port}"),
    "posthog: capture": lambda port, _: posthog(f"http://127.0.0.1:{port}"),
}


def steady(_number: int) -> None:
    """The host's work between two calls."""
    json.dumps(json.loads(DOCUMENT))


def bursts(number: int) -> None:
    """Nothing but a pause now and then."""
    if number % BURST_CALLS == 0:
        time.sleep(BURST_PAUSE_SECONDS)


WAYS: dict[str, Callable[[int], None]] = {"steady": steady, "bursts": bursts}


def measure(name: str, way: str, folder: str) -> Cost:
    """What each call took."""
    between = WAYS[way]
    logging.disable()
    with socket.socket() as dead:  # bound, and nobody listens: connections are refused
        dead.bind(("127.0.0.1", 0))
        call = ROWS[name](dead.getsockname()[1], folder)
        call()
        took: list[int] = []
        passes_before = _gc_passes()
        cpu_before = time.process_time()
        for number in range(CALLS):
            between(number)
            before = time.perf_counter_ns()
            call()
            took.append(time.perf_counter_ns() - before)
        cpu_seconds = time.process_time() - cpu_before
        passes = _gc_passes() - passes_before
    first = took[::BURST_CALLS]
    others = sorted(each for number, each in enumerate(took) if number % BURST_CALLS)
    took.sort()
    return Cost(
        p50_us=took[CALLS // 2] / 1e3,
        p99_us=took[CALLS * 99 // 100] / 1e3,
        first_us=statistics.median(first) / 1e3,
        p99_of_others_us=others[len(others) * 99 // 100] / 1e3,
        max_us=took[-1] / 1e3,
        cpu_us=cpu_seconds / CALLS * 1e6,
        gc_passes=passes,
    )


def _gc_passes() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def in_child(name: str, way: str) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.host_cost", "--row", name, "--way", way, "--folder", folder]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120).stdout
    return Cost(*json.loads(printed))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row", help="measure this one here, and print it as JSON")
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options.way, options.folder)), flush=True)
        os._exit(0)  # their threads would go on trying
    costs: dict[tuple[str, str], list[Cost]] = {(way, name): [] for way in WAYS for name in ROWS}
    for _ in range(options.rounds):
        for (way, name), rounds in costs.items():
            rounds.append(in_child(name, way))
    medians = {row: Cost(*map(statistics.median, zip(*rounds, strict=True))) for row, rounds in costs.items()}
    print(f"{'steady, us a call':34}{'p50':>8}{'p99':>8}{'max':>9}")
    for (way, name), cost in medians.items():
        if way == "steady":
            print(f"{name:34}{cost.p50_us:8.1f}{cost.p99_us:8.1f}{cost.max_us:9.0f}")
    print(
        f"\n{'in bursts':34}{'p50':>8}{'p99':>8}{'first':>8}{'p99 of others':>15}{'max':>9}{'CPU':>8}{'GC passes':>11}"
    )
    for (way, name), cost in medians.items():
        if way == "bursts":
            print(
                f"{name:34}{cost.p50_us:8.1f}{cost.p99_us:8.1f}{cost.first_us:8.1f}{cost.p99_of_others_us:15.1f}"
                f"{cost.max_us:9.0f}{cost.cpu_us:8.1f}{cost.gc_passes:11.0f}"
            )


if __name__ == "__main__":
    main()
