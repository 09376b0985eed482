"""Which requests a fault hits, how often, and what a script of faults may say."""

from collections.abc import Sequence

import msgspec
import pytest

from collector.sandbox.faults import Fault, Faults, FaultScript, read_faults

EVENTS = [("a@example.com", "login"), ("b@example.com", "logout")]
PUBLISH = "publishUsageEvents"


@pytest.mark.parametrize(
    ("fault", "is_hit"),
    [
        (Fault(), True),
        (Fault(operation="*"), True),
        (Fault(operation="getAccessToken"), False),
        (Fault(app_id="the-app"), True),
        (Fault(app_id="other-app"), False),
        (Fault(event_name="logout"), True),
        (Fault(event_name="Logout"), False),
        (Fault(email="a@example.com"), True),
        (Fault(email="c@example.com"), False),
        (Fault(more_than=0), True),
        (Fault(more_than=1), True),
        (Fault(more_than=2), False),
        (Fault(app_id="the-app", event_name="login", email="b@example.com", more_than=1), True),
        (Fault(app_id="the-app", event_name="login", email="b@example.com", more_than=2), False),
        (Fault(app_id="the-app", event_name="login", email="c@example.com"), False),
        (Fault(app_id="other-app", event_name="login"), False),
    ],
    ids=lambda value: msgspec.json.encode(value).decode(),
)
def test_a_fault_hits_what_everything_given_in_it_fits(fault: Fault, is_hit: bool) -> None:
    assert fault.hits(PUBLISH, "the-app", EVENTS) == is_hit


@pytest.mark.parametrize(
    ("fault", "is_hit"),
    [
        (Fault(operation="getAccessToken"), True),
        (Fault(operation="*"), True),
        (Fault(), False),
        (Fault(operation="*", app_id="the-app"), False),
        (Fault(operation="*", event_name="login"), False),
        (Fault(operation="*", email="a@example.com"), False),
        (Fault(operation="*", more_than=0), False),
    ],
    ids=lambda value: msgspec.json.encode(value).decode(),
)
def test_a_request_without_app_and_events_is_hit_only_where_none_are_asked_for(fault: Fault, is_hit: bool) -> None:
    assert fault.hits("getAccessToken", None, ()) == is_hit


def test_the_first_fault_that_fits_acts() -> None:
    faults = Faults([Fault(app_id="b", status=500), Fault(status=501), Fault(app_id="a", status=502)])
    assert [drawn and drawn.status for drawn in (faults.draw(PUBLISH, app) for app in "abc")] == [501, 500, 501]


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_fault_is_used_up_after_so_many_hits_and_the_next_takes_over(times: int) -> None:
    faults = Faults([Fault(status=500, times=times), Fault(status=501, times=1)])
    drawn = [faults.draw(PUBLISH) for _ in range(times + 2)]
    assert [fault and fault.status for fault in drawn] == [500] * times + [501, None]
    assert faults.list() == ()


def test_what_a_fault_does_not_hit_costs_it_nothing() -> None:
    faults = Faults([Fault(app_id="a", times=1)])
    for _ in range(3):
        assert faults.draw(PUBLISH, "b") is None
    assert faults.draw(PUBLISH, "a") is not None


def test_a_fault_without_a_number_of_times_stays() -> None:
    faults = Faults([Fault(cut=True)])
    assert all(faults.draw(PUBLISH) is not None for _ in range(100))
    assert len(faults.list()) == 1


def test_what_is_left_can_be_read() -> None:
    faults = Faults([Fault(status=500, times=3), Fault(cut=True)])
    faults.draw(PUBLISH)
    assert faults.list() == (Fault(status=500, times=2), Fault(cut=True))


def test_the_callers_own_faults_are_not_counted_down_and_can_be_used_again() -> None:
    fault = Fault(status=500, times=1)
    faults = Faults([fault])
    for _ in range(3):
        assert faults.draw(PUBLISH) == Fault(status=500, times=0)
        assert faults.draw(PUBLISH) is None
        faults.set([fault])
    assert fault == Fault(status=500, times=1)


