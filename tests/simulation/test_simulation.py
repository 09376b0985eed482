"""A few hundred worlds, always the same; `make simulate` goes on to as many as one likes."""

import pytest

from tests.simulation.world import simulate


@pytest.mark.parametrize("first", range(0, 150, 25))
def test_nothing_acknowledged_is_lost_and_the_books_balance_whatever_happens(first: int) -> None:
    for seed in range(first, first + 25):
        simulate(seed)


@pytest.mark.parametrize("seed", [3, 29, 93])
def test_the_same_seed_tells_the_same_story(seed: int) -> None:
    assert simulate(seed) == simulate(seed)
