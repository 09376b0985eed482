"""What is in memory is leased as it would be read from the file."""

from hypothesis import given
from hypothesis import strategies as st

from collector.queue.base import Verdict
from collector.queue.sqlite.at_hand import AT_HAND_BYTES, AtHand
from collector.queue.sqlite.run import Segment, best_reach, made_of
from tests.queue.samples import batch, numbers_in

BATCH_EVENTS = 10


def segments_of(sizes: list[int]) -> list[Segment]:
    """Segments of such sizes from number 1 on, which were put a second apart."""
    begins = [sum(sizes[:position]) for position in range(len(sizes))]
    return [
        made_of([(batch("wiki", range(begin, begin + size)), Verdict(size))], number, number * 1_000_000)
        for number, (begin, size) in enumerate(zip(begins, sizes, strict=True), 1)
    ]


@given(
    sizes=st.lists(st.integers(1, 12) | st.just(BATCH_EVENTS), min_size=1, max_size=14),
    gone=st.sets(st.integers(1, 14), max_size=2),
)
def test_it_gives_the_run_that_all_that_waits_would_give_or_none(sizes: list[int], gone: set[int]) -> None:
    segments = segments_of(sizes)
    at_hand = AtHand()
    at_hand.add([segment for segment in segments if segment.number not in gone])
    after = 0
    while rest := segments[after:]:
        run = at_hand.next_run(after, sum(segment.events for segment in rest), BATCH_EVENTS)
        last = after + best_reach([segment.events for segment in rest], BATCH_EVENTS)
        if run is None:
            assert any(number > after for number in gone)
        else:
            assert (run.first, run.last, run.events) == (after + 1, last, sum(sizes[after:last]))
            assert numbers_in("wiki", run.lines) == list(range(sum(sizes[:after]), sum(sizes[:last])))
            following = last + 1 if last < len(sizes) and last + 1 not in gone else last
            assert at_hand.next_stamp(run) == following * 1_000_000
        after = last


def test_with_nothing_more_to_read_it_gives_what_there_is() -> None:
    at_hand = AtHand()
    assert at_hand.next_run(0, 0, BATCH_EVENTS) is None
    at_hand.add(segments_of([4, 4, 4]))
    assert at_hand.next_run(0, 13, BATCH_EVENTS) is None
    run = at_hand.next_run(0, 0, BATCH_EVENTS)
    assert run is not None
    assert (run.first, run.last) == (1, 2)


def test_what_is_given_out_is_not_given_out_again() -> None:
    at_hand = AtHand()
    at_hand.add(segments_of([10, 10]))
    assert at_hand.reach(0) == 2
    assert at_hand.next_run(0, 20, BATCH_EVENTS) is not None
    assert at_hand.next_run(0, 20, BATCH_EVENTS) is None
    assert (at_hand.reach(0), at_hand.reach(1)) == (0, 2)
    assert at_hand.next_run(1, 10, BATCH_EVENTS) is not None


def test_the_oldest_make_room_for_what_comes() -> None:
    at_hand = AtHand()
    (segment,) = segments_of([1000])
    held = AT_HAND_BYTES // len(segment.lines)
    for number in range(1, held + 11):
        at_hand.add([segment._replace(number=number)] * 2)
    found = [number for number in range(1, held + 11) if at_hand.next_run(number - 1, 1000, 1000)]
    assert found == list(range(11, held + 11))
    at_hand.add([segment])
    at_hand.clear()
    assert at_hand.reach(0) == 0


def test_what_has_just_come_stays_however_large_it_is() -> None:
    at_hand = AtHand()
    large = [Segment(number, 0, 1, b"x" * AT_HAND_BYTES) for number in range(1, 4)]
    at_hand.add(large[:2])
    assert at_hand.reach(0) == 2
    at_hand.add(large[2:])
    assert (at_hand.reach(0), at_hand.reach(2)) == (0, 3)
