"""The units of `systemd/`, in a real systemd: one boot for all tests, upstream is a sandbox in the box's network.

What must hold: systemd knows when the collector is ready, how it is, and when it hangs; whatever dies is started again,
and the books agree; a restart refuses nobody and loses nothing; a reload takes what is sound and refuses what is not;
of two halves, the one that listens has neither network nor secret.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import Books, Event, settled
from tests.patience import until
from tests.system.box import Box

URL = "http://127.0.0.1:8787"
UPSTREAM_PORT = 8788

CONFIG = f"""
[upstream]
client_id = "sandbox"
base_url = "http://127.0.0.1:{UPSTREAM_PORT}"
token_url = "http://127.0.0.1:{UPSTREAM_PORT}/oauth2/token"
[flush]
linger = "50ms"
backoff_base = "20ms"
backoff_max = "200ms"
[log]
format = "json"
"""
TOKENS = ("first-token-0123456789", "second-token-0123456789")

ALL, INGEST, FLUSH = "collector.service", "collector-ingest.service", "collector-flush.service"
UNITS = (ALL, INGEST, FLUSH, "collector.socket", "collector-ingest.socket")
EXPOSURE = {ALL: 1.1, INGEST: 0.3, FLUSH: 1.1}
"""At most this much, of 10, by the measure of `systemd-analyze security`."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    try:
        with box.network():
            yield box
    finally:
        box.stop()


@pytest.fixture
async def box(machine: Box, sandbox: Sandbox) -> AsyncIterator[Box]:
    """The box with a configuration, the secret, and a new queue; at the end nothing of ours runs in it."""
    assert sandbox.url == f"http://127.0.0.1:{UPSTREAM_PORT}"
    machine.write("/etc/collector/config.toml", CONFIG)
    machine.write("/etc/collector/client_secret", "sandbox\n", 0o600)
    machine.mark()
    yield machine
    await systemctl(machine, "stop", *UNITS)
    machine.run("sh", "-c", "rm -rf /etc/collector /etc/systemd/system/collector*.d /var/lib/private/collector")
    machine.systemctl("daemon-reload")


@pytest.fixture
async def sandbox(machine: Box, state: State) -> AsyncIterator[Sandbox]:
    del machine  # its network is this thread's
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", UPSTREAM_PORT)
    yield sandbox
    await sandbox.stop()
    assert (await sandbox.stats()).unexpected == 0


async def systemctl(box: Box, *words: str) -> str:
    """In a thread: what is stopped meanwhile still delivers to a sandbox in this loop."""
    return await asyncio.to_thread(box.systemctl, *words)


async def until_restarted(box: Box, unit: str, times: int = 1) -> None:
    await until(lambda: int(box.property(unit, "NRestarts")) >= times)


async def until_status_says(box: Box, unit: str, text: str) -> None:
    await until(lambda: box.property(unit, "StatusText").startswith(text))


def drop_in(box: Box, unit: str, *lines: str) -> None:
    box.write(f"/etc/systemd/system/{unit}.d/test.conf", "\n".join(("[Service]", *lines, "")))
    box.systemctl("daemon-reload")


def events(first: int, count: int, app_id: str = "wiki") -> list[Event]:
    return [Event(app_id, number, "person@example.com", "seen") for number in range(first, first + count)]


