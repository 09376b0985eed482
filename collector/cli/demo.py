"""`collector demo`: the main job in half a minute, with real processes and a real outage."""

import asyncio
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp
import click
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from collector.cli.loop import run
from collector.errors import Unusable
from collector.intake import Report
from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, SandboxStats

EVENTS = 48_000
EVENTS_PER_REQUEST = 200
PUSH_SECONDS = 10.0
OUTAGE = (2.5, 6.5)
"""From when to when the sandbox is down, in seconds after the first event."""
DRAIN_DEADLINE_SECONDS = 12.0
START_DEADLINE_SECONDS = 10.0
REFRESH_SECONDS = 0.25
RETRIED_SHARE = 0.04
"""Share of requests that their sender repeats, as apps do whose connection broke before they read the answer."""

APPS = ("wiki", "tickets", "meetings", "design", "crm")
ACTIONS = ("page_viewed", "comment_added", "file_uploaded", "call_started", "search_run", "report_exported")
PEOPLE = 400


class Books(msgspec.Struct):
    """The figures of the demo, and the claim that they agree."""

    sent: int = 0
    sent_distinct: int = 0
    accepted: int = 0
    duplicates: int = 0
    waiting: int = 0
    delivered: int = 0
    sandbox_received: int = 0
    sandbox_distinct: int = 0

    def disagreements(self) -> list[str]:
        """Every equation that should hold at the end and does not."""
        claims = {
            f"sent {self.sent:,} = accepted {self.accepted:,} + duplicates {self.duplicates:,}": self.sent
            == self.accepted + self.duplicates,
            f"accepted {self.accepted:,} = distinct events sent {self.sent_distinct:,}": self.accepted
            == self.sent_distinct,
            f"delivered {self.delivered:,} = accepted {self.accepted:,}": self.delivered == self.accepted,
            f"distinct at the sandbox {self.sandbox_distinct:,} = accepted {self.accepted:,}": self.sandbox_distinct
            == self.accepted,
            f"waiting {self.waiting:,} = 0": self.waiting == 0,
        }
        return [claim for claim, holds in claims.items() if not holds]


@click.command("demo", short_help="Show the main job: sandbox, collector, an outage, and the books.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed sends the same events.")
def command(seed: int) -> None:
    """Start a sandbox and a collector in a temporary folder, send events, take the sandbox down for a while, and count.

    Ends with the books; exit code 0 says that they agree. Takes about 15 seconds.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="collector-demo-") as folder:
            books = run(_demo(Path(folder), random.Random(seed)))  # noqa: S311 - example data
    except KeyboardInterrupt:
        sys.exit(130)
    _print_books(books)
    sys.exit(1 if books.disagreements() else 0)


async def _demo(folder: Path, rng: random.Random) -> Books:
    books = Books()
    async with (
        aiohttp.ClientSession() as session,
        _sandbox(folder) as sandbox,
        _collector(folder, sandbox.url) as collector_url,
    ):
        with _Screen(books) as screen:
            await _play(session, sandbox, collector_url, books, screen, rng)
    return books


async def _play(
    session: aiohttp.ClientSession,
    sandbox: "_SandboxChild",
    collector_url: str,
    books: Books,
    screen: "_Screen",
    rng: random.Random,
) -> None:
    """The story: apps push all the while, the sandbox goes away and returns, the backlog grows and drains."""
    requests = _requests(rng, int(time.time() * 1000))
    books.sent_distinct = len({event for request in requests for event in request})
    started = time.monotonic()
    pushing = asyncio.create_task(_push(session, collector_url, requests, books))
    down = returned = False
    while True:
        elapsed = time.monotonic() - started
        if not down and elapsed >= OUTAGE[0]:
            await sandbox.kill()
            down = True
        if down and not returned and elapsed >= OUTAGE[1]:
            await sandbox.start()
            returned = True
        await _observe(session, collector_url, None if down and not returned else sandbox.url, books)
        if pushing.done():
            await pushing
        drained = pushing.done() and returned and books.sandbox_distinct == books.sent_distinct and books.waiting == 0
        state = "sandbox is DOWN" if down and not returned else "draining" if pushing.done() else "sandbox is up"
        screen.show(elapsed, "done" if drained else state)
        if drained or elapsed > PUSH_SECONDS + DRAIN_DEADLINE_SECONDS:
            return
        await asyncio.sleep(REFRESH_SECONDS)


def _requests(rng: random.Random, now_ms: int) -> list[list[bytes]]:
    """What the apps send: people act, clocks are coarse, and senders repeat themselves."""
    requests: list[list[bytes]] = []
    clock_ms = now_ms - 3_600_000
    for _ in range(EVENTS // EVENTS_PER_REQUEST):
        if requests and rng.random() < RETRIED_SHARE:
            requests.append(rng.choice(requests[-20:]))
            continue
        request = []
        for _ in range(EVENTS_PER_REQUEST):
            clock_ms += rng.choice((0, 0, 0, 1, 20))
            person, app = int(rng.paretovariate(0.7)) % PEOPLE, rng.choice(APPS)
            event = {
                "appId": app,
                "timestamp": clock_ms,
                "email": f"person{person}@example.com",
                "eventName": rng.choice(ACTIONS),
            }
            request.append(msgspec.json.encode(event))
        requests.append(request)
    return requests


async def _push(session: aiohttp.ClientSession, collector_url: str, requests: list[list[bytes]], books: Books) -> None:
    started = time.monotonic()
    for number, request in enumerate(requests):
        await asyncio.sleep(max(0.0, started + PUSH_SECONDS * number / len(requests) - time.monotonic()))
        headers = {"Content-Type": "application/x-ndjson"}
        async with session.post(f"{collector_url}/v1/events", data=b"\n".join(request), headers=headers) as response:
            report = msgspec.json.decode(await response.read(), type=Report)
        books.sent += len(request)
        books.accepted += report.accepted
        books.duplicates += report.duplicates


async def _observe(session: aiohttp.ClientSession, collector_url: str, sandbox_url: str | None, books: Books) -> None:
    async with session.get(f"{collector_url}/metrics") as response:
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(await response.text())
            for sample in family.samples
        }
    books.waiting = int(samples["collector_waiting_events"])
    books.delivered = int(samples["collector_delivered_events_total"])
    if sandbox_url is not None:
        async with session.get(f"{sandbox_url}/_sandbox/stats") as response:
            stats = msgspec.json.decode(await response.read(), type=SandboxStats)
        books.sandbox_received, books.sandbox_distinct = stats.received, stats.distinct


class _SandboxChild:
    """A sandbox process that can die and come back, with the same port and the same data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def start(self) -> None:
        listen = self.url.removeprefix("http://") or "127.0.0.1:0"
        options = ["--listen", listen, "--create-apps", "--data", str(self._folder / "sandbox")]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "collector", "sandbox", *options, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        line = await asyncio.wait_for(self._process.stdout.readline(), START_DEADLINE_SECONDS)
        match = re.search(rb"listens on (\S+)", line)
        if match is None:
            raise Unusable("the sandbox did not start")
        self.url = match[1].decode()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def _sandbox(folder: Path) -> AsyncIterator[_SandboxChild]:
    sandbox = _SandboxChild(folder)
    try:
        await sandbox.start()
        yield sandbox
    finally:
        await sandbox.kill()


