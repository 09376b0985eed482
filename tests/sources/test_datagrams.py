"""Events in datagrams: what is taken, what is lost and how that is said, what waits meanwhile, and how it ends.

Sockets, queue and collector are real; where a test says what the queue answers, a `Gate` stands before it. A `Scripted`
intake stands in only where a sender must never stop.
"""

import asyncio
import itertools
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from collector.agent import Collector
from collector.config.kinds import Address
from collector.errors import DiskFull, QueueBroken, QueueBusy, QueueFull, QueueUnavailable
from collector.intake import Intake, Report
from collector.observe.metrics import Metrics
from collector.queue.base import Batch, Verdict
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from collector.sources import datagrams
from collector.sources.datagrams import MAX_DATAGRAM_BYTES, MAX_UNSTORED_BYTES, SAY_SECONDS, DatagramSource, bind_udp
from tests.e2e.books import settled
from tests.embedded import embedded
from tests.fake_clock import FakeClock
from tests.patience import PATIENCE_SECONDS, until

NOWHERE = "http://127.0.0.1:1"

IP_RECVERR = 11  # of Linux: a UDP socket's reads fail with what ICMP said of its sends (ip(7))
NO_OPTION = 9_999  # no socket option of any system

GIB = 2**30


def event(number: int, **more: object) -> dict[str, object]:
    return {"timestamp": number, "email": "person@example.com", "eventName": "page_viewed", **more}


def encoded(content: object) -> bytes:
    return content if isinstance(content, bytes) else msgspec.json.encode(content)


def one_each(numbers: Iterable[int]) -> list[bytes]:
    """Datagrams of one event."""
    return [encoded(event(number)) for number in numbers]


class Door:
    """One datagram source of a collector, somebody who sends to it, and what is counted there."""

    def __init__(self, name: str, collector: Collector, sender: socket.socket, path: Path) -> None:
        self.name = name
        self.path = path
        self.collector = collector
        self.sender = sender
        self.source = collector._listeners.datagrams[name]

    def send(self, *contents: object) -> None:
        """The loop has not run when this returns: nothing of it has been read. Up to ten fit into a Unix socket."""
        for content in contents:
            self.sender.send(encoded(content))

    def send_on(self, contents: Sequence[bytes]) -> "asyncio.Task[None]":
        """Sends all from a thread, where a Unix socket may make it wait."""
        return asyncio.create_task(asyncio.to_thread(self.send, *contents))

    async def send_in_turn(self, contents: Sequence[bytes]) -> None:
        """Sends all, and lets the source read after each: none is lost while it reads, however small its buffer is."""
        for content in contents:
            self.send(content)
            await asyncio.sleep(0)

    async def hears_of(self, events: int) -> None:
        """Returns when so many events were accepted, known already, or rejected."""
        await until(lambda: sum(self.verdicts()) >= events)

    def events(self, verdict: str) -> int:
        return self.metric("events_total", source=self.name, verdict=verdict)

    def refused(self, reason: str) -> int:
        return self.metric("refusals_total", source=self.name, reason=reason)

    def metric(self, name: str, **labels: str) -> int:
        return int(self.collector.metrics.registry.get_sample_value(f"collector_{name}", labels) or 0)

    def verdicts(self) -> tuple[int, int, int]:
        return self.events("accepted"), self.events("duplicate"), self.events("rejected")


