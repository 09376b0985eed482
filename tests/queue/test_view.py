"""What a lease takes and what the statistics say, read beside a writer."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import QueueUnavailable
from collector.queue.base import SHOWN_LETTERS, AppStats, Batch, Burial, DeadLetter, DeadLetters
from collector.queue.sqlite.database import APP_SHIFT, FILE_NAME
from collector.queue.sqlite.operations import Done, Put, Settle
from collector.queue.sqlite.run import LEASE_BATCHES, Run, best_reach, joined
from collector.queue.sqlite.store import Store
from collector.queue.sqlite.view import View
from tests.fake_clock import FakeClock
from tests.queue.samples import batch, lines, next_run, numbers_in, opened, remembered, stored

BATCH_EVENTS = 10


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    with closing(Store(tmp_path, batch_events=BATCH_EVENTS, clock=clock)) as store:
        yield store


@pytest.fixture
def view(tmp_path: Path, store: Store) -> Iterator[View]:
    assert store.apps() == []  # the file is there
    with closing(View(tmp_path)) as view:
        yield view


def put_segments(store: Store, app_id: str, sizes: list[int]) -> None:
    """Puts segments of just these sizes; each is committed alone, so that none are joined."""
    begin = 0
    for size in sizes:
        store.transact([Put.of([batch(app_id, range(begin, begin + size))])])
        begin += size


def segments_of(directory: Path, app_id: str) -> list[tuple[int, int]]:
    """Number and stamp of each of an app's segments."""
    with opened(directory) as connection:
        return connection.execute(
            "SELECT segment, stamp FROM segment JOIN app ON segment >> 40 = app WHERE name = ? ORDER BY segment",
            (app_id,),
        ).fetchall()


def fill(sizes: list[int], reach: int, batch_events: int) -> Fraction:
    """Which share of the requests that the first segments make is used."""
    total = sum(sizes[:reach])
    return Fraction(total, -(-total // batch_events) * batch_events)


@pytest.mark.parametrize(
    ("sizes", "batch_events", "reach"),
    [
        pytest.param([], 1000, 0, id="nothing"),
        pytest.param([1], 1000, 1, id="one event"),
        pytest.param([1000, 1000], 1000, 1, id="full at once"),
        pytest.param([600, 400, 1000], 1000, 2, id="two fill one"),
        pytest.param([600, 600], 1000, 1, id="equals: the shorter"),
        pytest.param([600, 700], 1000, 2, id="two requests filled better than one"),
        pytest.param([700, 700, 600], 1000, 3, id="three fill two"),
        pytest.param([900, 900, 900, 900, 400], 1000, 5, id="up to four batches"),
        pytest.param([900, 900, 900, 900, 401, 999], 1000, 1, id="not beyond four batches"),
        pytest.param([999, 999, 999, 999], 1000, 1, id="nothing is better"),
        pytest.param([1] * 5000, 1000, 1000, id="many tiny ones"),
        pytest.param([5000, 1000], 1000, 1, id="larger than a lease, and full"),
        pytest.param([5001, 999], 1000, 1, id="larger than a lease, and not full"),
        pytest.param([3, 2, 1], 1, 1, id="batches of one"),
    ],
)
def test_the_reach_is_that_which_fills_requests_best(sizes: list[int], batch_events: int, reach: int) -> None:
    assert best_reach(sizes, batch_events) == reach


@given(
    sizes=st.lists(st.integers(1, 120) | st.integers(900, 1100), min_size=1, max_size=60),
    batch_events=st.sampled_from([1, 7, 100, 1000]),
)
def test_no_other_reach_within_a_lease_fills_requests_better(sizes: list[int], batch_events: int) -> None:
    def is_allowed(reach: int) -> bool:
        return reach == 1 or sum(sizes[:reach]) <= LEASE_BATCHES * batch_events

    reach = best_reach(sizes, batch_events)
    assert 1 <= reach <= len(sizes)
    assert is_allowed(reach)
    best = fill(sizes, reach, batch_events)
    for other in filter(is_allowed, range(1, len(sizes) + 1)):
        assert fill(sizes, other, batch_events) <= best
        assert other >= reach or fill(sizes, other, batch_events) < best


@pytest.mark.parametrize("app_id", ["crm", "chat", "unheard of"])
def test_an_app_without_segments_has_no_run_whoever_its_neighbours_are(store: Store, view: View, app_id: str) -> None:
    store.transact([Put.of([batch(each, [0]) for each in ("crm", "wiki", "chat")])])
    for settled in ("crm", "chat"):
        run = next_run(view, settled, 0, BATCH_EVENTS)
        assert run is not None
        store.transact([Settle(settled, run.first, run.last, 1)])
    assert next_run(view, app_id, 0, BATCH_EVENTS) is None
    assert next_run(view, "wiki", 0, BATCH_EVENTS) is not None


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        pytest.param([10, 10, 3], [1, 1, 1], id="full ones singly, then the rest"),
        pytest.param([7, 7, 6, 10], [3, 1], id="over two batches"),
        pytest.param([9, 9, 9, 9, 4], [5], id="over four batches"),
        pytest.param([50, 10], [1, 1], id="a large one alone"),
        pytest.param([1] * 25, [10, 10, 5], id="tiny ones"),
    ],
)
def test_runs_follow_one_another_until_all_segments_are_read(
    tmp_path: Path, store: Store, view: View, sizes: list[int], taken: list[int]
) -> None:
    store.transact([Put.of([batch("before", [1])])])
    put_segments(store, "wiki", sizes)
    store.transact([Put.of([batch("after", [1])])])
    segments = segments_of(tmp_path, "wiki")
    runs: list[Run] = []
    while run := next_run(view, "wiki", runs[-1].last if runs else 0, BATCH_EVENTS):
        runs.append(run)
    assert [sum(run.first <= number <= run.last for number, _ in segments) for run in runs] == taken
    assert [number for run in runs for number in numbers_in("wiki", run.lines)] == list(range(sum(sizes)))
    assert [run.events for run in runs] == [run.lines.count(b"\n") + 1 for run in runs]
    assert [run.stamp for run in runs] == [dict(segments)[run.last] for run in runs]


