"""Each kind of load, from its start until the null sink has every event."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.daemon import collector
from bench.processes import child, cpu_seconds, first_line, python
from bench.rows import DEADLINE_SECONDS, Sample, measured

DATAGRAMS, DATAGRAM_RATE = 1_000_000, 150_000.0
BACKLOG_EVENTS = 1_000_000

UNIX_QUEUE = Path("/proc/sys/net/unix/max_dgram_qlen")
UNIX_QUEUE_DATAGRAMS = 512
"""As systemd sets it where it boots a machine; the kernel itself has 10."""


class Posts(NamedTuple):
    """A load of posts; `disorder_ms` is how far timestamps stray from the order of time.

    Each of those that are traced has a header field with a number of its own, as where OpenTelemetry is at work.
    """

    events_per_request: int
    requests: int
    connections: int
    disorder_ms: int = 0
    traced: bool = False


BATCHES = Posts(events_per_request=1000, requests=1000, connections=4)
SINGLES = Posts(events_per_request=1, requests=100_000, connections=32)
MANY_SINGLES = Posts(events_per_request=1, requests=200_000, connections=128)
TRACED_SINGLES = SINGLES._replace(traced=True)


def load(port: int, posts: Posts, seed: int) -> list[str]:
    """The command that sends them."""
    options = {
        "--port": port,
        "--events-per-request": posts.events_per_request,
        "--requests": posts.requests,
        "--connections": posts.connections,
        "--seed": seed,
        "--disorder-ms": posts.disorder_ms,
    }
    words = [str(word) for option in options.items() for word in option]
    return python("bench.load", *words, *(["--traced"] if posts.traced else []))


def by_http(folder: Path, posts: Posts, seed: int, queue: Path | None = None) -> Sample:
    """Posts into a collector, a fresh one where no queue is given."""
    with collector(folder, queue) as running:
        cpu_before = cpu_seconds(running.pid)
        sample = measured(load(running.port, posts, seed))
        return running.finish(sample, time.perf_counter() - sample.seconds, cpu_before)


def by_datagram(folder: Path, target: str, rate: float, seed: int, queue: Path | None = None) -> Sample:
    """Datagrams of one event each into a fresh collector; the time ends when every one is stored or lost."""
    with collector(folder, queue) as running:
        cpu_before = cpu_seconds(running.pid)
        options = {
            "--rate": rate,
            "--datagrams": DATAGRAMS,
            "--seed": seed,
            **({"--udp-port": running.udp.rpartition(":")[2]} if target == "udp" else {"--unix-path": running.socket}),
        }
        sample = measured(python("bench.datagrams", *(str(word) for option in options.items() for word in option)))
        started = time.perf_counter() - sample.seconds
        while True:
            stored = int(running.metric("collector_events_total"))
            sample.lost = int(running.metric("collector_udp_kernel_drops_total"))
            if stored + sample.lost == sample.events:
                break
            assert time.perf_counter() - started < DEADLINE_SECONDS, f"{stored} of {sample.events} stored"
            time.sleep(0.02)
        sample.seconds, sample.events = time.perf_counter() - started, stored
        return running.finish(sample, started, cpu_before)


@contextmanager
def unix_queue() -> Iterator[None]:
    """Unix datagram sockets that are made inside have the queue that systemd gives them, where we may set it."""
    before = UNIX_QUEUE.read_bytes()
    try:
        UNIX_QUEUE.write_bytes(b"%d" % UNIX_QUEUE_DATAGRAMS)
    except OSError as error:
        print(f"{UNIX_QUEUE}: {error.strerror}; measured with {before.decode().strip()} datagrams", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        UNIX_QUEUE.write_bytes(before)


def by_long_queue(folder: Path, seed: int) -> Sample:
    """Datagrams over a Unix socket as fast as they go, with the queue that systemd gives it."""
    with unix_queue():
        return by_datagram(folder, "unix", 0, seed)


def through_nothing(posts: Posts, seed: int) -> Sample:
    """Posts into a handler that does nothing."""
    with child(python("bench.noop")) as server:
        port = int(first_line(server.stdout))
        before = cpu_seconds(server.pid)
        sample = measured(load(port, posts, seed))
        sample.cpu_seconds = cpu_seconds(server.pid) - before
        return sample


def beside_nothing(folder: Path, seed: int) -> Sample:
    """Bare fdatasyncs while one-event posts keep the machine as busy as they keep a handler that does nothing."""
    with child(python("bench.noop")) as server, child(python("bench.fdatasync", "--folder", str(folder))) as loop:
        measured(load(int(first_line(server.stdout)), SINGLES, seed))
        loop.terminate()
        return Sample(**json.loads(first_line(loop.stdout)))


def backlog(folder: Path) -> Sample:
    """A backlog leaves: from the daemon's start of work until the sink has everything."""
    with tempfile.TemporaryDirectory(dir=folder) as queue:
        fill = python("bench.backlog", "--folder", queue, "--events", str(BACKLOG_EVENTS))
        subprocess.run(fill, check=True, timeout=DEADLINE_SECONDS)
        with collector(folder, Path(queue)) as running:
            cpu_before, started, before = cpu_seconds(running.pid), time.perf_counter(), running.delivered()
            left = BACKLOG_EVENTS - before
            sample = running.finish(Sample(events=BACKLOG_EVENTS, seconds=0), started, cpu_before)
            assert sample.delivered_seconds is not None
            sample.seconds, sample.events = sample.delivered_seconds, left
            return sample
