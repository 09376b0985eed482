"""Every event that waits is delivered once, buried with a reason, or waits on: whatever upstream answers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from math import log
from operator import itemgetter
from pathlib import Path

import pytest

from collector.errors import (
    AppUnusable,
    CollectorError,
    CredentialsRefused,
    PartlyRejected,
    QueueUnavailable,
    Rejected,
    Retryable,
    TooLarge,
    Unanswered,
)
from collector.flusher import BATCH_REGROWTH, Flusher
from collector.observe.metrics import Metrics
from collector.pace import Pace
from collector.parcel import SUSPICIOUS_BURIALS
from collector.queue.base import Backlog, Burial, Lease
from collector.queue.limits import Limits
from collector.queue.sqlite.queue import SqliteQueue
from collector.retry_schedule import Delays
from tests.fake_clock import FakeClock
from tests.patience import PATIENCE_SECONDS, until
from tests.queue.samples import batch, line, numbers_in, opened, waiting_numbers

BATCH_EVENTS = 1000
LINGER_SECONDS = 10.0
MAX_IN_FLIGHT = 3
HOLD_RETRY_SECONDS = 300.0
MAX_DEAD_BYTES = 20_000


async def turns(count: int = 20) -> None:
    """Lets the loop run a little: whoever was woken has gone on."""
    for _ in range(count):
        await asyncio.sleep(0)


class WatchedClock(FakeClock):
    """Knows which events are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for: Counter[asyncio.Event] = Counter()

    async def wait(self, event: asyncio.Event, timeout_seconds: float | None) -> bool:
        self.waited_for[event] += 1
        try:
            return await super().wait(event, timeout_seconds)
        finally:
            self.waited_for[event] -= 1


class Upstream:
    """A publisher that answers as the test says, and remembers what it was sent and what it took."""

    def __init__(self, clock: FakeClock) -> None:
        self.answer: Callable[[str, list[int]], Exception | None] = lambda _app, _numbers: None
        self.takes_seconds: Callable[[str], float] = lambda _app: 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.requests: list[tuple[float, str, list[int]]] = []
        self.taken: dict[str, list[int]] = {}
        self.at_once = 0
        self.most_at_once = 0
        self.behind_gate = 0
        self.company: list[int] = []
        self._clock = clock

    async def publish(self, app_id: str, lines: bytes, events: int) -> float:
        numbers = numbers_in(app_id, lines)
        assert len(numbers) == events
        self.requests.append((self._clock.monotonic(), app_id, numbers))
        began = self._clock.monotonic()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.company.append(self.at_once)
        try:
            if seconds := self.takes_seconds(app_id):
                self.behind_gate += 1
                await self._clock.sleep(seconds)
                self.behind_gate -= 1
            if not self.gate.is_set():
                self.behind_gate += 1
                await self.gate.wait()
                self.behind_gate -= 1
            await asyncio.sleep(0)
            error = self.answer(app_id, numbers)
            if error is not None:
                raise error
            self.taken.setdefault(app_id, []).extend(numbers)
            return self._clock.monotonic() - began
        finally:
            self.at_once -= 1

    def sizes(self, app_id: str = "wiki") -> list[int]:
        """How many events each request for an app held."""
        return [len(numbers) for _, app, numbers in self.requests if app == app_id]

    def times(self, app_id: str = "wiki") -> list[float]:
        """When each request for an app was made."""
        return [when for when, app, _ in self.requests if app == app_id]

    def refuse(self, bad: Iterable[int], error: Callable[[str], CollectorError] = Rejected) -> None:
        """Whatever holds one of these events is refused as a whole."""
        bad = set(bad)
        self.answer = lambda _app, numbers: error("no such day") if bad.intersection(numbers) else None

    def fail(self, times: int, error: CollectorError) -> None:
        """The next requests fail; all later ones are taken."""
        left = [error] * times
        self.answer = lambda _app, _numbers: left.pop() if left else None


class StubbornQueue(SqliteQueue):
    """Does not settle at first, as often as the test says, and has apps whose events are not there any more."""

    refusals = 0
    refused = 0
    delivered_elsewhere: Collection[str] = ()

    def backlog(self) -> Iterable[Backlog]:
        return [backlog for backlog in super().backlog() if backlog.app_id not in self.delivered_elsewhere]

    def waiting_events_of(self, app_id: str) -> int:
        return 0 if app_id in self.delivered_elsewhere else super().waiting_events_of(app_id)

    async def settle(self, lease: Lease, *, buried: Sequence[Burial] = (), returned: Sequence[int] = ()) -> None:
        if self.refused < self.refusals:
            self.refused += 1
            raise QueueUnavailable("the disk is away")
        await super().settle(lease, buried=buried, returned=returned)


