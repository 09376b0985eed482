"""What a queue keeps over its lives, shares with other processes, refuses and forgets; and a model to hold it to."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from collector.errors import QueueBusy, QueueFull
from collector.observe.metrics import Metrics
from collector.queue.base import Burial, Lease, Verdict
from collector.queue.sqlite import BUSY_RETRY_AFTER_SECONDS, FULL_RETRY_AFTER_SECONDS, PRUNE_PASSES, SqliteQueue
from tests.fake_clock import FakeClock
from tests.queue.samples import (
    batch,
    child,
    hear,
    key,
    line,
    lines,
    numbers_in,
    opened,
    remembered,
    stored,
    tell,
    waiting_numbers,
)

BATCH_EVENTS = 10
APPS = ("wiki", "crm", "chat")
PATIENCE_SECONDS = 30  # a backstop for what is broken; nothing that works comes near it
Opener = Callable[..., Awaitable[SqliteQueue]]

OTHER_PROCESS = f"""
import asyncio, sys
from pathlib import Path
from collector.clock import Clock
from collector.observe.metrics import Metrics
from collector.queue.sqlite import SqliteQueue
from tests.queue.samples import batch

async def main():
    queue = SqliteQueue(Path(sys.argv[1]), batch_events={BATCH_EVENTS}, max_bytes=10**6, max_uncommitted_bytes=10**6,
                        dedup_retention_seconds=86400, clock=Clock(), metrics=Metrics())
    await queue.open()
    for words in sys.stdin:
        app, first, last = words.split()
        verdicts = await queue.put([batch(app, range(int(first), int(last)))])
        print(verdicts[0].accepted, flush=True)
    await queue.close()

asyncio.run(main())
"""


@pytest.fixture
async def open_queue(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Opener]:
    """Opens queues on the test's directory; those that the test does not close are closed at its end."""
    async with AsyncExitStack() as stack:

        async def open_one(
            *, max_bytes: int = 10**6, max_uncommitted_bytes: int = 10**6, retention_seconds: float = 86_400
        ) -> SqliteQueue:
            queue = SqliteQueue(
                tmp_path,
                batch_events=BATCH_EVENTS,
                max_bytes=max_bytes,
                max_uncommitted_bytes=max_uncommitted_bytes,
                dedup_retention_seconds=retention_seconds,
                clock=clock,
                metrics=Metrics(),
            )
            await queue.open()
            stack.push_async_callback(close, queue)
            return queue

        yield open_one


async def close(queue: SqliteQueue) -> None:
    if not queue._writer_thread._shutdown:
        await queue.close()


