"""Everything that an upstream can do to its clients: to the whole collector, over real sockets, by the sandbox.

At the end of each story the books must be right: every event is upstream exactly once, nothing waits, nothing was
buried, and no app was held but where the story says so. What happens when, on virtual time: tests/test_outage.py.
"""

import asyncio
import random
import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import pytest

from collector.agent import Collector
from collector.clock import Clock
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import Books, Event, settled
from tests.e2e.daemon import running
from tests.embedded import config, embedded, metric
from tests.patience import PATIENCE_SECONDS, until

EVENTS = 1500
"""A full batch, and one that is not."""

TIMEOUT = "250ms"
TOO_LATE_SECONDS = 0.75

TOKEN = "getAccessToken"
PUBLISH_PATH = "/services/push/v1/customer/apps/wiki/usage-events"

HALF = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"succe'
NOISE = "".join(map(chr, random.Random(1).randbytes(500)))


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def some_events(first: int, count: int = EVENTS, app_id: str = "wiki") -> list[Event]:
    return [Event(app_id, number, "person@example.com", "page_viewed") for number in range(first, first + count)]


class Ledger(Books):
    """The books of an embedded collector."""

    def __init__(self, collector: Collector, state: State) -> None:
        super().__init__()
        self.collector = collector
        self._state = state

    async def take(self, events: Sequence[Event]) -> None:
        """The collector has acknowledged these."""
        async with aiohttp.ClientSession() as session:
            for start in range(0, len(events), 10_000):
                await self.post(session, f"http://{self.collector.http_address}", events[start : start + 10_000])

    async def until(self, name: str, value: float, **labels: str) -> None:
        """Returns when a metric is at least so high."""
        await until(lambda: metric(self.collector, name, **labels) >= value)

    async def close(self) -> None:
        """All is delivered, and the books are right."""
        await settled(self._state, self.accepted)
        await until(lambda: not any(metric(self.collector, name) for name in ("waiting_events", "in_flight_leases")))
        await self.check(self._state)
        assert (await self._state.stats()).distinct == self.accepted == metric(self.collector, "delivered_events_total")
        assert metric(self.collector, "buried_events_total") == 0
        assert metric(self.collector, "held_apps") == 0


def was_held(caplog: pytest.LogCaptureFixture) -> bool:
    return "flusher.app_held" in caplog.messages


# -- answers, and what is none -----------------------------------------------------------------------------------------

FLEETING = {
    "429 with Retry-After in seconds": [Fault(status=429, headers={"Retry-After": "0"}, times=3)],
    "503 with Retry-After in seconds": [Fault(status=503, headers={"Retry-After": "0"}, times=3)],
    "429 with Retry-After as a date": [Fault(status=429, headers={"Retry-After": in_seconds(-5)}, times=3)],
    "503 with Retry-After as a date": [Fault(status=503, headers={"Retry-After": in_seconds(-5)}, times=3)],
    "429 without a word": [Fault(status=429, times=3)],
    "a storm of 500": [Fault(operation="*", status=500, times=25)],
    "a storm of all kinds": [Fault(status=status, times=3) for status in (500, 502, 503, 504, 429, 408, 425, 599)],
    "500 although it was taken": [Fault(status=500, after=True, times=4)],
    "an answer after the timeout": [Fault(delay_seconds=TOO_LATE_SECONDS, times=2)],
    "a failure after the timeout": [Fault(delay_seconds=TOO_LATE_SECONDS, status=500, times=2)],
    "a cut before the commit": [Fault(cut=True, times=3)],
    "a cut after the commit": [Fault(cut=True, after=True, times=3)],
    "half an answer before the commit": [Fault(cut=True, raw=HALF, times=3)],
    "half an answer after the commit": [Fault(cut=True, raw=HALF, after=True, times=3)],
    "half a head": [Fault(cut=True, raw=HALF[:30], after=True, times=3)],
    "half a chunk": [
        Fault(cut=True, raw="HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{", after=True, times=3)
    ],
    "noise": [Fault(cut=True, raw=NOISE, times=3)],
    "a length that is none": [Fault(cut=True, raw="HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", times=3)],
    "a head that does not end": [Fault(cut=True, raw="HTTP/1.1 200 OK\r\nA: " + "x" * 100_000, times=3)],
    "a page of HTML with 200": [Fault(status=200, headers={"Content-Type": "text/html"}, body="<html>", times=3)],
    "200 without success": [Fault(status=200, body='{"success": false}', times=3)],
    "413 above a hundred events": [Fault(status=413, more_than=100)],
    "a token endpoint that fails": [Fault(operation=TOKEN, status=503, times=5)],
    "a token endpoint that cuts the line": [Fault(operation=TOKEN, cut=True, times=5)],
    "a token endpoint that is late": [Fault(operation=TOKEN, delay_seconds=TOO_LATE_SECONDS, times=2)],
    "a token endpoint that answers HTML": [Fault(operation=TOKEN, status=200, body="<html>", times=5)],
    "a token that dies early": [Fault(status=401, times=1)],
}

