"""Wall time where somebody sets the clock."""

from hypothesis import given
from hypothesis import strategies as st

from collector.clock import WallTime
from tests.fake_clock import FakeClock


def test_where_nobody_sets_the_clock_wall_time_is_what_it_says(clock: FakeClock) -> None:
    wall = WallTime(clock)
    for seconds in (0.0, 0.5, 3600.0):
        clock.advance(seconds)
        assert wall.earliest_us() == wall.latest_us() == clock.now_us()


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e5, 1e5)), min_size=1, max_size=10))
def test_what_is_stamped_with_the_later_and_judged_by_the_earlier_is_never_older_than_it_is(
    story: list[tuple[float, float]],
) -> None:
    clock = FakeClock()
    wall = WallTime(clock)
    stamps = []
    for passes, jump in story:
        stamps.append((wall.latest_us(), clock.monotonic()))
        clock.advance(passes)
        clock.jump(jump)
        for stamp, when in stamps:
            assert wall.earliest_us() - stamp <= (clock.monotonic() - when) * 1e6 + 2