def test_a_thousand_tiny_segments_make_one_full_run(tmp_path: Path, clock: FakeClock) -> None:
    with closing(Store(tmp_path, batch_events=1, clock=clock)) as store, closing(View(tmp_path)) as view:
        store.transact([Put.of([batch("wiki", [number]) for number in range(2500)])])
        assert stored(tmp_path)["wiki"].segments == [1] * 2500
        run = next_run(view, "wiki", 0, 1000)
        assert run is not None
        assert (run.events, numbers_in("wiki", run.lines)) == (1000, list(range(1000)))


@pytest.mark.parametrize(
    ("sizes", "line_bytes", "read"),
    [
        pytest.param([10] * 12, 100, 8, id="eight batches at once"),
        pytest.param([10] * 12, 30_000, 4, id="of large events four, which a lease can choose from"),
        pytest.param([9] * 12, 60_000, 4, id="whatever their size"),
        pytest.param([90, 10], 100, 1, id="at least one"),
    ],
)
def test_as_much_is_read_as_a_lease_can_choose_from_and_more_where_it_is_small(
    store: Store, view: View, sizes: list[int], line_bytes: int, read: int
) -> None:
    begin = 0
    for size in sizes:
        text = b"\n".join([b"x" * line_bytes] * size)
        store.transact([Put.of([Batch("wiki", batch("wiki", range(begin, begin + size)).keys, text)])])
        begin += size
    assert len(view.next_segments("wiki", 0, BATCH_EVENTS)) == read


def test_what_a_run_costs_does_not_grow_with_what_waits(tmp_path: Path, clock: FakeClock) -> None:
    with closing(Store(tmp_path, batch_events=1, clock=clock)) as store, closing(View(tmp_path)) as view:

        def steps() -> int:
            """Instructions of SQLite's machine that one run takes."""
            count = 0

            def step() -> int:
                nonlocal count
                count += 1
                return 0

            view._connection.set_progress_handler(step, 1)
            assert next_run(view, "wiki", 0, 10) is not None
            view.stats(clock)
            view._connection.set_progress_handler(None, 1)
            return count

        store.transact([Put.of([batch("wiki", [number]) for number in range(1000)])])
        steps()  # learns the app's number
        before = steps()
        store.transact([Put.of([batch("wiki", [number]) for number in range(1000, 8000)])])
        assert steps() == before