async def get(path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(URL + path) as answer:
        return answer.status, await answer.text()


async def post(session: aiohttp.ClientSession, sent: Sequence[Event], url: str = URL, token: str | None = None) -> int:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    async with session.post(f"{url}/v1/events", data=msgspec.json.encode(sent), headers=headers) as answer:
        return answer.status


class Load:
    """Clients that post one event after the other until they are stopped, each over a connection of its own."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._connector = aiohttp.TCPConnector(force_close=True)
        self.failures: list[str] = []
        self.posted = 0

    @contextlib.asynccontextmanager
    async def running(self, clients: int = 4, *, tries_again: bool) -> AsyncIterator[None]:
        stopped = asyncio.Event()
        async with aiohttp.ClientSession(connector=self._connector) as session, asyncio.TaskGroup() as group:
            for client in range(clients):
                group.create_task(self._post(session, client * 1_000_000, stopped, tries_again=tries_again))
            try:
                yield
            finally:
                stopped.set()

    async def more(self, count: int) -> None:
        """Returns when so many more are acknowledged."""
        aim = self.posted + count
        await until(lambda: self.posted >= aim)

    async def _post(
        self, session: aiohttp.ClientSession, number: int, stopped: asyncio.Event, *, tries_again: bool
    ) -> None:
        while not stopped.is_set():
            try:
                await self._books.post(session, URL, events(number, 1))
            except aiohttp.ClientError as error:
                self.failures.append(repr(error))
                if tries_again:
                    await asyncio.sleep(0.02)
                    continue
            self.posted += 1
            number += 1


# -- what the units are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_of_the_units(machine: Box, unit: str) -> None:
    assert machine.run("systemd-analyze", "verify", unit) == ""


@pytest.mark.parametrize("unit", EXPOSURE)
def test_a_unit_is_exposed_no_more_than_its_work_asks_for(machine: Box, unit: str) -> None:
    said = machine.run("systemd-analyze", "security", "--offline=true", "--no-pager", f"/etc/systemd/system/{unit}")
    [overall] = [line for line in said.splitlines() if "Overall exposure" in line]
    assert float(overall.partition(f"{unit}: ")[2].split()[0]) <= EXPOSURE[unit]


# -- one daemon --------------------------------------------------------------------------------------------------------


async def test_started_means_that_it_listens_and_the_status_says_what_waits_and_what_was_delivered(
    box: Box, state: State
) -> None:
    await systemctl(box, "start", ALL)
    assert (await get("/readyz"))[0] == 200
    await until_status_says(box, ALL, "events waiting: 0; nothing delivered yet")
    async with aiohttp.ClientSession() as session:
        assert await post(session, events(0, 3)) == 200
    await settled(state, 3)  # with the secret that root alone can read
    await until_status_says(box, ALL, "events waiting: 0; last delivery 20")
    assert box.property(ALL, "User") == "collector"
    [started] = box.log(ALL, "agent.started")
    assert started["passed_sockets"] == 4
    assert (started["http"], started["udp"]) == ("127.0.0.1:8787", "127.0.0.1:8787")
    assert "receive_buffer_capped" not in box.journal(ALL)
    await systemctl(box, "stop", ALL)
    assert box.property(ALL, "Result") == "success"
    assert box.log(ALL, "agent.stopped")


async def test_where_the_queue_cannot_be_opened_it_is_not_started_and_is_once_it_can(box: Box) -> None:
    queue = "/var/lib/private/collector/queue.sqlite3"
    box.write(queue, "this is no queue")
    with pytest.raises(AssertionError, match="Job for collector"):
        await systemctl(box, "start", ALL)
    (box.root / queue[1:]).unlink()
    await until(lambda: box.property(ALL, "ActiveState") == "active")
    assert (await get("/readyz"))[0] == 200


def writer_of(process: int) -> int:
    """The process that writes a daemon's queue."""
    [writer] = [
        int(word)
        for task in Path(f"/proc/{process}/task").iterdir()
        for word in (task / "children").read_text().split()
    ]
    return writer


@pytest.mark.parametrize("what", ["process", "writer"])
async def test_what_hangs_is_killed_by_the_watchdog_and_started_again(box: Box, state: State, what: str) -> None:
    drop_in(box, ALL, "WatchdogSec=3", "TimeoutAbortSec=2")
    await systemctl(box, "start", ALL)
    books = Books()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        await books.post(session, URL, events(0, 5))
        process = box.process(ALL)
        os.kill(process if what == "process" else writer_of(process), signal.SIGSTOP)
        if what == "writer":
            assert (await get("/healthz"))[0] == 200, "the loop is well"
        await until_restarted(box, ALL)
        if what == "writer":
            assert "Fatal Python error: Aborted" in box.journal(ALL)  # and where each thread was
        assert "Watchdog timeout" in box.journal(ALL)
        await until(lambda: box.property(ALL, "ActiveState") == "active")
        await books.post(session, URL, events(0, 10))
    await settled(state, 10)
    await books.check(state)


async def test_a_stop_that_takes_longer_than_the_watchdog_is_not_cut_short(box: Box, sandbox: Sandbox) -> None:
    drop_in(box, ALL, "WatchdogSec=2", "TimeoutStopSec=2", "Environment=COLLECTOR_STOP__DEADLINE=4s")
    await systemctl(box, "start", ALL)
    await sandbox.stop()
    async with aiohttp.ClientSession() as session:
        assert await post(session, events(0, 3)) == 200
    await systemctl(box, "stop", ALL)
    [stopped] = box.log(ALL, "agent.stopped")
    assert stopped["waiting_events"] == 3
    assert box.property(ALL, "Result") == "success"
    await sandbox.start("127.0.0.1", UPSTREAM_PORT)


async def test_it_is_killed_under_load_again_and_again_and_the_books_agree(box: Box, state: State) -> None:
    await systemctl(box, "start", ALL)
    books = Books()
    load = Load(books)
    async with load.running(tries_again=True):
        for kills in (1, 2, 3):
            await load.more(50)
            box.systemctl("kill", "--signal=KILL", "--kill-who=main", ALL)
            await until_restarted(box, ALL, kills)
        await load.more(50)
    await systemctl(box, "stop", "collector.socket")  # which the service needs: it goes first, and delivers
    assert box.log(ALL, "agent.stopped")[-1]["waiting_events"] == 0
    await books.check(state)
    assert len(books.acknowledged) >= 200


async def test_a_restart_refuses_no_connection_and_loses_no_datagram(box: Box, state: State) -> None:
    await systemctl(box, "start", "collector.socket")  # the first that comes starts the service
    books = Books()
    load = Load(books)
    sent: list[Event] = []
    with udp() as over_udp, unix_datagrams(box) as over_unix:
        async with load.running(tries_again=False):
            await load.more(20)
            for _ in range(2):
                restarting = asyncio.create_task(systemctl(box, "restart", ALL))
                while not restarting.done():
                    for door, app_id in ((over_udp, "tickets"), (over_unix, "crm")):
                        [event] = events(len(sent), 1, app_id)
                        await asyncio.get_running_loop().sock_sendall(door, msgspec.json.encode(event))
                        sent.append(event)
                    await asyncio.sleep(0.001)
                await restarting
                await load.more(20)
    assert load.failures == []
    assert len(sent) >= 100, "some came while nobody read"
    books.send(sent)
    books.acknowledged |= {event.key for event in sent}
    await settled(state, len(books.acknowledged))
    await systemctl(box, "stop", ALL, "collector.socket")
    await books.check(state)
    assert len(box.log(ALL, "agent.stopped")) == 3
    assert not box.log(ALL, "datagrams.lost")


@contextlib.contextmanager
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.setblocking(False)
        door.connect(("127.0.0.1", 8787))
        yield door


@contextlib.contextmanager
def unix_datagrams(box: Box) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.setblocking(False)
        door.connect(str(box.root / "run/collector/events.sock"))
        yield door


# -- reload and credentials --------------------------------------------------------------------------------------------


async def test_a_reload_takes_what_is_sound_and_refuses_what_is_not_and_no_connection_notices(
    box: Box, state: State
) -> None:
    await systemctl(box, "start", ALL)
    without_app = [{"timestamp": 1, "email": "person@example.com", "eventName": "seen"}]

    async def taken(session: aiohttp.ClientSession) -> int:
        async with session.post(f"{URL}/v1/events", json=without_app) as answer:
            return answer.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        assert await taken(session) == 400
        connections = established(8787)
        box.write("/etc/collector/config.toml", CONFIG + '[apps]\ndefault = "wiki"\n[queue]\ndedup_retention = "1d"\n')
        await systemctl(box, "reload", ALL)
        await until(lambda: box.log(ALL, "agent.reloaded"))
        [reloaded] = box.log(ALL, "agent.reloaded")
        assert reloaded["in_force"] == ["apps.default"]
        assert reloaded["need_restart"] == ["queue.dedup_retention"]
        assert await taken(session) == 200

        box.write("/etc/collector/config.toml", CONFIG + "[http]\nmax_in_flight = 0\nidle_timeout = 3\n")
        with pytest.raises(AssertionError, match="Job for collector"):
            await systemctl(box, "reload", ALL)
        for problem in ("http.max_in_flight: 0; allowed", "http.idle_timeout: 3; allowed"):
            assert problem in box.journal(ALL)
        box.systemctl("kill", "--signal=HUP", "--kill-who=main", ALL)  # as who does not ask systemctl
        await until(lambda: box.log(ALL, "run.reload_failed"))
        [refused] = box.log(ALL, "run.reload_failed")
        for problem in ("http.max_in_flight: 0; allowed", "http.idle_timeout: 3; allowed"):
            assert problem in str(refused["error"])
        assert await taken(session) == 200
        assert established(8787) == connections, "it is the same connection all the time"
    assert box.property(ALL, "ActiveState") == "active"
    assert box.property(ALL, "NRestarts") == "0"
    await settled(state, 1)


def established(port: int) -> list[str]:
    """Local and remote address of the connections to a port of the box, whose network this thread is in."""
    fields = [row.split() for row in Path("/proc/thread-self/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return [f"{row[1]} {row[2]}" for row in fields if row[1].endswith(f":{port:04X}") and row[3] == "01"]


async def test_tokens_that_root_alone_can_read_are_asked_for_and_renewed(box: Box) -> None:
    box.write("/etc/collector/ingest_tokens", f"{TOKENS[0]}\n", 0o600)
    await systemctl(box, "start", ALL)
    unix = aiohttp.UnixConnector(str(box.root / "run/collector/http.sock"))
    async with aiohttp.ClientSession() as session, aiohttp.ClientSession(connector=unix) as local:
        statuses = [await post(session, events(0, 1), token=token) for token in (None, *TOKENS)]
        assert statuses == [401, 200, 401]
        assert await post(local, events(0, 1)) == 200, "the file's mode says who may"
        box.write("/etc/collector/ingest_tokens", f"{TOKENS[1]}\n", 0o600)
        await systemctl(box, "reload", ALL)
        await until(lambda: box.log(ALL, "agent.reloaded"))
        handed_over = (
            (box.root / f"run/credentials/{ALL}/ingest_tokens").read_text().strip()
        )  # which version 252 renews
        statuses = [await post(session, events(0, 1), token=token) for token in TOKENS]
        assert statuses == [200 if token == handed_over else 401 for token in TOKENS]
        await systemctl(box, "restart", ALL)
        statuses = [await post(session, events(0, 1), token=token) for token in (None, *TOKENS)]
        assert statuses == [401, 401, 200]
    assert not any(token in box.journal(ALL) for token in TOKENS)


# -- two halves --------------------------------------------------------------------------------------------------------


async def test_two_halves_do_the_work_of_one_and_neither_has_what_it_does_not_need(box: Box, state: State) -> None:
    await systemctl(box, "start", INGEST, FLUSH)
    books = Books()
    load = Load(books)
    with udp() as over_udp, unix_datagrams(box) as over_unix:
        datagrams = [*events(0, 1, "tickets"), *events(0, 1, "crm")]
        for door, event in zip((over_udp, over_unix), datagrams, strict=True):
            await asyncio.get_running_loop().sock_sendall(door, msgspec.json.encode(event))
    async with load.running(tries_again=True):
        for unit in (INGEST, FLUSH):
            await load.more(30)
            box.systemctl("kill", "--signal=KILL", "--kill-who=main", unit)
            await until_restarted(box, unit)
        await load.more(30)
    books.send(datagrams)
    books.acknowledged |= {event.key for event in datagrams}
    await settled(state, len(books.acknowledged))
    await books.check(state)

    await until(lambda: box.property(FLUSH, "ActiveState") == "active")
    ingest, flush = box.process(INGEST), box.process(FLUSH)
    credential, other = f"/run/credentials/{FLUSH}/client_secret", f"/proc/{box.property(FLUSH, 'MainPID')}/environ"
    assert box.may_read(FLUSH, credential)
    for file in (credential, other, "/etc/collector/client_secret"):
        assert not box.may_read(INGEST, file), "though both are one user"
    assert box.may_read(INGEST, "/etc/collector/config.toml")
    assert [row.split(":")[0].strip() for row in Path(f"/proc/{ingest}/net/dev").read_text().splitlines()[2:]] == ["lo"]
    assert Path(f"/proc/{ingest}/ns/net").readlink() != Path("/proc/thread-self/ns/net").readlink()
    assert not (box.root / f"run/credentials/{INGEST}/client_secret").exists()
    assert b"sandbox" not in Path(f"/proc/{ingest}/environ").read_bytes()
    assert listening(flush) == []
    for unit in (INGEST, FLUSH):
        await until_status_says(box, unit, "events waiting: 0")


def listening(process: int) -> list[str]:
    """The rows of the kernel's tables for a process's sockets that wait for others."""
    opened = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed just now
            opened.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    net = Path(f"/proc/{process}/net")
    rows = {
        kind: [row.split() for row in (net / kind).read_text(encoding="ascii").splitlines()[1:]]
        for kind in ("tcp", "tcp6", "udp", "udp6", "unix")
    }
    internet = [row for kind in ("tcp", "tcp6") for row in rows[kind] if row[3] == "0A" and row[9] in opened]
    datagrams = [row for kind in ("udp", "udp6") for row in rows[kind] if row[9] in opened]
    unix = [row for row in rows["unix"] if row[3] == "00010000" and row[6] in opened]
    return [" ".join(row) for row in internet + datagrams + unix]
