"""The whole collector in one loop: what upstream does to it, and what comes of the events."""

import asyncio
import threading
from pathlib import Path

import aiohttp
import pytest

from collector.agent import Collector
from collector.election import Delivery
from collector.errors import QueueUnavailable, Unusable
from collector.queue.sqlite.lock import nobody_present
from collector.queue.sqlite.store import Store
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import settled
from tests.embedded import config, embedded, metric
from tests.patience import PATIENCE_SECONDS, until
from tests.programs import NOWHERE


async def post(collector: Collector, names: list[str], app_id: str = "wiki") -> None:
    events = [
        {"appId": app_id, "timestamp": number, "email": "person@example.com", "eventName": name}
        for number, name in enumerate(names)
    ]
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{collector.http_address}/v1/events", json=events) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def test_three_poisoned_events_of_a_thousand_are_buried_and_the_rest_arrives(
    tmp_path: Path, upstream: Sandbox, state: State
) -> None:
    upstream.set_faults(Fault(status=400, body="no such action", event_name="poison"))
    async with embedded(tmp_path, upstream.url) as collector:
        await post(collector, ["poison" if number in {0, 500, 999} else "fine" for number in range(1000)])
        await settled(state, 997)
        await until(lambda: metric(collector, "waiting_events") == 0)
        await until(lambda: metric(collector, "buried_events_total") == 3)  # it is counted a moment after the commit
        assert (await collector._queue.stats()).dead_events == 3
    # Splitting finds each of k guilty events in about 2 log2(n) requests.
    assert (await state.stats()).requests <= 3 * 2 * 10 + 1


async def test_an_unknown_app_is_held_alone_and_goes_on_when_it_exists(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    await state.add_app("wiki", "wiki")
    async with embedded(tmp_path, sandbox.url) as collector:
        await post(collector, ["a", "b"], app_id="unknown")
        await until(lambda: metric(collector, "held_apps") == 1)
        await post(collector, ["a", "b", "c"])
        await settled(state, 3)
        await until(lambda: metric(collector, "waiting_events") == 2)
        assert metric(collector, "buried_events_total") == 0
        await state.add_app("unknown", "unknown")
        await settled(state, 5)
        await until(lambda: metric(collector, "held_apps") == 0)


async def test_a_wrong_secret_holds_everything_and_loses_nothing(
    tmp_path: Path, upstream: Sandbox, state: State
) -> None:
    async with embedded(tmp_path, upstream.url, upstream__client_secret="wrong") as collector:
        await post(collector, ["a", "b"])
        await until(lambda: metric(collector, "held_apps") == 1)
    async with embedded(tmp_path, upstream.url):
        await settled(state, 2)


async def test_a_part_that_dies_is_the_end_of_the_agent_and_it_says_so(
    tmp_path: Path, upstream: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(config(tmp_path, upstream.url), listens=True)

    async def explode(*_: object) -> None:
        raise RuntimeError("a defect")

    async with collector:
        monkeypatch.setattr(collector._flusher._publisher, "publish", explode)
        await post(collector, ["a"])
        with pytest.raises(Unusable, match="a defect"):
            await asyncio.wait_for(collector.failed(), PATIENCE_SECONDS)
        assert collector.why_unready() == "flusher.run has died"


async def test_it_starts_once_and_a_start_that_fails_leaves_nothing_to_stop(tmp_path: Path, upstream: Sandbox) -> None:
    async with embedded(tmp_path, upstream.url) as collector:
        with pytest.raises(Unusable, match="make another one"):
            await collector.start()
        taken = str(collector.http_address)
        other = Collector(config(tmp_path / "other", upstream.url, http__listen=taken), listens=True)
        with pytest.raises(Unusable, match=taken):
            await other.start()
        assert (await other.stop()).waiting_events == 0
        with pytest.raises(Unusable, match="does not run"):
            await other.record(email="user@example.com", event_name="saved", app_id="wiki")
        await collector.record(email="user@example.com", event_name="saved", app_id="wiki")


async def test_a_start_that_fails_amid_opening_the_queue_leaves_no_thread_behind(
    tmp_path: Path, upstream: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_locked(_store: Store) -> int:
        raise QueueUnavailable("database is locked")

    monkeypatch.setattr(Store, "foreign_commits", is_locked)
    before = threading.active_count()
    with pytest.raises(QueueUnavailable):
        await Collector(config(tmp_path, upstream.url)).start()
    assert threading.active_count() == before


PARTS = ["_queue", "_transport", "_listeners"]
"""Which a start opens, in this order."""


@pytest.fixture(params=PARTS)
def held_up(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Collector, asyncio.Event, asyncio.Event]:
    """A collector whose start comes as far as one of its parts, says so and waits for a word."""
    collector = Collector(config(tmp_path, NOWHERE), listens=True, delivery=Delivery.EXCLUSIVE)
    come, word = asyncio.Event(), asyncio.Event()
    part = getattr(collector, request.param)
    opens = part.open

    async def open_late() -> None:
        come.set()
        await word.wait()
        await opens()

    monkeypatch.setattr(part, "open", open_late)
    return collector, come, word


async def nothing_is_left(collector: Collector, folder: Path) -> None:
    """It does not run, and another can have all that it had."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(Unusable, match="does not run"):
        await collector.record(email="user@example.com", event_name="saved")
    with nobody_present(folder / "queue", patience_seconds=0) as nobody:
        assert nobody
    taken = collector._listeners.http.address or "127.0.0.1:0"
    async with embedded(folder, NOWHERE, http__listen=str(taken), stop__deadline="0s"):
        pass


async def test_a_start_that_is_cancelled_leaves_nothing(
    tmp_path: Path, held_up: tuple[Collector, asyncio.Event, asyncio.Event]
) -> None:
    collector, come, _ = held_up
    starting = asyncio.create_task(collector.start())
    await come.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await nothing_is_left(collector, tmp_path)


async def test_a_stop_amid_the_start_stops_what_that_starts(
    tmp_path: Path, held_up: tuple[Collector, asyncio.Event, asyncio.Event]
) -> None:
    collector, come, word = held_up
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(collector.start())
        await come.wait()
        stops = [tasks.create_task(collector.stop()) for _ in range(2)]
        await asyncio.sleep(0)
        word.set()
    assert all(stop.result().waiting_events == 0 for stop in stops)
    await nothing_is_left(collector, tmp_path)


async def test_a_stop_that_is_cancelled_waits_no_more_and_leaves_nothing(tmp_path: Path) -> None:
    collector = Collector(config(tmp_path, NOWHERE, stop__deadline="1h"), listens=True)
    await collector.start()
    await collector.record(email="user@example.com", event_name="saved")  # which cannot be delivered
    stopping = asyncio.create_task(collector.stop())
    await until(collector._election._withdrawn.is_set)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await nothing_is_left(collector, tmp_path)


async def test_what_was_stopped_before_it_started_does_not_start(tmp_path: Path) -> None:
    collector = Collector(config(tmp_path, NOWHERE))
    assert (await collector.stop()).waiting_events == 0
    with pytest.raises(Unusable, match="make another one"):
        await collector.start()
    assert not (tmp_path / "queue").exists()


async def test_a_queue_file_that_vanishes_is_the_end_of_the_agent(tmp_path: Path, upstream: Sandbox) -> None:
    async with embedded(tmp_path, upstream.url) as collector:
        (tmp_path / "queue" / "queue.sqlite3").unlink()
        with pytest.raises(Unusable, match="was removed or replaced"):
            await asyncio.wait_for(collector.failed(), PATIENCE_SECONDS)