@asynccontextmanager
async def _collector(folder: Path, sandbox_url: str) -> AsyncIterator[str]:
    """A collector process that delivers to the sandbox; its URL. On leaving, it was asked to stop and has."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("COLLECTOR_")}
    settings = {
        "COLLECTOR_HTTP__LISTEN": "127.0.0.1:0",
        "COLLECTOR_QUEUE__PATH": str(folder / "queue"),
        "COLLECTOR_UPSTREAM__BASE_URL": sandbox_url,
        "COLLECTOR_UPSTREAM__TOKEN_URL": f"{sandbox_url}/oauth2/token",
        "COLLECTOR_UPSTREAM__CLIENT_ID": CLIENT_ID,
        "COLLECTOR_UPSTREAM__CLIENT_SECRET": CLIENT_SECRET,
        "COLLECTOR_FLUSH__BACKOFF_MAX": "1s",
        "COLLECTOR_LOG__FORMAT": "json",
    }
    log_file = folder / "collector.log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "collector", "run", env=own | settings, stderr=log
        )
    try:
        yield await _collector_url(process, log_file)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        if await asyncio.wait_for(process.wait(), 15.0) != 0:
            raise Unusable(f"the collector ended with status {process.returncode}:\n{log_file.read_text()}")


async def _collector_url(process: asyncio.subprocess.Process, log_file: Path) -> str:
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        if match := re.search(r'"http":"([^"]+)"', log_file.read_text()):
            return f"http://{match[1]}"
        await asyncio.sleep(0.05)
    raise Unusable(f"the collector did not start:\n{log_file.read_text()}")


class _Screen:
    """The figures while they change: a live panel on a terminal, else a line a second."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._console = Console()
        self._backlog: deque[int] = deque(maxlen=80)
        self._live = (
            Live(console=self._console, refresh_per_second=8, transient=True) if self._console.is_terminal else None
        )
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, elapsed: float, state: str) -> None:
        books = self._books
        self._backlog.append(books.waiting)
        if self._live is not None:
            self._live.update(self._panel(elapsed, state))
        elif elapsed >= self._next_line or state == "done":
            self._next_line = elapsed + 1.0
            figures = "  ".join(f"{name} {value:>6,}" for name, value in self._figures())
            click.echo(f"{elapsed:5.1f} s  {state:<15}  {figures}")

    def _figures(self) -> list[tuple[str, int]]:
        books = self._books
        return [
            ("sent", books.sent),
            ("accepted", books.accepted),
            ("duplicates", books.duplicates),
            ("waiting", books.waiting),
            ("delivered", books.delivered),
            ("distinct at the sandbox", books.sandbox_distinct),
        ]

    def _panel(self, elapsed: float, state: str) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, value in self._figures():
            table.add_row(name, Text(f"{value:,}", justify="right"))
        colour = "red" if "DOWN" in state else "yellow" if state == "draining" else "green"
        head = Text.assemble((f"{elapsed:5.1f} s  ", "dim"), (state, f"bold {colour}"))
        return Group(head, table, Text("backlog  ", style="dim") + Text(_sparkline(self._backlog), style=colour))


def _sparkline(values: deque[int]) -> str:
    top = max(values, default=0) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, -(-8 * value // top))] for value in values)


def _print_books(books: Books) -> None:
    write: Callable[[str], None] = click.echo
    write(f"""
The books
  sent by the apps          {books.sent:>8,}   of these distinct {books.sent_distinct:,}
  accepted                  {books.accepted:>8,}
  duplicates                {books.duplicates:>8,}
  delivered                 {books.delivered:>8,}
  still waiting             {books.waiting:>8,}
  distinct at the sandbox   {books.sandbox_distinct:>8,}   received {books.sandbox_received:,}
""")
    disagreements = books.disagreements()
    if disagreements:
        write("They do NOT agree:\n  " + "\n  ".join(disagreements))
    else:
        write("They agree: every event that was accepted is at the sandbox, once.")
