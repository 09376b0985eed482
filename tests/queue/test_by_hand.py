"""Dead letters and delivered events by hand, beside an open queue: nothing is lost or doubled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from collector.errors import DeadLettersFull, QueueBroken, QueueDamaged
from collector.queue.base import Burial, Verdict
from collector.queue.by_hand import Choice
from collector.queue.sqlite.by_hand import FileByHand
from collector.queue.sqlite.queue import SqliteQueue
from collector.queue.sqlite.store import Store
from tests.fake_clock import START_MS, FakeClock
from tests.patience import until
from tests.queue import broken
from tests.queue.contract import available, lease, lease_all, numbers_of
from tests.queue.samples import batch, batches, line, numbers_in, opened, remembered, sqlite_queue, stored


@asynccontextmanager
async def running(directory: Path, clock: FakeClock, **settings: Any) -> AsyncIterator[SqliteQueue]:
    queue = sqlite_queue(directory, clock=clock, **settings)
    await queue.open()
    maintenance = asyncio.create_task(queue.maintain())
    yield queue
    maintenance.cancel()
    with suppress(asyncio.CancelledError, QueueDamaged):
        await maintenance
    await queue.close()


async def second_passes(clock: FakeClock) -> None:
    """One round of the maintenance."""
    for _ in range(2):
        await until(lambda: clock.next_due_seconds() is not None)
        clock.advance(1)


async def bury(queue: SqliteQueue, app_id: str, numbers: range, reason: str) -> None:
    await queue.put(batches(app_id, numbers))
    for held in await lease_all(queue, app_id):
        await queue.settle(held, buried=[Burial(position, reason) for position in range(held.events)])


def dead_numbers(directory: Path, choice: Choice) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    with FileByHand(directory) as letters:
        for letter in letters.dead(choice):
            found.setdefault(letter.app_id, []).extend(numbers_in(letter.app_id, letter.lines))
        assert letters.count_dead(choice) == sum(map(len, found.values()))
    return found


@pytest.fixture
async def queue(tmp_path: Path, clock: FakeClock) -> AsyncIterator[SqliteQueue]:
    """A running queue: of two apps, three lots of dead letters, a minute between them."""
    async with running(tmp_path, clock) as queue:
        await bury(queue, "wiki", range(5), "no such day")
        clock.advance(60)
        await bury(queue, "wiki", range(5, 8), "no such person")
        clock.advance(60)
        await bury(queue, "crm", range(4), "no such day")
        yield queue


CHOICES = [
    pytest.param(Choice(), {"wiki": [*range(8)], "crm": [*range(4)]}, id="all"),
    pytest.param(Choice("wiki"), {"wiki": [*range(8)]}, id="by app"),
    pytest.param(Choice("nobody"), {}, id="of nobody"),
    pytest.param(Choice(reason="such day"), {"wiki": [*range(5)], "crm": [*range(4)]}, id="by reason"),
    pytest.param(Choice(since_ms=START_MS + 60_000), {"wiki": [5, 6, 7], "crm": [*range(4)]}, id="since"),
    pytest.param(Choice(until_ms=START_MS + 60_000), {"wiki": [*range(5)]}, id="until"),
    pytest.param(Choice("wiki", "day", number=2), {"wiki": [1]}, id="one"),
]


@pytest.mark.parametrize(("choice", "expected"), CHOICES)
@pytest.mark.usefixtures("queue")
async def test_dead_letters_are_chosen_by_app_reason_and_time(
    tmp_path: Path, choice: Choice, expected: dict[str, list[int]]
) -> None:
    assert dead_numbers(tmp_path, choice) == expected


@pytest.mark.parametrize(("choice", "expected"), CHOICES)
async def test_retried_letters_wait_again_and_a_running_queue_notices_within_a_second(
    tmp_path: Path, queue: SqliteQueue, clock: FakeClock, choice: Choice, expected: dict[str, list[int]]
) -> None:
    known = remembered(tmp_path)
    left = {app: set(numbers) - set(expected.get(app, ())) for app, numbers in dead_numbers(tmp_path, Choice()).items()}
    with FileByHand(tmp_path, for_writing=True) as letters:
        assert letters.retry(choice) == sum(map(len, expected.values()))
    queue.arrivals.clear()
    await second_passes(clock)
    assert queue.arrivals.is_set() is bool(expected)
    assert available(queue) == {app: len(numbers) for app, numbers in expected.items()}
    for app, numbers in expected.items():
        leases = await lease_all(queue, app)
        assert numbers_of(*leases) == numbers
        for each in leases:
            await queue.settle(each)
    assert {app: set(rest) for app, rest in dead_numbers(tmp_path, Choice()).items()} == {
        app: rest for app, rest in left.items() if rest
    }
    assert remembered(tmp_path) == known
    stats = await queue.stats()
    assert (stats.remembered_keys, stats.dead_events) == (12, sum(map(len, left.values())))
    assert await queue.put([batch("wiki", range(8)), batch("crm", range(4))]) == [
        Verdict(0, tuple(range(8))),
        Verdict(0, tuple(range(4))),
    ]


async def test_purged_letters_are_gone_and_what_they_took_is_free(tmp_path: Path, queue: SqliteQueue) -> None:
    with FileByHand(tmp_path, for_writing=True) as letters:
        assert letters.purge(Choice("wiki", "no such day")) == 5
        assert letters.purge(Choice("wiki", "no such day")) == 0
    assert dead_numbers(tmp_path, Choice()) == {"wiki": [5, 6, 7], "crm": [0, 1, 2, 3]}
    stats = await queue.stats()
    assert (stats.dead_events, stats.remembered_keys) == (7, 12)
    assert stats.dead_bytes == sum(
        len(line(app, number)) + 1 + len(reason)
        for app, numbers, reason in (("wiki", range(5, 8), "no such person"), ("crm", range(4), "no such day"))
        for number in numbers
    )
    assert await queue.put([batch("wiki", range(5))]) == [Verdict(0, tuple(range(5)))]


async def test_letters_that_come_after_the_newest_that_was_known_are_not_purged(
    tmp_path: Path, queue: SqliteQueue
) -> None:
    with FileByHand(tmp_path, for_writing=True) as letters:
        choice = Choice("wiki", last=letters.newest_dead())
        count = letters.count_dead(choice)
        await bury(queue, "wiki", range(100, 103), "no such day")
        assert letters.count_dead(choice) == letters.purge(choice) == count
    assert dead_numbers(tmp_path, Choice("wiki")) == {"wiki": [100, 101, 102]}


async def test_many_letters_are_retried_in_steps_and_segments_of_a_batch(tmp_path: Path, clock: FakeClock) -> None:
    async with running(tmp_path, clock) as queue:
        await bury(queue, "wiki", range(2500), "no")
        with FileByHand(tmp_path, for_writing=True) as letters:
            assert letters.retry(Choice()) == 2500
        assert stored(tmp_path)["wiki"].segments == [1000, 1000, 500]
        assert stored(tmp_path)["wiki"].numbers == list(range(2500))
        assert dead_numbers(tmp_path, Choice()) == {}


@pytest.mark.usefixtures("queue")
async def test_two_that_retry_at_once_put_each_letter_back_once(tmp_path: Path) -> None:
    with FileByHand(tmp_path, for_writing=True) as one, FileByHand(tmp_path, for_writing=True) as other:
        stale = list(one.dead(Choice()))
        assert other.retry(Choice("wiki")) == 8
        one.dead = lambda _choice: iter(stale)  # type: ignore[method-assign, assignment]
        assert one.retry(Choice()) == 4
    assert {app: share.events for app, share in stored(tmp_path).items()} == {"wiki": 8, "crm": 4}


@pytest.mark.parametrize("deed", ["retry", "purge", "replay"])
def test_a_crash_at_any_statement_leaves_each_event_in_one_place(tmp_path: Path, deed: str) -> None:
    """What a command moves either waits or is still where it was; what it deletes is gone alone."""
    live = tmp_path / "live"
    with closing(Store(live, batch_events=broken.BATCH_EVENTS, clock=FakeClock())) as store:
        broken.fill(store)
        before = broken.contents(live)
        copies: list[Path] = []
        with FileByHand(live, for_writing=True) as letters:

            def crash(_statement: str) -> None:
                copies.append(broken.copied(live, tmp_path / f"copy{len(copies)}"))

            letters._connection.set_trace_callback(crash)
            assert getattr(letters, deed)(Choice("wiki"))
            letters._connection.set_trace_callback(None)
            crash("")
    states = set()
    for left in copies:
        Store(left, batch_events=broken.BATCH_EVENTS, clock=FakeClock()).close()
        after = broken.contents(left)
        states.add(after.counts)
        assert after.keys == before.keys
        lost = {event for event in before.events - after.events if deed != "purge" or event not in before.dead}
        assert not lost
        assert after.events <= before.events
        assert deed == "purge" or sum(after.counts) == sum(before.counts)
    assert len(states) > 1
    assert before.counts in states


# Delivered events


async def test_what_was_delivered_is_kept_as_long_as_asked_and_then_pruned(tmp_path: Path, clock: FakeClock) -> None:
    async with running(tmp_path, clock, keep_delivered_seconds=100) as queue:
        await queue.put([batch("wiki", range(10))])
        await queue.settle(await lease(queue, "wiki"), buried=[Burial(0, "no")], returned=[8, 9])
        with FileByHand(tmp_path) as letters:
            (kept,) = letters.delivered(Choice())
        assert numbers_in("wiki", kept.lines) == [1, 2, 3, 4, 5, 6, 7]
        stats = await queue.stats()
        assert (stats.waiting_events, stats.kept_events, stats.dead_events) == (2, 7, 1)
        clock.advance(95)
        await second_passes(clock)
        assert (await queue.stats()).kept_events == 7
        clock.advance(10)
        await second_passes(clock)
        assert (await queue.stats()).kept_events == 0


async def test_what_is_kept_outlives_a_clock_that_is_ahead_for_a_moment(tmp_path: Path, clock: FakeClock) -> None:
    async with running(tmp_path, clock, keep_delivered_seconds=60) as queue:
        await queue.put([batch("wiki", range(10))])
        await queue.settle(await lease(queue, "wiki"))
        clock.jump(3600)
        await second_passes(clock)
        clock.jump(-3600)
        assert (await queue.stats()).kept_events == 10


async def test_nothing_is_kept_where_nobody_asked_for_it(tmp_path: Path, clock: FakeClock) -> None:
    async with running(tmp_path, clock) as queue:
        await queue.put([batch("wiki", range(10))])
        await queue.settle(await lease(queue, "wiki"))
        with opened(tmp_path) as connection:
            assert connection.execute("SELECT * FROM delivered").fetchall() == []


async def test_a_replay_that_is_overtaken_takes_no_later_row_that_has_the_number_of_one_that_is_gone(
    tmp_path: Path, clock: FakeClock
) -> None:
    async with running(tmp_path, clock, keep_delivered_seconds=10**6) as queue:
        await queue.put([batch("wiki", range(10))])
        await queue.settle(await lease(queue, "wiki"))
        with FileByHand(tmp_path, for_writing=True) as one, FileByHand(tmp_path, for_writing=True) as other:
            stale = list(one.delivered(Choice()))
            assert other.replay(Choice()) == 10
            await second_passes(clock)
            clock.advance(1)
            await queue.settle(await lease(queue, "wiki"))
            one.delivered = lambda _choice: iter(stale)  # type: ignore[method-assign, assignment]
            assert one.replay(Choice()) == 0
        stats = await queue.stats()
        assert (stats.waiting_events, stats.kept_events) == (0, 10)


async def test_replayed_events_of_a_time_and_an_app_wait_again_once(tmp_path: Path, clock: FakeClock) -> None:
    async with running(tmp_path, clock, keep_delivered_seconds=10**6) as queue:
        for begin in range(0, 40, 10):
            await queue.put([batch("wiki", range(begin, begin + 10)), batch("crm", range(begin, begin + 10))])
            for app in ("wiki", "crm"):
                await queue.settle(await lease(queue, app))
            clock.advance(60)
        choice = Choice("wiki", since_ms=START_MS + 60_000, until_ms=START_MS + 180_000)
        with FileByHand(tmp_path, for_writing=True) as letters:
            assert letters.count_delivered(choice) == 20
            assert letters.replay(choice) == 20
            assert letters.replay(choice) == 0
        await second_passes(clock)
        leases = await lease_all(queue, "wiki")
        assert numbers_of(*leases) == list(range(10, 30))
        assert available(queue) == {}
        for each in leases:
            await queue.settle(each)
        stats = await queue.stats()
        assert (stats.kept_events, stats.remembered_keys) == (80, 80)


# The bound


async def test_above_the_bound_nothing_is_buried_until_there_is_room(tmp_path: Path, clock: FakeClock) -> None:
    size = len(line("wiki", 0)) + 1 + len("no")
    async with running(tmp_path, clock, max_dead_bytes=size) as queue:
        await queue.put([batch("wiki", range(0, 14, 7))])
        held = await lease(queue, "wiki")
        with pytest.raises(DeadLettersFull, match=r"queue\.max_dead_bytes = \d+ .*: no\. .*collector queue dead"):
            await queue.settle(held, buried=[Burial(0, "no"), Burial(1, "no")])
        await queue.settle(held, buried=[Burial(0, "no")], returned=[1])
        held = await lease(queue, "wiki")
        with pytest.raises(DeadLettersFull):
            await queue.settle(held, buried=[Burial(0, "no")])
        with FileByHand(tmp_path, for_writing=True) as letters:
            assert letters.purge(Choice()) == 1
        await second_passes(clock)
        await queue.settle(held, buried=[Burial(0, "no")])
        assert (await queue.stats()).dead_bytes <= size + 1


# Files


@pytest.mark.usefixtures("queue")
async def test_a_flipped_bit_in_a_letter_is_not_put_back(tmp_path: Path) -> None:
    with opened(tmp_path) as connection:
        connection.execute("UPDATE dead SET line = CAST(replace(line, 'opened', 'openee') AS BLOB) WHERE dead = 3")
    with FileByHand(tmp_path, for_writing=True) as letters, pytest.raises(QueueDamaged, match="row 3"):
        letters.retry(Choice())
    assert dead_numbers(tmp_path, Choice(number=2)) == {"wiki": [1]}


@pytest.mark.parametrize("for_writing", [False, True])
def test_where_there_is_no_queue_none_is_made(tmp_path: Path, for_writing: bool) -> None:
    with pytest.raises(QueueBroken, match="does not exist"):
        FileByHand(tmp_path, for_writing=for_writing)
    assert list(tmp_path.iterdir()) == []
