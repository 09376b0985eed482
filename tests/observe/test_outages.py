"""An outage is one line when it begins and one when it ends, however many retries and apps it has."""

import logging
from functools import partial
from typing import Any

import pytest

from collector.observe.outages import Outages
from tests.fake_clock import FakeClock


@pytest.fixture
def outages(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> Outages:
    caplog.set_level(logging.INFO, "collector")
    return Outages(clock)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, Any]]:
    """Level and event of each line, with its app, or how many events waited."""
    return [
        (record.levelname, record.getMessage(), vars(record).get("waited_events", vars(record).get("app")))
        for record in caplog.records
    ]


def test_many_failures_of_many_apps_are_one_outage(
    outages: Outages, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for attempt in range(50):
        outages.fail("wiki", f"503, attempt {attempt}", again_in_seconds=1, waiting_events=100 + attempt)
        outages.fail("crm", "503", again_in_seconds=1, waiting_events=7)
        clock.advance(2)
    assert outages.failing_since == 0
    outages.end("crm")
    assert outages.failing_since == 0, "wiki fails still"
    outages.end("wiki")
    assert outages.failing_since is None
    assert said(caplog) == [
        ("WARNING", "flusher.outage_began", "wiki"),
        ("INFO", "flusher.outage_ended", 149 + 7),
    ]
    assert vars(caplog.records[1])["seconds"] == 100
    assert list(outages) == []


def test_the_next_outage_counts_anew(outages: Outages, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    for waiting in (10, 3):
        outages.fail("wiki", "503", again_in_seconds=1, waiting_events=waiting)
        clock.advance(5)
        outages.end("wiki")
        clock.advance(100)
    ends = [vars(record) for record in caplog.records if record.getMessage() == "flusher.outage_ended"]
    assert [(end["seconds"], end["waited_events"]) for end in ends] == [(5, 10), (5, 3)]


def test_a_hold_is_said_again_only_where_its_reason_changes(
    outages: Outages, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for reason in ("404", "404", "404", "403"):
        outages.hold("wiki", reason, again_in_seconds=300, waiting_events=9)
        clock.advance(300)
    outages.fail("wiki", "403", again_in_seconds=1, waiting_events=12)
    assert outages.failing_since is None, "upstream answers; it is the app that is not taken"
    outages.end("wiki")
    assert said(caplog) == [
        ("ERROR", "flusher.app_held", "wiki"),
        ("ERROR", "flusher.app_held", "wiki"),
        ("INFO", "flusher.hold_ended", 12),
    ]
    assert vars(caplog.records[-1])["seconds"] == 1200


def test_an_outage_that_ends_in_a_hold_has_ended(outages: Outages, caplog: pytest.LogCaptureFixture) -> None:
    outages.fail("wiki", "503", again_in_seconds=1, waiting_events=5)
    outages.hold("wiki", "404", again_in_seconds=300, waiting_events=5)
    assert [event for _, event, _ in said(caplog)] == [
        "flusher.outage_began",
        "flusher.outage_ended",
        "flusher.app_held",
    ]
    [trouble] = outages
    assert (trouble.is_held, trouble.reason) == (True, "404")


def test_what_never_failed_ends_nothing(outages: Outages, caplog: pytest.LogCaptureFixture) -> None:
    end = partial(outages.end, "wiki")
    end()
    assert said(caplog) == []