async def until(come: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not come():  # noqa: ASYNC110 -- nothing sets an event when the queue's threads are done
            await asyncio.sleep(0)


async def lease(queue: SqliteQueue, app_id: str = "wiki") -> Lease:
    lease = await queue.lease(app_id, BATCH_EVENTS)
    assert lease is not None
    return lease


async def lease_all(queue: SqliteQueue, app_id: str = "wiki") -> list[int]:
    """The numbers of all that could be leased, in order."""
    numbers: list[int] = []
    while held := await queue.lease(app_id, BATCH_EVENTS):
        numbers += numbers_in(app_id, held.lines)
    return numbers


def dead_lines(directory: Path) -> list[bytes]:
    with opened(directory) as connection:
        return [row[0] for row in connection.execute("SELECT line FROM dead")]


class Maintenance:
    """`maintain` at work, one tick after another."""

    def __init__(self, queue: SqliteQueue, clock: FakeClock) -> None:
        self._clock = clock
        self.task = asyncio.create_task(queue.maintain())

    async def tick(self, count: int = 1) -> None:
        for _ in range(count):
            await until(lambda: self._clock.next_due_seconds() is not None)
            self._clock.advance(1)
            async with asyncio.timeout(PATIENCE_SECONDS):
                for _ in range(20):  # it has woken
                    await asyncio.sleep(0)
            await until(lambda: self._clock.next_due_seconds() is not None or self.task.done())
            assert not self.task.done()


@pytest.fixture
async def maintenance(clock: FakeClock) -> AsyncIterator[Callable[[SqliteQueue], Maintenance]]:
    begun: list[Maintenance] = []

    def begin(queue: SqliteQueue) -> Maintenance:
        begun.append(Maintenance(queue, clock))
        return begun[-1]

    yield begin
    for one in begun:
        one.task.cancel()
    await asyncio.gather(*(one.task for one in begun), return_exceptions=True)


async def test_the_next_life_has_everything_that_was_not_settled_and_every_key(
    open_queue: Opener, tmp_path: Path
) -> None:
    queue = await open_queue()
    for begin in (0, 10, 20, 30):
        await queue.put([batch("wiki", range(begin, begin + 10)), batch("crm", [begin])])
    await queue.settle(await lease(queue), buried=[Burial(0, "no such day")], returned=[3, 4])
    await lease(queue)
    await queue.settle(await lease(queue))
    await queue.close()
    assert remembered(tmp_path).keys() == {key("wiki", n) for n in range(40)} | {key("crm", n) for n in (0, 10, 20, 30)}

    queue = await open_queue()
    waiting = [3, 4, *range(20, 40)]  # the returned were leased again and never settled, the lease after them was
    assert waiting_numbers(tmp_path, "wiki") == waiting
    assert queue.waiting_events == len(waiting) + 4
    assert await lease_all(queue) == waiting
    assert await lease_all(queue, "crm") == [0, 10, 20, 30]
    assert await queue.put([batch("wiki", range(41))]) == [Verdict(1, tuple(range(40)))]
    assert dead_lines(tmp_path) == [line("wiki", 0)]


async def test_closing_waits_for_puts_that_were_begun(open_queue: Opener) -> None:
    queue = await open_queue()
    puts = [asyncio.create_task(queue.put([batch("wiki", [number])])) for number in range(50)]
    await asyncio.sleep(0)
    await queue.close()
    assert await asyncio.gather(*puts) == [[Verdict(1)]] * 50
    assert sorted(await lease_all(await open_queue())) == list(range(50))


async def test_the_age_of_what_waits_survives_a_restart(open_queue: Opener, clock: FakeClock) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", [1])])
    await queue.close()
    clock.advance(60)
    queue = await open_queue()
    assert queue.oldest_waiting_seconds() == pytest.approx(60)


async def test_what_another_process_puts_is_noticed_and_delivered_here(
    open_queue: Opener, maintenance: Callable[[SqliteQueue], Maintenance], tmp_path: Path
) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", range(10))])
    work = maintenance(queue)
    with child(OTHER_PROCESS, tmp_path) as other:
        tell(other, "wiki 5 20")
        assert hear(other) == "10"
        tell(other, "crm 0 5")
        assert hear(other) == "5"
        assert queue.waiting_events == 10
        queue.arrivals.clear()
        await work.tick()
        assert queue.waiting_events == 25
        assert queue.arrivals.is_set()
        held = await lease(queue)
        tell(other, "wiki 20 30")
        assert hear(other) == "10"
        await work.tick()
        assert {each.app_id: each.events for each in queue.backlog()} == {"wiki": 20, "crm": 5}
        await queue.settle(held)
        assert await lease_all(queue) == list(range(10, 30))
        assert await lease_all(queue, "crm") == list(range(5))
        assert await queue.put([batch("wiki", range(10, 31))]) == [Verdict(1, tuple(range(20)))]
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait(PATIENCE_SECONDS) == 0


async def test_a_full_queue_refuses_until_delivery_frees_room(open_queue: Opener, tmp_path: Path) -> None:
    size = len(lines("wiki", range(10)))
    queue = await open_queue(max_bytes=size)
    await queue.put([batch("wiki", range(10))])
    with pytest.raises(QueueFull) as caught:
        await queue.put([batch("wiki", [10])])
    assert caught.value.retry_after_seconds == FULL_RETRY_AFTER_SECONDS
    assert waiting_numbers(tmp_path, "wiki") == list(range(10))
    assert key("wiki", 10) not in remembered(tmp_path)
    await queue.settle(await lease(queue))
    assert await queue.put([batch("wiki", range(10, 17))]) == [Verdict(7)]


async def test_a_queue_that_was_full_is_still_full_after_a_restart(open_queue: Opener) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", range(10))])
    await queue.close()
    queue = await open_queue(max_bytes=len(lines("wiki", range(10))))
    with pytest.raises(QueueFull):
        await queue.put([batch("wiki", [10])])


async def test_a_queue_with_too_much_uncommitted_refuses_until_the_commit(open_queue: Opener) -> None:
    size = len(lines("wiki", range(10)))
    queue = await open_queue(max_uncommitted_bytes=size)
    first = asyncio.create_task(queue.put([batch("wiki", range(10))]))
    await asyncio.sleep(0)
    assert queue.uncommitted_bytes == size
    with pytest.raises(QueueBusy) as caught:
        await queue.put([batch("wiki", [10])])
    assert caught.value.retry_after_seconds == BUSY_RETRY_AFTER_SECONDS
    assert await first == [Verdict(10)]
    assert queue.uncommitted_bytes == 0
    assert await queue.put([batch("wiki", [10])]) == [Verdict(1)]


async def test_a_key_is_known_for_its_retention_and_forgotten_soon_after(
    open_queue: Opener, maintenance: Callable[[SqliteQueue], Maintenance]
) -> None:
    retention = 240
    queue = await open_queue(retention_seconds=retention)
    for begin in range(0, 2500, 10):
        await queue.put([batch("wiki", range(begin, begin + 10))])
    work = maintenance(queue)
    await work.tick(120)
    await queue.put([batch("wiki", range(3000, 3010))])
    await work.tick(retention - 120)
    assert (await queue.stats()).remembered_keys == 2510
    assert await queue.put([batch("wiki", range(10))]) == [Verdict(0, tuple(range(10)))]
    await work.tick(retention // PRUNE_PASSES + 5)
    assert (await queue.stats()).remembered_keys == 10
    assert queue.waiting_events == 2510, "what waits is kept, its key or not"
    assert await queue.put([batch("wiki", [1, 3000])]) == [Verdict(1, (1,))]


@pytest.mark.parametrize("seed", range(20))
async def test_accepted_is_delivered_buried_or_waiting_whatever_happens(
    open_queue: Opener, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    queue = await open_queue()
    accepted: set[tuple[str, int]] = set()
    delivered: list[tuple[str, int]] = []
    buried: list[tuple[str, int]] = []
    held: list[Lease] = []

    async def put_some() -> None:
        batches = []
        for _ in range(chance.randint(1, 4)):
            app = chance.choice(APPS)
            numbers = chance.sample(range(400), chance.randint(1, BATCH_EVENTS))
            batches.append((app, numbers))
        verdicts = await queue.put([batch(app, numbers) for app, numbers in batches])
        for (app, numbers), verdict in zip(batches, verdicts, strict=True):
            known = tuple(position for position, number in enumerate(numbers) if (app, number) in accepted)
            assert verdict == Verdict(len(numbers) - len(known), known)
            accepted.update((app, number) for number in numbers)

    async def lease_some() -> None:
        got = await queue.lease(chance.choice(APPS), BATCH_EVENTS)
        if got is not None:
            assert got.events == len(numbers_in(got.app_id, got.lines))
            held.append(got)

    async def settle_one() -> None:
        if not held:
            return
        one = held.pop(chance.randrange(len(held)))
        fates = chance.choices(
            "dbr", chance.choice([(1, 0, 0), (0, 0, 1), (0, 1, 0), (3, 1, 2), (9, 1, 0)]), k=one.events
        )
        numbers = [(one.app_id, number) for number in numbers_in(one.app_id, one.lines)]
        await queue.settle(
            one,
            buried=[Burial(position, "refused") for position, fate in enumerate(fates) if fate == "b"],
            returned=[position for position, fate in enumerate(fates) if fate == "r"],
        )
        delivered.extend(number for number, fate in zip(numbers, fates, strict=True) if fate == "d")
        buried.extend(number for number, fate in zip(numbers, fates, strict=True) if fate == "b")

    for _ in range(150):
        await chance.choice([put_some, lease_some, settle_one])()
        now_held = [(each.app_id, number) for each in held for number in numbers_in(each.app_id, each.lines)]
        assert len(now_held) == len(set(now_held))
        if chance.random() < 0.03:  # a new life: what was leased waits again
            await queue.close()
            held.clear()
            queue = await open_queue()
    waiting = [(app, number) for app in APPS for number in waiting_numbers(tmp_path, app)]
    assert sorted(accepted) == sorted([*delivered, *buried, *waiting])
    assert sorted(dead_lines(tmp_path)) == sorted(line(app, number) for app, number in buried)
    for share in stored(tmp_path).values():
        assert (share.counted_events, share.counted_bytes, share.counted_dead) == (
            share.events,
            share.bytes,
            share.dead,
        )
    leased = [(each.app_id, number) for each in held for number in numbers_in(each.app_id, each.lines)]
    rest = [(app, number) for app in APPS for number in await lease_all(queue, app)]
    assert sorted([*leased, *rest]) == sorted(waiting)
