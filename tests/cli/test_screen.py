"""The status as text: what a person reads, and nothing that a terminal would obey."""

import click
import msgspec
import pytest

from collector.cli.screen import duration, events, screen, size
from collector.observe.status import (
    AppStatus,
    Limit,
    Problem,
    QueueStatus,
    Rates,
    Refusal,
    Severity,
    Status,
    UpstreamStatus,
)
from collector.queue.base import DeadLetters, Reason

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\u202e"

STATUS = Status(
    version="1",
    is_running=True,
    now_ms=0,
    uptime_seconds=4_000,
    problems=[Problem(Severity.ERROR, f"held {HOSTILE}")],
    queue=QueueStatus(f"q{HOSTILE}", waiting_events=12_345, waiting_bytes=2**20, oldest_age_seconds=61.0),
    upstream=UpstreamStatus("https://a.example", "failing", 5.0, f"503 {HOSTILE}", 2.0),
    rates=Rates(10.0, 0.0, [10.0] * 300, [0.0] * 300, [0] * 150 + [100] * 150),
    apps=[AppStatus(f"app{HOSTILE}{number}", "held", 1, 1, 1.0, 0, reason=HOSTILE) for number in range(30)],
    apps_left_out=5,
    dead_letters=DeadLetters([Reason(f"no {HOSTILE}", 3, 0)]),
    refusals=[Refusal("http", "overload", 7)],
    limits=[Limit("queue.max_bytes", 2**20, 2**21, "bytes"), Limit("http.max_connections", 0, 512, "connections")],
)


def test_one_screen_says_all() -> None:
    text = click.unstyle(screen(STATUS, "http://127.0.0.1:8787"))
    for said in (
        "up 1 h 6 min",
        "12,345 events",
        "1.0 MiB, the oldest for 1 min 1 s",
        "failing for 5 s, again in 2 s",
        "queue.max_bytes: 1.0 MiB of 2.0 MiB",
        "overload 7",
        "and 25 more",
        "████",
    ):
        assert said in text
    assert "max_connections" not in text, "a limit that is hardly used is no news"
    assert len(text.splitlines()) < 50


@pytest.mark.parametrize("columns", [60, 78, 200])
def test_on_a_terminal_no_line_is_wider_and_no_word_is_lost(columns: int) -> None:
    reason = "publishUsageEvents: 403 for app 'wiki': " + "ask whoever knows " * 8
    apps = [
        AppStatus("a-name-of-forty-characters-as-there-may-be", "held", 12_345_678, 1, 9_000.0, 12_345, reason=reason)
    ]
    problems = [Problem(Severity.ERROR, f"wiki is held: {reason}")]
    letters = DeadLetters([Reason(reason, 3, 0)])
    status = msgspec.structs.replace(STATUS, apps=apps, apps_left_out=0, problems=problems, dead_letters=letters)
    narrow, wide = click.unstyle(screen(status, "", columns)), click.unstyle(screen(status, ""))
    assert max(map(len, narrow.split("\n"))) <= columns
    assert [word for word in narrow.split() if word.isalpha()] == [word for word in wide.split() if word.isalpha()]


def test_what_strangers_wrote_cannot_move_the_cursor() -> None:
    lines = click.unstyle(screen(STATUS, f"unix:{HOSTILE}")).split("\n")
    assert all(line.isprintable() for line in lines)


def test_a_collector_without_history_has_its_screen_too() -> None:
    status = Status("1", is_running=False, now_ms=0, queue=QueueStatus("q"), upstream=UpstreamStatus("", "unknown"))
    assert "no answer" in screen(status, "")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (7_260, "2 h 1 min"), (180_000, "2 d 2 h")]
)
def test_durations_have_their_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (200 * 2**20, "200 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_sizes_are_short(count: int, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(("count", "said"), [(0, "0 events"), (1, "1 event"), (1234, "1,234 events")])
def test_one_is_no_plural(count: int, said: str) -> None:
    assert events(count) == said
