"""What was put a moment ago is leased as it would be read from the file."""

import tempfile
from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from collector.queue.operations import Put
from collector.queue.recent import RECENT_BYTES, Recent
from collector.queue.store import Store
from collector.queue.view import APP_SHIFT, View
from tests.fake_clock import FakeClock
from tests.queue.samples import batch, numbers_in

BATCH_EVENTS = 10


@given(
    sizes=st.lists(st.integers(1, 12) | st.just(BATCH_EVENTS), min_size=1, max_size=12),
    gone=st.sets(st.integers(1, 12), max_size=3),
)
def test_it_gives_the_run_that_the_file_has_or_none(sizes: list[int], gone: set[int]) -> None:
    clock, recent, first = FakeClock(), Recent(), 1 << APP_SHIFT
    stamps: dict[int, int] = {}  # of those that are in memory
    with tempfile.TemporaryDirectory() as folder, closing(Store(Path(folder), batch_events=20, clock=clock)) as store:
        begin = 0
        for number, size in enumerate(sizes, first + 1):
            clock.advance(1)
            segment = batch("wiki", range(begin, begin + size))
            store.transact([Put.of([segment])])
            if number - first not in gone:
                recent.add({number: [segment]}, clock.now_us())
                stamps[number] = clock.now_us()
            begin += size
        with closing(View(Path(folder))) as view:
            after, left = first, sum(sizes)
            while read := view.next_run("wiki", after, BATCH_EVENTS):
                run = recent.next_run(after, left, BATCH_EVENTS)
                if run is None:
                    assert any(number not in stamps for number in range(read.first, first + len(sizes) + 1))
                else:
                    assert run[:-1] == read[:-1]
                    assert run.next_stamp == stamps.get(read.last + 1, stamps[read.last])
                after, left = read.last, left - read.events
    assert recent.next_run(after, 0, BATCH_EVENTS) is None


def test_what_is_given_out_is_not_given_out_again() -> None:
    recent = Recent()
    recent.add({1: [batch("wiki", range(4)), batch("wiki", range(4, 10))], 2: [batch("wiki", range(10, 20))]}, 0)
    run = recent.next_run(0, 20, BATCH_EVENTS)
    assert run is not None
    assert (run.first, run.last, numbers_in("wiki", run.lines)) == (1, 1, list(range(10)))
    assert recent.next_run(0, 20, BATCH_EVENTS) is None
    assert recent.next_run(1, 10, BATCH_EVENTS) is not None


def test_the_oldest_make_room_for_what_comes() -> None:
    recent = Recent()
    segment = batch("wiki", range(1000))
    held = RECENT_BYTES // len(segment.lines)
    for number in range(1, held + 11):
        recent.add({number: [segment]}, 0)
    found = [number for number in range(1, held + 11) if recent.next_run(number - 1, 1000, 1000)]
    assert found == list(range(11, held + 11))
    recent.add({1: [segment]}, 0)
    recent.clear()
    assert recent.next_run(0, 1000, 1000) is None
