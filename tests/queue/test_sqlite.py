"""The queue on one machine's disk: the contract, what survives its process, and what several processes share."""

import asyncio
import random
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from collector.errors import (
    CollectorError,
    DeadLettersFull,
    DiskFull,
    QueueBroken,
    QueueBusy,
    QueueDamaged,
    QueueFull,
    QueueInUse,
    QueueUnavailable,
)
from collector.events import split_keys
from collector.observe.metrics import Metrics
from collector.queue.base import Batch, Burial, Queue, Verdict
from collector.queue.limits import BUSY_RETRY_AFTER_SECONDS, FULL_RETRY_AFTER_SECONDS, Limits
from collector.queue.sqlite import hang, store_thread
from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.lock import RoleLock, nobody_present
from collector.queue.sqlite.operations import Done, Operation
from collector.queue.sqlite.pruning import MAX_KEYS, MAX_STEPS, MIN_KEYS, PASSES, PruneWalk
from collector.queue.sqlite.queue import SqliteQueue
from collector.queue.sqlite.rescue import ready
from collector.queue.sqlite.rescue.ready import CHECKED_WHOLE_BYTES
from collector.queue.sqlite.store import Store
from tests.fake_clock import FakeClock
from tests.patience import PATIENCE_SECONDS, until
from tests.queue.contract import BATCH_EVENTS, QueueContract, available, lease, lease_all, numbers_of
from tests.queue.samples import (
    batch,
    batches,
    child,
    hear,
    key,
    line,
    opened,
    remembered,
    sqlite_queue,
    stored,
    tell,
    waiting_numbers,
)

Opener = Callable[..., Awaitable[SqliteQueue]]


@pytest.fixture
async def open_queue(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Opener]:
    """Opens queues on the test's directory, and closes those that are open at its end."""
    opened_queues: list[SqliteQueue] = []

    async def open_one(**settings: Any) -> SqliteQueue:
        clock.advance(0.001)  # no two lives of a queue share an instant
        queue = sqlite_queue(tmp_path, clock=clock, **settings)
        await queue.open()
        opened_queues.append(queue)
        return queue

    yield open_one
    for queue in opened_queues:
        if not is_closed(queue):
            await queue.close()


@pytest.fixture
async def queue(open_queue: Opener) -> SqliteQueue:
    return await open_queue()


def is_closed(queue: SqliteQueue) -> bool:
    return queue._commits._closed


async def on_writer(queue: SqliteQueue, statement: str) -> None:
    """Runs a statement on the queue's own writing connection, in its thread."""
    await queue._writer.run(lambda store: store._execute(statement))


async def reopened(queue: SqliteQueue, open_queue: Opener) -> SqliteQueue:
    """The same queue in its next life."""
    await queue.close()
    return await open_queue()


class TestSqliteQueue(QueueContract):
    """SQLite keeps the contract, also where all that is leased is read from the file."""


class TestSqliteQueueThatDelivers(QueueContract):
    """The same for who has the role, and so in memory what was put a moment ago."""

    @pytest.fixture
    async def queue(self, queue: SqliteQueue) -> SqliteQueue:
        queue.take_flusher_role()
        return queue


