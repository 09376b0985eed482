"""The same work by others: `make bench-peers`. Writes docs/peers.md and docs/peers.svg.

Each gets events of about 90 bytes for so many seconds from one program, as fast as it accepts them, and delivers them
to a sink that counts. Then the same again, with `kill -9` in the middle and a new start on the same files: of what was
accepted until then, how much never came, and how much came twice. A library dies with its program. CPU is user + system
of the process that stores and delivers, with its children; of a library, of the program.

Rows are kept in bench/results/peers.json, each with its date, so that `--only` renews some: Debian lets nobody have
syslog-ng and rsyslog installed together.
"""

import argparse
import datetime as dt
import os
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.processes import child, cpu_seconds, first_line, memory_bytes, python

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results" / "peers.json"
PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin"
SETTLED_SECONDS, MOST_WAIT_SECONDS = 3.0, 20.0
KILL_SECONDS = 5.0


class NotStarted(Exception):
    """A peer that is installed does not listen, having parts missing for one."""


class Peer(NamedTuple):
    """Somebody who takes events. `serve` runs it on a folder, for a sink, and yields its process and address."""

    name: str
    way: str
    means: str
    missing: str | None = None
    serve: Callable[[Path, str], Iterator[tuple[subprocess.Popen[str], str]]] | None = None


