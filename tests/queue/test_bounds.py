"""What the queue does costs the same however much it holds: counted in SQLite's own steps, not in time.

`python -m bench.bounds` takes the times, with ten million events.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from collector.queue.sqlite.database import FILE_NAME, SQL, WAL_LIMIT_BYTES
from collector.queue.sqlite.operations import Put, Settle
from collector.queue.sqlite.store import Store
from collector.queue.sqlite.view import View
from collector.queue.sqlite.write_ahead_log import AUTO_CHECKPOINT_PAGES
from tests.fake_clock import START_MS, FakeClock
from tests.queue.samples import batch, next_run, remembered

BATCH_EVENTS = 10
FEW, MANY = 20, 2_000
"""Batches in the queue."""
PAGE_BYTES = 4096


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path, batch_events=BATCH_EVENTS, clock=FakeClock())) as store:
        yield store


def fill(store: Store, batches: range) -> None:
    numbers = ((number * BATCH_EVENTS, (number + 1) * BATCH_EVENTS) for number in batches)
    store.transact([Put.of([batch("wiki", range(first, last)) for first, last in numbers])])


@contextmanager
def counted(connection: sqlite3.Connection) -> Iterator[Callable[[], int]]:
    """How many instructions of SQLite's machine ran meanwhile."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    connection.set_progress_handler(step, 1)
    try:
        yield lambda: steps
    finally:
        connection.set_progress_handler(None, 1)


@pytest.mark.parametrize("name", sorted(SQL))
def test_no_statement_reads_through_all_events_or_all_keys(store: Store, name: str) -> None:
    parameters = max((int(number) for number in re.findall(r"\?(\d+)", SQL[name])), default=0)
    plan = store._execute(f"EXPLAIN QUERY PLAN {SQL[name]}", (None,) * parameters).fetchall()
    assert not [detail for *_, detail in plan if re.match(r"SCAN (segment|seen)\b", detail)]


def test_a_lease_costs_the_same_from_few_batches_and_from_many(store: Store, tmp_path: Path) -> None:
    costs = []
    for batches in (range(FEW), range(FEW, MANY)):
        fill(store, batches)
        with closing(View(tmp_path)) as view, counted(view._connection) as steps:
            run = next_run(view, "wiki", 0, BATCH_EVENTS)
            costs.append(steps())
        assert run is not None
        assert run.events == BATCH_EVENTS
    assert 0 < costs[1] <= 1.1 * costs[0]


def test_a_settlement_costs_the_same_from_few_batches_and_from_many(store: Store, tmp_path: Path) -> None:
    costs = []
    for batches in (range(FEW), range(FEW, MANY)):
        fill(store, batches)
        with closing(View(tmp_path)) as view:
            run = next_run(view, "wiki", 0, BATCH_EVENTS)
        assert run is not None
        with counted(store._connection) as steps:
            store.transact([Settle("wiki", run.first, run.last, run.events)])
            costs.append(steps())
    assert 0 < costs[1] <= 1.1 * costs[0]


def test_a_put_costs_the_same_beside_few_keys_and_beside_many(store: Store) -> None:
    costs = []
    for batches in (range(FEW), range(FEW, MANY)):
        fill(store, batches)
        with counted(store._connection) as steps:
            fill(store, range(10_000 + batches.start, 10_001 + batches.start))
            costs.append(steps())
    assert 0 < costs[1] <= 1.1 * costs[0]


@pytest.mark.parametrize("expired", [False, True])
def test_a_step_of_forgetting_costs_the_same_among_few_keys_and_among_many(
    store: Store, tmp_path: Path, expired: bool
) -> None:
    costs = []
    for batches in (range(FEW), range(FEW, MANY)):
        fill(store, batches)
        before = len(remembered(tmp_path))
        with counted(store._connection) as steps:
            assert store.prune(b"", 100, (START_MS + 1000 * expired) * 1000) is not None
            costs.append(steps())
        assert before - len(remembered(tmp_path)) == (100 if expired else 0)
    assert 0 < costs[1] <= 1.1 * costs[0]


def test_the_log_stays_small_while_events_come_and_go_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, commits, log = 50, 0, tmp_path / f"{FILE_NAME}-wal"
    monkeypatch.setattr("collector.queue.sqlite.database.AUTO_CHECKPOINT_PAGES", pages)
    largest = 0
    with closing(Store(tmp_path, batch_events=BATCH_EVENTS, clock=FakeClock())) as store:
        for number in range(100):
            fill(store, range(number, number + 1))
            with closing(View(tmp_path)) as view:
                run = next_run(view, "wiki", 0, BATCH_EVENTS)
            assert run is not None
            store.transact([Settle("wiki", run.first, run.last, run.events)])
            store.shrink()
            largest = max(largest, log.stat().st_size)
            commits += 2
    assert commits > 3 * pages, "each writes a page at least, or the log would stay small by itself"
    assert largest < 2 * pages * PAGE_BYTES


def test_the_log_is_folded_into_the_file_long_before_it_is_cut_back() -> None:
    assert 2 * AUTO_CHECKPOINT_PAGES * PAGE_BYTES <= WAL_LIMIT_BYTES