async def test_who_delivers_need_not_read_what_was_put_a_moment_ago(
    queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.take_flusher_role()
    await queue.put([batch("wiki", range(10))])
    leases = [await lease(queue, "wiki")]  # from here on it is known where the app's segments lie
    monkeypatch.delattr("collector.queue.sqlite.view.View.next_segments")
    await asyncio.gather(*(queue.put([batch("wiki", range(begin, begin + 5))]) for begin in range(10, 50, 5)))
    leases += await lease_all(queue, "wiki")
    assert numbers_of(*leases) == list(range(50))
    for each in leases:
        await queue.settle(each)
    assert queue.waiting_events == 0


async def test_what_others_put_in_between_keeps_its_place(queue: SqliteQueue, open_queue: Opener) -> None:
    queue.take_flusher_role()
    other = await open_queue()
    for begin in range(0, 60, 20):
        await queue.put([batch("wiki", range(begin, begin + 10))])
        await other.put([batch("wiki", range(begin + 10, begin + 20))])
    await queue.refresh()
    assert numbers_of(*await lease_all(queue, "wiki")) == list(range(60))


async def test_what_another_has_delivered_meanwhile_is_not_leased_from_memory(
    queue: SqliteQueue, open_queue: Opener
) -> None:
    queue.take_flusher_role()
    other = await open_queue()
    await queue.put([batch("wiki", range(10))])
    await queue.settle(await lease(queue, "wiki"))
    await queue.put([batch("wiki", range(10, 20))])
    queue.release_flusher_role()
    other.take_flusher_role()
    await other.refresh()
    await other.settle(await lease(other, "wiki"))
    other.release_flusher_role()
    queue.take_flusher_role()
    await queue.refresh()
    await queue.put([batch("wiki", range(20, 30))])
    assert numbers_of(*await lease_all(queue, "wiki")) == list(range(20, 30))


# What survives


async def test_a_reopened_queue_has_all_that_was_not_settled_in_order_and_knows_every_key(
    queue: SqliteQueue, open_queue: Opener
) -> None:
    await queue.put([batch("wiki", range(30)), batch("crm", range(5))])
    await queue.put([batch("wiki", range(30, 40))])
    first = await lease(queue, "wiki")
    await queue.settle(first, buried=[Burial(0, "no")], returned=[7, 8])
    await queue.settle(await lease(queue, "crm"))
    await lease(queue, "wiki")  # held when the queue closes
    queue = await reopened(queue, open_queue)
    assert available(queue) == {"wiki": 12}
    assert queue.waiting_events == 12
    assert numbers_of(*await lease_all(queue, "wiki")) == [7, 8, *range(30, 40)]
    assert await queue.put([batch("wiki", range(41)), batch("crm", range(5))]) == [
        Verdict(1, tuple(range(40))),
        Verdict(0, tuple(range(5))),
    ]


PUT_AND_HANG = """
import asyncio, pathlib, sys
from collector.queue.base import Burial
from tests.queue.samples import batch, sqlite_queue

async def main():
    queue = sqlite_queue(pathlib.Path(sys.argv[1]))
    queue.take_flusher_role()
    await queue.open()
    for begin in range(0, 100, 10):
        await queue.put([batch("wiki", range(begin, begin + 10))])
    for _ in range(3):
        await queue.settle(await queue.lease("wiki", 10))
    await queue.settle(await queue.lease("wiki", 10), buried=[Burial(0, "no")], returned=[4, 5])
    await queue.lease("wiki", 10)
    await queue.lease("wiki", 10)
    print("put", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_process_that_died_without_closing_loses_nothing_that_was_acknowledged(
    tmp_path: Path, open_queue: Opener
) -> None:
    with child(PUT_AND_HANG, tmp_path) as process:
        assert hear(process) == "put"
        process.send_signal(signal.SIGKILL)
        process.wait()
    queue = await open_queue()
    queue.take_flusher_role()
    assert numbers_of(*await lease_all(queue, "wiki")) == [34, 35, *range(40, 100)]
    assert await queue.put([batch("wiki", range(101))]) == [Verdict(1, tuple(range(100)))]
    (share,) = stored(tmp_path).values()
    assert (share.counted_dead, share.counted_events) == (1, 63)
    queue.release_flusher_role()


async def test_closing_returns_after_every_put_and_settlement_that_was_begun_is_on_disk(
    tmp_path: Path, queue: SqliteQueue
) -> None:
    await queue.put([batch("wiki", range(10))])
    held = await lease(queue, "wiki")
    begun = [asyncio.ensure_future(queue.put([batch("wiki", [number])])) for number in range(10, 50)]
    begun_settling = asyncio.create_task(queue.settle(held))
    await asyncio.sleep(0)
    await queue.close()
    assert stored(tmp_path)["wiki"].numbers == list(range(10, 50))
    assert [await put for put in begun] == [[Verdict(1)]] * 40
    await begun_settling
    with pytest.raises(QueueUnavailable, match="closed"):
        await queue.put([batch("wiki", [50])])


async def test_an_open_that_is_cancelled_leaves_nothing_open(
    tmp_path: Path, open_queue: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    come, word = threading.Event(), threading.Event()

    class LateStore(Store):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            come.set()
            word.wait(PATIENCE_SECONDS / 10)  # where the loop waits for this, nobody can say it
            super().__init__(*arguments, **named)

    monkeypatch.setattr(store_thread, "Store", LateStore)
    opening = asyncio.ensure_future(open_queue())
    await asyncio.to_thread(come.wait)
    opening.cancel()
    asyncio.get_running_loop().call_soon(word.set)  # the cancellation has come by then
    with pytest.raises(asyncio.CancelledError):
        await opening
    with nobody_present(tmp_path, patience_seconds=0) as nobody:
        assert nobody


async def test_a_file_that_is_no_queue_cannot_be_opened(tmp_path: Path, open_queue: Opener) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database " * 1000)
    with pytest.raises(QueueBroken, match="move the file away"):
        await open_queue()


# Several processes


PUT_WHEN_TOLD = """
import asyncio, json, pathlib, sys
from collector.errors import QueueInUse
from tests.queue.samples import batch, sqlite_queue

async def main():
    queue = sqlite_queue(pathlib.Path(sys.argv[1]))
    await queue.open()
    try:
        queue.take_flusher_role()
        print("has the role", flush=True)
    except QueueInUse:
        print("has no role", flush=True)
    for line in sys.stdin:
        app_id, *numbers = json.loads(line)
        (verdict,) = await queue.put([batch(app_id, numbers)])
        print(verdict.accepted, flush=True)
    await queue.close()

asyncio.run(main())
"""


@pytest.fixture
async def maintained(queue: SqliteQueue) -> AsyncIterator[SqliteQueue]:
    """A queue with its maintenance running."""
    maintenance = asyncio.create_task(queue.maintain())
    yield queue
    maintenance.cancel()
    with suppress(asyncio.CancelledError):
        await maintenance


async def tick(clock: FakeClock) -> None:
    """One step of the only maintenance that runs on this clock."""
    await at_rest(clock)
    clock.advance(1)
    await at_rest(clock)


async def at_rest(clock: FakeClock) -> None:
    """Returns once the maintenance sleeps."""
    await until(lambda: clock.next_due_seconds() is not None)


async def test_the_holder_of_the_role_leases_what_two_processes_put(
    tmp_path: Path, maintained: SqliteQueue, clock: FakeClock
) -> None:
    maintained.take_flusher_role()
    with child(PUT_WHEN_TOLD, tmp_path) as process:
        assert hear(process) == "has no role"
        for begin in range(0, 60, 15):
            tell(process, str(["wiki", *range(begin, begin + 10)]).replace("'", '"'))
            (verdict,) = await maintained.put([batch("wiki", range(begin + 5, begin + 20))])
            assert verdict.accepted + int(hear(process)) == (20 if begin == 0 else 15)
            tell(process, str(["crm", begin]).replace("'", '"'))
            assert hear(process) == "1"
            maintained.arrivals.clear()
            await tick(clock)
            assert maintained.arrivals.is_set()
            assert available(maintained)["crm"] == 1
            await maintained.settle(await lease(maintained, "crm"))
    leases = await lease_all(maintained, "wiki")
    assert sorted(numbers_of(*leases)) == list(range(65))
    await asyncio.gather(*(maintained.settle(each) for each in leases))
    await tick(clock)
    assert available(maintained) == {}
    assert {app_id: share.events for app_id, share in stored(tmp_path).items()} == {"wiki": 0, "crm": 0}
    maintained.release_flusher_role()


async def test_what_another_process_put_is_known_at_once(tmp_path: Path, queue: SqliteQueue) -> None:
    with child(PUT_WHEN_TOLD, tmp_path) as process:
        assert hear(process) == "has the role"
        tell(process, '["wiki", 1, 2]')
        assert hear(process) == "2"
        assert await queue.put([batch("wiki", [1, 2, 3])]) == [Verdict(1, (0, 1))]
        tell(process, '["wiki", 3, 4]')
        assert hear(process) == "1"
        with pytest.raises(QueueInUse, match=f"process {process.pid} is its flusher"):
            queue.take_flusher_role()


async def test_the_role_is_taken_and_released_apart_from_the_file(queue: SqliteQueue, open_queue: Opener) -> None:
    other = await open_queue()
    queue.take_flusher_role()
    with pytest.raises(QueueInUse):
        other.take_flusher_role()
    assert await other.put([batch("wiki", [1])]) == [Verdict(1)]
    queue.release_flusher_role()
    other.take_flusher_role()
    other.release_flusher_role()


async def test_a_takeover_that_fails_halfway_is_in_nobodys_way(
    queue: SqliteQueue, open_queue: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await open_queue()
    queue.take_flusher_role()
    with monkeypatch.context() as patched:
        patched.setattr(Store, "apps", mock.Mock(side_effect=QueueUnavailable("disk I/O error")))
        with pytest.raises(QueueUnavailable, match="disk I/O error"):
            await queue.refresh()
    queue.release_flusher_role()
    other.take_flusher_role()
    await other.refresh()
    assert other.is_flusher


# Limits


@pytest.mark.parametrize("fails", [False, True], ids=["stored", "failed"])
async def test_what_is_learnt_from_the_file_during_a_burial_leaves_the_dead_letters_counted(
    open_queue: Opener, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    queue = await open_queue(max_dead_bytes=1500)  # room for one and a half of these
    await queue.put([batch("wiki", range(10))])
    first = await lease(queue, "wiki")
    await queue.put([batch("wiki", range(10, 20))])
    second = await lease(queue, "wiki")
    buried = [Burial(position, "no good") for position in range(10)]
    learning = asyncio.create_task(queue.refresh())
    await asyncio.sleep(0)  # the writer has it
    if fails:
        monkeypatch.setattr(Store, "transact", lambda _, group: [QueueUnavailable("disk I/O error")] * len(group))
    with pytest.raises(QueueUnavailable) if fails else nullcontext():
        await queue.settle(first, buried=buried)
    monkeypatch.undo()
    await learning
    with nullcontext() if fails else pytest.raises(DeadLettersFull):
        await queue.settle(second, buried=buried)
    assert (await queue.stats()).dead_events == 10


async def test_what_is_learnt_from_the_file_does_not_undo_a_commit_that_came_later(queue: SqliteQueue) -> None:
    await queue.put([batch("wiki", range(10))])
    held = await lease(queue, "wiki")
    learning = asyncio.create_task(queue.refresh())
    await asyncio.sleep(0)  # the writer has it
    begun: list[Awaitable[object]] = [
        asyncio.ensure_future(queue.put([batch("crm", [1])])),
        asyncio.create_task(queue.settle(held)),
    ]
    for _ in range(2):
        await asyncio.sleep(0)  # and these behind it
    is_done = threading.Event()
    begun.append(queue._writer.run(lambda _store: is_done.set()))
    assert is_done.wait(PATIENCE_SECONDS), "it does all of that before the loop hears of any"
    await asyncio.gather(learning, *begun)
    assert queue.waiting_events == 1
    assert await queue.lease("wiki", BATCH_EVENTS) is None
    assert numbers_of(await lease(queue, "crm")) == [1]


async def test_while_the_disk_hangs_nobody_else_waits_for_it_and_it_is_said(
    maintained: SqliteQueue, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hang, "HANG_SECONDS", 0.0)
    caplog.set_level("INFO")
    await at_rest(clock)
    goes_on = threading.Event()
    hanging = maintained._writer.run(lambda _store: goes_on.wait(PATIENCE_SECONDS))
    early = maintained.put([batch("wiki", range(5))])
    clock.advance(1)
    await until(lambda: maintained.trouble is not None)
    with pytest.raises(QueueUnavailable, match="the disk seems to hang"):
        maintained.put([batch("wiki", range(5, 10))])
    goes_on.set()
    assert await hanging
    assert [verdict.accepted for verdict in await early] == [5]
    await until(lambda: maintained.trouble is None)
    assert [verdict.accepted for verdict in await maintained.put([batch("wiki", range(5, 10))])] == [5]
    said = [record.getMessage() for record in caplog.records]
    assert said.index("queue.unavailable") < said.index("queue.available_again")


async def test_more_uncommitted_bytes_than_allowed_are_refused_until_the_commit(
    tmp_path: Path, open_queue: Opener
) -> None:
    first, second = batch("wiki", range(5)), batch("wiki", range(5, 10))
    queue = await open_queue(max_uncommitted_bytes=first.bytes + second.bytes - 1)
    with opened(tmp_path) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.ensure_future(queue.put([first]))
        await asyncio.sleep(0)
        assert queue.uncommitted_bytes == first.bytes
        with pytest.raises(QueueBusy, match=r"queue\.max_uncommitted") as refusal:
            await queue.put([second])
        assert refusal.value.retry_after_seconds == BUSY_RETRY_AFTER_SECONDS
        assert not waiting.done()
        other.execute("ROLLBACK")
    assert await waiting == [Verdict(5)]
    assert queue.uncommitted_bytes == 0
    assert await queue.put([second]) == [Verdict(5)]
    assert numbers_of(*await lease_all(queue, "wiki")) == list(range(10))


async def test_a_full_queue_refuses_what_does_not_fit_and_stores_nothing_of_it(
    tmp_path: Path, open_queue: Opener
) -> None:
    small, large, exact = batch("wiki", [1, 2]), batch("wiki", range(10, 40)), batch("crm", [3])
    queue = await open_queue(max_bytes=small.bytes + exact.bytes)
    assert await queue.put([small]) == [Verdict(2)]
    with pytest.raises(QueueFull, match=rf"{small.bytes} of queue\.max_bytes = ") as refusal:
        await queue.put([batch("crm", [4]), large])
    assert refusal.value.retry_after_seconds == FULL_RETRY_AFTER_SECONDS
    assert await queue.put([exact]) == [Verdict(1)]  # the limit itself
    with pytest.raises(QueueFull):
        await queue.put([Batch("chat", key("chat", 1), b"1")])
    assert {app_id: share.numbers for app_id, share in stored(tmp_path).items()} == {"wiki": [1, 2], "crm": [3]}
    assert set(remembered(tmp_path)) == {*split_keys(small.keys), *split_keys(exact.keys)}


async def test_puts_that_are_refused_are_said_when_that_begins_and_when_it_is_over(
    maintained: SqliteQueue, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    maintained.use_limits(Limits(2000, 2000, 0))
    for begin in range(0, 200, 10):  # at its limit: as one put goes in, others do not
        await maintained.put([batch("wiki", range(begin, begin + 10))])
        for _ in range(3):
            with pytest.raises(QueueFull):
                maintained.put([batch("wiki", range(1000, 1030))])
        await maintained.settle(await lease(maintained, "wiki"))
        await tick(clock)
    assert caplog.messages == ["queue.refusals_began"]
    for _ in range(30):
        await tick(clock)
    assert caplog.messages == ["queue.refusals_began", "queue.refusals_ended"]
    began, ended = (vars(record) for record in caplog.records)
    assert "of queue.max_bytes = 2000 bytes wait" in began["error"]
    assert (began["levelname"], ended["refused_puts"], ended["seconds"]) == ("WARNING", 60, 19.0)


async def test_what_waits_for_its_commit_counts_towards_a_full_queue(open_queue: Opener) -> None:
    first, second = batch("wiki", range(5)), batch("wiki", range(5, 10))
    queue = await open_queue(max_bytes=first.bytes + second.bytes - 1)
    waiting = asyncio.ensure_future(queue.put([first]))
    with pytest.raises(QueueFull, match=f"^{first.bytes} of queue.max_bytes"):
        await queue.put([second])
    assert await waiting == [Verdict(5)]


async def test_delivery_and_burial_free_room_and_what_was_refused_is_then_new(open_queue: Opener) -> None:
    first, second = batch("wiki", range(10)), batch("wiki", range(10, 20))
    queue = await open_queue(max_bytes=first.bytes + second.bytes - 1)
    await queue.put([first])
    with pytest.raises(QueueFull):
        await queue.put([second])
    await queue.settle(await lease(queue, "wiki"), returned=range(10))
    with pytest.raises(QueueFull):
        await queue.put([second])
    await queue.settle(await lease(queue, "wiki"), buried=[Burial(0, "no")], returned=[1])
    assert await queue.put([second]) == [Verdict(10)]


async def test_duplicates_take_no_room(open_queue: Opener) -> None:
    events = batch("wiki", range(10))
    queue = await open_queue(max_bytes=2 * events.bytes + 50)
    for _ in range(20):
        await queue.put([events])
    assert await queue.put([batch("wiki", range(8, 18))]) == [Verdict(8, (0, 1))]


async def test_a_reopened_queue_is_as_full_as_it_was(queue: SqliteQueue, open_queue: Opener) -> None:
    events, later = batch("wiki", range(10)), batch("wiki", range(10, 20))
    await queue.put([events])
    await queue.close()
    queue = await open_queue(max_bytes=later.bytes)
    with pytest.raises(QueueFull):
        await queue.put([batch("wiki", [11])])
    await queue.settle(await lease(queue, "wiki"))
    assert await queue.put([later]) == [Verdict(10)]


async def test_a_full_disk_refuses_puts_and_lets_settlements_through(tmp_path: Path, queue: SqliteQueue) -> None:
    await queue.put([batch("wiki", range(10))])
    held = await lease(queue, "wiki")
    await on_writer(queue, "PRAGMA max_page_count = 1")  # SQLite makes it as many as there are
    put, settled = await asyncio.gather(
        queue.put(batches("new", range(3000))), queue.settle(held, returned=[9]), return_exceptions=True
    )
    assert isinstance(put, DiskFull)
    assert settled is None
    assert stored(tmp_path)["wiki"].numbers == [9]
    assert (queue.waiting_events, available(queue)) == (1, {"wiki": 1})
    await on_writer(queue, "PRAGMA max_page_count = 100000")
    with pytest.raises(DiskFull):  # until maintenance has found the room
        await queue.put(batches("new", range(3000)))
    await queue._maintain_once(PruneWalk(1.0))
    assert queue.trouble is None
    assert await queue.put(batches("new", range(3000))) == [Verdict(1000)] * 3


@pytest.mark.parametrize("returned", [[], [0, 1]], ids=["delivered", "returned in part"])
async def test_a_settlement_that_cannot_be_committed_changes_nothing_and_can_be_repeated(
    tmp_path: Path, queue: SqliteQueue, returned: list[int]
) -> None:
    await queue.put([batch("wiki", range(10))])
    held = await lease(queue, "wiki")
    await on_writer(queue, "PRAGMA busy_timeout = 0")
    with opened(tmp_path) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(QueueUnavailable):
                await queue.settle(held, buried=[Burial(5, "no")], returned=returned)
        assert available(queue) == {}
        other.execute("ROLLBACK")
    assert stored(tmp_path)["wiki"].events == 10
    await queue.settle(held, buried=[Burial(5, "no")], returned=returned)
    assert numbers_of(*await lease_all(queue, "wiki")) == returned
    assert stored(tmp_path)["wiki"].dead == 1


# Leases


async def test_a_lease_covers_up_to_four_batches_where_that_fills_requests_better(queue: SqliteQueue) -> None:
    for begin in range(0, 54, 9):
        await queue.put([batch("wiki", range(begin, begin + (4 if begin == 36 else 9)))])
    assert (await lease(queue, "wiki")).events == 40


async def test_a_returned_lease_that_is_gone_from_the_file_is_unavailable_and_not_forgotten(
    tmp_path: Path, queue: SqliteQueue
) -> None:
    await queue.put([batch("wiki", range(10))])
    await queue.settle(await lease(queue, "wiki"), returned=range(10))
    with opened(tmp_path) as other:
        other.execute("CREATE TEMP TABLE aside AS SELECT * FROM segment")
        other.execute("DELETE FROM segment")
        for _ in range(2):
            with pytest.raises(QueueUnavailable, match="has another process flushed this queue"):
                await queue.lease("wiki", BATCH_EVENTS)
        other.execute("INSERT INTO segment SELECT * FROM aside")
    assert numbers_of(await lease(queue, "wiki")) == list(range(10))


async def test_how_long_the_oldest_event_has_waited_is_known_also_after_a_reopen(
    queue: SqliteQueue, open_queue: Opener, clock: FakeClock
) -> None:
    assert queue.oldest_waiting_seconds() == 0
    await queue.put([batch("wiki", range(10))])
    clock.advance(30)
    await queue.put([batch("crm", [1])])
    clock.advance(12)
    assert queue.oldest_waiting_seconds() == pytest.approx(42)
    queue = await reopened(queue, open_queue)
    assert queue.oldest_waiting_seconds() == pytest.approx(42, abs=0.01)
    await lease(queue, "wiki")
    assert queue.oldest_waiting_seconds() == pytest.approx(12, abs=0.01)
    await lease(queue, "crm")
    assert queue.oldest_waiting_seconds() == 0


async def test_the_statistics_are_those_of_the_file(tmp_path: Path, queue: SqliteQueue) -> None:
    await queue.put([batch("wiki", range(25)), batch("crm", range(3))])
    await queue.settle(await lease(queue, "crm"), buried=[Burial(1, "no")])
    stats, truth = await queue.stats(), stored(tmp_path)
    assert {app.app_id: (app.waiting_events, app.waiting_bytes, app.dead_events) for app in stats.apps} == {
        app_id: (share.events, share.bytes, share.dead) for app_id, share in truth.items()
    }
    assert stats.remembered_keys == 28


async def test_every_commit_is_measured(tmp_path: Path, clock: FakeClock) -> None:
    metrics = Metrics()
    queue = sqlite_queue(tmp_path, clock=clock, metrics=metrics)
    await queue.open()
    await asyncio.gather(*(queue.put([batch("wiki", [number])]) for number in range(7)))
    await queue.settle(await lease(queue, "wiki"))
    await queue.close()
    assert metrics.registry.get_sample_value("collector_commit_seconds_count") == 2
    assert metrics.registry.get_sample_value("collector_commit_callers_total") == 8


# Maintenance


async def test_a_key_is_forgotten_after_its_retention_and_at_most_a_24th_later(
    tmp_path: Path, open_queue: Opener, clock: FakeClock
) -> None:
    retention = 240
    queue = await open_queue(dedup_retention_seconds=retention)
    maintenance = asyncio.create_task(queue.maintain())
    put_at: dict[int, float] = {}
    forgotten_after = []
    for second in range(400):
        if second % 40 == 0 and second < 120:
            put_at[second] = clock.monotonic()
            await queue.put([batch("wiki", [second])])
        await tick(clock)
        known = remembered(tmp_path)
        for number, when in list(put_at.items()):
            if key("wiki", number) not in known:
                forgotten_after.append(clock.monotonic() - when)
                del put_at[number]
    assert put_at == {}
    assert len(forgotten_after) == 3
    assert all(retention <= age <= retention * (1 + 1 / PASSES) + 1 for age in forgotten_after)
    assert await queue.put([batch("wiki", [0])]) == [Verdict(1)]
    assert stored(tmp_path)["wiki"].numbers == [0, 40, 80, 0]  # what waits is not touched by forgetting
    maintenance.cancel()
    await asyncio.wait([maintenance])


async def test_a_walk_over_more_keys_than_one_step_covers_reaches_them_all(
    tmp_path: Path, open_queue: Opener, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.queue.sqlite.pruning.MIN_KEYS", 7)
    queue = await open_queue(dedup_retention_seconds=240)
    maintenance = asyncio.create_task(queue.maintain())
    await queue.put([batch("wiki", range(50))])
    clock.advance(235)
    await queue.put([batch("wiki", range(50, 100))])
    left = []
    for _ in range(30):
        await tick(clock)
        left.append(len(remembered(tmp_path)))
    assert left[-1] == 50
    assert len(set(left)) > 4  # in steps
    assert set(remembered(tmp_path)) == {key("wiki", number) for number in range(50, 100)}
    maintenance.cancel()
    await asyncio.wait([maintenance])


@pytest.mark.parametrize("jumps", [[3600], [-3600], [3600, -3600], [-3600, 3600], [-3600, 7200, -3600]], ids=repr)
async def test_no_key_is_forgotten_early_because_the_clock_was_set(
    tmp_path: Path, open_queue: Opener, clock: FakeClock, jumps: list[int]
) -> None:
    retention = 600.0
    queue = await open_queue(dedup_retention_seconds=retention)
    maintenance = asyncio.create_task(queue.maintain())
    put_at: dict[bytes, float] = {}
    for second in range(int(2.2 * retention)):
        if second % 50 == 0 and second < retention:
            await queue.put([batch("wiki", [second])])
            put_at[key("wiki", second)] = clock.monotonic()
        if second % 100 == 99 and jumps:
            clock.jump(jumps.pop(0))
        await tick(clock)
        if second % 25 == 0:
            young = {each for each, when in put_at.items() if clock.monotonic() - when < retention}
            assert young <= remembered(tmp_path).keys()
    assert len(put_at) == 12
    maintenance.cancel()
    await asyncio.wait([maintenance])


@pytest.mark.parametrize("keys", [0, 1_000, 10_000_000, 10**9, 10**12])
def test_no_step_of_forgetting_looks_at_more_keys_however_many_there_are(keys: int) -> None:
    for retention_seconds in (1.0, 4_800.0, 30 * 86_400.0):
        steps, step_keys = PruneWalk(retention_seconds).steps(keys)
        assert 1 <= steps <= MAX_STEPS
        assert MIN_KEYS <= step_keys <= MAX_KEYS
        assert steps * step_keys >= min(keys * PASSES / retention_seconds, MAX_STEPS * MAX_KEYS) - 1


async def test_where_many_keys_are_due_there_are_several_steps_in_a_turn(
    tmp_path: Path, open_queue: Opener, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.queue.sqlite.pruning.MIN_KEYS", 1)
    monkeypatch.setattr("collector.queue.sqlite.pruning.MAX_KEYS", 2)
    queue = await open_queue(dedup_retention_seconds=240)  # a pass takes ten turns: ten of a hundred keys in each
    await queue.put([batch("wiki", range(100))])
    clock.advance(240)
    maintenance = asyncio.create_task(queue.maintain())
    left = []
    for _ in range(3):
        await tick(clock)
        left.append(len(remembered(tmp_path)))
    assert left == [90, 80, 72]
    maintenance.cancel()
    await asyncio.wait([maintenance])


async def test_maintenance_that_fails_is_logged_and_made_up_for_later(
    tmp_path: Path, open_queue: Opener, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    queue = await open_queue(dedup_retention_seconds=24)
    maintenance = asyncio.create_task(queue.maintain())
    await queue.put([batch("wiki", [1])])
    await tick(clock)
    clock.advance(24)
    await on_writer(queue, "PRAGMA busy_timeout = 0")
    with opened(tmp_path) as other:
        other.execute("BEGIN IMMEDIATE")
        await tick(clock)
        other.execute("ROLLBACK")
    assert "queue.maintenance_failed" in caplog.messages
    assert not maintenance.done()
    assert len(remembered(tmp_path)) == 1
    for _ in range(3):
        await tick(clock)
    assert remembered(tmp_path) == {}
    maintenance.cancel()
    await asyncio.wait([maintenance])


async def test_maintenance_leaves_no_trace_in_a_queue_that_is_in_use(
    maintained: SqliteQueue, clock: FakeClock, tmp_path: Path
) -> None:
    await maintained.put([batch("wiki", range(10)), batch("crm", range(3))])
    held = await lease(maintained, "wiki")
    for _ in range(5):
        await tick(clock)
    assert available(maintained) == {"crm": 3}
    await maintained.settle(held, returned=[2])
    await tick(clock)
    assert available(maintained) == {"crm": 3, "wiki": 1}
    assert stored(tmp_path)["wiki"].numbers == [2]


# Damage that is found while the queue runs


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param("UPDATE segment SET lines = CAST(replace(lines, 'opened', 'openee') AS BLOB)", id="a flipped bit"),
        pytest.param("UPDATE segment SET events = events + 1", id="a wrong count"),
        pytest.param("DELETE FROM segment", id="rows that are gone"),
    ],
)
@pytest.mark.parametrize("checked_whole_bytes", [CHECKED_WHOLE_BYTES, 0], ids=["small", "large"])
async def test_a_broken_segment_is_not_leased_ends_the_maintenance_and_is_salvaged_at_the_next_start(
    tmp_path: Path,
    queue: SqliteQueue,
    open_queue: Opener,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    harm: str,
    checked_whole_bytes: int,
) -> None:
    monkeypatch.setattr(ready, "CHECKED_WHOLE_BYTES", checked_whole_bytes)
    maintenance = asyncio.create_task(queue.maintain())
    await queue.put([batch("wiki", range(10))])
    with opened(tmp_path) as other:
        other.execute("DROP TRIGGER segment_gone")
        other.execute("DROP TRIGGER segment_cut")
        other.execute(harm)
    with pytest.raises(QueueDamaged, match="collector queue recover"):
        await queue.lease("wiki", BATCH_EVENTS)
    with pytest.raises(QueueDamaged):
        await asyncio.wait_for(maintenance, PATIENCE_SECONDS)
    await reopened(queue, open_queue)
    (record,) = [record for record in caplog.records if record.getMessage() == "queue.file_salvaged"]
    assert vars(record)["waiting_events"] == (10 if "events + 1" in harm else 0)
    assert vars(record)["waiting_events_before"] in {10, 11}
    assert vars(record)["keys_read"] == 10


async def test_a_put_that_meets_a_broken_page_ends_the_maintenance(
    tmp_path: Path, queue: SqliteQueue, open_queue: Opener
) -> None:
    await queue.put(batches("wiki", range(3000)))
    queue = await reopened(queue, open_queue)
    maintenance = asyncio.create_task(queue.maintain())
    with opened(tmp_path) as other:
        (root,) = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'seen'").fetchone()
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / FILE_NAME).open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    await on_writer(queue, "PRAGMA shrink_memory")
    with pytest.raises(QueueDamaged, match="collector queue recover"):
        await queue.put([batch("wiki", range(3000, 3010))])
    with pytest.raises(QueueDamaged):
        await asyncio.wait_for(maintenance, PATIENCE_SECONDS)


# The files and threads of a queue


async def test_what_waits_is_counted_to_the_byte_over_joined_and_shortened_segments(queue: SqliteQueue) -> None:
    for begin in range(0, 12, 3):
        await queue.put([batch("wiki", [begin]), batch("wiki", [begin + 1]), batch("crm", [begin + 2])])
    await queue.settle(await lease(queue, "wiki"), buried=[Burial(0, "no")], returned=[1, 3])
    assert queue._waiting_bytes == (await queue.stats()).waiting_bytes
    for app_id in ("wiki", "crm"):
        for each in await lease_all(queue, app_id):
            await queue.settle(each)
    assert queue._waiting_bytes == 0


async def test_putting_nothing_stores_nothing(queue: SqliteQueue) -> None:
    assert await queue.put([]) == []
    assert await queue.put([Batch("wiki", b"", b"")]) == [Verdict(0)]
    assert available(queue) == {}


async def test_closing_again_is_harmless_and_the_role_is_free(queue: SqliteQueue, open_queue: Opener) -> None:
    queue.take_flusher_role()
    await queue.close()
    await queue.close()
    (await open_queue()).take_flusher_role()


async def test_a_queue_that_cannot_be_opened_leaves_no_thread_behind(tmp_path: Path, open_queue: Opener) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    before = threading.active_count()
    with pytest.raises(QueueBroken):
        await open_queue()
    assert threading.active_count() == before


# Everything at once


class Ledger:
    """What a model of the queue knows: every event is in one place at a time."""

    def __init__(self) -> None:
        self.known: set[tuple[str, int]] = set()
        self.waiting: set[tuple[str, int]] = set()
        self.held: set[tuple[str, int]] = set()
        self.delivered: set[tuple[str, int]] = set()
        self.buried: dict[tuple[str, int], str] = {}

    async def put(self, queue: Queue, app_id: str, numbers: list[int]) -> None:
        (verdict,) = await queue.put([batch(app_id, numbers)])
        assert verdict.accepted + len(verdict.duplicates) == len(numbers)
        for position, number in enumerate(numbers):
            event = (app_id, number)
            # Others may have put it at the same time; that it is taken once is what the books show at the end.
            assert (position in verdict.duplicates) is (event in self.known)
            self.known.add(event)
            if position not in verdict.duplicates:
                self.waiting.add(event)

    async def lease_and_settle(self, queue: Queue, app_id: str, chance: random.Random, *, abandon: bool) -> None:
        leased = await queue.lease(app_id, BATCH_EVENTS)
        if leased is None:
            return
        events = [(app_id, number) for number in numbers_of(leased)]
        assert not self.held & set(events)
        self.held |= set(events)
        await asyncio.sleep(0)
        if abandon:
            return
        weights = chance.choice([[8, 1, 1], [0, 1, 0], [3, 3, 3]])
        fates = chance.choices(["delivered", "returned", "buried"], weights, k=len(events))
        burials = [Burial(position, f"{position}") for position, fate in enumerate(fates) if fate == "buried"]
        returned = [position for position, fate in enumerate(fates) if fate == "returned"]
        self.held -= set(events)  # before the commit: the moment it is done, another may lease them
        await queue.settle(leased, buried=burials, returned=returned)
        for event, fate in zip(events, fates, strict=True):
            if fate == "delivered":
                self.delivered.add(event)
        self.buried |= {events[burial.position]: burial.reason for burial in burials}
        self.waiting -= {event for event, fate in zip(events, fates, strict=True) if fate != "returned"}


@pytest.mark.parametrize("seed", range(12))
async def test_at_the_end_of_any_history_the_books_balance_and_every_payload_is_intact(
    tmp_path: Path, open_queue: Opener, seed: int
) -> None:
    chance = random.Random(seed)
    ledger = Ledger()
    queue = await open_queue()
    apps = ["wiki", "crm", "chat"]
    fresh = iter(range(10**6))
    for _ in range(chance.randint(2, 4)):  # lives
        for _ in range(25):
            begun: list[Awaitable[None]] = []
            for app_id in chance.choices(apps, k=chance.randint(1, 6)):
                if chance.random() < 0.5:
                    numbers = [next(fresh) for _ in range(chance.randint(1, 2 * BATCH_EVENTS))]
                    old = sorted(number for app, number in ledger.known if app == app_id)
                    numbers += chance.sample(old, min(len(old), chance.randint(0, 3)))
                    chance.shuffle(numbers)
                    begun.append(ledger.put(queue, app_id, numbers))
                else:
                    abandon = chance.random() < 0.1
                    begun.append(ledger.lease_and_settle(queue, app_id, chance, abandon=abandon))
            await asyncio.gather(*begun)
        assert queue.waiting_events == len(ledger.waiting)
        assert sum(available(queue).values()) == len(ledger.waiting) - len(ledger.held)
        queue = await reopened(queue, open_queue)
        ledger.held.clear()

    left = [(app_id, number) for app_id in apps for number in numbers_of(*await lease_all(queue, app_id))]
    assert len(left) == len(set(left))
    assert set(left) == ledger.waiting
    assert len(ledger.known) == len(ledger.delivered) + len(ledger.buried) + len(left)
    assert ledger.known == ledger.delivered | set(ledger.buried) | set(left)
    with opened(tmp_path) as connection:
        dead = connection.execute("SELECT name, reason, line FROM dead JOIN app USING (app)").fetchall()
    assert sorted(dead) == sorted(
        (app_id, reason, line(app_id, number)) for (app_id, number), reason in ledger.buried.items()
    )
    assert set(remembered(tmp_path)) == {key(*event) for event in ledger.known}
    for share in stored(tmp_path).values():
        assert (share.counted_events, share.counted_bytes) == (share.events, share.bytes)


async def test_who_takes_delivery_over_learns_what_was_delivered_before(open_queue: Opener) -> None:
    first, second = await open_queue(), await open_queue()
    first.take_flusher_role()
    await second.put([batch("wiki", [1, 2])])
    await first.refresh()
    lease = await first.lease("wiki", 1000)
    assert lease is not None
    await first.settle(lease)
    first.release_flusher_role()
    second.take_flusher_role()
    await second.refresh()
    assert (list(second.backlog()), second.waiting_events) == ([], 0)
    await second.put([batch("wiki", [3])])
    lease = await second.lease("wiki", 1000)
    assert lease is not None
    assert lease.events == 1


async def test_who_closes_lets_others_settle_only_once_its_own_settlements_are_on_disk(
    tmp_path: Path, open_queue: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = await open_queue()
    queue.take_flusher_role()
    await queue.refresh()
    await queue.put([batch("wiki", [1, 2])])
    leased = await queue.lease("wiki", 1000)
    assert leased is not None
    left: list[list[int]] = []
    begun, goes_on = threading.Event(), threading.Event()
    transact, release = Store.transact, RoleLock.release

    def transact_late(store: Store, operations: Sequence[Operation]) -> Sequence[Done | CollectorError]:
        begun.set()
        assert goes_on.wait(PATIENCE_SECONDS)
        return transact(store, operations)

    def watch(lock: RoleLock) -> None:
        if lock._role == "settler" and lock.is_held:
            left.append(waiting_numbers(tmp_path, "wiki"))
        release(lock)

    monkeypatch.setattr(Store, "transact", transact_late)
    monkeypatch.setattr(RoleLock, "release", watch)
    putting = queue.put([batch("crm", [1])])
    await asyncio.to_thread(begun.wait)
    settling = asyncio.create_task(queue.settle(leased))  # which waits for the commit that is under way
    await asyncio.sleep(0)
    closing = asyncio.create_task(queue.close())
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.gather(putting, settling, closing)
    assert left == [[]]
