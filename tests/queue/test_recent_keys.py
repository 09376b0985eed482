"""Keys that come in disorder: kept for a while, known all the time, and in the tree before they are many."""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from unittest import mock

import pytest

from collector.errors import DiskFull, QueueUnavailable
from collector.events import split_keys
from collector.queue.base import Batch, Verdict
from collector.queue.sqlite import recent_keys
from collector.queue.sqlite.operations import Put
from collector.queue.sqlite.store import Store
from collector.queue.sqlite.store_process import StoreProcess
from tests.fake_clock import START_MS, FakeClock
from tests.patience import until
from tests.queue.samples import EAGER, batch, opened, remembered, sqlite_queue

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

Opener = Callable[[], Store]
HOUR_MS = 3_600_000


@pytest.fixture
def eager() -> Iterator[None]:
    with mock.patch.multiple(recent_keys, **EAGER):
        yield


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Opener]:
    with ExitStack() as stack:

        def open_one() -> Store:
            few = recent_keys.CAPACITY < 1000  # small puts take another way, measured by what a batch is
            return stack.enter_context(closing(Store(tmp_path, batch_events=10 if few else 1000, clock=FakeClock())))

        yield open_one


def put(store: Store, each: Batch) -> Verdict:
    (done,) = store.transact([Put.of([each])])
    assert not isinstance(done, Exception), done
    if store.is_crowded:
        store.make_room()
    return done.verdicts[0]


def disorder(size: int, stray: int, seed: int = 1) -> Iterator[list[int]]:
    """The numbers of one put after the other, which stray so far from their order."""
    chance, number = random.Random(seed), START_MS - HOUR_MS
    while True:
        number += size
        yield chance.sample(range(number - stray, number), size)


def opened_by_disorder(store: Store, app_id: str = "wiki") -> set[int]:
    """Puts until keys are kept; what was put."""
    known: set[int] = set()
    for numbers, _ in zip(disorder(4, 40), range(100), strict=False):
        new = [number for number in numbers if number not in known]
        put(store, batch(app_id, new))
        known.update(new)
        if rows(store) > 2:
            return known
    raise AssertionError("nothing is kept")


def rows(store: Store) -> int:
    """Rows of keys that may not have entered the tree."""
    return int(store._execute("SELECT count(*) FROM recent_keys").fetchone()[0])


def in_tree(directory: Path) -> int:
    with opened(directory) as connection:
        return int(connection.execute("SELECT count(*) FROM seen").fetchone()[0])


# At its real size


def test_a_hundred_thousand_that_stray_are_each_new_once_and_few_are_kept(open_store: Opener, tmp_path: Path) -> None:
    store, known, most = open_store(), set[int](), 0
    for numbers, _ in zip(disorder(1000, 60_000), range(160), strict=False):
        duplicates = tuple(position for position, number in enumerate(numbers) if number in known)
        assert put(store, batch("wiki", numbers)) == Verdict(1000 - len(duplicates), duplicates)
        known.update(numbers)
        most = max(most, len(store._recent._keys))
    assert store._recent.is_open
    assert 50_000 < most <= recent_keys.CAPACITY + 1000
    assert len(remembered(tmp_path)) == len(known) > in_tree(tmp_path)
    assert rows(store) < 2 * most / 1000, "rows go with their keys"
    store.close()
    assert in_tree(tmp_path) == len(known)


@pytest.mark.parametrize(
    "stray",
    [
        pytest.param(1000, id="in order"),
        pytest.param(3000, id="by a few puts"),
    ],
)
def test_nothing_is_kept_of_what_comes_more_or_less_in_order(open_store: Opener, stray: int) -> None:
    store = open_store()
    for numbers, _ in zip(disorder(1000, stray), range(40), strict=False):
        put(store, batch("wiki", numbers))
        assert not store._recent.is_open


def test_small_puts_are_never_kept(open_store: Opener) -> None:
    store = open_store()
    for numbers, _ in zip(disorder(100, 60_000), range(100), strict=False):
        put(store, batch("wiki", numbers))
        assert not store._recent.is_open


def test_events_from_before_and_after_1970_are_in_nobodys_way(open_store: Opener) -> None:
    """In a batch they are in order of time, and as keys those from before 1970 are the last ones."""
    store, chance = open_store(), random.Random(1)
    put(store, batch("wiki", [START_MS - 1]))
    pool = chance.sample(range(-100_000, 100_000), 24 * 300)
    for number in range(24):
        numbers = pool[number * 300 : number * 300 + 300]
        put(store, batch("wiki", numbers if 8 <= number < 16 else sorted(numbers)))
    for number in range(START_MS, START_MS + 10):
        done = store.transact([Put.of([batch(app_id, [number])]) for app_id in ("wiki", "crm")])
        assert [each.verdicts for each in done if not isinstance(each, Exception)] == [[Verdict(1)], [Verdict(1)]]


