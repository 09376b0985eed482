"""Runs every row in turn, several rounds, and prints medians beside the limit that each is held against.

A ratio is taken within a round, between neighbours in time, because a shared machine's speed drifts by the minute.
CPU is user + system of the collector's process alone, from before the load until the sink has every event.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

RESULTS = Path(__file__).parent / "results" / "latest.json"
BATCH_REQUESTS, BATCH_CONNECTIONS = 400, 4
SINGLE_REQUESTS, SINGLE_CONNECTIONS = 40_000, 32
DATAGRAMS, DATAGRAM_RATE = 1_000_000, 100_000.0
DEADLINE_SECONDS = 180.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Sample(msgspec.Struct):
    """One run of one row. Where events are delivered, `delivered_seconds` is when the sink had all.

    `events` are those that were stored; `lost` are others, that were sent in datagrams and dropped by the kernel.
    """

    events: int
    seconds: float
    cpu_seconds: float | None = None
    delivered_seconds: float | None = None
    p99_ms: float | None = None
    lost: int | None = None


class Row(msgspec.Struct):
    """A row's medians over all rounds; `ratio` is to the row named by `against`, with its lowest and highest."""

    name: str
    events_per_s: float
    cpu_us_per_event: float | None
    against: str | None
    ratio: float | None
    ratio_min: float | None
    ratio_max: float | None
    delivered_per_s: float | None
    p99_ms: float | None
    lost_percent: float | None
    """The worst of all rounds."""
    rounds: int


def python(module: str, *options: str) -> list[str]:
    return [sys.executable, "-m", module, *options]