LASTING = {
    "404 for a while": [Fault(status=404, times=2)],
    "403 for a while": [Fault(status=403, times=2)],
    "401 again and again": [Fault(status=401, times=8)],
    "a redirect to itself": [Fault(status=302, headers={"Location": PUBLISH_PATH}, times=3)],
    "a permanent redirect to itself": [Fault(status=308, headers={"Location": PUBLISH_PATH}, times=3)],
    "a redirect of the token to itself": [
        Fault(operation=TOKEN, status=307, headers={"Location": "/oauth2/token"}, times=3)
    ],
}
"""What a person should know of: the app is held meanwhile, and goes on by itself once it is over."""


@pytest.mark.parametrize("name", FLEETING)
async def test_what_passes_costs_no_event_and_holds_no_app(
    tmp_path: Path, sandbox: Sandbox, state: State, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    sandbox.set_faults(*FLEETING[name])
    async with embedded(tmp_path, sandbox.url, upstream__timeout=TIMEOUT) as collector:
        ledger = Ledger(collector, state)
        await ledger.take(some_events(0))
        await ledger.close()
    assert not was_held(caplog)


@pytest.mark.parametrize("name", LASTING)
async def test_what_a_person_should_know_of_holds_the_app_and_costs_no_event(
    tmp_path: Path, sandbox: Sandbox, state: State, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    sandbox.set_faults(*LASTING[name])
    async with embedded(tmp_path, sandbox.url) as collector:
        ledger = Ledger(collector, state)
        await ledger.take(some_events(0))
        await ledger.close()
    assert was_held(caplog)
    # Each failure was one request: no redirect was followed, nothing was tried again in a hurry.
    assert (await state.stats()).requests + (await sandbox.stats()).tokens <= 2 + 8 + 4 + EVENTS // 1000


# -- time --------------------------------------------------------------------------------------------------------------


class OddClock(Clock):
    """Runs so many times as fast as the machine's, and its wall time can be set."""

    def __init__(self, speed: float) -> None:
        self.ahead_seconds = 0.0
        self._speed = speed

    def now_us(self) -> int:
        return super().now_us() + round(self.ahead_seconds * 1e6)

    def monotonic(self) -> float:
        return super().monotonic() * self._speed

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self._speed)

    async def wait(self, event: asyncio.Event, timeout_seconds: float | None) -> bool:
        return await super().wait(event, None if timeout_seconds is None else timeout_seconds / self._speed)


@asynccontextmanager
async def on_odd_time(
    folder: Path, url: str, *, speed: float, **settings: str
) -> AsyncIterator[tuple[Collector, OddClock]]:
    clock = OddClock(speed)
    async with Collector(config(folder, url, **settings), listens=True, clock=clock) as collector:
        yield collector, clock


@pytest.mark.parametrize("ahead_seconds", [-3600, 0, 3600])
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "date"])
async def test_a_retry_after_is_waited_for_also_where_our_clock_is_wrong(
    tmp_path: Path, sandbox: Sandbox, state: State, ahead_seconds: int, status: int, as_date: bool
) -> None:
    async with on_odd_time(tmp_path, sandbox.url, speed=100.0) as (collector, clock):
        clock.ahead_seconds = ahead_seconds
        wish = in_seconds(41) if as_date else "40"
        sandbox.set_faults(Fault(status=status, headers={"Retry-After": wish}, times=1))
        ledger = Ledger(collector, state)
        before = clock.monotonic()
        await ledger.take(some_events(0, 1000))
        await ledger.close()
        # Upstream's date is exact to the second; the odd clock's own hour would be 36 real ones.
        assert 39 <= clock.monotonic() - before < 3600


