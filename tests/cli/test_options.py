"""Times and durations on the command line."""

from datetime import UTC, datetime, timedelta

import click
import pytest

from collector.cli.options import DurationType, MomentType, TimeType
from collector.clock import Clock
from tests.cli.child import run

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31T13:30:00+01:30", NOON),
        ("2026-01-31T12:00", NOON),
        ("2026-01-31 12:00:00.5", NOON + timedelta(seconds=0.5)),
        ("2026-01-31", NOON - timedelta(hours=12)),
    ],
)
def test_a_time_is_iso_8601_and_utc_where_it_names_no_zone(text: str, time: datetime) -> None:
    converted = MomentType().convert(text, None, None)
    assert (converted, converted.utcoffset()) == (time, timedelta(0))


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("now", timedelta()),
        ("-7d", timedelta(days=7)),
        ("-1.5h", timedelta(minutes=90)),
        ("-30m", timedelta(minutes=30)),
    ],
)
def test_a_time_may_be_so_long_ago(text: str, ago: timedelta) -> None:
    before = datetime.now(UTC)
    converted = MomentType().convert(text, None, None)
    assert before - timedelta(milliseconds=1) <= converted + ago <= datetime.now(UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "7d",
        "-7",
        "--7d",
        "-7w",
        "tomorrow",
        "1767225600000",
        "2026-02-30",
        "-9999999999d",
        "-99999999999999d",
        "0001-01-01T00:00+10:00",
    ],
)
def test_what_is_no_time_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time; allowed: "):
        MomentType().convert(text, None, None)


def test_a_duration_has_a_unit_and_a_range() -> None:
    kind = DurationType("100ms", "1d")
    assert [kind.convert(text, None, None) for text in ("100ms", "1.5h", "1d")] == [0.1, 5400.0, 86_400.0]
    for text in ("1", "99ms", "2d", "", "soon"):
        with pytest.raises(click.BadParameter, match='expected a duration from "100ms" to "1d"'):
            kind.convert(text, None, None)


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


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--timeout", "nan"),
        ("healthcheck", "--timeout", "inf"),
        ("top", "--interval", "nan"),
        ("top", "--interval", "1e12"),
        ("push", "-", "--patience", "nan"),
        ("push", "-", "--to", "unix:"),
        ("queue", "dead", "list", "--app", "\udcff"),
        ("queue", "dead", "purge", "--reason", "\udcff"),
        ("queue", "bury", "--app", "\udcff", "--reason", "gone"),
        ("queue", "export", "--app", "\udcff"),
        ("replay", "--since", "-1d", "--app", "\udcff"),
    ],
)
async def test_what_is_no_number_or_no_text_is_wrong_usage(words: tuple[str, ...]) -> None:
    ended = await run(*words)
    assert (ended.status, ended.out) == (2, "")
    assert f"Invalid value for '{words[-2] if 'bury' not in words else '--app'}'" in ended.err