@contextmanager
def child(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone afterwards; its standard output can be read."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("COLLECTOR_")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own | environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=30)


def first_line(stream: Iterator[str] | None) -> str:
    assert stream is not None
    return next(stream)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def measured(command: list[str]) -> Sample:
    """What a process that measures itself prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=DEADLINE_SECONDS)
    return msgspec.json.decode(done.stdout, type=Sample)


def load(port: int, events_per_request: int, requests: int, connections: int, seed: int) -> list[str]:
    options = {
        "--port": port,
        "--events-per-request": events_per_request,
        "--requests": requests,
        "--connections": connections,
        "--seed": seed,
    }
    return python("bench.load", *(str(word) for option in options.items() for word in option))


class Running(NamedTuple):
    """A collector that delivers to the null sink."""

    pid: int
    port: int
    socket: Path
    sink_url: str
    udp: str

    def delivered(self) -> int:
        """Events that the sink has."""
        with urllib.request.urlopen(f"{self.sink_url}/count", timeout=10) as answer:  # noqa: S310 - our own sink
            return int(json.load(answer)["events"])

    def metric(self, name: str) -> float:
        """A metric's value, over all its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            values = re.findall(rf"^{name}(?:{{.*}})? (.+)$", answer.read().decode(), re.MULTILINE)
        return sum(map(float, values))

    def finish(self, sample: Sample, started: float, cpu_before: float) -> Sample:
        """The sample, once the sink has all of its events."""
        while (delivered := self.delivered()) < sample.events:
            assert time.perf_counter() - started < DEADLINE_SECONDS, f"{delivered} of {sample.events} delivered"
            time.sleep(0.02)
        assert delivered == sample.events, f"{delivered} delivered, {sample.events} stored"
        sample.delivered_seconds = time.perf_counter() - started
        sample.cpu_seconds = cpu_seconds(self.pid) - cpu_before
        return sample


@contextmanager
def collector(folder: Path) -> Iterator[Running]:
    """A fresh collector, with every source."""
    with tempfile.TemporaryDirectory(dir=folder) as queue, child(python("bench.sink")) as sink:
        sink_url = f"http://127.0.0.1:{int(first_line(sink.stdout))}"
        settings = {
            "COLLECTOR_HTTP__LISTEN": "127.0.0.1:0",
            "COLLECTOR_UDP__LISTEN": "127.0.0.1:0",
            "COLLECTOR_UNIX__DATAGRAM": f"{queue}/datagrams.sock",
            "COLLECTOR_APPS__DEFAULT": "bench",
            "COLLECTOR_QUEUE__PATH": queue,
            "COLLECTOR_FLUSH__LINGER": "100ms",
            "COLLECTOR_UPSTREAM__BASE_URL": sink_url,
            "COLLECTOR_UPSTREAM__TOKEN_URL": f"{sink_url}/oauth2/token",
            "COLLECTOR_UPSTREAM__CLIENT_ID": "bench",
            "COLLECTOR_UPSTREAM__CLIENT_SECRET": "bench",
            "COLLECTOR_LOG__FORMAT": "json",
        }
        with child(python("collector", "run"), **settings) as process:
            line = first_line(process.stderr)
            while '"agent.started"' not in line:
                line = first_line(process.stderr)
            started = msgspec.json.decode(line, type=dict[str, object])
            port = int(str(started["http"]).rpartition(":")[2])
            yield Running(process.pid, port, Path(queue, "datagrams.sock"), sink_url, str(started["udp"]))


def by_http(folder: Path, events_per_request: int, requests: int, connections: int, seed: int) -> Sample:
    """Posts into a fresh collector."""
    with collector(folder) as running:
        cpu_before = cpu_seconds(running.pid)
        sample = measured(load(running.port, events_per_request, requests, connections, seed))
        return running.finish(sample, time.perf_counter() - sample.seconds, cpu_before)


def by_datagram(folder: Path, target: str, rate: float, seed: int) -> Sample:
    """Datagrams of one event each into a fresh collector; the time ends when every one is stored or lost."""
    with collector(folder) as running:
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


def through_nothing(requests: int, connections: int, seed: int) -> Sample:
    """One-event posts into a handler that does nothing."""
    with child(python("bench.noop")) as server:
        port = int(first_line(server.stdout))
        before = cpu_seconds(server.pid)
        sample = measured(load(port, 1, requests, connections, seed))
        sample.cpu_seconds = cpu_seconds(server.pid) - before
        return sample


def run(rounds: int, folder: Path) -> list[Row]:
    """All rows, interleaved."""
    rows: dict[str, tuple[str | None, Callable[[int], Sample]]] = {
        "sqlite_keys_only": (
            None,
            lambda _: measured(python("bench.bare", "--folder", str(folder), "--batches", str(BATCH_REQUESTS))),
        ),
        "http_batch_1000": (
            "sqlite_keys_only",
            lambda seed: by_http(folder, 1000, BATCH_REQUESTS, BATCH_CONNECTIONS, seed),
        ),
        "aiohttp_noop": (None, lambda seed: through_nothing(SINGLE_REQUESTS, SINGLE_CONNECTIONS, seed)),
        "http_single": (
            "aiohttp_noop",
            lambda seed: by_http(folder, 1, SINGLE_REQUESTS, SINGLE_CONNECTIONS, seed),
        ),
        "udp_paced": (None, lambda seed: by_datagram(folder, "udp", DATAGRAM_RATE, seed)),
        "udp_full": (None, lambda seed: by_datagram(folder, "udp", 0, seed)),
        "unix_full": (None, lambda seed: by_datagram(folder, "unix", 0, seed)),
    }
    samples: dict[str, list[Sample]] = {name: [] for name in rows}
    for number in range(1, rounds + 1):
        for name, (_, measure) in rows.items():
            print(f"round {number} of {rounds}: {name}", file=sys.stderr)
            samples[name].append(measure(number))
    return [summary(name, against, samples) for name, (against, _) in rows.items()]


def summary(name: str, against: str | None, samples: dict[str, list[Sample]]) -> Row:
    mine = samples[name]
    rates = [sample.events / sample.seconds for sample in mine]
    limits = [sample.events / sample.seconds for sample in samples[against]] if against else []
    ratios = [rate / limit for rate, limit in zip(rates, limits, strict=True)] if against else []
    cpu = [sample.cpu_seconds / sample.events * 1e6 for sample in mine if sample.cpu_seconds is not None]
    delivered = [sample.events / sample.delivered_seconds for sample in mine if sample.delivered_seconds]
    p99 = [sample.p99_ms for sample in mine if sample.p99_ms is not None]
    losses = [(sample.lost, sample.events) for sample in mine if sample.lost is not None]
    return Row(
        name=name,
        events_per_s=round(statistics.median(rates)),
        cpu_us_per_event=round(statistics.median(cpu), 2) if cpu else None,
        against=against,
        ratio=round(statistics.median(ratios), 3) if ratios else None,
        ratio_min=round(min(ratios), 3) if ratios else None,
        ratio_max=round(max(ratios), 3) if ratios else None,
        delivered_per_s=round(statistics.median(delivered)) if delivered else None,
        p99_ms=round(statistics.median(p99), 2) if p99 else None,
        lost_percent=round(max(100 * lost / (lost + events) for lost, events in losses), 3) if losses else None,
        rounds=len(mine),
    )


def table(rows: list[Row]) -> str:
    lines = [
        f"{'row':<18}{'events/s':>12}{'delivered/s':>13}{'CPU us/event':>14}{'p99 ms':>9}{'lost':>9}   of its limit"
    ]
    for row in rows:
        limit = (
            f"{row.ratio:.0%} of {row.against} ({row.ratio_min:.0%} to {row.ratio_max:.0%})"
            if row.ratio
            else "(a limit)"
            if row.lost_percent is None
            else ""
        )
        lost = "" if row.lost_percent is None else f"{row.lost_percent:.2f} %"
        lines.append(
            f"{row.name:<18}{row.events_per_s:>12,.0f}{row.delivered_per_s or 0:>13,.0f}"
            f"{row.cpu_us_per_event or 0:>14.2f}{row.p99_ms or 0:>9.2f}{lost:>9}   {limit}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="where queues are made: on the disk to be measured")
    options = parser.parse_args()
    rows = run(options.rounds, options.folder.resolve())
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    print(table(rows))
    print(f"medians of {options.rounds} rounds; also in {RESULTS.relative_to(Path(__file__).parents[1])}")


if __name__ == "__main__":
    main()