@pytest.mark.parametrize("jump_seconds", [-3600, 3600])
async def test_a_clock_that_is_set_stops_neither_lingers_nor_tokens_nor_retries_nor_makes_a_duplicate_new(
    tmp_path: Path, sandbox: Sandbox, state: State, caplog: pytest.LogCaptureFixture, jump_seconds: int
) -> None:
    # Half an hour, and a token's life of one, must not pass in the time that the test takes.
    async with on_odd_time(tmp_path, sandbox.url, speed=50.0, flush__linger="5s", queue__dedup_retention="30m") as (
        collector,
        clock,
    ):
        ledger = Ledger(collector, state)
        for number in range(4):
            sandbox.set_faults(Fault(status=503, times=2))
            await ledger.take(some_events(1000 * number, 10))
            clock.ahead_seconds += jump_seconds if number % 2 else -jump_seconds * (number != 0)
            await ledger.take(some_events(1000 * number, 20))
            await ledger.close()
        assert ledger.accepted == 4 * 20
        assert (await sandbox.stats()).tokens == metric(collector, "token_requests_total", outcome="granted") == 1
    assert not was_held(caplog)


async def test_tokens_that_die_early_again_and_again_cost_a_request_each(
    tmp_path: Path, sandbox: Sandbox, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    async with embedded(tmp_path, sandbox.url) as collector:
        ledger = Ledger(collector, state)
        for number in range(5):
            sandbox.forget_tokens()
            await ledger.take(some_events(1000 * number, 1000))
            await ledger.close()
        assert (await sandbox.stats()).tokens == 5
        assert (await state.stats()).requests == 5 + 4
    assert not was_held(caplog)


# -- no way to it ------------------------------------------------------------------------------------------------------


async def test_an_upstream_that_is_not_there_yet_is_found_when_it_comes(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0)
    await sandbox.stop()
    async with embedded(tmp_path, sandbox.url) as collector:
        ledger = Ledger(collector, state)
        await ledger.take(some_events(0))
        await ledger.until("deliveries_total", 5, outcome="retried")
        successor = Sandbox(state, create_apps=True)
        await successor.start("127.0.0.1", int(sandbox.url.rpartition(":")[2]))
        try:
            await ledger.close()
        finally:
            await successor.stop()
    assert not was_held(caplog)


@pytest.mark.parametrize("which", ["upstream__base_url", "upstream__token_url"])
async def test_a_name_that_nobody_knows_is_asked_for_until_somebody_does(
    tmp_path: Path, sandbox: Sandbox, state: State, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    async with embedded(
        tmp_path, sandbox.url, stop__deadline="0s", **{which: "http://upstream.invalid/token"}
    ) as collector:
        before = Ledger(collector, state)
        await before.take(some_events(0))
        await before.until("deliveries_total", 3, outcome="retried")
    assert not was_held(caplog)
    async with embedded(tmp_path, sandbox.url) as collector:
        ledger = Ledger(collector, state)
        ledger.sent, ledger.acknowledged, ledger.accepted = before.sent, before.acknowledged, before.accepted
        await ledger.close()


class Certificate:
    """A certificate that signs itself, for one name, and its key."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file, key = folder / f"{name}.pem", folder / f"{name}.key"
        kind = "IP" if name[0].isdigit() else "DNS"
        words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test -keyout {key}"
        extension = f"subjectAltName={kind}:{name}"
        subprocess.run(
            ["openssl", *words.split(), "-out", str(self.file), "-addext", extension],  # noqa: S607 - where it is, differs
            check=True,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.file, key)


needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates")


@needs_openssl
@pytest.mark.parametrize(
    ("named", "trusted", "reason"),
    [("127.0.0.1", False, "self-signed certificate"), ("api.example.com", True, "not valid for '127.0.0.1'")],
    ids=["nobody trusts it", "another host's"],
)
async def test_a_certificate_that_is_not_right_holds_the_app_until_it_is(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, named: str, trusted: bool, reason: str
) -> None:
    """SSL_CERT_FILE is read once in the life of a process, so the collector is one of its own here."""
    wrong, other = Certificate(tmp_path, named), Certificate(tmp_path, "localhost")
    books = Books()
    settings = {"flush__hold_retry": "50ms", "stop__deadline": "0s"}
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0, wrong.context)
    monkeypatch.setenv("SSL_CERT_FILE", str(wrong.file if trusted else other.file))
    async with running(tmp_path, sandbox.url, **settings) as daemon:
        async with aiohttp.ClientSession() as session:
            await books.post(session, daemon.url, some_events(0))
        held = await daemon.logs("flusher.app_held")
        assert reason in str(held["reason"])
        assert "SSL_CERT_FILE" in str(held["reason"])
        assert await daemon.stop() == 0
    assert (await state.stats()).requests == (await sandbox.stats()).tokens == 0
    await sandbox.stop()

    mended = Certificate(tmp_path, "127.0.0.1")
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0, mended.context)
    monkeypatch.setenv("SSL_CERT_FILE", str(mended.file))
    async with running(tmp_path, sandbox.url, **settings) as daemon:
        await settled(state, EVENTS)
        assert await daemon.stop() == 0
    await sandbox.stop()
    await books.check(state)


async def test_an_upstream_that_speaks_no_tls_is_tried_again(tmp_path: Path, sandbox: Sandbox, state: State) -> None:
    async with embedded(tmp_path, sandbox.url.replace("http:", "https:"), stop__deadline="0s") as collector:
        ledger = Ledger(collector, state)
        await ledger.take(some_events(0, 10))
        await ledger.until("deliveries_total", 3, outcome="retried")
        assert metric(collector, "waiting_events") == 10
        assert metric(collector, "held_apps") == 0


# -- many apps, many events --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(app_id="sick", status=503), id="503"),
        pytest.param(Fault(app_id="sick", status=500, delay_seconds=TOO_LATE_SECONDS), id="it hangs"),
        pytest.param(Fault(app_id="sick", cut=True), id="it cuts the line"),
        pytest.param(Fault(app_id="sick", status=404), id="nobody knows it"),
    ],
)
async def test_ninety_nine_apps_are_delivered_while_a_hundredth_always_fails(
    tmp_path: Path, sandbox: Sandbox, state: State, fault: Fault
) -> None:
    others = [f"app{number}" for number in range(99)]
    sandbox.set_faults(fault)
    async with embedded(tmp_path, sandbox.url, upstream__timeout=TIMEOUT, flush__backoff_max="1s") as collector:
        ledger = Ledger(collector, state)
        for begin in (0, 50, 100):
            await ledger.take([event for app in ("sick", *others) for event in some_events(begin, 50, app)])
            await settled(state, (begin + 50) * len(others))
        stats = await state.stats()
        await until(lambda: metric(collector, "waiting_events") == 150)  # what upstream has just taken is settled later
        assert "sick" not in {app for app, counts in stats.apps.items() if counts.distinct}
        assert Counter(counts.distinct for app, counts in stats.apps.items() if app != "sick") == {150: 99}
        sandbox.set_faults()
        await ledger.close()


async def test_a_slow_upstream_is_sent_more_at_one_time_up_to_the_cap(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    sandbox.set_faults(Fault(delay_seconds=0.1))
    async with embedded(tmp_path, sandbox.url, flush__max_in_flight="12", flush__batch_events="10") as collector:
        ledger = Ledger(collector, state)
        assert metric(collector, "in_flight_limit") < 12
        await ledger.take(some_events(0, 1000))
        await ledger.until("in_flight_limit", 5)
        assert metric(collector, "in_flight_limit") <= 12
        await ledger.close()


async def test_an_outage_with_a_backlog_of_many_apps_ends_without_a_stampede(
    tmp_path: Path, sandbox: Sandbox, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    apps = 20
    sandbox.set_faults(Fault(status=503))
    async with on_odd_time(tmp_path, sandbox.url, speed=600.0, flush__backoff_base="1s", flush__backoff_max="1m") as (
        collector,
        clock,
    ):
        ledger = Ledger(collector, state)
        await ledger.take([event for app in range(apps) for event in some_events(0, 2000, f"app{app}")])
        began = clock.monotonic()
        await ledger.until("deliveries_total", apps + 20, outcome="retried")
        sandbox.set_faults()
        while_down = (await state.stats()).requests
        # Each app finds out, some of them together; then there is one request for all, every half minute or so.
        assert while_down <= 2 * apps + (clock.monotonic() - began) / 5
        await ledger.close()
        # Two batches an app; a few were begun before all of their events had come, and are not full.
        assert (await state.stats()).requests <= while_down + apps * 2 + 5
        assert (await state.stats()).received == ledger.accepted, "nothing was sent twice"
    assert not was_held(caplog)