# As if a few were many


@pytest.mark.usefixtures("eager")
def test_what_is_kept_is_known_to_the_next_put_and_after_a_death_and_a_close(
    open_store: Opener, tmp_path: Path
) -> None:
    store = open_store()
    known = sorted(opened_by_disorder(store))
    every = Verdict(0, tuple(range(len(known))))
    assert put(store, batch("wiki", known)) == every
    store._recent.forget()  # all that a process has in memory dies with it
    store.close()
    store = open_store()
    assert (rows(store), in_tree(tmp_path)) == (0, len(known))
    assert put(store, batch("wiki", known)) == every


@pytest.mark.usefixtures("eager")
def test_a_few_keys_that_are_ahead_do_not_hold_all_rows(open_store: Opener) -> None:
    store, most = open_store(), 0
    for numbers, ahead in zip(disorder(4, 40), range(300), strict=False):
        put(store, batch("wiki", [*numbers, START_MS + HOUR_MS + ahead]))
        (kept,) = store._execute("SELECT coalesce(sum(length(keys)), 0) / 24 FROM recent_keys").fetchone()
        most = max(most, kept)
    assert recent_keys.CAPACITY < most <= recent_keys.ROW_FACTOR * recent_keys.CAPACITY + 5


@pytest.mark.usefixtures("eager")
def test_one_that_comes_twice_takes_none_of_its_neighbours_along(open_store: Opener) -> None:
    store = open_store()
    kept = max(opened_by_disorder(store))
    assert put(store, batch("wiki", [1, 2, kept + 1, kept + 1])) == Verdict(3, (3,))
    assert put(store, batch("wiki", [1, 2, kept + 1])) == Verdict(0, (0, 1, 2))


@pytest.mark.usefixtures("eager")
def test_two_processes_know_what_either_keeps(open_store: Opener, tmp_path: Path) -> None:
    one, other = open_store(), open_store()
    known: set[int] = set()
    for numbers, store in zip(disorder(6, 60), [one, one, one, one, other, other, one, other] * 20, strict=False):
        duplicates = tuple(position for position, number in enumerate(numbers) if number in known)
        assert put(store, batch("wiki", numbers)) == Verdict(6 - len(duplicates), duplicates)
        known.update(numbers)
    assert len(remembered(tmp_path)) == len(known)


@pytest.mark.usefixtures("eager")
def test_who_comes_amid_it_enters_all_and_then_it_takes_longer_to_begin_anew(open_store: Opener) -> None:
    one = open_store()
    opened_by_disorder(one)
    other = open_store()
    assert rows(other) == 0
    put(one, batch("wiki", [START_MS, START_MS + 2]))
    assert not one._recent.is_open
    opens_after = 0
    for numbers, _ in zip(disorder(4, 40, seed=2), range(100), strict=False):
        put(one, batch("crm", numbers))
        opens_after += 1
        if one._recent.is_open:
            break
    assert one._recent.is_open
    assert opens_after > EAGER["OPENS_AFTER_OTHERS"]


@pytest.mark.usefixtures("eager")
def test_traffic_in_order_ends_it_and_for_that_of_another_time_it_begins_anew(
    open_store: Opener, tmp_path: Path
) -> None:
    store = open_store()
    opened_by_disorder(store)
    for number in range(START_MS, START_MS + 400, 20):  # in order
        put(store, batch("wiki", range(number, number + 20)))
    assert (store._recent.is_open, rows(store)) == (False, 0)
    opened_by_disorder(store, "crm")
    then = START_MS - 100 * HOUR_MS
    for numbers, _ in zip(disorder(4, 40, seed=3), range(EAGER["CLOSES_AFTER"] + EAGER["CAPACITY"]), strict=False):
        put(store, batch("crm", [number - 100 * HOUR_MS for number in numbers]))
    with opened(tmp_path) as connection:
        kept = [keys for (keys,) in connection.execute("SELECT keys FROM recent_keys")]
    assert kept
    assert all(int.from_bytes(keys[:8]) < then for keys in kept)


@pytest.mark.usefixtures("eager")
def test_once_no_more_comes_the_keys_enter_in_steps(open_store: Opener) -> None:
    store = open_store()
    opened_by_disorder(store)
    assert not store.tidy(), "some have just come"
    assert store.tidy()
    steps = 1
    while store.enter_recent_keys():
        steps += 1
    assert (store._recent.is_open, rows(store)) == (False, 0)
    assert steps > 1


@pytest.mark.usefixtures("eager")
def test_rows_that_a_failure_has_left_enter_also_where_no_more_comes(open_store: Opener) -> None:
    store = open_store()
    opened_by_disorder(store)
    with mock.patch.object(store._recent, "leave", side_effect=sqlite3.OperationalError("disk I/O error")):
        assert not store.tidy()
        assert store.tidy()
        with pytest.raises(QueueUnavailable):
            store.enter_recent_keys()
    assert rows(store)
    for _ in range(2):  # they enter; they are seen to be gone
        assert store.tidy()
        assert not store.enter_recent_keys()
        assert not rows(store)
    assert not store.tidy()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("ahead_ms", [2 * HOUR_MS, 2**62], ids=["two hours", "for good"])