class Rig:
    """A flusher between a real queue and a scripted upstream."""

    def __init__(
        self, directory: Path, *, max_in_flight: int = MAX_IN_FLIGHT, backoff_max_seconds: float = 4.0
    ) -> None:
        self.directory = directory
        self.clock = WatchedClock()
        self.metrics = Metrics()
        self.upstream = Upstream(self.clock)
        self.queue = StubbornQueue(
            directory,
            batch_events=BATCH_EVENTS,
            limits=Limits(2**30, 2**30, MAX_DEAD_BYTES),
            dedup_retention_seconds=86_400,
            clock=self.clock,
            metrics=self.metrics,
        )
        self.flusher = Flusher(
            self.queue,
            self.upstream,
            batch_events=BATCH_EVENTS,
            linger_seconds=LINGER_SECONDS,
            max_in_flight=max_in_flight,
            delays=Delays(1.0, backoff_max_seconds, HOLD_RETRY_SECONDS),
            pace=Pace(0, self.queue.fleet_share, clock=self.clock),
            clock=self.clock,
            metrics=self.metrics,
            random_fraction=lambda: 0.5,
        )
        self.run: asyncio.Task[None]

    def start(self) -> None:
        self.run = asyncio.create_task(self.flusher.run())

    async def put(self, app_id: str, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        starts = range(0, len(numbers), BATCH_EVENTS)
        await self.queue.put([batch(app_id, numbers[start : start + BATCH_EVENTS]) for start in starts])

    async def at_rest(self) -> None:
        """The flusher has done all it can do until time passes, events arrive or upstream answers."""
        arrivals = self.queue.arrivals
        await until(
            lambda: (
                self.run.done()
                or bool(
                    self.clock.waited_for[arrivals]
                    and not arrivals.is_set()
                    and self.flusher.in_flight == self.upstream.behind_gate
                )
            )
        )

    def settling_waits(self, refused: int) -> bool:
        """So many settlements were refused, and the next one waits for its time."""
        return self.queue.refused == refused and self.clock.next_due_seconds() is not None

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await turns()
        await self.at_rest()

    async def advance_to_next(self) -> None:
        due = self.clock.next_due_seconds()
        assert due is not None
        await self.advance(due)

    async def ended(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.run

    def dead(self) -> list[tuple[str, bytes]]:
        with opened(self.directory) as connection:
            return connection.execute("SELECT reason, line FROM dead ORDER BY line").fetchall()

    def waiting(self, app_id: str = "wiki") -> list[int]:
        return waiting_numbers(self.directory, app_id)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    await rig.queue.open()
    rig.start()
    yield rig
    rig.run.cancel()
    await asyncio.gather(rig.run, return_exceptions=True)
    await rig.queue.close()


async def test_full_batches_leave_at_once_and_the_rest_after_the_linger(rig: Rig) -> None:
    await rig.put("wiki", range(2500))
    await rig.at_rest()
    assert rig.upstream.sizes() == [1000, 1000]
    await rig.advance(LINGER_SECONDS - 0.5)
    assert rig.upstream.sizes() == [1000, 1000]
    await rig.advance(0.5)
    assert rig.upstream.sizes() == [1000, 1000, 500]
    assert sorted(rig.upstream.taken["wiki"]) == list(range(2500))
    assert rig.waiting() == []


async def test_a_batch_that_becomes_full_does_not_linger_on(rig: Rig) -> None:
    await rig.put("wiki", range(400))
    await rig.at_rest()
    assert rig.upstream.sizes() == []
    await rig.put("wiki", range(400, 1000))
    await rig.at_rest()
    assert rig.upstream.sizes() == [1000]


async def test_as_many_batches_as_allowed_are_in_flight_and_never_more(rig: Rig) -> None:
    rig.upstream.gate.clear()
    await rig.put("wiki", range(5000))
    await rig.put("crm", range(3000))
    await rig.at_rest()
    assert rig.upstream.at_once == rig.flusher.in_flight == MAX_IN_FLIGHT
    rig.upstream.gate.set()
    await until(lambda: rig.queue.waiting_events == 0)
    assert rig.upstream.most_at_once == MAX_IN_FLIGHT
    assert sorted(rig.upstream.taken["wiki"]) == list(range(5000))
    assert sorted(rig.upstream.taken["crm"]) == list(range(3000))


async def test_failures_in_a_row_wait_twice_as_long_each_up_to_the_maximum(rig: Rig) -> None:
    rig.upstream.fail(5, Retryable("503"))
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    for _ in range(5):
        await rig.advance_to_next()
    assert rig.upstream.times() == [0.0, 0.5, 1.5, 3.5, 5.5, 7.5]
    assert rig.upstream.taken == {"wiki": list(range(1000))}


async def test_after_a_success_the_backoff_starts_anew(rig: Rig) -> None:
    rig.upstream.fail(3, Retryable("503"))
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    for _ in range(3):
        await rig.advance_to_next()
    rig.upstream.fail(1, Retryable("503"))
    await rig.put("wiki", range(1000, 2000))
    await rig.at_rest()
    await rig.advance_to_next()
    assert rig.upstream.times() == [0.0, 0.5, 1.5, 3.5, 3.5, 4.0]
    assert rig.upstream.taken == {"wiki": list(range(2000))}


async def test_a_retry_after_is_a_floor_below_the_jitter(rig: Rig) -> None:
    rig.upstream.fail(1, Retryable("429", retry_after_seconds=30.0))
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    await rig.advance(30.25)
    assert rig.upstream.times() == [0.0]
    await rig.advance(0.25)
    assert rig.upstream.times() == [0.0, 30.5]


async def test_an_app_that_backs_off_does_not_hold_up_another(rig: Rig) -> None:
    rig.upstream.answer = lambda app, _numbers: Retryable("503") if app == "wiki" else None
    await rig.put("wiki", range(1000))
    await rig.put("crm", range(2000))
    await rig.at_rest()
    assert rig.upstream.taken == {"crm": list(range(2000))}
    assert rig.waiting("wiki") == list(range(1000))


async def test_a_hundred_failures_in_a_row_lose_nothing(rig: Rig) -> None:
    rig.upstream.fail(100, Retryable("503"))
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    for _ in range(100):
        assert rig.waiting() == list(range(1000))
        await rig.advance_to_next()
    assert len(rig.upstream.requests) == 101
    assert rig.upstream.taken == {"wiki": list(range(1000))}
    assert rig.waiting() == []


async def test_three_poisoned_events_of_a_thousand_are_buried_and_the_rest_is_delivered(rig: Rig) -> None:
    bad = [17, 500, 999]
    rig.upstream.refuse(bad)
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.upstream.taken["wiki"] == [number for number in range(1000) if number not in bad]
    assert rig.dead() == sorted(("no such day", line("wiki", number)) for number in bad)
    assert rig.waiting() == []
    assert len(rig.upstream.requests) <= 1 + 2 * len(bad) * 10, "each guilty event is found in about 2 log2(1000)"
    assert rig.metrics.delivered._value.get() == 997
    assert rig.metrics.buried._value.get() == 3


async def test_without_room_for_dead_letters_the_app_is_held_and_only_what_is_refused_waits(rig: Rig) -> None:
    bad = list(range(0, 1000, 2))
    rig.upstream.refuse(bad)
    await rig.put("wiki", range(1000))
    await rig.put("crm", range(1001, 2001))
    await rig.at_rest()
    assert "queue.max_dead_bytes" in rig.flusher.held["wiki"]
    assert "no such day" in rig.flusher.held["wiki"]
    assert "collector queue dead" in rig.flusher.held["wiki"]
    assert rig.dead() == []
    assert rig.waiting("wiki") == bad
    assert rig.upstream.taken == {"wiki": [*range(1, 1000, 2)], "crm": [*range(1001, 2001)]}
    assert rig.metrics.buried._value.get() == 0
    rig.upstream.refuse([])
    await rig.advance(HOLD_RETRY_SECONDS)
    assert rig.flusher.held == {}
    assert sorted(rig.upstream.taken["wiki"]) == list(range(1000))
    assert rig.waiting("wiki") == []


@pytest.mark.parametrize("events", [SUSPICIOUS_BURIALS, 1000])
async def test_an_app_whose_every_event_is_refused_is_held_and_nothing_is_buried(rig: Rig, events: int) -> None:
    rig.upstream.refuse(range(events))
    await rig.put("wiki", range(events))
    await rig.at_rest()
    await rig.advance(LINGER_SECONDS)
    assert list(rig.flusher.held) == ["wiki"]
    assert "no such day" in rig.flusher.held["wiki"]
    assert rig.dead() == []
    assert rig.waiting() == list(range(events))


async def test_a_few_events_that_are_all_refused_are_buried(rig: Rig) -> None:
    events = SUSPICIOUS_BURIALS - 1
    rig.upstream.refuse(range(events))
    await rig.put("wiki", range(events))
    await rig.at_rest()
    await rig.advance(LINGER_SECONDS)
    assert rig.flusher.held == {}
    assert len(rig.dead()) == events
    assert rig.waiting() == []


async def test_many_refused_events_are_buried_where_others_of_their_lease_are_taken(rig: Rig) -> None:
    rig.upstream.refuse(range(500, 600))
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.flusher.held == {}
    assert len(rig.dead()) == 100
    assert len(rig.upstream.taken["wiki"]) == 900
    assert rig.waiting() == []


@pytest.mark.parametrize("size", [60, 150])
async def test_many_refused_events_at_the_head_of_a_lease_are_buried_where_the_rest_of_it_is_taken(
    rig: Rig, size: int
) -> None:
    rig.upstream.refuse(range(size))
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.flusher.held == {}
    assert len(rig.dead()) == size
    assert sorted(rig.upstream.taken["wiki"]) == list(range(size, 1000))
    assert rig.waiting() == []


async def test_events_that_are_refused_to_the_last_are_buried_once_others_are_taken(rig: Rig) -> None:
    rig.upstream.refuse(range(100))
    await rig.put("wiki", range(100))
    await rig.at_rest()
    await rig.advance(LINGER_SECONDS)
    assert list(rig.flusher.held) == ["wiki"]
    assert rig.dead() == []
    for begin in range(1000, 6000, 1000):
        await rig.put("wiki", range(begin, begin + 1000))
    await rig.advance(HOLD_RETRY_SECONDS)
    assert rig.flusher.held == {}
    assert len(rig.dead()) == 100
    assert sorted(rig.upstream.taken["wiki"]) == list(range(1000, 6000))
    assert rig.waiting() == []


async def test_nothing_is_buried_where_upstream_fails_while_it_is_in_doubt_who_is_at_fault(rig: Rig) -> None:
    rig.upstream.answer = lambda _app, numbers: Rejected("no such day") if numbers[0] < 70 else Retryable("503")
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.flusher.held == {}
    assert rig.dead() == []
    assert rig.waiting() == list(range(1000))
    rig.upstream.refuse(range(70))
    await rig.advance(60)
    assert len(rig.dead()) == 70
    assert rig.waiting() == []


async def test_a_retry_after_holds_also_where_it_is_said_of_events_that_were_to_tell_who_is_at_fault(rig: Rig) -> None:
    wait_seconds = 2 * HOLD_RETRY_SECONDS
    slow_down = Retryable("429", retry_after_seconds=wait_seconds)
    rig.upstream.answer = lambda _app, numbers: slow_down if numbers[0] >= 1000 else Rejected("no such day")
    await rig.put("wiki", [*range(1000), *range(1000, 1500)])  # of which the latter would linger
    await rig.at_rest()
    assert rig.upstream.sizes()[-1] == 500
    requests = len(rig.upstream.requests)
    await rig.advance(wait_seconds - 1.0)
    assert len(rig.upstream.requests) == requests
    await rig.advance(2.0)
    assert len(rig.upstream.requests) > requests
    assert rig.dead() == []
    assert rig.waiting() == list(range(1500))


async def test_one_event_that_is_too_large_does_not_make_the_next_batches_tiny(rig: Rig) -> None:
    rig.upstream.refuse([5], TooLarge)
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    before = len(rig.upstream.requests)
    await rig.put("wiki", range(1000, 2000))
    await rig.at_rest()
    assert len(rig.upstream.requests) - before <= 2


async def test_events_that_are_refused_by_name_are_buried_and_the_rest_counts_without_another_request(rig: Rig) -> None:
    bad = {0: "no such day", 7: "no such person", 999: "no such deed"}
    rig.upstream.answer = lambda _app, _numbers: PartlyRejected(bad, seconds=0.0)
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.upstream.sizes() == [1000]
    assert rig.dead() == sorted(((bad[n], line("wiki", n)) for n in bad), key=itemgetter(1))
    assert rig.metrics.delivered._value.get() == 997
    assert rig.metrics.buried._value.get() == 3
    assert rig.waiting() == []
    assert rig.flusher.held == {}


async def test_events_that_are_refused_by_name_are_found_also_where_a_batch_goes_in_several_requests(rig: Rig) -> None:
    def answer(_app: str, numbers: list[int]) -> CollectorError | None:
        if len(numbers) > 300:
            return TooLarge("413")
        bad = {position: "no such day" for position, number in enumerate(numbers) if number in {3, 600, 999}}
        return PartlyRejected(bad, seconds=0.0) if bad else None

    rig.upstream.answer = answer
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.dead() == sorted(("no such day", line("wiki", number)) for number in (3, 600, 999))
    assert rig.metrics.delivered._value.get() == 997
    assert rig.waiting() == []


@pytest.mark.parametrize("events", [SUSPICIOUS_BURIALS - 1, SUSPICIOUS_BURIALS, 1000])
async def test_where_every_event_is_refused_by_name_many_are_held_and_few_are_buried(rig: Rig, events: int) -> None:
    rig.upstream.answer = lambda _app, numbers: PartlyRejected(
        dict.fromkeys(range(len(numbers)), "no such day"), seconds=0.0
    )
    await rig.put("wiki", range(events))
    await rig.at_rest()
    await rig.advance(LINGER_SECONDS)
    is_suspicious = events >= SUSPICIOUS_BURIALS
    assert list(rig.flusher.held) == (["wiki"] if is_suspicious else [])
    assert len(rig.dead()) == (0 if is_suspicious else events)
    assert len(rig.waiting()) == (events if is_suspicious else 0)


async def test_what_is_too_large_is_halved_and_the_next_batches_are_smaller(rig: Rig) -> None:
    rig.upstream.answer = lambda _app, numbers: TooLarge("413") if len(numbers) > 100 else None
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.upstream.taken["wiki"] == list(range(1000))
    before = len(rig.upstream.requests)
    await rig.put("wiki", range(1000, 2000))
    await rig.at_rest()
    assert sum(size > 100 for size in rig.upstream.sizes()[before:]) == 1, "it looks seldom whether more is taken"
    assert rig.upstream.taken["wiki"] == list(range(2000))
    assert rig.dead() == []


async def test_a_single_event_that_is_too_large_is_buried(rig: Rig) -> None:
    rig.upstream.refuse([5], TooLarge)
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.dead() == [("no such day", line("wiki", 5))]
    assert len(rig.upstream.taken["wiki"]) == 999


async def test_an_unusable_app_alone_is_held_and_resumes_once_it_is_usable(rig: Rig) -> None:
    rig.upstream.answer = lambda app, _numbers: AppUnusable("404: wiki?") if app == "wiki" else None
    await rig.put("wiki", range(2000))
    await rig.put("crm", range(1000))
    await rig.at_rest()
    assert rig.flusher.held == {"wiki": "404: wiki?"}
    assert rig.upstream.taken == {"crm": list(range(1000))}
    tried = len(rig.upstream.times("wiki"))
    await rig.put("crm", range(1000, 2000))
    await rig.advance(HOLD_RETRY_SECONDS - 1)
    assert len(rig.upstream.times("wiki")) == tried
    assert rig.upstream.taken == {"crm": list(range(2000))}
    await rig.advance(1)
    assert len(rig.upstream.times("wiki")) == tried + 1, "one attempt finds out whether the trouble is over"
    assert rig.waiting("wiki") == list(range(2000))
    rig.upstream.answer = lambda _app, _numbers: None
    await rig.advance(HOLD_RETRY_SECONDS)
    assert rig.flusher.held == {}
    assert sorted(rig.upstream.taken["wiki"]) == list(range(2000))
    assert rig.dead() == []


@pytest.mark.parametrize("failing_request", range(2, 20))
async def test_a_failure_amid_a_halved_lease_sends_nothing_twice_and_loses_nothing(
    rig: Rig, failing_request: int
) -> None:
    bad = {300, 700}

    def answer(_app: str, numbers: list[int]) -> Exception | None:
        if len(rig.upstream.requests) == failing_request:
            return Retryable("503")
        return Rejected("no such day") if bad.intersection(numbers) else None

    rig.upstream.answer = answer
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    taken = set(rig.upstream.taken.get("wiki", []))
    dead = {int(text.split(b":")[1].split(b",")[0]) for _, text in rig.dead()}
    assert rig.waiting() == sorted(set(range(1000)) - taken - dead)
    assert rig.waiting()
    await rig.advance(LINGER_SECONDS)
    assert sorted(rig.upstream.taken["wiki"]) == [number for number in range(1000) if number not in bad]
    assert rig.dead() == sorted(("no such day", line("wiki", number)) for number in bad)
    assert rig.waiting() == []


async def test_what_was_taken_is_not_sent_again_while_the_disk_refuses_to_settle(rig: Rig) -> None:
    rig.queue.refusals = 4
    await rig.put("wiki", range(1000))
    for refused in range(1, 5):
        await until(partial(rig.settling_waits, refused))
        assert rig.waiting() == list(range(1000))
        rig.clock.advance(rig.clock.next_due_seconds() or 0.0)
        await turns()
    await rig.at_rest()
    assert rig.upstream.sizes() == [1000]
    assert rig.waiting() == []
    assert rig.clock.monotonic() == 0.5 + 1.0 + 2.0 + 2.0


async def test_a_retry_after_holds_also_while_the_disk_refuses_to_settle_what_was_taken_before_it(rig: Rig) -> None:
    def answer(_app: str, numbers: list[int]) -> CollectorError | None:
        if len(numbers) > 500:
            return TooLarge("413")
        return Retryable("503", retry_after_seconds=30.0) if numbers[0] == 500 and rig.clock.monotonic() < 30 else None

    rig.upstream.answer = answer
    rig.queue.refusals = 1
    await rig.put("wiki", range(1000))
    await until(partial(rig.settling_waits, 1))
    await rig.put("wiki", range(1000, 2000))
    await turns()
    await rig.advance(29.0)
    assert rig.upstream.sizes() == [1000, 500, 500]
    assert rig.waiting() == list(range(500, 2000))
    while rig.queue.waiting_events:
        await rig.advance_to_next()
        await rig.at_rest()
    assert sorted(rig.upstream.taken["wiki"]) == list(range(2000))


async def test_draining_does_not_linger_and_ends_when_nothing_is_left(rig: Rig) -> None:
    await rig.put("wiki", range(10))
    await rig.put("crm", range(2500))
    await rig.at_rest()
    assert rig.upstream.sizes("wiki") == []
    rig.flusher.drain()
    await rig.ended()
    assert rig.upstream.taken["wiki"] == list(range(10))
    assert sorted(rig.upstream.taken["crm"]) == list(range(2500))
    assert rig.clock.monotonic() == 0.0
    assert rig.waiting("wiki") == rig.waiting("crm") == []


async def test_draining_an_empty_queue_ends_at_once(rig: Rig) -> None:
    rig.flusher.drain()
    await rig.ended()
    assert rig.upstream.requests == []


async def test_draining_waits_for_an_app_that_backs_off(rig: Rig) -> None:
    rig.upstream.fail(2, Retryable("503"))
    await rig.put("wiki", range(10))
    rig.flusher.drain()
    await rig.at_rest()
    await rig.advance_to_next()
    assert not rig.run.done()
    await rig.advance_to_next()
    await rig.ended()
    assert rig.upstream.taken == {"wiki": list(range(10))}


async def test_draining_ends_when_only_held_apps_have_events_left(rig: Rig) -> None:
    rig.upstream.answer = lambda app, _numbers: AppUnusable("404") if app == "wiki" else None
    await rig.put("wiki", range(10))
    await rig.put("crm", range(10))
    rig.flusher.drain()
    await rig.ended()
    assert rig.upstream.taken == {"crm": list(range(10))}
    assert rig.waiting("wiki") == list(range(10))
    assert list(rig.flusher.held) == ["wiki"]


async def test_an_unforeseen_exception_of_the_publisher_ends_the_run_and_keeps_the_events(rig: Rig) -> None:
    rig.upstream.answer = lambda _app, _numbers: ZeroDivisionError("a defect")
    await rig.put("wiki", range(1000))
    with pytest.raises(ExceptionGroup) as caught:
        await rig.ended()
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert rig.waiting() == list(range(1000))


async def test_cancelling_leaves_what_is_in_flight_in_the_queue(rig: Rig) -> None:
    rig.upstream.gate.clear()
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    rig.run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rig.ended()
    assert rig.waiting() == list(range(1000))


async def test_after_a_413_batches_grow_back_step_by_step(rig: Rig) -> None:
    rig.upstream.answer = lambda _app, numbers: TooLarge("413") if len(numbers) > 100 else None
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    rig.upstream.answer = lambda _app, _numbers: None
    before = len(rig.upstream.requests)
    await rig.put("wiki", range(1000, 30_000))
    await rig.at_rest()
    sizes = rig.upstream.sizes()[before:]
    assert sizes[0] < 100
    assert sizes.index(BATCH_EVENTS) > log(BATCH_EVENTS / sizes[0], 1 + BATCH_REGROWTH) / 2
    assert sorted(rig.upstream.taken["wiki"]) == list(range(30_000))


async def test_attempts_in_a_row_without_an_answer_become_smaller_until_there_is_one(rig: Rig) -> None:
    rig.upstream.answer = lambda _app, numbers: Unanswered("no answer within 30 s") if len(numbers) > 250 else None
    await rig.put("wiki", range(2000))
    await rig.at_rest()
    while rig.waiting():
        await rig.advance_to_next()
    tried = [len(numbers) for _, _, numbers in rig.upstream.requests]
    assert tried[:5] == [1000, 1000, 1000, 500, 250], "two were under way when the first was not answered"
    assert sorted(rig.upstream.taken["wiki"]) == list(range(2000))
    assert rig.dead() == []


async def test_one_request_without_an_answer_makes_no_batch_smaller(rig: Rig) -> None:
    rig.upstream.fail(1, Unanswered("the answer broke off"))
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    await rig.advance_to_next()
    assert rig.upstream.sizes() == [1000, 1000]


async def test_what_another_collector_delivered_is_no_trouble_here(rig: Rig) -> None:
    rig.upstream.answer = lambda app, _numbers: AppUnusable("404") if app == "wiki" else Retryable("503")
    await rig.put("wiki", range(1000))
    await rig.put("crm", range(1000))
    await rig.at_rest()
    assert rig.flusher.held == {"wiki": "404"}
    assert rig.flusher.outages.failing_since is not None
    rig.queue.delivered_elsewhere = {"wiki", "crm"}
    rig.queue.arrivals.set()
    await rig.at_rest()
    assert rig.flusher.held == {}
    assert rig.flusher.outages.failing_since is None


async def test_of_apps_in_trouble_the_one_that_failed_least_is_tried_first(rig: Rig) -> None:
    rig.upstream.answer = lambda app, _numbers: Unanswered("no answer") if app.startswith("slow") else None
    rig.upstream.takes_seconds = lambda app: 30.0 if app.startswith("slow") else 0.0
    slow = [f"slow-{number}" for number in range(10)]
    for app in slow:
        await rig.put(app, range(1000))
    await until(lambda: rig.upstream.at_once == MAX_IN_FLIGHT)
    while any(len(rig.upstream.times(app)) < 3 for app in slow):
        await rig.advance_to_next()
    rig.upstream.answer = lambda _app, _numbers: Retryable("503")
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    rig.upstream.answer = lambda app, _numbers: Unanswered("no answer") if app.startswith("slow") else None
    failed_at = rig.upstream.times("wiki")[0]
    while "wiki" not in rig.upstream.taken:
        await rig.advance_to_next()
    assert rig.upstream.times("wiki")[1] - failed_at < 60.0, "it waits for one of the others, not for all"


async def test_a_hold_learnt_from_a_request_of_before_a_reload_does_not_last(rig: Rig) -> None:
    rig.upstream.fail(99, CredentialsRefused("401"))
    rig.upstream.gate.clear()
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    assert rig.flusher.in_flight == 1
    mended = Upstream(rig.clock)
    rig.flusher.use_publisher(mended)
    rig.flusher.try_held()
    rig.upstream.gate.set()
    await until(lambda: mended.taken == {"wiki": list(range(1000))})


async def test_one_app_that_always_fails_does_not_slow_ninety_nine_others(rig: Rig) -> None:
    others = [f"app{number}" for number in range(99)]
    rig.upstream.answer = lambda app, _numbers: Retryable("503") if app == "wiki" else None
    for begin in (0, 10):
        put_at = rig.clock.monotonic()
        await rig.queue.put([batch(app_id, range(begin, begin + 10)) for app_id in ("wiki", *others)])
        await rig.at_rest()
        while (due := rig.clock.next_due_seconds()) is not None and rig.clock.monotonic() + due <= put_at + 10:
            await rig.advance(due)
        assert {rig.upstream.times(app_id)[-1] - put_at for app_id in others} == {LINGER_SECONDS}
    assert all(rig.upstream.taken[app_id] == list(range(20)) for app_id in others)
    assert rig.waiting("wiki") == list(range(20))
    assert len(rig.upstream.times("wiki")) > 2


async def test_batches_that_fail_together_are_one_failure_and_one_attempt_finds_out(rig: Rig) -> None:
    rig.upstream.gate.clear()
    rig.upstream.fail(4, Retryable("503"))
    await rig.put("wiki", range(5000))
    await rig.at_rest()
    rig.upstream.gate.set()
    await turns()
    await rig.at_rest()
    await rig.advance_to_next()
    assert rig.upstream.times() == [0.0, 0.0, 0.0, 0.5]
    await rig.advance_to_next()
    assert rig.upstream.times() == [0.0, 0.0, 0.0, 0.5, *[1.5] * 5]
    assert sorted(rig.upstream.taken["wiki"]) == list(range(5000))


async def test_a_lease_that_the_queue_cannot_give_is_asked_for_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    lease, failures = rig.queue.lease, [QueueUnavailable("the disk is away")] * 3

    async def fail_at_first(app_id: str, max_events: int) -> Lease | None:
        if failures:
            raise failures.pop()
        return await lease(app_id, max_events)

    monkeypatch.setattr(rig.queue, "lease", fail_at_first)
    await rig.put("wiki", range(1000))
    await rig.at_rest()
    for _ in range(3):
        assert rig.upstream.requests == []
        assert rig.flusher.outages.failing_since is None, "it is our disk, and no outage of upstream"
        await rig.advance_to_next()
    assert rig.upstream.times() == [0.5 + 1.0 + 2.0]
    assert rig.upstream.taken == {"wiki": list(range(1000))}


async def test_apps_take_turns(rig: Rig) -> None:
    rig.upstream.gate.clear()
    for app_id in ("wiki", "crm", "chat"):
        await rig.put(app_id, range(4000))
        await rig.at_rest()
    rig.upstream.gate.set()
    await until(lambda: rig.queue.waiting_events == 0)
    order = [app_id for _, app_id, _ in rig.upstream.requests]
    assert order == ["wiki"] * MAX_IN_FLIGHT + ["crm", "chat", "wiki"] + ["crm", "chat"] * 3


async def test_what_was_in_flight_at_a_cancellation_is_delivered_by_the_next_flusher(rig: Rig, tmp_path: Path) -> None:
    rig.upstream.gate.clear()
    await rig.put("wiki", range(2500))
    await rig.at_rest()
    rig.run.cancel()
    await asyncio.wait([rig.run])
    assert rig.upstream.taken == {}
    successor = Rig(tmp_path)
    await successor.queue.open()
    successor.flusher.drain()
    successor.start()
    await successor.ended()
    await successor.queue.close()
    assert sorted(successor.upstream.taken["wiki"]) == list(range(2500))
    assert successor.waiting() == []


async def answers_apart(rig: Rig, *errors: CollectorError | None) -> None:
    """As many batches are in flight at once as there are answers; the first event of each says which it gets."""
    rig.upstream.gate.clear()
    rig.upstream.answer = lambda _app, numbers: errors[numbers[0] // BATCH_EVENTS]
    await rig.put("wiki", range(BATCH_EVENTS * len(errors)))
    await rig.at_rest()
    rig.upstream.gate.set()
    await turns()
    await rig.at_rest()
    assert len(rig.upstream.requests) == len(errors)


async def test_a_longer_retry_after_stands_when_a_batch_beside_it_fails_for_less(rig: Rig) -> None:
    await answers_apart(rig, Retryable("429", retry_after_seconds=30.0), Retryable("503"), Retryable("503"))
    await rig.advance(29.0)
    assert len(rig.upstream.requests) == 3


async def test_a_success_that_was_sent_before_a_failure_does_not_end_its_wait(rig: Rig) -> None:
    await answers_apart(rig, Retryable("429", retry_after_seconds=30.0), None, None)
    await rig.put("wiki", range(5000, 6000))
    await rig.advance(29.0)
    assert len(rig.upstream.requests) == 3


async def test_a_hold_stands_when_a_batch_beside_it_fails_in_passing(rig: Rig) -> None:
    await answers_apart(rig, AppUnusable("404"), Retryable("503"), None)
    assert rig.flusher.held == {"wiki": "404"}
    await rig.advance(HOLD_RETRY_SECONDS - 1)
    assert len(rig.upstream.requests) == 3


async def test_a_batch_that_was_told_to_wait_stops_the_halves_of_the_batch_beside_it(rig: Rig) -> None:
    def answer(_app: str, numbers: list[int]) -> CollectorError | None:
        if rig.clock.monotonic() >= 30.0:
            return None
        if numbers[0] < 1000:
            return Retryable("429", retry_after_seconds=30.0)
        return Rejected("no such day")

    rig.upstream.gate.clear()
    rig.upstream.answer = answer
    await rig.put("wiki", range(2000))
    await rig.at_rest()
    rig.upstream.gate.set()
    await turns()
    await rig.at_rest()
    await rig.advance(29.0)
    assert rig.upstream.sizes() == [1000, 1000]
    await rig.advance(10.0)
    await until(lambda: rig.queue.waiting_events == 0)
    assert sorted(rig.upstream.taken["wiki"]) == list(range(2000))


async def test_a_lease_that_comes_after_its_app_was_told_to_wait_is_not_sent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, leases, second = rig.queue.lease, [], asyncio.Event()

    async def lease_late(app_id: str, max_events: int) -> Lease | None:
        leases.append(app_id)
        if len(leases) == 2:
            await second.wait()
        return await lease(app_id, max_events)

    monkeypatch.setattr(rig.queue, "lease", lease_late)
    rig.upstream.gate.clear()
    rig.upstream.fail(1, Retryable("429", retry_after_seconds=30.0))
    await rig.put("wiki", range(2000))
    await until(lambda: len(leases) == 2 and rig.upstream.behind_gate == 1)
    rig.upstream.gate.set()
    await until(lambda: rig.flusher.in_flight == 0)
    second.set()
    await rig.at_rest()
    await rig.advance(29.0)
    assert len(rig.upstream.requests) == 1
    await rig.advance(10.0)
    await until(lambda: rig.queue.waiting_events == 0)
    assert sorted(rig.upstream.taken["wiki"]) == list(range(2000))


async def test_an_outage_of_many_retries_is_two_lines_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "collector")
    rig.upstream.fail(12, Retryable("503"))
    await rig.put("wiki", range(1500))
    await rig.put("crm", range(1000))
    await rig.at_rest()
    while rig.flusher.outages.failing_since is not None or len(rig.upstream.times()) < 7:
        await rig.advance_to_next()
    await rig.advance(LINGER_SECONDS)
    assert rig.waiting("wiki") == rig.waiting("crm") == []
    lines = [record for record in caplog.records if record.getMessage().startswith("flusher.")]
    assert [(line.levelname, line.getMessage()) for line in lines] == [
        ("WARNING", "flusher.outage_began"),
        ("INFO", "flusher.outage_ended"),
    ]
    assert vars(lines[1])["waited_events"] == 2500
    assert vars(lines[1])["seconds"] > 0
