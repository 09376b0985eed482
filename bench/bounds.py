"""Holds the collector to its bounds with ten million events waiting; ends with status 1 where one is broken.

The backlog comes through the real queue, in batches of a thousand. A step of maintenance is held to the processor's
work, and a put that waits for it to that and what the disk did to puts without it: how long an fsync takes is not ours.
Takes some minutes and 3 GB.
"""

import argparse
import asyncio
import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.processes import child, first_line, memory_bytes, python
from collector.clock import Clock
from collector.events import KEY_BYTES, event_key
from collector.observe.metrics import Metrics
from collector.queue.base import Batch
from collector.queue.limits import Limits
from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.queue import SqliteQueue
from collector.queue.sqlite.store import Store

BATCH_EVENTS = 1000
APPS = 10
MiB = 2**20

START_SECONDS = 2.0
RSS_BYTES = 150 * MiB
LEASE_SECONDS = 0.001
"""Of any backlog. From ten thousand events it takes a twentieth of it: everything is in memory."""
WAL_BYTES = 64 * MiB
STALL_SECONDS = 0.05

DAY_SECONDS = 86_400.0
RETENTION_SECONDS = 4800.0
"""So short that with ten million keys the steps that forget them are as large and as many as they are at any time."""
MAINTAINED_SECONDS = 30.0
DEADLINE_SECONDS = 300.0


class Row(NamedTuple):
    """A figure, and the most that it may be. `beside` is what it should be read with."""

    name: str
    value: float
    limit: float
    unit: str
    beside: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


class MonthLater(Clock):
    """The machine's clock when every key has expired, and maintenance has its turn ten times as often."""

    def now_us(self) -> int:
        return super().now_us() + int(31 * DAY_SECONDS * 1e6)

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 10)


def batch(number: int) -> Batch:
    """A batch of distinct events, as live traffic has them."""
    app_id = f"app{number % APPS}"
    keys, lines = [], []
    for event in range(number * BATCH_EVENTS, (number + 1) * BATCH_EVENTS):
        timestamp, email, name = (
            1_700_000_000_000 + event // 2,
            f"person{event % 5000}@example.com",
            f"opened_{event % 20}",
        )
        keys.append(event_key(app_id, timestamp, email, name))
        lines.append(f'{{"timestamp":{timestamp},"email":"{email}","eventName":"{name}"}}')
    return Batch(app_id, b"".join(keys), "\n".join(lines).encode())


class Step(NamedTuple):
    """What one step of maintenance took, and how much of it was the processor's work."""

    seconds: float
    cpu: float


def watched_steps() -> dict[str, list[Step]]:
    """What each step of maintenance takes from now on, by its name."""
    return {name: _watched(name) for name in ("prune", "shrink", "remembered_keys", "check_file")}


def _watched(name: str) -> list[Step]:
    step, steps = getattr(Store, name), []

    def run(*arguments: object, **named: object) -> object:
        started, cpu_started = time.perf_counter(), time.thread_time()
        try:
            return step(*arguments, **named)
        finally:
            steps.append(Step(time.perf_counter() - started, time.thread_time() - cpu_started))

    setattr(Store, name, run)
    return steps


@contextlib.asynccontextmanager
async def opened(folder: Path, clock: Clock, retention_seconds: float = 30 * DAY_SECONDS) -> AsyncIterator[SqliteQueue]:
    queue = SqliteQueue(
        folder,
        batch_events=BATCH_EVENTS,
        limits=Limits(max_bytes=2**40, max_uncommitted_bytes=2**30, max_dead_bytes=2**30),
        dedup_retention_seconds=retention_seconds,
        clock=clock,
        metrics=Metrics(),
    )
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


@contextlib.contextmanager
def watching(file: Path) -> Iterator[Callable[[], int]]:
    """The largest that a file has been meanwhile, looked at each 5 ms."""
    largest, over = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not over.wait(0.005):
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, file.stat().st_size)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: largest
    finally:
        over.set()
        thread.join()


