"""How long a wait may be, and what decides it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.backoff import delay_seconds

ATTEMPTS = st.integers(1, 200) | st.integers(1, 10**18)
FRACTIONS = st.floats(0, 1, exclude_max=True)
DURATIONS = st.floats(0.001, 86_400)


@given(ATTEMPTS, DURATIONS, DURATIONS, FRACTIONS)
def test_a_wait_is_never_negative_and_never_above_the_maximum(
    attempt: int, base: float, maximum: float, fraction: float
) -> None:
    delay = delay_seconds(attempt, base_seconds=base, maximum_seconds=maximum, random_fraction=fraction)
    assert 0 <= delay <= maximum


@pytest.mark.parametrize(
    ("attempt", "ceiling"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (9, 60.0), (10**9, 60.0)]
)
def test_the_ceiling_doubles_with_each_failure_up_to_the_maximum(attempt: int, ceiling: float) -> None:
    half = delay_seconds(attempt, base_seconds=0.5, maximum_seconds=60, random_fraction=0.5)
    assert half == ceiling / 2


@given(ATTEMPTS, DURATIONS, DURATIONS, FRACTIONS)
def test_the_jitter_is_full_so_waits_spread_evenly_from_zero_to_the_ceiling(
    attempt: int, base: float, maximum: float, fraction: float
) -> None:
    def delay(random_fraction: float) -> float:
        return delay_seconds(attempt, base_seconds=base, maximum_seconds=maximum, random_fraction=random_fraction)

    assert delay(0.0) == 0
    assert delay(fraction) == pytest.approx(2 * delay(fraction / 2))


@given(ATTEMPTS, DURATIONS, DURATIONS, st.floats(0.01, 1, exclude_max=True))
def test_more_failures_never_mean_a_shorter_wait(attempt: int, base: float, maximum: float, fraction: float) -> None:
    first, second = (
        delay_seconds(number, base_seconds=base, maximum_seconds=maximum, random_fraction=fraction)
        for number in (attempt, attempt + 1)
    )
    assert first <= second


@given(ATTEMPTS, DURATIONS, DURATIONS, FRACTIONS, st.floats(0, 3600))
def test_a_retry_after_is_a_floor_even_above_the_maximum_with_the_jitter_on_top(
    attempt: int, base: float, maximum: float, fraction: float, retry_after: float
) -> None:
    jitter = delay_seconds(attempt, base_seconds=base, maximum_seconds=maximum, random_fraction=fraction)
    delay = delay_seconds(
        attempt,
        base_seconds=base,
        maximum_seconds=maximum,
        random_fraction=fraction,
        retry_after_seconds=retry_after,
    )
    assert delay >= retry_after
    assert delay - retry_after == pytest.approx(jitter, abs=1e-9)
