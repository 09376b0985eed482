"""Several on one queue: one delivers, and another takes over."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from collector import Collector, Delivery, QueueInUse, QueueUnavailable
from collector.election import ELECTION_SECONDS, Election
from collector.observe.metrics import Metrics
from collector.queue.backend import backend
from collector.queue.base import Backend
from collector.queue.sqlite.lock import RoleLock
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.embedded import config
from tests.fake_clock import FakeClock
from tests.patience import until
from tests.test_flusher import turns
from tests.test_recording import APP, NOWHERE, recording


@pytest.fixture
def rival(tmp_path: Path) -> RoleLock:
    """Another process, which delivers."""
    rival = RoleLock(tmp_path / "queue", "flusher")
    rival.acquire()
    return rival


@pytest.fixture
async def queue(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Backend]:
    queue = backend(config(tmp_path, NOWHERE), clock=clock, metrics=Metrics())
    await queue.open()
    yield queue
    await queue.close()


async def test_of_several_on_one_queue_one_delivers_and_another_takes_over(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    await state.add_app(APP, APP)
    first, second = (Collector(config(tmp_path, sandbox.url)) for _ in range(2))
    await first.start()
    await second.start()
    await second.record(email="user@example.com", event_name="saved", timestamp_ms=1)
    await first.stop()  # has delivered what it knew of
    await second.record(email="user@example.com", event_name="saved", timestamp_ms=2)
    await until(lambda: second._queue.is_flusher)
    report = await second.stop()
    assert report.waiting_events == 0
    assert (await state.stats()).received == 2


async def test_who_must_deliver_does_not_start_where_another_does(tmp_path: Path) -> None:
    async with recording(tmp_path):
        with pytest.raises(QueueInUse):
            await Collector(config(tmp_path, NOWHERE), delivery=Delivery.EXCLUSIVE).start()


async def test_who_must_not_deliver_does_not(tmp_path: Path, sandbox: Sandbox) -> None:
    collector = Collector(config(tmp_path, sandbox.url), delivery=Delivery.ELSEWHERE)
    await collector.start()
    await collector.record(email="user@example.com", event_name="saved")
    assert (await collector.stop()).waiting_events == 1
    assert (await sandbox.stats()).tokens == 0


async def cannot_refresh() -> None:
    raise QueueUnavailable("the disk fails")


def cannot_open() -> None:
    raise QueueUnavailable("flusher.lock: Too many open files")


@pytest.mark.parametrize(
    ("fails", "failure"),
    [("refresh", cannot_refresh), ("take_flusher_role", cannot_open)],
    ids=["learn what waits", "open the lock"],
)
async def test_who_cannot_at_the_moment_lets_others_deliver_and_tries_again(
    queue: Backend,
    rival: RoleLock,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
    failure: Callable[[], object],
) -> None:
    election = Election(queue, Delivery.ELECTED, clock=clock)
    election.stand()
    winning = asyncio.create_task(election.won())
    await turns()
    rival.release()
    with monkeypatch.context() as failing:
        failing.setattr(queue, fails, failure)
        clock.advance(ELECTION_SECONDS)
        await turns()
        rival.acquire()
    clock.advance(ELECTION_SECONDS)
    await turns()
    assert not winning.done()
    rival.release()
    clock.advance(ELECTION_SECONDS)
    await until(winning.done)
    assert queue.is_flusher
    assert winning.result()


async def test_who_withdraws_does_not_take_over(queue: Backend, rival: RoleLock, clock: FakeClock) -> None:
    election = Election(queue, Delivery.ELECTED, clock=clock)
    election.stand()
    winning = asyncio.create_task(election.won())
    await turns()
    election.withdraw()
    rival.release()
    assert not await winning
    assert not queue.is_flusher