@asynccontextmanager
async def opened(name: str, folder: Path, upstream_url: str = NOWHERE, **settings: str) -> AsyncIterator[Door]:
    """A collector with one datagram source, `udp` or `unix`."""
    path = folder / "events.sock"
    listens = {"udp__listen": "127.0.0.1:0"} if name == "udp" else {"unix__datagram": str(path)}
    async with embedded(folder, upstream_url, **{"stop__deadline": "0s", **listens, **settings}) as collector:
        with socket.socket(socket.AF_INET if name == "udp" else socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(cast("Address", collector.udp_address) if name == "udp" else str(path))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", round(PATIENCE_SECONDS), 0))
            yield Door(name, collector, sender, path)


@pytest.fixture(autouse=True)
def _quick_and_heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(datagrams, "RETRY_SECONDS", 0.002)
    caplog.set_level(logging.WARNING, "collector")


both = pytest.mark.parametrize("name", ["udp", "unix"])


@pytest.fixture(params=["udp", "unix"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(request.param, tmp_path) as door:
        yield door


@pytest.fixture
async def udp(tmp_path: Path) -> AsyncIterator[Door]:
    async with opened("udp", tmp_path) as door:
        yield door


@pytest.fixture
async def unix(tmp_path: Path) -> AsyncIterator[Door]:
    async with opened("unix", tmp_path) as door:
        yield door


class Gate:
    """Stands before the queue: makes puts wait or refuses them, and lets the others through."""

    def __init__(self, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusal: Exception | None = None
        self.asked_for: list[int] = []
        self._puts_to_pass = asyncio.Semaphore(1_000_000)
        self._put = door.collector._queue.put
        monkeypatch.setattr(door.collector._queue, "put", self.put)

    @property
    def tries(self) -> int:
        return len(self.asked_for)

    def close(self) -> None:
        self._puts_to_pass = asyncio.Semaphore(0)

    def let_pass(self, puts: int = 1_000_000) -> None:
        for _ in range(puts):
            self._puts_to_pass.release()

    async def put(self, batches: Sequence[Batch]) -> Sequence[Verdict]:
        self.asked_for.append(sum(batch.events for batch in batches))
        async with asyncio.timeout(PATIENCE_SECONDS):  # else the collector of a test that fails could not stop
            await self._puts_to_pass.acquire()
        if self.refusal is not None:
            raise self.refusal
        return await self._put(batches)


def said(caplog: pytest.LogCaptureFixture, event_name: str) -> list[dict[str, Any]]:
    """The fields of every record of one event."""
    return [vars(record) for record in caplog.records if record.getMessage() == event_name]


@pytest.fixture
async def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """It is so many seconds later for the running loop and its timers."""
    loop = asyncio.get_running_loop()
    real_time, ahead = loop.time, 0.0

    def pass_time(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(loop, "time", lambda: real_time() + ahead)
    return pass_time


# -- what is taken -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "events"),
    [
        pytest.param(event(1), 1, id="one event"),
        pytest.param(encoded(event(1)) + b"\n", 1, id="one event and a line end"),
        pytest.param(encoded(event(1)) + b"\r\n", 1, id="one event and a line end of Windows"),
        pytest.param(b"\xef\xbb\xbf" + encoded(event(1)), 1, id="one event after a byte order mark"),
        pytest.param(msgspec.json.format(encoded(event(1))), 1, id="one event on many lines"),
        pytest.param([event(1), event(2)], 2, id="an array"),
        pytest.param(encoded([event(1), event(2)]) + b"\n", 2, id="an array and a line end"),
        pytest.param(b"\n".join(one_each([1, 2, 3])), 3, id="lines"),
        pytest.param(b"\n".join(one_each([1, 2, 3])) + b"\n", 3, id="lines, the last one ended"),
        pytest.param(b"\r\n".join([*one_each([1, 2, 3]), b""]), 3, id="lines of Windows"),
        pytest.param(b"".join(one_each([1, 2, 3])), 3, id="several on one line"),
        pytest.param({"events": [event(1), event(2)]}, 2, id="upstream's envelope"),
    ],
)
async def test_every_form_of_datagram_is_taken_and_known_again(door: Door, content: object, events: int) -> None:
    door.send(content, content)
    await until(lambda: door.events("duplicate") == events)
    assert door.verdicts() == (events, events, 0)
    assert door.metric("waiting_events") == events


async def test_an_array_without_events_is_no_loss(door: Door) -> None:
    door.send([], event(1))
    await until(lambda: door.events("accepted") == 1)
    assert door.verdicts() == (1, 0, 0)


async def test_every_datagram_of_a_burst_of_a_thousand_is_accounted_for(door: Door) -> None:
    await door.send_on(one_each(range(1000)))
    await until(lambda: door.events("accepted") + door.metric("udp_kernel_drops_total") == 1000)
    if door.name == "unix":
        assert door.events("accepted") == 1000
    assert door.metric("waiting_events") == door.events("accepted")


async def test_events_arrive_upstream_as_they_were_sent_and_once(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    await state.add_app("wiki", "wiki")
    await state.add_app("crm", "crm")
    async with opened("unix", tmp_path, sandbox.url, udp__listen="127.0.0.1:0") as door:
        door.send([event(1), event(2, appId="crm", colour="red")], event(1))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as over_udp:
            over_udp.connect(cast("Address", door.collector.udp_address))
            over_udp.send(encoded([event(1), event(3)]))
        await settled(state, 3)
    arrived = [(app_id, msgspec.json.decode(line)) for app_id, line in await state.events()]
    assert len(arrived) == 3
    assert all(pair in arrived for pair in (("crm", event(2)), ("wiki", event(1)), ("wiki", event(3))))


@pytest.mark.parametrize(("name", "size"), [("udp", 65_507), ("unix", MAX_DATAGRAM_BYTES)])
async def test_the_largest_datagram_is_taken(tmp_path: Path, name: str, size: int) -> None:
    async with opened(name, tmp_path) as door:
        largest = encoded(event(1)).ljust(size)
        door.send(largest, event(2))
        await until(lambda: door.events("accepted") == 2)
        assert door.verdicts() == (2, 0, 0)


# -- what is not -------------------------------------------------------------------------------------------------------

MALFORMED = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\n", id="a line end"),
    pytest.param(b"{", id="a bracket"),
    pytest.param(b"{}", id="no field"),
    pytest.param(b"null", id="null"),
    pytest.param(b"7", id="a number"),
    pytest.param(b'"text"', id="text"),
    pytest.param(b"\xff\x00", id="no text"),
    pytest.param(encoded(event(1))[:-1], id="cut off"),
    pytest.param(encoded([event(1)])[:-1], id="an array cut off"),
    pytest.param(encoded(event(1)) + b"}", id="a bracket too many"),
    pytest.param(encoded(event(1)) + b"\nrubbish", id="a line of rubbish"),
    pytest.param(encoded(event(1)) + b"\x00", id="a NUL at its end"),
    pytest.param(b'{"a":' * 12_000 + b"1" + b"}" * 5_000, id="nested too deeply"),
    pytest.param(encoded(event(1, email="nobody")), id="no address"),
    pytest.param(encoded(event(2**63)), id="a timestamp too large"),
    pytest.param(encoded(event(1, appId="..")), id="no app"),
]


@pytest.mark.parametrize("content", MALFORMED)
async def test_a_bad_datagram_is_counted_and_costs_no_neighbour(door: Door, content: bytes) -> None:
    door.send(event(101), content, event(102), content, event(103))  # read in one go
    await until(lambda: door.events("accepted") == 3)
    assert door.verdicts() == (3, 0, 2)
    assert not door.refused("rejected_event"), "what is counted with the events is not counted twice"
    door.send(event(104))
    await until(lambda: door.events("accepted") == 4)


BRACES = b'{"timestamp":1,"email":"a@b","eventName":"x}'


@pytest.mark.parametrize(
    "halves",
    [
        *(pytest.param((encoded(event(1))[:cut], encoded(event(1))[cut:]), id=f"cut at {cut}") for cut in (1, 9, 30)),
        pytest.param((BRACES, b'{"}'), id="within a text, at braces"),
        pytest.param((BRACES + b"\n", b'{"}\n'), id="within a text, at braces and line ends"),
        pytest.param((BRACES + b'","kept":{}', b"{}}"), id="between objects"),
        pytest.param((BRACES + b'","kept":{"a":{}', b'{"b":1}}}'), id="within an object"),
        pytest.param((BRACES + b'","other":{}', b"{}}"), id="within an unknown field"),
        pytest.param((b"[" + encoded(event(1)), b"," + encoded(event(2)) + b"]"), id="within an array"),
    ],
)
@both
async def test_halves_of_an_event_never_become_one(tmp_path: Path, name: str, halves: tuple[bytes, bytes]) -> None:
    async with opened(name, tmp_path, events__keep_fields="kept") as door:
        for parts in (halves, halves[::-1]):
            heard = sum(door.verdicts())
            door.send(event(101), *parts, event(102))
            door.send(*parts)  # and without neighbours
            await door.hears_of(heard + 6)
        assert door.verdicts() == (2, 2, 8)


@pytest.mark.parametrize("size", [MAX_DATAGRAM_BYTES + 1, 150_000])
async def test_a_datagram_larger_than_any_of_udp_is_refused_whole_and_counted(unix: Door, size: int) -> None:
    unix.send(event(1), encoded(event(2)).ljust(size), event(3))
    await until(lambda: unix.events("accepted") == 2)
    assert unix.refused("too_large") == 1
    assert unix.verdicts() == (2, 0, 0)
    assert unix.source.unstored_bytes == 0


async def test_unknown_fields_are_counted(door: Door) -> None:
    door.send(event(1, colour="red"), [event(2, colour="red", size=1)], event(3))
    await until(lambda: door.events("accepted") == 3)
    assert door.metric("unknown_fields_total") == 3


async def test_unknown_fields_are_counted_once_however_often_the_queue_is_asked(
    unix: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(unix, monkeypatch)
    gate.refusal = QueueBusy("busy")
    unix.send(event(1, colour="red"))
    await until(lambda: gate.tries >= 3)
    gate.refusal = None
    await until(lambda: unix.events("accepted") == 1)
    assert unix.metric("unknown_fields_total") == 1


@both
async def test_how_many_events_a_datagram_may_hold_says_nothing_of_how_many_come_at_once(
    tmp_path: Path, name: str
) -> None:
    async with opened(name, tmp_path, events__max_per_request="2") as door:
        door.send(event(1), event(2), event(3))
        await until(lambda: door.events("accepted") + door.refused("queue_refused") == 3)
        assert door.events("accepted") == 3


# -- how losses are said -----------------------------------------------------------------------------------------------


async def test_losses_are_said_in_one_line_each_ten_seconds_with_counts_and_without_content(
    unix: Door, caplog: pytest.LogCaptureFixture, pass_time: Callable[[float], None]
) -> None:
    cut_off = encoded(event(1))[:-1]
    unix.send(cut_off, b"x" * 70_000, cut_off)
    await until(lambda: unix.events("rejected") == 2)
    unix.send(cut_off)
    await until(lambda: unix.events("rejected") == 3)
    assert not said(caplog, "datagrams.lost")
    pass_time(SAY_SECONDS)
    await until(lambda: bool(said(caplog, "datagrams.lost")))

    unix.send(b"x" * 70_000)
    await until(lambda: unix.refused("too_large") == 2)
    pass_time(SAY_SECONDS - 1)
    unix.send(event(1))
    await until(lambda: unix.events("accepted") == 1)
    assert len(said(caplog, "datagrams.lost")) == 1
    pass_time(1)
    await until(lambda: len(said(caplog, "datagrams.lost")) == 2)

    pass_time(10 * SAY_SECONDS)
    unix.send(event(2))
    await until(lambda: unix.events("accepted") == 2)
    first, second = said(caplog, "datagrams.lost")
    assert (first["levelname"], first["source"], first["rejected_event"], first["too_large"]) == ("ERROR", "unix", 3, 1)
    assert first["latest_reason"].startswith("the body is not JSON")
    assert (second["too_large"], "rejected_event" in second) == (1, False)
    assert second["latest_reason"] == "larger than 65535 bytes"
    assert "person" not in caplog.text + str([vars(record) for record in caplog.records])


async def test_what_was_lost_last_is_said_at_the_stop(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    door.send(b"rubbish")
    await until(lambda: door.events("rejected") == 1)
    assert not said(caplog, "datagrams.lost")
    door.send(b"rubbish")
    await door.collector.stop()
    [lost] = said(caplog, "datagrams.lost")
    assert lost["rejected_event"] == 2


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(event(1, email="person.example.com"), id="an address without @"),
        pytest.param(event(1, email="person@example.com" * 20), id="an address too long"),
        pytest.param(event(1, eventName={"by": "person@example.com"}), id="a field of another type"),
        pytest.param(event(1, appId="person@example.com" * 20), id="another field"),
        pytest.param(["person@example.com"], id="an array of something else"),
        pytest.param([[event(1)]], id="an array of arrays"),
        pytest.param(event(1, email="person; expected "), id="a value like a reason"),
    ],
)
async def test_the_log_shows_no_rejected_value(udp: Door, caplog: pytest.LogCaptureFixture, content: object) -> None:
    udp.send(content)
    await until(lambda: udp.events("rejected") == 1)
    await udp.collector.stop()
    [lost] = said(caplog, "datagrams.lost")
    assert lost["latest_reason"].startswith("expected ")
    assert "person" not in str(lost)


async def test_an_error_of_the_socket_is_counted_and_the_source_goes_on(udp: Door) -> None:
    bound = udp.source._socket
    bound.setsockopt(socket.SOL_IP, IP_RECVERR, 1)
    bound.sendto(b"", ("127.0.0.1", 1))  # nobody is there: the next read fails
    udp.send(event(1))
    await until(lambda: udp.events("accepted") == 1)
    assert udp.refused("receive_failed") == 1


@both
async def test_an_unforeseen_error_in_storing_is_logged_and_counted_and_the_source_goes_on(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(name, tmp_path) as door:
        gate = Gate(door, monkeypatch)
        gate.refusal = RuntimeError("a defect")
        door.send(event(1), event(2))
        await until(lambda: door.refused("crashed") == 2)
        [crashed] = said(caplog, "datagrams.crashed")
        assert (crashed["levelname"], crashed["source"]) == ("ERROR", name)
        assert crashed["exc_info"][1] is gate.refusal
        gate.refusal = None
        door.send(event(3))
        await until(lambda: door.events("accepted") == 1)
        assert door.source.unstored_bytes == 0


@pytest.mark.parametrize(("waited", "read"), [(1, 1), (8, 28)])
async def test_what_a_held_sender_sends_on_is_read_before_others_get_their_turn(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, waited: int, read: int
) -> None:
    sizes: list[int] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    more = [b"more"] * 20

    def sends_on() -> None:
        if more:
            theirs.send(more.pop())

    monkeypatch.setattr(datagrams, "_let_others_run", sends_on)
    intake = Scripted(lambda _: sizes.append(source.unstored_bytes // len(b"more")))
    source = DatagramSource("unix", intake, holds_senders=True, clock=clock, metrics=Metrics())
    with theirs:
        for _ in range(waited):
            theirs.send(b"more")
        source.start(ours)
        await until(lambda: len(intake.taken) == read)
        assert sizes == [read]
        await source.stop()


async def test_what_came_at_once_is_put_in_parts_in_its_order(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "STORE_DATAGRAMS", 3)
    reached: list[int] = []
    intake = Scripted(lambda _: reached.append(len(intake.taken)))
    source = DatagramSource("unix", intake, holds_senders=True, clock=clock, metrics=Metrics())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        sent = [str(number).encode() for number in range(7)]
        for datagram in sent:
            theirs.send(datagram)
        source.start(ours)
        await until(lambda: len(intake.taken) == 7)
        assert (intake.taken, reached) == (sent, [0, 3, 6])
        await source.stop()


# -- what the kernel drops ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_what_the_kernel_drops_while_nothing_is_read_is_counted_to_the_datagram(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"udp__listen": f"{host}:0", "udp__receive_buffer": "64KiB"}
    monkeypatch.setattr(datagrams, "MAX_UNSTORED_BYTES", 1_000)
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s", **settings) as collector:
        address = cast("Address", collector.udp_address)
        with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(address)
            door = Door("udp", collector, sender, tmp_path)
            gate = Gate(door, monkeypatch)
            gate.close()
            numbers = itertools.count()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while door.source._is_reading:
                    door.send(event(next(numbers)))
                    await asyncio.sleep(0)
            assert door.metric("udp_kernel_drops_total") == 0
            door.send(*(event(next(numbers)) for _ in range(1_000)))
            drops_at_first = door.metric("udp_kernel_drops_total")
            door.send(*(event(next(numbers)) for _ in range(10)))
            drops = door.metric("udp_kernel_drops_total")
            assert 0 < drops_at_first == drops - 10
            gate.let_pass()
            sent = next(numbers)
            await until(lambda: door.events("accepted") == sent - drops)
            assert door.metric("udp_kernel_drops_total") == door.refused("kernel_drop") == drops
    [lost] = said(caplog, "datagrams.lost")
    assert lost["kernel_drop"] == drops
    assert door.metric("udp_kernel_drops_total") == drops, "the count is there also after the end"


class Scripted(Intake):
    """Keeps every datagram, after doing what it was told to do at each call."""

    def __init__(self, first: Callable[[int], None]) -> None:
        self.taken: list[bytes] = []
        self._calls = 0
        self._first = first

    async def take_datagrams(self, datagrams: Sequence[bytes], report: Report) -> None:
        self._first(self._calls)
        self._calls += 1
        for _ in range(3):
            await asyncio.sleep(0)  # what has come is read meanwhile
        self.taken += datagrams
        report.accepted += len(datagrams)


async def test_what_the_kernel_drops_is_said_while_a_flood_goes_on(clock: FakeClock) -> None:
    metrics = Metrics()
    bound = bind_udp(Address("127.0.0.1", 0), receive_buffer_bytes=4_096)
    dropped_by_call: list[float] = []

    def send_on(calls: int) -> None:
        dropped = metrics.registry.get_sample_value(
            "collector_refusals_total", {"source": "udp", "reason": "kernel_drop"}
        )
        dropped_by_call.append(dropped or 0.0)
        clock.advance(1.0)
        if calls < 5:
            sender.send(b"more")

    source = DatagramSource("udp", Scripted(send_on), holds_senders=False, clock=clock, metrics=metrics)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(bound.getsockname())
        for _ in range(100):
            sender.send(b"many")
        source.start(bound)
        await until(lambda: len(dropped_by_call) == 6)
        await source.stop()
    assert dropped_by_call[-1] > 0


async def test_what_the_kernel_has_dropped_before_the_stop_is_counted_and_said(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    bound, of_others = (bind_udp(Address("127.0.0.1", 0), receive_buffer_bytes=4_096) for _ in range(2))
    intake = Scripted(lambda _: None)
    source = DatagramSource("udp", intake, holds_senders=False, clock=clock, metrics=Metrics())
    with of_others, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(100):
            sender.sendto(b"many", bound.getsockname())
            sender.sendto(b"many", of_others.getsockname())
        source.start(bound)
        await source.stop()
    [lost] = said(caplog, "datagrams.lost")
    assert lost["kernel_drop"] == 100 - len(intake.taken)


def may_force_buffers() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, datagrams.SO_RCVBUFFORCE, 65_536)
        except PermissionError:
            return False
        return True


needs_force = pytest.mark.skipif(not may_force_buffers(), reason="needs CAP_NET_ADMIN")


def test_a_receive_buffer_that_the_kernel_caps_is_said_with_the_remedy(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "SO_RCVBUFFORCE", NO_OPTION)
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text(encoding="ascii"))
    with bind_udp(Address("127.0.0.1", 0), receive_buffer_bytes=GIB):
        [capped] = said(caplog, "udp.receive_buffer_capped")
    assert capped["levelname"] == "WARNING"
    assert (capped["asked_bytes"], capped["granted_bytes"]) == (GIB, min(limit, GIB - 1))
    assert capped["remedy"] == f"sysctl -w net.core.rmem_max={GIB}"


@pytest.mark.parametrize(("allowed", "said_of"), [("10\n", [10]), ("512\n", []), ("4096\n", []), (None, [])])
def test_a_short_queue_of_a_unix_socket_is_said_with_the_remedy(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    allowed: str | None,
    said_of: list[int],
) -> None:
    limit = tmp_path / "max_dgram_qlen"
    if allowed is not None:
        limit.write_text(allowed)
    monkeypatch.setattr(datagrams, "UNIX_QUEUE_LIMIT", limit)
    caplog.set_level("INFO", "collector")
    datagrams.say_if_short()
    records = said(caplog, "unix.datagram_queue_short")
    assert [record["datagrams"] for record in records] == said_of
    assert all("net.unix.max_dgram_qlen=512" in record["remedy"] for record in records)


@pytest.mark.parametrize(
    ("size", "option"),
    [
        (65_536, NO_OPTION),
        (65_536, datagrams.SO_RCVBUFFORCE),
        pytest.param(8 * 2**20, datagrams.SO_RCVBUFFORCE, marks=needs_force),
        pytest.param(GIB, datagrams.SO_RCVBUFFORCE, marks=needs_force),
    ],
)
def test_nothing_is_said_of_a_receive_buffer_that_is_granted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, size: int, option: int
) -> None:
    monkeypatch.setattr(datagrams, "SO_RCVBUFFORCE", option)
    with bind_udp(Address("127.0.0.1", 0), receive_buffer_bytes=size):
        assert not caplog.records


# -- a queue that does not take it now ---------------------------------------------------------------------------------


@both
async def test_nothing_is_lost_while_the_queue_is_busy(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(name, tmp_path) as door:
        gate = Gate(door, monkeypatch)
        gate.refusal = QueueBusy("busy")
        await door.send_on(one_each(range(50)))
        await until(lambda: gate.tries >= 12)
        assert door.verdicts() == (0, 0, 0)
        gate.refusal, tries = None, gate.tries
        await until(lambda: door.events("accepted") == 50)
        assert door.refused("queue_refused") == 0
        assert gate.tries <= tries + 9, "each time twice as many, once it takes some"


@both
async def test_more_than_the_queue_ever_commits_at_once_is_stored_bit_by_bit(tmp_path: Path, name: str) -> None:
    async with opened(name, tmp_path, queue__max_uncommitted="64KiB") as door:
        many = [encoded([event(100 * number + more) for more in range(100)]) for number in range(9)]
        door.send(*many)  # 72 KB in one read
        await until(lambda: door.events("accepted") == 900)
        assert door.refused("queue_refused") == 0


REFUSALS = [QueueFull("full"), DiskFull("no room"), QueueUnavailable("locked")]


@pytest.mark.parametrize("refusal", [*REFUSALS, QueueBroken("broken")], ids=repr)
async def test_over_udp_what_the_queue_does_not_take_is_dropped_and_counted(
    udp: Door, refusal: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(udp, monkeypatch)
    gate.refusal = refusal
    udp.send(event(1), [event(2), event(3)], event(4))
    await until(lambda: udp.refused("queue_refused") == 3)
    gate.refusal = None
    udp.send(event(5))
    await until(lambda: udp.events("accepted") == 1)
    assert udp.source.unstored_bytes == 0
    await udp.collector.stop()
    [lost] = said(caplog, "datagrams.lost")
    assert (lost["queue_refused"], lost["latest_reason"]) == (3, str(refusal))


async def test_over_udp_a_full_queue_costs_no_more_than_has_no_room(tmp_path: Path) -> None:
    async with opened("udp", tmp_path, queue__max_bytes="64KiB") as door:
        numbers = itertools.count()
        many = [encoded([event(next(numbers)) for _ in range(10)]) for _ in range(100)]  # about 80 KB
        door.send(*many)
        await until(lambda: door.events("accepted") // 10 + door.refused("queue_refused") == 100)
        stored_bytes = door.collector._queue.waiting_bytes
        assert 64 * 1024 - len(many[0]) - 100 <= stored_bytes <= 64 * 1024


@pytest.mark.parametrize("refusal", REFUSALS, ids=repr)
async def test_over_a_unix_socket_what_the_queue_does_not_take_is_held(
    unix: Door, refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(unix, monkeypatch)
    gate.refusal = refusal
    unix.send(event(1), [event(2), event(3)], event(4))
    await until(lambda: gate.tries >= 6)
    assert unix.verdicts() == (0, 0, 0)
    assert gate.asked_for[-1] == 1, "it asks with one only: each time it is parsed again"
    gate.refusal = None
    await until(lambda: unix.events("accepted") == 4)
    assert unix.refused("queue_refused") == 0


async def test_a_unix_sender_that_outruns_us_blocks_instead_of_losing(
    tmp_path: Path, sandbox: Sandbox, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    await state.add_app("wiki", "wiki")
    sandbox.set_faults(Fault(status=503))
    monkeypatch.setattr(datagrams, "MAX_UNSTORED_BYTES", 100_000)  # more than the queue has room for
    async with opened("unix", tmp_path, sandbox.url, queue__max_bytes="64KiB") as door:
        numbers = itertools.count()
        many = [encoded([event(next(numbers)) for _ in range(10)]) for _ in range(300)]  # about 240 KB
        blocking = door.send_on(many)

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as impatient:
            impatient.connect(str(door.path))
            impatient.setblocking(False)

            def is_sent_away() -> bool:
                try:
                    impatient.send(encoded(event(next(numbers))))
                except BlockingIOError:
                    return not door.source._is_reading
                return False

            await until(is_sent_away)
        attempts = next(numbers) - 3_000
        assert not blocking.done()
        assert door.source.unstored_bytes > 0

        sandbox.set_faults()
        await blocking
        await settled(state, 3_000)
        await until(lambda: door.source.unstored_bytes == 0 and not door.metric("waiting_events"))
        assert 3_000 <= door.events("accepted") < 3_000 + attempts
        assert (await state.stats()).distinct == door.events("accepted")
        assert door.refused("queue_refused") == door.events("rejected") == 0


@both
async def test_while_storing_hangs_memory_stays_within_its_limit_and_reading_goes_on_later(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(name, tmp_path) as door:
        gate = Gate(door, monkeypatch)
        gate.close()
        held: list[int] = []
        drain = door.source._drain

        def watched_drain() -> int:
            count = drain()
            held.append(door.source.unstored_bytes)
            return count

        monkeypatch.setattr(door.source, "_drain", watched_drain)
        size = 60_000
        many = [datagram.ljust(size) for datagram in one_each(range(400))]  # three times as much as may be held
        door.send(*many[:1])
        await until(lambda: gate.tries == 1)
        sending = door.send_on(many[1:]) if name == "unix" else asyncio.create_task(door.send_in_turn(many[1:]))
        await until(lambda: not door.source._is_reading)
        assert MAX_UNSTORED_BYTES < door.source.unstored_bytes == door.metric("datagram_held_bytes")

        gate.let_pass(1)  # a small part is stored, and most is held on
        await until(lambda: gate.tries == 2)
        gate.let_pass()
        await sending
        await until(lambda: door.events("accepted") + door.metric("udp_kernel_drops_total") == 400)
        assert max(held) <= MAX_UNSTORED_BYTES + size
        await until(lambda: door.source.unstored_bytes == 0)
        assert door.source._is_reading
        if name == "unix":
            assert door.events("accepted") == 400


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [pytest.param(event(2), id="an event"), *MALFORMED[:1], pytest.param(b"x" * 65_000, id="a large one")]
)
async def test_what_had_come_before_the_stop_is_stored(door: Door, content: object) -> None:
    door.send(content, event(1), content, event(3))
    report = await door.collector.stop()
    assert report.waiting_events == door.events("accepted") == 2 + (content == event(2))
    assert sum(door.verdicts()) == 4


async def test_what_is_being_stored_at_the_stop_is_stored(unix: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(unix, monkeypatch)
    gate.close()
    unix.send(event(1))
    await until(lambda: gate.tries == 1)
    unix.send(event(2), event(3))
    stopping = asyncio.create_task(unix.collector.stop())
    await until(lambda: unix.source._is_stopping)
    with pytest.raises(BrokenPipeError):
        unix.send(event(4))
    gate.let_pass()
    assert (await stopping).waiting_events == unix.events("accepted") == 3


async def test_a_sender_who_never_stops_does_not_keep_the_stop_from_returning(clock: FakeClock) -> None:
    def send_on(calls: int) -> None:
        sender.send(f"{calls}".encode())
        clock.advance(datagrams.STOP_SECONDS / 4)

    bound = bind_udp(Address("127.0.0.1", 0), receive_buffer_bytes=65_536)
    intake = Scripted(send_on)
    source = DatagramSource("udp", intake, holds_senders=False, clock=clock, metrics=Metrics())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(bound.getsockname())
        source.start(bound)
        sender.send(b"first")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await source.stop()
        assert 3 <= len(intake.taken) <= 6
        assert source.unstored_bytes == 0
        sender.send(b"late")
        with pytest.raises(ConnectionRefusedError):
            sender.send(b"later")


async def test_stopping_twice_is_harmless(door: Door) -> None:
    door.send(event(1))
    number = door.source._socket.fileno()
    await door.source.stop()
    assert not asyncio.get_running_loop().remove_reader(number), "nobody waits for a socket that is closed"
    await door.source.stop()
    assert (await door.collector.stop()).waiting_events == 1
    await door.collector.stop()


@pytest.mark.parametrize("is_full", [False, True])
async def test_who_sends_to_a_unix_socket_learns_of_its_end_and_the_books_balance(
    tmp_path: Path, is_full: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(datagrams, "MAX_UNSTORED_BYTES", 10_000)
    sent = 0

    def send_for_ever() -> None:
        nonlocal sent
        while True:
            sender.send(encoded(event(sent)))
            sent += 1

    async with opened("unix", tmp_path) as door:
        sender = door.sender
        gate = Gate(door, monkeypatch)
        gate.refusal = QueueFull("full") if is_full else None
        sending = asyncio.create_task(asyncio.to_thread(send_for_ever))
        await until(lambda: not door.source._is_reading if is_full else door.events("accepted") > 100)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await door.collector.stop()
        with pytest.raises((BrokenPipeError, ConnectionRefusedError)):
            await sending
        assert door.events("accepted") + door.refused("queue_refused") == sent
        assert (door.refused("queue_refused") > 0) == is_full == bool(said(caplog, "datagrams.lost"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late, pytest.raises(FileNotFoundError):
            late.connect(str(door.path))