class Result(msgspec.Struct):
    name: str
    means: str
    accepted_per_s: float = 0
    delivered_per_s: float = 0
    cpu_us_per_event: float = 0
    rss_mib: float = 0
    lost: int = 0
    doubled: int = 0
    skipped: str | None = None
    measured: str = ""
    seconds: float = 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def collector(folder: Path, sink: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    settings = {
        "COLLECTOR_HTTP__LISTEN": f"127.0.0.1:{free_port()}",
        "COLLECTOR_APPS__DEFAULT": "bench",
        "COLLECTOR_QUEUE__PATH": str(folder),
        "COLLECTOR_UPSTREAM__BASE_URL": sink,
        "COLLECTOR_UPSTREAM__TOKEN_URL": f"{sink}/oauth2/token",
        "COLLECTOR_UPSTREAM__CLIENT_ID": "bench",
        "COLLECTOR_UPSTREAM__CLIENT_SECRET": "bench",
        "COLLECTOR_LOG__FORMAT": "json",
    }
    with child(python("collector", "run"), **settings) as process:
        while '"agent.started"' not in first_line(process.stderr):
            pass
        threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
        yield process, f"http://{settings['COLLECTOR_HTTP__LISTEN']}"


SYSLOG_NG = """@version: 3.38
source s {{ network(transport("tcp") ip("127.0.0.1") port({port}) flags(no-parse) log-iw-size(100000)); }};
destination d {{ http(url("{sink}/") method("POST") batch-lines(1000) batch-timeout(100) body("$MSG")
  disk-buffer(reliable(yes) disk-buf-size(1073741824) mem-buf-size(16777216) dir("{folder}"))); }};
log {{ source(s); destination(d); flags(flow-control); }};
"""


def syslog_ng(folder: Path, sink: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port, configuration = free_port(), folder / "syslog-ng.conf"
    configuration.write_text(SYSLOG_NG.format(port=port, sink=sink, folder=folder))
    files = {"-f": configuration, "-R": folder / "persist", "-p": folder / "pid", "-c": folder / "ctl"}
    words = [str(word) for pair in files.items() for word in pair]
    with child([str(shutil.which("syslog-ng", path=PATHS)), "-F", "--no-caps", *words]) as process:
        await_port(port)
        yield process, f"http://127.0.0.1:{port}"


FLUENT_BIT = """[SERVICE]
    flush 1
    storage.path {folder}
    storage.sync full
[INPUT]
    name http
    listen 127.0.0.1
    port {port}
    successful_response_code 200
    storage.type filesystem
[OUTPUT]
    name http
    match *
    host 127.0.0.1
    port {sink_port}
    format json
    retry_limit false
"""


def fluent_bit(folder: Path, sink: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port, configuration = free_port(), folder / "fluent-bit.conf"
    configuration.write_text(FLUENT_BIT.format(port=port, sink_port=sink.rpartition(":")[2], folder=folder))
    with child(["fluent-bit", "-q", "-c", str(configuration)]) as process:
        await_port(port)
        yield process, f"http://127.0.0.1:{port}"


RSYSLOG = """global(workDirectory="{folder}")
module(load="imptcp")
module(load="omprog")
template(name="raw" type="string" string="%rawmsg%\\n")
ruleset(name="out" queue.type="disk" queue.filename="events" queue.syncqueuefiles="on" queue.maxdiskspace="1g"
        queue.size="10000000" queue.checkpointinterval="1000" queue.dequeuebatchsize="1000"
        queue.saveonshutdown="on") {{
  action(type="omprog" binary="{forward}" template="raw" confirmMessages="on" useTransactions="on"
         confirmTimeout="60000" action.resumeRetryCount="-1")
}}
input(type="imptcp" address="127.0.0.1" port="{port}" ruleset="out")
"""


def rsyslog(folder: Path, sink: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port, configuration = free_port(), folder / "rsyslog.conf"
    forward = " ".join(python("bench.peer_forward", "--port", sink.rpartition(":")[2]))
    configuration.write_text(RSYSLOG.format(port=port, forward=forward, folder=folder))
    words = ["-n", "-f", str(configuration), "-i", str(folder / "pid")]
    with child([str(shutil.which("rsyslogd", path=PATHS)), *words]) as process:
        await_port(port)
        yield process, f"http://127.0.0.1:{port}"


def await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise NotStarted


def library(name: str, way: str, module: str) -> Peer:
    return Peer(name, way, "in memory", None if find_spec(module) else f"pip cannot find {module}")


def program(
    name: str,
    binary: str,
    means: str,
    serve: Callable[[Path, str], Iterator[tuple[subprocess.Popen[str], str]]],
    way: str = "tcp",
) -> Peer:
    return Peer(name, way, means, None if shutil.which(binary, path=PATHS) else f"{binary} is not on PATH", serve)


PEERS = [
    Peer("collector", "posts", "fsync, and deduplicated", None, collector),
    library("segment-analytics-python", "segment", "segment"),
    library("posthog", "posthog", "posthog"),
    library("snowplow-tracker", "snowplow", "snowplow_tracker"),
    program("Fluent Bit", "fluent-bit", "in the page cache", fluent_bit, way="posts"),
    program("syslog-ng", "syslog-ng", "in the socket's buffer", syslog_ng),
    program("rsyslog", "rsyslogd", "in the socket's buffer", rsyslog),
]


def asked(sink: str, path: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{sink}{path}", timeout=30) as answer:  # noqa: S310 - our own sink
        return msgspec.json.decode(answer.read(), type=dict[str, int])


def settled(sink: str, wanted: int, *, to_the_end: bool = False) -> float:
    """When the sink had got everything wanted, or its last event before a pause; also what comes again after that."""
    last, changed = -1, time.perf_counter()
    deadline = changed + MOST_WAIT_SECONDS
    while time.perf_counter() < deadline:
        counts = asked(sink, "/count")
        if counts["events"] != last:
            last, changed = counts["events"], time.perf_counter()
        if (counts["distinct"] >= wanted and not to_the_end) or time.perf_counter() - changed > SETTLED_SECONDS:
            break
        time.sleep(0.02)
    return changed


@contextmanager
def started(peer: Peer, folder: Path, sink: str) -> Iterator[tuple[subprocess.Popen[str] | None, str]]:
    if peer.serve is None:
        yield None, sink
    else:
        yield from peer.serve(folder, sink)


def host(peer: Peer, url: str, seconds: float) -> list[str]:
    return python("bench.peer_host", "--way", peer.way, "--url", url, "--seconds", str(seconds))


def latest(load: subprocess.Popen[str], last: str) -> str:
    """The last line that the program has to say."""
    lines: list[str] = [last, *(load.stdout or [])]
    return lines[-1]


def measured(peer: Peer, folder: Path, seconds: float, result: Result) -> None:
    with child(python("bench.peer_sink")) as sink_process:
        sink = f"http://127.0.0.1:{int(first_line(sink_process.stdout))}"
        with started(peer, folder, sink) as (server, url), child(host(peer, url, seconds)) as load:
            last, began = first_line(load.stdout), time.perf_counter()
            last = latest(load, last)
            accepted, took, cpu, resident = (float(word) for word in last.split())
            ended = settled(sink, int(accepted)) if server else time.perf_counter()
            if server:
                cpu, resident = cpu_seconds(server.pid), memory_bytes(server.pid, "VmHWM") / 2**20
            distinct = asked(sink, "/count")["distinct"]
    result.accepted_per_s = round(accepted / took)
    result.delivered_per_s = round(distinct / (ended - began))
    result.cpu_us_per_event, result.rss_mib = round(cpu / max(1, accepted) * 1e6, 2), round(resident)


def killed(peer: Peer, folder: Path, seconds: float, result: Result) -> None:
    with child(python("bench.peer_sink")) as sink_process:
        sink = f"http://127.0.0.1:{int(first_line(sink_process.stdout))}"
        with started(peer, folder, sink) as (server, url), child(host(peer, url, seconds * 2)) as load:
            last = "0"
            for last in load.stdout or ():
                if float(last.split()[1]) >= seconds:
                    break
            (server or load).send_signal(signal.SIGKILL)
            if server:
                last = latest(load, last)  # it ends when its connection does
        accepted = int(last.split()[0])
        with started(peer, folder, sink) if peer.serve else started(Peer("", "", ""), folder, sink):
            settled(sink, accepted, to_the_end=True)
        counts = asked(sink, "/count")
        result.lost = accepted - asked(sink, f"/have?{accepted}")["distinct"]
        result.doubled = counts["events"] - counts["distinct"]


def run(peer: Peer, folder: Path, seconds: float) -> Result:
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    result = Result(peer.name, peer.means, skipped=peer.missing, measured=today, seconds=seconds)
    if peer.missing is None:
        for measure, length in ((measured, seconds), (killed, min(seconds, KILL_SECONDS))):
            with tempfile.TemporaryDirectory(dir=folder) as own:
                try:
                    measure(peer, Path(own), length, result)
                except NotStarted:
                    result.skipped = "it is installed, and does not listen; perhaps a module of it is missing"
                    break
    return result


def markdown(results: Sequence[Result]) -> str:
    """The table, with what it takes to read it."""
    dates = sorted({each.measured for each in results})
    lengths = sorted({f"{each.seconds:g} s" for each in results if not each.skipped})
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    lines = [
        f"Measured {', '.join(dates)} by `make bench-peers` with {machine}: events of about 90 bytes",
        f"for {', '.join(lengths)} from one program as fast as they are accepted, delivered to a sink that counts;",
        f"then once more with `kill -9` after {KILL_SECONDS:g} s, and a new start on the same files.",
        "",
        "| | accepted/s | delivered/s | CPU us an event | MiB | accepted means | lost by kill -9 | sent twice |",
        "|---|--:|--:|--:|--:|---|--:|--:|",
    ]
    lines += [
        f"| {each.name} | not measured: {each.skipped} | | | | | | |"
        if each.skipped
        else f"| {each.name} | {each.accepted_per_s:,.0f} | {each.delivered_per_s:,.0f} | {each.cpu_us_per_event:.1f} "
        f"| {each.rss_mib:.0f} | {each.means} | {each.lost:,} | {each.doubled:,} |"
        for each in results
    ]
    lines += [
        "",
        "The collector and Fluent Bit get posts of 1000 events over four connections, syslog-ng (reliable disk buffer)",
        "and rsyslog (synced disk queue) lines over TCP, the libraries calls. Whoever acknowledges in memory or by TCP",
        "loses what it held there. The collector sends again only what was on its way upstream at the kill; upstream",
        "knows it by its key. rsyslog delivers by a small program of ours, whose CPU counts: Debian has no omhttp.",
        "What is not delivered 20 s after the new start counts as lost, also where it still waits in a queue.",
    ]
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Result]) -> str:
    """Who delivers how much."""
    shown = [each for each in results if not each.skipped]
    most = max(each.delivered_per_s for each in shown) or 1
    bars = []
    for place, each in enumerate(shown):
        y, width = 40 + 30 * place, 360 * each.delivered_per_s / most
        colour = "#1a7f64" if each.name == "collector" else "#9aa5b1"
        bars.append(f'<text x="190" y="{y + 15}" text-anchor="end">{each.name}</text>')
        bars.append(f'<rect x="200" y="{y}" width="{max(1, width):.0f}" height="20" fill="{colour}"/>')
        said = f"{each.delivered_per_s:,.0f}/s, {each.cpu_us_per_event:.1f} us CPU, {each.means}"
        bars.append(f'<text x="{206 + width:.0f}" y="{y + 15}">{said}</text>')
    height = 50 + 30 * len(shown)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}" font-family="sans-serif" font-size="13">'
        f'<rect width="960" height="{height}" fill="white"/><text x="200" y="24" font-weight="bold">'
        f"Events delivered a second, {max(each.measured for each in results)}, {os.cpu_count()} cores</text>"
        f"{''.join(bars)}</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--only", nargs="+", choices=[peer.name for peer in PEERS], default=[])
    options = parser.parse_args()
    known: dict[str, Result] = {}
    if RESULTS.exists():
        known = {each.name: each for each in msgspec.json.decode(RESULTS.read_bytes(), type=list[Result])}
    RESULTS.parent.mkdir(exist_ok=True)
    for peer in PEERS:
        if peer.name in options.only or not options.only:
            print(peer.name, file=sys.stderr)
            result = run(peer, options.folder.resolve(), options.seconds)
            if not result.skipped or peer.name not in known:
                known[peer.name] = result
            RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(list(known.values()))))
    results = [known[peer.name] for peer in PEERS if peer.name in known]
    DOCS.mkdir(exist_ok=True)
    (DOCS / "peers.md").write_text(markdown(results))
    (DOCS / "peers.svg").write_text(plot(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