def test_an_earlier_run_is_read_again_as_it_is_now(tmp_path: Path, store: Store, view: View) -> None:
    put_segments(store, "wiki", [7, 7, 6, 3])
    run = next_run(view, "wiki", 0, BATCH_EVENTS)
    assert run is not None
    assert joined(view.segments("wiki", run.first, run.last, 20)) == run
    store.transact([Settle("wiki", run.first, run.last, 20, rest_events=2, rest_lines=lines("wiki", [4, 9]))])
    again = joined(view.segments("wiki", run.first, run.last, 2))
    assert again == Run(run.first, run.first, 2, lines("wiki", [4, 9]), segments_of(tmp_path, "wiki")[0][1])


def test_a_run_that_another_process_has_settled_is_unavailable(tmp_path: Path, store: Store, view: View) -> None:
    put_segments(store, "wiki", [10])
    run = next_run(view, "wiki", 0, BATCH_EVENTS)
    assert run is not None
    store.transact([Settle("wiki", run.first, run.last, 10)])
    with pytest.raises(QueueUnavailable, match="has another process flushed this queue") as refusal:
        view.segments("wiki", run.first, run.last, 10)
    assert str(tmp_path / FILE_NAME) in str(refusal.value)


# Statistics


def test_the_statistics_of_an_empty_queue_are_zero(tmp_path: Path, view: View, clock: FakeClock) -> None:
    stats = view.stats(clock)
    assert (stats.waiting_events, stats.waiting_bytes, stats.dead_events, stats.remembered_keys) == (0, 0, 0, 0)
    assert (stats.oldest_age_ms, stats.apps) == (None, [])
    assert stats.file_bytes == (tmp_path / FILE_NAME).stat().st_size


def test_the_statistics_equal_what_the_file_holds(tmp_path: Path, store: Store, view: View, clock: FakeClock) -> None:
    store.transact([Put.of([batch("wiki", range(30)), batch("crm", range(10))])])
    clock.advance(2.5)
    store.transact([Put.of([batch("chat", range(7)), batch("crm", range(17))])])
    clock.advance(60)
    runs = {app_id: next_run(view, app_id, 0, BATCH_EVENTS) for app_id in ("wiki", "crm", "chat")}
    for app_id, run in runs.items():
        assert run is not None
        burials = [] if app_id == "wiki" else [(Burial(position, "no"), b"{}") for position in range(2)]
        rest = [number for number in numbers_in(app_id, run.lines) if number % 3 == 0] if app_id == "wiki" else []
        store.transact([Settle(app_id, run.first, run.last, run.events, burials, len(rest), lines(app_id, rest))])
    store.prune(b"", 10, clock.now_us())

    truth = stored(tmp_path)
    stats = view.stats(clock)
    assert {app.app_id: (app.waiting_events, app.waiting_bytes, app.dead_events) for app in stats.apps} == {
        app_id: (share.events, share.bytes, share.dead) for app_id, share in truth.items()
    }
    assert {app.app_id: app.oldest_age_ms for app in stats.apps} == {"wiki": 62_500, "crm": 60_000, "chat": None}
    assert stats.waiting_events == sum(share.events for share in truth.values()) == 10 + 7
    assert stats.waiting_bytes == sum(share.bytes for share in truth.values())
    assert (stats.dead_events, stats.oldest_age_ms) == (4, 62_500)
    assert stats.remembered_keys == len(remembered(tmp_path)) == 30 + 17 + 7 - 10
    assert stats.file_bytes == (tmp_path / FILE_NAME).stat().st_size
    assert stats.wal_bytes == (tmp_path / f"{FILE_NAME}-wal").stat().st_size > 0


