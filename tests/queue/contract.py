"""What any implementation of `Queue` must show.

A test class of its own inherits from `QueueContract` and provides the fixture `queue`: open, empty, with batches of
`BATCH_EVENTS` events, on the fixture `clock`, and willing to hold a megabyte. A lease may cover fewer events than were
asked for, or whole stored groups of them; the contract is about which events, in which order, and how often.
"""

import asyncio
from collections.abc import Sequence

import pytest

from collector.queue.base import Burial, Lease, Queue, Verdict
from tests.fake_clock import FakeClock
from tests.queue.samples import batch, numbers_in

BATCH_EVENTS = 10


async def lease(queue: Queue, app_id: str) -> Lease:
    """An app's next lease; there is one."""
    lease = await queue.lease(app_id, BATCH_EVENTS)
    assert lease is not None
    assert (lease.app_id, lease.events) == (app_id, lease.lines.count(b"\n") + 1)
    return lease


async def lease_all(queue: Queue, app_id: str) -> list[Lease]:
    """Leases of all that an app has to lease."""
    leases = []
    while one := await queue.lease(app_id, BATCH_EVENTS):
        leases.append(one)
    return leases


def numbers_of(*leases: Lease) -> list[int]:
    """The numbers of the events that leases cover, each of them as it was put."""
    return [number for lease in leases for number in numbers_in(lease.app_id, lease.lines)]


def available(queue: Queue) -> dict[str, int]:
    """How many events of each app could be leased."""
    return {backlog.app_id: backlog.events for backlog in queue.backlog()}


