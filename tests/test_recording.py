"""The collector inside an asyncio program: events recorded by calls, on the program's own loop."""

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from collector import Collector, QueueFull, Recorded, Rejected, UsageEvent, errors
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from collector.sources.recorder import SAY_SECONDS
from tests.embedded import config, metric
from tests.fake_clock import START_MS, FakeClock

APP = "wiki"
NOWHERE = "http://127.0.0.1:9"


@asynccontextmanager
async def recording(folder: Path, upstream_url: str = NOWHERE, **settings: str) -> AsyncIterator[Collector]:
    """A collector that only this program sends to, and that does not wait long for its end."""
    async with Collector(config(folder, upstream_url, stop__deadline="100ms", **settings)) as collector:
        yield collector


def counted(collector: Collector, verdict: str) -> float:
    labels = {"source": "program", "verdict": verdict}
    return collector.metrics.registry.get_sample_value("collector_events_total", labels) or 0


async def test_an_event_is_on_disk_when_record_returns_and_known_from_then_on(tmp_path: Path) -> None:
    async with recording(tmp_path) as collector:
        verdicts = [
            await collector.record(email="user@example.com", event_name="saved", timestamp_ms=1, app_id=app)
            for app in (APP, None, "other")  # the first two are the same: it is the default app
        ]
        with closing(sqlite3.connect(tmp_path / "queue" / "queue.sqlite3")) as connection:
            [waiting] = connection.execute("SELECT sum(waiting_events) FROM app")
        assert verdicts == [Recorded.ACCEPTED, Recorded.DUPLICATE, Recorded.ACCEPTED]
        assert waiting == (2,)
        assert (counted(collector, "accepted"), counted(collector, "duplicate")) == (2, 1)


async def test_an_event_without_a_time_is_stamped_at_the_call(tmp_path: Path, clock: FakeClock) -> None:
    collector = Collector(config(tmp_path, NOWHERE, stop__deadline="0s"), clock=clock)
    await collector.start()
    assert await collector.record(email="user@example.com", event_name="saved") is Recorded.ACCEPTED
    same = {"email": "user@example.com", "event_name": "saved"}
    assert await collector.record(timestamp_ms=START_MS, **same) is Recorded.DUPLICATE
    await collector.stop()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"email": "nobody"}, "email"),
        ({"email": ""}, "email"),
        ({"event_name": ""}, "eventName"),
        ({"timestamp_ms": 2**63}, "timestamp"),
        ({"timestamp_ms": 10**5000}, "number of thousands"),
        ({"app_id": ".."}, "appId"),
        ({"email": "\ud800@example.com"}, "lone surrogate"),
    ],
)
async def test_what_is_no_event_is_rejected_with_the_reason(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    async with recording(tmp_path) as collector:
        with pytest.raises(Rejected, match=said):
            await collector.record(**{"email": "user@example.com", "event_name": "saved"} | fields)
        assert counted(collector, "rejected") == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"email": b"user@example.com"}, "email: expected text, not bytes"),
        ({"event_name": 7}, "event_name: expected text, not int"),
        ({"timestamp_ms": 1.5}, "timestamp_ms: expected whole milliseconds, not float"),
        ({"app_id": 7}, "app_id: expected text, not int"),
    ],
)
async def test_a_wrong_type_is_the_callers_error_at_once(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    async with recording(tmp_path) as collector:
        with pytest.raises(TypeError, match=said):
            collector.record_nowait(**{"email": "user@example.com", "event_name": "saved"} | fields)


async def test_one_event_that_is_none_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    async with recording(tmp_path) as collector:
        events = [UsageEvent(n, "\ud800@example.com" if n == 1 else "user@example.com", "saved") for n in (0, 1, 2, 0)]
        report = await collector.record_many(events)
    assert (report.accepted, report.duplicates, report.rejected) == (2, 1, 1)
    assert [error.index for error in report.errors] == [1]


async def test_a_full_queue_says_so_and_stores_nothing(tmp_path: Path) -> None:
    async with recording(tmp_path, queue__max_bytes="64KiB") as collector:
        with pytest.raises(QueueFull):
            await collector.record_many([UsageEvent(n, "user@example.com", "saved") for n in range(2000)])
        assert (await collector.record(email="user@example.com", event_name="saved")) is Recorded.ACCEPTED


async def test_events_recorded_without_waiting_are_stored_soon(tmp_path: Path, sandbox: Sandbox, state: State) -> None:
    await state.add_app(APP, APP)
    async with recording(tmp_path, sandbox.url) as collector:
        for n in range(3000):
            assert collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=n)
        await collector.flush()
        assert counted(collector, "accepted") == 3000
    assert (await state.stats()).distinct <= 3000  # the rest waits in the queue


async def test_a_full_buffer_says_false_and_what_is_rejected_is_counted(tmp_path: Path) -> None:
    async with recording(tmp_path, events__max_recorded="10") as collector:
        taken = [
            collector.record_nowait(email="user@example.com" if n else "nobody", event_name="saved", timestamp_ms=n)
            for n in range(15)
        ]
        assert taken == [True] * 10 + [False] * 5
        await collector.flush()
        assert (counted(collector, "accepted"), counted(collector, "rejected")) == (9, 1)
        assert collector.record_nowait(email="user@example.com", event_name="saved")


async def test_what_finds_no_room_is_counted_and_said_but_not_each_time(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector(config(tmp_path, NOWHERE, stop__deadline="0s", events__max_recorded="1"), clock=clock)
    await collector.start()
    for _ in range(2):
        taken = [collector.record_nowait(email="user@example.com", event_name="saved") for _ in range(4)]
        assert taken == [True, False, False, False]
        await collector.flush()
        clock.advance(SAY_SECONDS)
    said = [record for record in caplog.records if record.getMessage() == "recorder.refused"]
    assert [(record.levelname, record.__dict__["events"]) for record in said] == [("ERROR", 1), ("ERROR", 3)]
    assert metric(collector, "refusals_total", source="program", reason="overload") == 6
    await collector.stop()


async def test_the_stop_waits_for_what_was_recorded_without_waiting(tmp_path: Path) -> None:
    async with recording(tmp_path) as collector:
        for n in range(100):
            collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=n)
    async with recording(tmp_path) as collector:
        report = await collector.record_many([UsageEvent(n, "user@example.com", "saved") for n in range(100)])
    assert report.duplicates == 100


async def test_what_the_queue_did_not_take_until_the_stop_is_said_to_be_lost(tmp_path: Path) -> None:
    collector = Collector(config(tmp_path, NOWHERE, stop__deadline="50ms", queue__max_bytes="64KiB"))
    await collector.start()
    await collector.record_many([UsageEvent(n, "user@example.com", "saved") for n in range(800)])
    for n in range(1000, 1500):
        collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=n)
    report = await collector.stop()
    assert (report.waiting_events, report.lost_events) == (800, 500)


async def test_it_does_not_touch_the_program_around_it(tmp_path: Path) -> None:
    import logging  # noqa: PLC0415 - what is looked at belongs to this test

    before = (
        [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
        sys.getswitchinterval(),
        logging.getLogger().handlers[:],
        type(asyncio.get_event_loop_policy()),
    )
    async with recording(tmp_path) as collector:
        await collector.record(email="user@example.com", event_name="saved")
        assert before == (
            [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
            sys.getswitchinterval(),
            logging.getLogger().handlers[:],
            type(asyncio.get_event_loop_policy()),
        )
        with pytest.raises(errors.Unusable):
            _ = collector.http_address  # it does not listen
