"""How many requests leave in a second."""

import asyncio

import pytest

from collector.pace import Pace
from tests.fake_clock import FakeClock


@pytest.mark.parametrize(("per_second", "share", "within"), [(10, 1.0, 2.9), (10, 0.5, 5.8), (0, 1.0, 0.0)])
async def test_turns_are_as_far_apart_as_the_limit_and_the_share_of_it_say(
    clock: FakeClock, per_second: int, share: float, within: float
) -> None:
    pace = Pace(per_second, lambda: share, clock=clock)
    turns = [asyncio.create_task(pace.turn()) for _ in range(30)]
    await asyncio.sleep(0)
    while not all(turn.done() for turn in turns):
        due = clock.next_due_seconds()
        assert due is not None
        clock.advance(due)
        for _ in range(5):
            await asyncio.sleep(0)
    assert clock.monotonic() == pytest.approx(within)
