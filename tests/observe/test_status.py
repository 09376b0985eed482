"""What the status document calls a problem, and the history that its rates come from."""

from typing import Any

import msgspec
import pytest

from collector.observe.status import (
    AppStatus,
    History,
    Limit,
    QueueStatus,
    Severity,
    Status,
    Totals,
    UpstreamStatus,
    problems,
)

SOUND = Status(
    version="1", is_running=True, now_ms=0, queue=QueueStatus("q"), upstream=UpstreamStatus("https://a.example", "ok")
)


def held(app_id: str) -> AppStatus:
    return AppStatus(app_id, "held", 1, 1, 1.0, 0, reason="403")


def texts(severity: Severity, **changes: Any) -> list[str]:
    found = problems(msgspec.structs.replace(SOUND, **changes))
    return [problem.text for problem in found if problem.severity is severity]


def test_a_collector_that_delivers_has_no_problem() -> None:
    assert problems(SOUND) == []


@pytest.mark.parametrize(
    ("changes", "severity", "said"),
    [
        ({"is_running": False}, Severity.ERROR, "No collector answers"),
        ({"upstream": UpstreamStatus("", "failing", reason="503")}, Severity.ERROR, "503"),
        ({"apps": [held("wiki")]}, Severity.ERROR, "wiki is held until somebody acts: 403"),
        ({"limits": [Limit("queue.max_bytes", 100, 100, "bytes")]}, Severity.ERROR, "queue.max_bytes is 100% used"),
        ({"limits": [Limit("queue.max_bytes", 80, 100, "bytes")]}, Severity.WARNING, "queue.max_bytes is 80% used"),
        ({"queue": QueueStatus("q", dead_events=1)}, Severity.WARNING, "1 event is a dead letter"),
        ({"queue": QueueStatus("q", dead_events=2_000)}, Severity.WARNING, "2,000 events are dead letters"),
        ({"queue": QueueStatus("q", oldest_age_seconds=1_000.0)}, Severity.WARNING, "waited for 17 minutes"),
        ({"totals": Totals(kernel_drops=3)}, Severity.WARNING, "dropped 3 datagrams"),
    ],
)
def test_each_trouble_is_a_sentence(changes: dict[str, Any], severity: Severity, said: str) -> None:
    [text] = texts(severity, **changes)
    assert said in text
    [other] = set(Severity) - {severity}
    assert texts(other, **changes) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": [Limit("queue.max_bytes", 79, 100, "bytes")]},
        {"queue": QueueStatus("q", oldest_age_seconds=899.0)},
        {"apps": [AppStatus("wiki", "waiting", 10**6, 10**8, 10.0, 0)]},
    ],
)
def test_what_is_within_its_bounds_is_no_problem(changes: dict[str, Any]) -> None:
    assert problems(msgspec.structs.replace(SOUND, **changes)) == []


def test_why_no_events_are_taken_comes_first_and_warnings_last() -> None:
    status = msgspec.structs.replace(SOUND, queue=QueueStatus("q", dead_events=1), apps=[held("wiki")])
    found = problems(status, why_unready="the disk is full")
    assert [problem.severity.value for problem in found] == ["error", "error", "warning"]
    assert "the disk is full" in found[0].text


def test_of_many_held_apps_a_few_are_named_and_the_others_counted() -> None:
    said = texts(Severity.ERROR, apps=[held(f"app{number}") for number in range(10)])
    assert len(said) == 4
    assert said[-1] == "7 more apps are held."


# -- history -----------------------------------------------------------------------------------------------------------


def test_each_second_has_its_rate() -> None:
    history = History()
    for second, (accepted, delivered) in enumerate([(100, 0), (150, 20), (150, 120)]):
        history.record(float(second), accepted=accepted, delivered=delivered, waiting=accepted - delivered)
    rates = history.rates()
    assert (rates.accepted, rates.delivered, rates.waiting) == ([50, 0], [20, 100], [130, 30])
    assert (rates.accepted_now, rates.delivered_now) == (25, 60)


def test_what_was_counted_before_the_first_look_is_no_rate() -> None:
    history = History()
    history.record(1000.0, accepted=10**9, delivered=10**9, waiting=0)
    assert history.rates().accepted == []


def test_seconds_that_nobody_looked_at_get_their_mean() -> None:
    history = History()
    history.record(0.0, accepted=0, delivered=0, waiting=0)
    history.record(4.0, accepted=400, delivered=0, waiting=400)
    history.record(4.2, accepted=1_000_000, delivered=0, waiting=0)  # too soon: it counts with the next
    history.record(5.0, accepted=400, delivered=40, waiting=360)
    assert history.rates().accepted == [100, 100, 100, 100, 0]
    assert history.rates().delivered == [0, 0, 0, 0, 40]


def test_the_history_is_bounded_also_after_a_long_sleep() -> None:
    history = History(seconds=5)
    history.record(0.0, accepted=0, delivered=0, waiting=0)
    history.record(1_000_000.0, accepted=2_000_000, delivered=0, waiting=1)
    for second in range(1, 4):
        history.record(1_000_000.0 + second, accepted=2_000_000 + second, delivered=0, waiting=1)
    assert history.rates().accepted == [2, 2, 1, 1, 1]
