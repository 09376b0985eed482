"""An app that fails costs the others nothing, and upstream is neither besieged while it is down nor stormed afterwards.

All on virtual time: a real queue, the real flusher, and an upstream that takes its time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from collector.concurrency import LOWEST_LIMIT
from collector.errors import AppUnusable, CollectorError, Retryable
from tests.queue.samples import batch
from tests.test_flusher import BATCH_EVENTS, LINGER_SECONDS, Rig

DAY_SECONDS = 86_400.0
BACKOFF_MAX_SECONDS = 240.0
MAX_IN_FLIGHT = 16
REQUEST_SECONDS = 0.125
TIMEOUT_SECONDS = 30.0


@asynccontextmanager
async def started(folder: Path, max_in_flight: int = MAX_IN_FLIGHT) -> AsyncIterator[Rig]:
    rig = Rig(folder, max_in_flight=max_in_flight, backoff_max_seconds=BACKOFF_MAX_SECONDS)
    rig.upstream.takes_seconds = lambda _app: REQUEST_SECONDS
    await rig.queue.open()
    rig.start()
    try:
        yield rig
    finally:
        rig.run.cancel()
        await asyncio.gather(rig.run, return_exceptions=True)
        await rig.queue.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with started(tmp_path) as rig:
        yield rig


async def advance_to(rig: Rig, moment: float) -> None:
    """All that happens until then has happened."""
    await rig.at_rest()
    while (due := rig.clock.next_due_seconds()) is not None and rig.clock.monotonic() + due <= moment:
        await rig.advance(due)
    await rig.advance(moment - rig.clock.monotonic())


# -- one app that always fails -----------------------------------------------------------------------------------------


async def pace(folder: Path, sick: bool, failure: CollectorError, seconds: float) -> list[list[float]]:
    """When the events of ninety-nine apps were taken, in rounds a minute apart, beside one that fails or not."""
    others = [f"app{number}" for number in range(99)]
    async with started(folder) as rig:
        rig.upstream.answer = lambda app, _numbers: failure if app == "sick" else None
        rig.upstream.takes_seconds = lambda app: seconds if app == "sick" else REQUEST_SECONDS
        rounds = []
        for number in range(4):
            began = number * 60.0
            apps = ["sick", *others] if sick else others
            await rig.queue.put([batch(app_id, range(number * 10, number * 10 + 10)) for app_id in apps])
            await advance_to(rig, began + 60.0)
            rounds.append(
                sorted(when - began for when, app, _ in rig.upstream.requests if app != "sick" and when >= began)
            )
        assert all(rig.upstream.taken[app_id] == list(range(40)) for app_id in others)
        assert rig.waiting("sick") == (list(range(40)) if sick else [])
        return rounds


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        pytest.param(Retryable("503"), REQUEST_SECONDS, id="it answers 503"),
        pytest.param(Retryable("no answer"), TIMEOUT_SECONDS, id="it hangs until the timeout"),
        pytest.param(AppUnusable("404"), REQUEST_SECONDS, id="nobody knows it"),
    ],
)
async def test_ninety_nine_apps_keep_their_pace_beside_one_that_always_fails(
    tmp_path: Path, failure: CollectorError, seconds: float
) -> None:
    alone = await pace(tmp_path / "alone", False, failure, seconds)
    beside = await pace(tmp_path / "beside", True, failure, seconds)
    for round_alone, round_beside in zip(alone, beside, strict=True):
        assert len(round_alone) == len(round_beside) == 99
    # In the first round nobody knows it yet: it takes one of the few slots of the beginning, once.
    assert beside[0][-1] - LINGER_SECONDS <= 2 * (alone[0][-1] - LINGER_SECONDS)
    assert beside[-1][-1] <= alone[-1][-1] + REQUEST_SECONDS


async def test_with_the_fewest_requests_at_a_time_apps_that_hang_hold_up_no_other(tmp_path: Path) -> None:
    async with started(tmp_path, LOWEST_LIMIT) as rig:
        rig.upstream.answer = lambda app, _numbers: None if app == "well" else Retryable("no answer")
        rig.upstream.takes_seconds = lambda app: REQUEST_SECONDS if app == "well" else TIMEOUT_SECONDS
        for number in range(20):
            await rig.put(f"sick{number}", range(BATCH_EVENTS))
        known = 20 * TIMEOUT_SECONDS  # each has hung once
        await advance_to(rig, known)
        for number in range(20):
            await rig.put("well", range(number * BATCH_EVENTS, (number + 1) * BATCH_EVENTS))
            await advance_to(rig, known + (number + 1) * 10.0)
            assert len(rig.upstream.taken["well"]) == (number + 1) * BATCH_EVENTS


# -- upstream is down --------------------------------------------------------------------------------------------------


async def out_for(rig: Rig, apps: int, events: int, seconds: float) -> None:
    """Upstream takes nothing of what is put now, for so long."""
    rig.upstream.answer = lambda _app, _numbers: Retryable("503")
    for number in range(apps):
        await rig.put(f"app{number}", range(events))
    await advance_to(rig, seconds)
    assert rig.upstream.taken == {}


async def test_while_upstream_is_down_requests_are_as_rare_for_twenty_apps_as_for_one(rig: Rig) -> None:
    await out_for(rig, 20, BATCH_EVENTS, DAY_SECONDS)
    # Each app finds out once, some together; from then on one request at a time asks for all, and the draw of its wait
    # is always a half.
    assert len(rig.upstream.requests) <= 40 + DAY_SECONDS / (BACKOFF_MAX_SECONDS / 2)
    later = [when for when, _, _ in rig.upstream.requests if when > 3_600]
    assert min(after - before for before, after in pairwise(later)) >= BACKOFF_MAX_SECONDS / 2
    assert rig.upstream.company[len(rig.upstream.requests) - len(later) :] == [1] * len(later)


@pytest.mark.parametrize("apps", [1, 20])
async def test_after_an_outage_one_request_finds_out_and_then_there_are_more_and_more(rig: Rig, apps: int) -> None:
    events = 100_000 // apps
    await out_for(rig, apps, events, 3_600.0)
    before = len(rig.upstream.requests)
    rig.upstream.answer = lambda _app, _numbers: None
    await advance_to(rig, 3_600.0 + 2 * BACKOFF_MAX_SECONDS)
    company, times = rig.upstream.company[before:], [when for when, _, _ in rig.upstream.requests[before:]]
    assert company[0] == 1
    assert times[1] >= times[0] + REQUEST_SECONDS, "nothing else leaves before it is answered"
    most = LOWEST_LIMIT
    for number, at_once in enumerate(company):
        most = max(most, at_once)
        assert at_once <= LOWEST_LIMIT + 1 + number / LOWEST_LIMIT, f"request {number} of a stampede"
    assert 6 <= most <= MAX_IN_FLIGHT
    assert all(sorted(rig.upstream.taken[f"app{number}"]) == list(range(events)) for number in range(apps))
    assert rig.dead() == []
    assert rig.flusher.held == {}


async def test_one_apps_trouble_is_not_taken_for_an_outage(rig: Rig) -> None:
    rig.upstream.answer = lambda app, _numbers: None if app == "well" else Retryable("503")
    for app_id in ("sick", "ailing"):
        await rig.put(app_id, range(BATCH_EVENTS))
    await advance_to(rig, 600.0)
    await rig.put("well", range(BATCH_EVENTS))
    await rig.at_rest()
    assert rig.upstream.times("well") == [600.0], "who has not failed waits for nobody"
    rig.upstream.answer = lambda _app, _numbers: None
    await advance_to(rig, 600.0 + 2 * BACKOFF_MAX_SECONDS)
    assert rig.queue.waiting_events == 0
