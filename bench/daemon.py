"""A collector of its own for each measurement, delivering to the null sink."""

import json
import re
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.processes import child, cpu_seconds, first_line, memory_bytes, python
from bench.rows import DEADLINE_SECONDS, Sample


class Running(NamedTuple):
    """A collector that delivers to the null sink."""

    pid: int
    port: int
    socket: Path
    sink_url: str
    udp: str
    ready_seconds: float

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
        stored = sample.events if sample.stored is None else sample.stored
        while (delivered := self.delivered()) < stored:
            assert time.perf_counter() - started < DEADLINE_SECONDS, f"{delivered} of {stored} delivered"
            time.sleep(0.02)
        assert delivered == stored, f"{delivered} delivered, {stored} stored"
        sample.delivered_seconds = time.perf_counter() - started
        sample.cpu_seconds = cpu_seconds(self.pid) - cpu_before
        sample.rss_bytes = memory_bytes(self.pid, "VmHWM")
        return sample


@contextmanager
def collector(folder: Path, queue: Path | None = None) -> Iterator[Running]:
    """A collector with every source, on a fresh queue where none is given."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh, child(python("bench.sink")) as sink:
        sink_url = f"http://127.0.0.1:{int(first_line(sink.stdout))}"
        settings = {
            "COLLECTOR_HTTP__LISTEN": "127.0.0.1:0",
            "COLLECTOR_UDP__LISTEN": "127.0.0.1:0",
            "COLLECTOR_UNIX__DATAGRAM": f"{fresh}/datagrams.sock",
            "COLLECTOR_APPS__DEFAULT": "bench",
            "COLLECTOR_QUEUE__PATH": str(queue or fresh),
            "COLLECTOR_FLUSH__LINGER": "100ms",
            "COLLECTOR_UPSTREAM__BASE_URL": sink_url,
            "COLLECTOR_UPSTREAM__TOKEN_URL": f"{sink_url}/oauth2/token",
            "COLLECTOR_UPSTREAM__CLIENT_ID": "bench",
            "COLLECTOR_UPSTREAM__CLIENT_SECRET": "bench",
            "COLLECTOR_LOG__FORMAT": "json",
        }
        began = time.perf_counter()
        with child(python("collector", "run"), **settings) as process:
            line = first_line(process.stderr)
            while '"agent.started"' not in line:
                line = first_line(process.stderr)
            started = msgspec.json.decode(line, type=dict[str, object])
            port = int(str(started["http"]).rpartition(":")[2])
            ready_seconds = time.perf_counter() - began
            threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()  # or it fills
            socket = Path(fresh, "datagrams.sock")
            yield Running(process.pid, port, socket, sink_url, str(started["udp"]), ready_seconds)