async def lease_seconds(queue: SqliteQueue) -> float:
    """Median time of a lease of each app, given back at once."""
    times = []
    for number in range(5 * APPS):
        started = time.perf_counter()
        lease = await queue.lease(f"app{number % APPS}", BATCH_EVENTS)
        times.append(time.perf_counter() - started)
        assert lease is not None
        await queue.settle(lease, returned=range(lease.events))
    return statistics.median(times)


async def fill(folder: Path, events: int) -> list[Row]:
    """The backlog stands; what leases took on the way, and how large the log became."""
    leases: dict[int, float] = {}
    marks = (10_000, 1_000_000, events)
    with watching(folder / f"{FILE_NAME}-wal") as largest:
        async with opened(folder, Clock()) as queue:
            for number in range(events // BATCH_EVENTS):
                await queue.put([batch(number)])
                waiting = (number + 1) * BATCH_EVENTS
                if waiting in marks:
                    leases[waiting] = await lease_seconds(queue)
                    say(f"{waiting:,} events wait")
        wal = largest()
    return [
        *(
            Row(f"lease from {count:,} events", seconds * 1000, LEASE_SECONDS * 1000, "ms")
            for count, seconds in leases.items()
        ),
        Row("log while it is filled", wal / MiB, WAL_BYTES / MiB, "MiB"),
    ]


@contextlib.contextmanager
def daemon(folder: Path, upstream_url: str) -> Iterator[tuple[subprocess.Popen[str], int, float]]:
    """A daemon on the queue: its process, its port, and how long it took to be ready."""
    settings = {
        "COLLECTOR_HTTP__LISTEN": "127.0.0.1:0",
        "COLLECTOR_APPS__DEFAULT": "bench",
        "COLLECTOR_QUEUE__PATH": str(folder),
        "COLLECTOR_UPSTREAM__BASE_URL": upstream_url,
        "COLLECTOR_UPSTREAM__TOKEN_URL": f"{upstream_url}/oauth2/token",
        "COLLECTOR_UPSTREAM__CLIENT_ID": "bench",
        "COLLECTOR_UPSTREAM__CLIENT_SECRET": "bench",
        "COLLECTOR_STOP__DEADLINE": "0s",
        "COLLECTOR_LOG__FORMAT": "json",
    }
    started = time.perf_counter()
    with child(python("collector", "run"), **settings) as process:
        while '"agent.started"' not in (line := first_line(process.stderr)):
            pass
        seconds = time.perf_counter() - started
        threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()  # or its pipe fills
        yield process, int(msgspec.json.decode(line)["http"].rpartition(":")[2]), seconds


def start(folder: Path) -> list[Row]:
    """How long daemons take to be ready, and what they need while upstream is down."""
    starts, resident = [], 0
    for _ in range(3):
        with daemon(folder, "http://127.0.0.1:1") as (process, port, seconds):
            starts.append(seconds)
            post(port, requests=50, seed=len(starts))
            resident = max(resident, memory_bytes(process.pid, "VmHWM"))
            process.kill()  # so that the next one finds a log to read
    return [
        Row("start to ready, after kill -9", max(starts), START_SECONDS, "s"),
        Row("memory while upstream is down", resident / MiB, RSS_BYTES / MiB, "MiB", "with 50 posts of 1000 events"),
    ]


def post(port: int, *, requests: int, seed: int) -> None:
    """Posts of a thousand new events each."""
    options = {"--port": port, "--events-per-request": 1000, "--requests": requests, "--connections": 4, "--seed": seed}
    words = [str(word) for option in options.items() for word in option]
    subprocess.run(python("bench.load", *words), stdout=subprocess.DEVNULL, check=True, timeout=DEADLINE_SECONDS)


def drain(folder: Path, events: int) -> list[Row]:
    """Upstream is back: a part of the backlog leaves while new events come in."""
    with child(python("bench.sink")) as sink, watching(folder / f"{FILE_NAME}-wal") as largest:
        url = f"http://127.0.0.1:{int(first_line(sink.stdout))}"
        with daemon(folder, url) as (process, port, _):
            began, seed, delivered = time.perf_counter(), 100, 0
            while delivered < events:
                post(port, requests=20, seed=(seed := seed + 1))
                with urllib.request.urlopen(f"{url}/count", timeout=10) as answer:  # noqa: S310 - our own sink
                    delivered = int(msgspec.json.decode(answer.read())["events"])
            seconds = time.perf_counter() - began
            resident = memory_bytes(process.pid, "VmHWM")
    beside = f"{delivered / seconds:,.0f} events/s left, {(seed - 100) * 20_000 / seconds:,.0f} came"
    return [
        Row("memory when upstream is back", resident / MiB, RSS_BYTES / MiB, "MiB", beside),
        Row("log under continuous load", largest() / MiB, WAL_BYTES / MiB, "MiB"),
    ]


async def longest_put(queue: SqliteQueue, first: int, seconds: float) -> float:
    """The longest of small puts, one after the other; each is what an app would wait for."""
    longest, began = 0.0, time.perf_counter()
    for number in itertools.count(first):
        ready = batch(number)
        small = Batch(ready.app_id, ready.keys[: 100 * KEY_BYTES], b"\n".join(ready.lines.split(b"\n")[:100]))
        started = time.perf_counter()
        await queue.put([small])
        longest = max(longest, time.perf_counter() - started)
        if time.perf_counter() - began > seconds:
            break
    return longest


async def maintain(folder: Path, first: int, seconds: float) -> list[Row]:
    """Every key is forgotten and the file shrinks while events come in."""
    rows = []
    async with opened(folder, MonthLater(), RETENTION_SECONDS) as queue:
        alone = await longest_put(queue, first, seconds)
        steps = watched_steps()
        before = await queue.stats()
        maintaining = asyncio.create_task(queue.maintain())
        beside_steps = await longest_put(queue, 2 * first, seconds)
        maintaining.cancel()
        await asyncio.wait([maintaining])
        after = await queue.stats()
    for name, times in steps.items():
        longest = max(step.seconds for step in times)
        beside = f"longest of {len(times)} took {longest * 1000:.1f} ms with the disk's part"
        rows.append(
            Row(f"work of one step: {name}", max(step.cpu for step in times) * 1000, STALL_SECONDS * 1000, "ms", beside)
        )
    beside = (
        f"{alone * 1000:.1f} ms without maintenance; {before.remembered_keys:,} keys became {after.remembered_keys:,}, "
        f"{before.file_bytes // MiB:,} MiB {after.file_bytes // MiB:,}"
    )
    rows.append(Row("longest put beside them", beside_steps * 1000, (STALL_SECONDS + alone) * 1000, "ms", beside))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Every row with its limit."""
    lines = [f"{'bound':<44}{'is':>10}{'at most':>10}"]
    for row in rows:
        verdict = "" if row.holds else "  BROKEN"
        lines.append(f"{row.name:<44}{row.value:>10.2f}{row.limit:>10.2f} {row.unit}{verdict}  {row.beside}".rstrip())
    return "\n".join(lines)


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bounds", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000, help="how many wait: a multiple of a million")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where the queue is made: on the disk to be measured"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder.resolve()) as name:
        folder = Path(name)
        rows = asyncio.run(fill(folder, options.events))
        say("starting on it")
        rows += start(folder)
        say("delivering as many")
        rows += drain(folder, options.events)
        say("forgetting its keys")
        rows += asyncio.run(maintain(folder, options.events, MAINTAINED_SECONDS))
    print(table(rows))
    sys.exit(0 if all(row.holds for row in rows) else "a bound is broken")


if __name__ == "__main__":
    main()