def test_a_clock_that_is_far_ahead_does_not_keep_others_from_it(open_store: Opener, ahead_ms: int) -> None:
    store = open_store()
    put(store, batch("wiki", [START_MS + ahead_ms]))
    opened_by_disorder(store)
    assert put(store, batch("wiki", [START_MS + ahead_ms, START_MS + ahead_ms + 1])) == Verdict(1, (0,))
    assert put(store, batch("wiki", [START_MS + ahead_ms + 1])) == Verdict(0, (0,))


@pytest.mark.usefixtures("eager")
def test_the_outermost_timestamps_are_told_apart_while_keys_are_kept(open_store: Opener) -> None:
    store = open_store()
    opened_by_disorder(store)
    outermost = [-(2**63), -1, 0, 2**63 - 1]
    assert put(store, batch("wiki", outermost)) == Verdict(4)
    assert put(store, batch("wiki", [*outermost, 1])) == Verdict(1, (0, 1, 2, 3))


@pytest.mark.usefixtures("eager")
def test_a_full_disk_keeps_nothing_of_what_it_refuses(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    known = sorted(opened_by_disorder(store))
    (pages,) = store._execute("PRAGMA page_count").fetchone()
    store._execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()
    late = range(START_MS, START_MS + 1000)
    (refusal,) = store.transact([Put.of([batch("wiki", late)])])
    assert isinstance(refusal, DiskFull)
    store._execute("PRAGMA max_page_count = 100000").fetchone()
    store.recover()
    assert put(store, batch("wiki", known)) == Verdict(0, tuple(range(len(known))))
    assert put(store, batch("wiki", late)) == Verdict(1000)
    assert len(remembered(tmp_path)) == len(known) + 1000


@pytest.mark.usefixtures("eager")
def test_keys_of_which_rows_are_left_are_not_forgotten_by_their_age(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    opened_by_disorder(store)
    before = len(remembered(tmp_path))
    after: bytes | None = b""
    while after is not None:
        after = store.prune(after, 10, 2**62)
    with opened(tmp_path) as connection:
        standing = {key for (keys,) in connection.execute("SELECT keys FROM recent_keys") for key in [keys[:24]]}
    assert standing <= set(remembered(tmp_path))
    assert store.remembered_keys() == len(remembered(tmp_path)) <= before


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("failure", [sqlite3.OperationalError("disk I/O error"), MemoryError(), None])
def test_commits_are_synced_again_however_it_ended_that_keys_enter(
    open_store: Opener, failure: BaseException | None
) -> None:
    store = open_store()
    known = sorted(opened_by_disorder(store))
    with (
        mock.patch.object(store._recent, "leave", side_effect=failure),
        pytest.raises((QueueUnavailable, MemoryError)) if failure else nullcontext(),
    ):
        store.enter_recent_keys()
    assert store._execute("PRAGMA synchronous").fetchone() == (2,)
    assert not store._connection.in_transaction
    assert put(store, batch("wiki", known)) == Verdict(0, tuple(range(len(known))))


@pytest.mark.usefixtures("eager")
def test_a_disk_in_the_way_of_it_is_said_and_no_key_forgotten(open_store: Opener) -> None:
    store = open_store()
    known = sorted(opened_by_disorder(store))
    with mock.patch.object(store._recent, "make_room", side_effect=sqlite3.OperationalError("disk I/O error")):
        store.make_room()
    assert isinstance(store.trouble, QueueUnavailable)
    store.recover()
    assert store.trouble is None
    assert put(store, batch("wiki", known)) == Verdict(0, tuple(range(len(known))))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("in_process", [False, True])
async def test_a_queue_makes_room_by_itself_and_enters_all_in_the_end(tmp_path: Path, in_process: bool) -> None:
    queue = sqlite_queue(tmp_path, writer=StoreProcess.fork() if in_process else None)
    await queue.open()
    maintenance = asyncio.create_task(queue.maintain())
    known: set[int] = set()
    most = 0
    for numbers, _ in zip(disorder(4, 40), range(50), strict=False):
        known.update(numbers)
        await queue.put([batch("wiki", numbers)])
        with opened(tmp_path) as connection:
            kept = {key for (keys,) in connection.execute("SELECT keys FROM recent_keys") for key in split_keys(keys)}
        most = max(most, len(kept))
    assert 0 < most <= EAGER["CAPACITY"] + 10
    await until(lambda: in_tree(tmp_path) == len(known))
    maintenance.cancel()
    await queue.close()
    assert len(remembered(tmp_path)) == len(known)
