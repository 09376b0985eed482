"""A few thousand inputs for each target; `make fuzz` goes on to a million."""

import pytest

from tests.fuzz.targets import TARGETS, run


@pytest.mark.parametrize("target", TARGETS)
async def test_strangers_bytes_crash_nothing_and_make_up_no_event(target: str) -> None:
    await run(target, range(2_000))
