"""What the simulation has found, each a seed that failed before it was mended.

The same is said without chance in tests/test_flusher.py and tests/upstream/test_auth.py: these seeds only hold the
simulation to what it once could find.
"""

import pytest

from tests.simulation.world import simulate


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(3, id="a lease that came when its app had been told to wait was sent all the same"),
        pytest.param(1095, id="a Retry-After was not heard before the disk let what came before it be settled"),
        pytest.param(66, id="each app asked for a token again before the Retry-After that another had been told"),
    ],
)
def test_what_was_found_stays_mended(seed: int) -> None:
    simulate(seed)