def test_an_age_is_never_negative_where_wall_time_has_jumped_back(store: Store, view: View) -> None:
    store.transact([Put.of([batch("wiki", [1])])])
    (app,) = view.stats(FakeClock(now_ms=1)).apps
    assert app == AppStats("wiki", 1, batch("wiki", [1]).bytes, 0, 0, 0, 0)


def test_what_is_not_committed_is_in_no_statistics_and_does_not_hold_them_up(
    store: Store, view: View, clock: FakeClock
) -> None:
    store.transact([Put.of([batch("wiki", [1])])])
    store._execute("BEGIN IMMEDIATE")
    store._execute("DELETE FROM segment")
    assert view.stats(clock).waiting_events == 1
    store._execute("COMMIT")
    assert view.stats(clock).waiting_events == 0


def test_the_statistics_are_of_one_instant_while_a_writer_is_active(
    tmp_path: Path, view: View, clock: FakeClock
) -> None:
    done = threading.Event()

    def write() -> None:
        """Each commit adds three events to each of two apps, and every third takes six of each away."""
        with (
            closing(Store(tmp_path, batch_events=BATCH_EVENTS, clock=clock)) as store,
            closing(View(tmp_path)) as other,
        ):
            for number in range(0, 600, 3):
                numbers = range(number, number + 3)
                settlements = [
                    Settle(app_id, run.first, run.last, run.events)
                    for app_id in ("wiki", "crm")
                    if number % 9 == 0 and (run := next_run(other, app_id, 0, 6))
                ]
                store.transact([Put.of([batch("wiki", numbers), batch("crm", numbers)]), *settlements])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        stats = view.stats(clock)
        by_app = {app.app_id: app for app in stats.apps}
        assert stats.waiting_events == sum(app.waiting_events for app in stats.apps)
        if by_app:
            assert by_app["wiki"].waiting_events == by_app["crm"].waiting_events
        assert stats.remembered_keys % 6 == 0
        seen.add(stats.remembered_keys)
    writer.join()
    assert len(seen) > 3  # it was active all the while
    assert view.stats(clock).remembered_keys == 1200


def test_a_reader_holds_no_snapshot_between_calls_so_that_the_log_can_be_folded_in(
    tmp_path: Path, store: Store, view: View, clock: FakeClock
) -> None:
    put_segments(store, "wiki", [10, 10])
    view.stats(clock)
    run = next_run(view, "wiki", 0, BATCH_EVENTS)
    assert run is not None
    view.segments("wiki", run.first, run.last, run.events)
    assert store._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size == 0


def test_lines_are_joined_byte_for_byte(store: Store, view: View) -> None:
    odd = [b'{"a":"\\u0000"}', '{"a":"\u2028\U0001f600"}'.encode(), b"{}"]
    for number, text in enumerate(odd):
        store.transact([Put.of([Batch("wiki", batch("wiki", [number]).keys, text)])])
    run = next_run(view, "wiki", 0, 3)
    assert run is not None
    assert run.lines == b"\n".join(odd)


def test_the_view_cannot_write(view: View) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        view._execute("DELETE FROM segment")


def test_dead_letters_are_counted_by_reason_over_the_latest_thousand(
    store: Store, view: View, clock: FakeClock
) -> None:
    assert view.dead_letters() == DeadLetters()
    for number in range(1, 122):
        put_segments(store, "wiki", [10])
        clock.advance(1)
        reason = "old" if number == 1 else "frequent" if number % 10 else "rare"
        burials = [(Burial(position, reason), b"{}") for position in range(10)]
        first = (1 << APP_SHIFT) + number
        [done] = store.transact([Settle("wiki", first, first, 10, dead=burials)])
        assert isinstance(done, Done)
    letters = view.dead_letters()
    assert [(reason.reason, reason.events) for reason in letters.reasons] == [("frequent", 900), ("rare", 100)]
    assert len(letters.latest) == SHOWN_LETTERS
    assert letters.latest[0] == DeadLetter("wiki", clock.now_ms(), "frequent")
    assert letters.reasons[0].latest_ms == clock.now_ms()
