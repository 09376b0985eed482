"""Times on the command line."""

import click
import pytest

from collector.cli.options import TimeType
from collector.clock import Clock

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-01-01", 1_767_225_600_000),
        ("2026-01-01T00:00:00Z", 1_767_225_600_000),
        ("2026-01-01T01:00:00+01:00", 1_767_225_600_000),
        ("2026-01-01 00:00:00.25", 1_767_225_600_250),
        ("1969-12-31T23:59:59Z", -1_000),
    ],
)
def test_iso_8601_is_an_instant_in_utc_unless_it_has_an_offset(text: str, milliseconds: int) -> None:
    assert TimeType().convert(text, None, None) == milliseconds


@pytest.mark.parametrize(
    ("text", "ago_ms"), [("-7d", 168 * HOUR_MS), ("-1.5h", HOUR_MS * 3 // 2), ("-90m", HOUR_MS * 3 // 2), ("-0s", 0)]
)
def test_a_time_ago_counts_from_now(text: str, ago_ms: int) -> None:
    before = Clock().now_ms()
    assert before <= TimeType().convert(text, None, None) + ago_ms <= Clock().now_ms()


@pytest.mark.parametrize(
    "text", ["", "soon", "7d", "-7", "-7 weeks", "-", "--7d", "2026-13-01", "25:00", f"-{10**400}d"]
)
def test_what_is_no_time_is_refused_with_the_value_and_what_is_allowed(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"allowed: ISO 8601 .* -7d") as refusal:
        TimeType().convert(text, None, None)
    assert repr(text) in str(refusal.value)