class QueueContract:
    """Inherit from it; see above."""

    # put

    @pytest.mark.parametrize(
        ("before", "batches", "verdicts", "waiting"),
        [
            pytest.param([], [[1, 2, 3]], [Verdict(3)], [1, 2, 3], id="all new"),
            pytest.param([1, 2], [[1, 2]], [Verdict(0, (0, 1))], [1, 2], id="all known"),
            pytest.param([2], [[1, 2, 3]], [Verdict(2, (1,))], [2, 1, 3], id="one known"),
            pytest.param([], [[1, 1, 2, 1]], [Verdict(2, (1, 3))], [1, 2], id="twice in a batch"),
            pytest.param([], [[1, 2], [2, 3]], [Verdict(2), Verdict(1, (0,))], [1, 2, 3], id="in two batches"),
        ],
    )
    async def test_each_batch_gets_its_verdict_and_each_event_is_kept_once(
        self,
        queue: Queue,
        before: list[int],
        batches: list[list[int]],
        verdicts: list[Verdict],
        waiting: list[int],
    ) -> None:
        if before:
            await queue.put([batch("wiki", before)])
        assert await queue.put([batch("wiki", numbers) for numbers in batches]) == verdicts
        assert numbers_of(*await lease_all(queue, "wiki")) == waiting

    async def test_the_same_event_of_another_app_is_another_event(self, queue: Queue) -> None:
        assert await queue.put([batch("wiki", [1]), batch("crm", [1])]) == [Verdict(1), Verdict(1)]
        assert await queue.put([batch("crm", [1, 2])]) == [Verdict(1, (0,))]

    async def test_of_many_callers_that_put_the_same_event_at_once_one_is_told_that_it_is_new(
        self, queue: Queue
    ) -> None:
        verdicts = await asyncio.gather(*(queue.put([batch("wiki", [1, 100 + caller])]) for caller in range(20)))
        assert sorted(verdict.duplicates for (verdict,) in verdicts) == [(), *[(0,)] * 19]
        assert sorted(numbers_of(*await lease_all(queue, "wiki"))) == [1, *range(100, 120)]

    @pytest.mark.parametrize("turns", [1, 2, 5])
    async def test_a_cancelled_caller_leaves_all_of_its_events_behind_and_they_are_known(
        self, queue: Queue, turns: int
    ) -> None:
        caller = asyncio.ensure_future(queue.put([batch("wiki", [1]), batch("crm", [1])]))
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        assert await queue.put([batch("wiki", [1]), batch("crm", [1])]) == [Verdict(0, (0,)), Verdict(0, (0,))]
        assert numbers_of(await lease(queue, "wiki"), await lease(queue, "crm")) == [1, 1]

    # lease

    async def test_an_app_that_has_nothing_has_no_lease(self, queue: Queue) -> None:
        assert await queue.lease("wiki", BATCH_EVENTS) is None
        await queue.put([batch("crm", [1])])
        assert await queue.lease("wiki", BATCH_EVENTS) is None

    async def test_each_app_is_leased_by_itself_in_the_order_of_arrival(self, queue: Queue) -> None:
        for begin in (40, 0, 20):
            await queue.put([batch("wiki", range(begin, begin + 10)), batch("crm", range(begin + 5, begin + 8))])
        assert numbers_of(*await lease_all(queue, "wiki")) == [*range(40, 50), *range(10), *range(20, 30)]
        assert numbers_of(*await lease_all(queue, "crm")) == [45, 46, 47, 5, 6, 7, 25, 26, 27]

    async def test_nothing_is_leased_twice_however_many_ask_at_once(self, queue: Queue) -> None:
        for begin in range(0, 100, 10):
            await queue.put([batch("wiki", range(begin, begin + 10))])
        leases = await asyncio.gather(*(queue.lease("wiki", BATCH_EVENTS) for _ in range(30)))
        assert sorted(numbers_of(*filter(None, leases))) == list(range(100))

    async def test_what_arrives_while_a_lease_lasts_is_leased_after_it(self, queue: Queue) -> None:
        await queue.put([batch("wiki", range(10))])
        first = await lease(queue, "wiki")
        await queue.put([batch("wiki", range(5, 15))])
        assert numbers_of(first, *await lease_all(queue, "wiki")) == list(range(15))

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 10])
    async def test_a_lease_whose_caller_was_cancelled_is_held_by_nobody(self, queue: Queue, turns: int) -> None:
        await queue.put([batch("wiki", range(10))])
        caller = asyncio.create_task(queue.lease("wiki", BATCH_EVENTS))
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        leases = [] if caller.cancelled() else [caller.result()]
        assert numbers_of(*filter(None, leases), *await lease_all(queue, "wiki")) == list(range(10))

    # settle

    async def test_what_was_delivered_is_gone_and_still_known(self, queue: Queue) -> None:
        await queue.put([batch("wiki", range(10))])
        await queue.settle(await lease(queue, "wiki"))
        assert await queue.lease("wiki", BATCH_EVENTS) is None
        assert available(queue) == {}
        assert await queue.put([batch("wiki", range(11))]) == [Verdict(1, tuple(range(10)))]

    @pytest.mark.parametrize(
        ("buried", "returned"),
        [
            pytest.param([], [], id="all delivered"),
            pytest.param(range(10), [], id="all buried"),
            pytest.param([], range(10), id="all returned"),
            pytest.param([3], [], id="one buried"),
            pytest.param([], [9], id="the last returned"),
            pytest.param([0], [1], id="a bit of each"),
            pytest.param([1, 5], [0, 2, 4, 6, 8], id="more of each"),
            pytest.param([0, 2, 4, 6, 8], [9, 7, 5, 3, 1], id="nothing delivered, returned in any order"),
        ],
    )
    async def test_a_settled_lease_leaves_what_was_returned_and_nothing_else(
        self, queue: Queue, buried: Sequence[int], returned: Sequence[int]
    ) -> None:
        await queue.put([batch("wiki", range(10))])
        held = await lease(queue, "wiki")
        await queue.put([batch("wiki", range(10, 20))])
        burials = [Burial(position, f"refused {position}") for position in buried]
        await queue.settle(held, buried=burials, returned=list(returned))
        assert available(queue) == {"wiki": len(returned) + 10}
        assert numbers_of(*await lease_all(queue, "wiki")) == [*sorted(returned), *range(10, 20)]
        assert available(queue) == {}
        assert await queue.put([batch("wiki", range(20))]) == [Verdict(0, tuple(range(20)))]

    async def test_what_was_returned_can_be_returned_in_part_again_and_again(self, queue: Queue) -> None:
        await queue.put([batch("wiki", range(10))])
        expected = list(range(10))
        while expected:
            held = await lease(queue, "wiki")
            assert numbers_of(held) == expected
            await queue.settle(held, returned=range(held.events))
            held = await lease(queue, "wiki")
            assert numbers_of(held) == expected
            expected = expected[1::2]
            await queue.settle(held, returned=range(1, held.events, 2))
        assert await queue.lease("wiki", BATCH_EVENTS) is None

    async def test_leases_that_return_in_another_order_come_again_in_the_first(self, queue: Queue) -> None:
        for begin in (0, 10, 20, 30):
            await queue.put([batch("wiki", range(begin, begin + 10))])
        held = [await lease(queue, "wiki") for _ in range(3)]
        assert numbers_of(*held) == list(range(30))
        for each in (held[1], held[2], held[0]):
            await queue.settle(each, returned=range(1, each.events))
        again = [number for number in range(30) if number % 10]
        assert numbers_of(*await lease_all(queue, "wiki")) == [*again, *range(30, 40)]

    async def test_settling_one_lease_leaves_the_others_held(self, queue: Queue) -> None:
        await queue.put([batch("wiki", range(10))])
        await queue.put([batch("wiki", range(10, 20)), batch("crm", range(10))])
        first, second, other = await lease(queue, "wiki"), await lease(queue, "wiki"), await lease(queue, "crm")
        await queue.settle(second)
        assert available(queue) == {}
        await queue.settle(other, returned=[1])
        assert available(queue) == {"crm": 1}
        await queue.settle(first, returned=[0])
        assert available(queue) == {"crm": 1, "wiki": 1}
        assert numbers_of(*await lease_all(queue, "wiki")) == [0]

    async def test_puts_and_settlements_at_once_leave_the_counts_right(self, queue: Queue) -> None:
        await queue.put([batch("wiki", range(10))])
        for begin in range(10, 200, 10):
            held = await lease(queue, "wiki")
            both = [queue.settle(held), queue.put([batch("wiki", range(begin, begin + 10))])]
            await asyncio.gather(*(both if begin % 20 else both[::-1]))
            assert available(queue) == {"wiki": 10}
        await queue.settle(await lease(queue, "wiki"))
        assert await queue.lease("wiki", BATCH_EVENTS) is None

    # backlog and arrivals

    async def test_the_backlog_is_what_nobody_holds(self, queue: Queue) -> None:
        assert available(queue) == {}
        await queue.put([batch("wiki", range(10)), batch("crm", [1])])
        assert available(queue) == {"wiki": 10, "crm": 1}
        held = await lease(queue, "wiki")
        assert available(queue) == {"crm": 1}
        await queue.put([batch("wiki", [5, 10, 11])])
        assert available(queue) == {"crm": 1, "wiki": 2}
        await queue.settle(held, returned=[0, 1])
        assert available(queue) == {"crm": 1, "wiki": 4}

    async def test_what_waits_of_an_app_counts_what_is_leased_and_not_what_is_settled(self, queue: Queue) -> None:
        assert queue.waiting_events_of("wiki") == 0
        await queue.put([batch("wiki", range(10)), batch("crm", [1])])
        held = await lease(queue, "wiki")
        await queue.put([batch("wiki", [5, 10, 11])])
        assert queue.waiting_events_of("wiki") == 12
        await queue.settle(held, buried=[Burial(2, "no such day")], returned=[0, 1])
        assert queue.waiting_events_of("wiki") == 4
        assert queue.waiting_events_of("crm") == 1

    async def test_the_backlog_says_since_when_the_oldest_waits(self, queue: Queue, clock: FakeClock) -> None:
        def waiting_since() -> dict[str, float]:
            return {backlog.app_id: round(backlog.waiting_since - began, 3) for backlog in queue.backlog()}

        clock.advance(100)
        began = clock.monotonic()
        await queue.put([batch("wiki", range(10))])
        clock.advance(5)
        await queue.put([batch("wiki", range(10, 15)), batch("crm", [1])])
        clock.advance(2)
        assert waiting_since() == {"wiki": 0, "crm": 5}
        assert numbers_of(await lease(queue, "wiki")) == list(range(10))
        assert waiting_since() == {"wiki": 5, "crm": 5}
        await lease(queue, "wiki")
        await queue.put([batch("wiki", [99])])
        assert waiting_since() == {"wiki": 7, "crm": 5}

    async def test_a_first_arrival_is_signalled(self, queue: Queue) -> None:
        queue.arrivals.clear()
        await queue.put([batch("wiki", [1])])
        assert queue.arrivals.is_set()
        await lease(queue, "wiki")
        queue.arrivals.clear()
        await queue.put([batch("wiki", [2])])
        assert queue.arrivals.is_set()

    async def test_the_arrival_that_fills_a_batch_is_signalled(self, queue: Queue) -> None:
        await queue.put([batch("wiki", range(BATCH_EVENTS - 1))])
        queue.arrivals.clear()
        await queue.put([batch("wiki", [BATCH_EVENTS])])
        assert queue.arrivals.is_set()

    @pytest.mark.parametrize("returned", [range(10), range(3)], ids=["all", "some"])
    async def test_a_return_is_signalled(self, queue: Queue, returned: range) -> None:
        await queue.put([batch("wiki", range(10))])
        held = await lease(queue, "wiki")
        queue.arrivals.clear()
        await queue.settle(held, returned=returned)
        assert queue.arrivals.is_set()