def test_what_was_read_stays_as_it_was_read() -> None:
    faults = Faults([Fault(status=500, times=2)])
    [read] = faults.list()
    faults.draw(PUBLISH)
    assert read.times == 2


@pytest.mark.parametrize("others", [[], [Fault(status=501)], [Fault(status=501), Fault(cut=True)]])
def test_new_faults_replace_the_old(others: Sequence[Fault]) -> None:
    faults = Faults([Fault(status=500)])
    faults.set(others)
    assert faults.list() == tuple(others)


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_a_script_says_in_json_all_that_a_fault_can_be() -> None:
    script = b"""{"faults": [
        {"operation": "*", "appId": "a", "eventName": "login", "email": "a@example.com", "moreThan": 7,
         "delaySeconds": 1.5, "cut": true, "raw": "HTTP", "status": 503,
         "headers": {"Retry-After": "1"}, "body": "no", "after": true, "times": 2},
        {}
    ]}"""
    assert read_faults(script) == [
        Fault(
            operation="*",
            app_id="a",
            event_name="login",
            email="a@example.com",
            more_than=7,
            delay_seconds=1.5,
            cut=True,
            raw="HTTP",
            status=503,
            headers={"Retry-After": "1"},
            body="no",
            after=True,
            times=2,
        ),
        Fault(),
    ]


def test_a_script_is_written_as_it_is_read() -> None:
    faults = [Fault(), Fault(app_id="a", status=500, headers={"A": "b"}, times=3), Fault(delay_seconds=0.5, cut=True)]
    assert read_faults(msgspec.json.encode(FaultScript(faults))) == faults


@pytest.mark.parametrize(
    ("script", "about"),
    [
        (b"", "truncated"),
        (b"rubbish", "malformed"),
        (b"\xff", "malformed"),
        (b"[" * 100_000, "array"),
        (b"[]", "array"),
        (b"{}", "faults"),
        (b'{"faults":{}}', "array"),
        (b'{"faults":[],"more":1}', "more"),
        (b'{"faults":[{"Status":500}]}', "Status"),
        (b'{"faults":[{"delay_seconds":1}]}', "delay_seconds"),
        (b'{"faults":[{"status":"500"}]}', "status"),
        (b'{"faults":[{"status":199}]}', "status"),
        (b'{"faults":[{"status":600}]}', "status"),
        (b'{"faults":[{"times":0}]}', "times"),
        (b'{"faults":[{"moreThan":-1}]}', "moreThan"),
        (b'{"faults":[{},{"delaySeconds":-1}]}', "delaySeconds"),
        (b'{"faults":[{"delaySeconds":3601}]}', "delaySeconds"),
        (b'{"faults":[{"headers":{"Retry-After":1}}]}', "headers"),
        (b'{"faults":[{"body":"\xff"}]}', "utf-8"),
        (b'{"faults":[{"operation":"getAppSumaries"}]}', "did you mean getAppSummaries"),
        (b'{"faults":[{"raw":"HTTP"}]}', "raw is for a connection that is cut"),
        (b'{"faults":[{"body":"no"}]}', "without one they do nothing"),
        (b'{"faults":[{"headers":{"Retry-After":"1"}, "cut": true}]}', "without one they do nothing"),
        (b'{"faults":[{"status":500,"headers":{"A B":"c"}}]}', "is no header"),
        (b'{"faults":[{"status":500,"headers":{"A":"c\\nD: e"}}]}', "is no header"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_script_that_cannot_be_meant_is_refused_with_what_is_wrong_and_what_is_expected(
    script: bytes, about: str
) -> None:
    with pytest.raises(ValueError, match=about) as caught:
        read_faults(script)
    assert 'expected {"faults": [...]}' in str(caught.value)
