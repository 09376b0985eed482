"""The oracle itself: with a daemon in good health its books are exact to the event, and nothing wrong escapes it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from collector.sandbox.state import KeptEvent, State
from tests.e2e.books import POISON, Balance, Books, Event
from tests.e2e.oracle import new_seed, oracle_in
from tests.patience import until


def counted(metrics: dict[str, float], source: str) -> tuple[float, ...]:
    """How many events of a source were accepted, duplicates, rejected, as the daemon says."""
    return tuple(
        metrics.get(f"collector_events_total{{source={source},verdict={verdict}}}", 0)
        for verdict in ("accepted", "duplicate", "rejected")
    )


async def test_in_good_health_every_event_is_counted_exactly_and_delivered_once(tmp_path: Path) -> None:
    async with oracle_in(tmp_path, new_seed()) as oracle:
        async with oracle.running() as daemon:
            async with oracle.load(daemon):
                await oracle.until_acknowledged(5_000)  # by chance there is poison among them
                await until(lambda: oracle.books.duplicates)
            await daemon.measures(lambda said: sum(counted(said, "udp")) >= oracle.datagrams)
            await oracle.drained(daemon)
            metrics = await daemon.metrics()
            http, udp = counted(metrics, "http"), counted(metrics, "udp")
            assert await daemon.stop() == 0
        assert http == (oracle.books.accepted, oracle.books.duplicates, 0)
        assert sum(udp) == oracle.datagrams
        assert udp[2] == metrics["collector_udp_kernel_drops_total"] == 0
        assert oracle.books.duplicates > 0
        balance = await oracle.close_books()
        assert http[0] + udp[0] == balance.delivered + balance.buried
        assert metrics["collector_buried_events_total"] == balance.buried > 0
        assert metrics["collector_delivered_events_total"] == balance.delivered
        assert await oracle.sent_again() == 0


async def test_the_same_seed_chooses_the_same(tmp_path: Path) -> None:
    async def choices(seed: int) -> list[Event]:
        async with oracle_in(tmp_path, seed) as oracle:
            return oracle.new_events(50)

    assert await choices(1) == await choices(1) != await choices(2)


ONE, OTHER = (Event("wiki", number, "person@example.com", "seen", "as it was sent") for number in (1, 2))
BAD = Event("wiki", 3, "person@example.com", POISON)


def lost(books: Books, _at_upstream: dict[Event, str]) -> None:
    books.acknowledged.add(OTHER.key)


def unsent(books: Books, _at_upstream: dict[Event, str]) -> None:
    del books.sent[ONE.key]


def altered(_books: Books, at_upstream: dict[Event, str]) -> None:
    at_upstream[ONE] = "something else"


def poisoned(_books: Books, at_upstream: dict[Event, str]) -> None:
    at_upstream[BAD] = BAD.note


def doubled(books: Books, _at_upstream: dict[Event, str]) -> None:
    books.accepted += 1


def swallowed(books: Books, _at_upstream: dict[Event, str]) -> None:
    books.swallowed += 1


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lost, "lost"),
        (unsent, "unsent"),
        (altered, "altered"),
        (poisoned, "altered"),
        (doubled, "doubled"),
        (swallowed, "swallowed"),
    ],
)
async def test_what_is_wrong_is_found(
    state: State, wrong: Callable[[Books, dict[Event, str]], None], what: str
) -> None:
    books = Books()
    books.send([ONE, BAD])
    books.acknowledged.add(ONE.key)
    books.accepted = 1
    at_upstream = {ONE: ONE.note}

    async def balance() -> Balance:
        await state.reset()
        for event, note in at_upstream.items():
            fields = msgspec.to_builtins(event) | {"note": note}
            del fields["appId"]
            kept = KeptEvent(event.timestamp, event.email, event.event_name, msgspec.json.encode(fields))
            await state.keep(event.app_id, [kept])
        return await books.balance(state)

    (await balance()).assert_even()
    wrong(books, at_upstream)
    found = await balance()
    with pytest.raises(AssertionError, match=f"[1-9] {what}"):
        found.assert_even()


async def test_a_backlog_that_does_not_come_to_nothing_in_time_is_a_failure(tmp_path: Path) -> None:
    async with oracle_in(tmp_path, new_seed()) as oracle:
        settings = {"upstream__base_url": "http://127.0.0.1:1"}
        async with oracle.running(**settings) as daemon, oracle.load(daemon):
            await oracle.until_acknowledged(1)
            with pytest.raises(AssertionError, match="still wait after"):
                await oracle.drained(daemon, seconds=0.3)
