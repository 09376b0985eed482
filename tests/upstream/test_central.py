"""What is sent to a central collector, and what its answers mean, and what anybody else's do."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.config.kinds import Secret, UnixUrl
from collector.errors import AppUnusable, CollectorError, Rejected, Retryable, TooLarge, Unusable
from collector.upstream.central import forward_request, read_report
from collector.upstream.wire import Response

URL = "https://central.example.com"
NAME = f"central collector {URL}"
PATH = "/services/push/v1/customer/apps/the%20app/usage-events"
EVENTS = 5


def report(accepted: int = 0, duplicates: int = 0, *refused: int, reason: str = "email: missing") -> bytes:
    """A collector's answer that refuses the events at these positions."""
    errors = [{"index": index, "reason": reason} for index in refused]
    said = {"accepted": accepted, "duplicates": duplicates, "rejected": len(refused), "errors": errors}
    return msgspec.json.encode(said)


def whole(reason: str) -> bytes:
    """A collector's answer that refuses the request."""
    return msgspec.json.encode({"accepted": 0, "duplicates": 0, "rejected": 0, "errors": [{"reason": reason}]})


def read(status: int, body: bytes, headers: dict[str, str] | None = None, *, events: int = EVENTS) -> dict[int, str]:
    return dict(read_report(Response(status, headers or {}, body), NAME, events=events, now_seconds=0.0))


def error(status: int, body: bytes, headers: dict[str, str] | None = None, *, events: int = EVENTS) -> CollectorError:
    with pytest.raises(CollectorError) as caught:
        read(status, body, headers, events=events)
    return caught.value


# -- the request -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "base"), [(URL, URL), (UnixUrl(Path("/run/central.sock")), "http://localhost")])
def test_a_batch_goes_as_it_is_to_the_path_of_its_app(url: str | UnixUrl, base: str) -> None:
    request = forward_request(url, app_id="the app", lines=b'{"a":1}\n{"b":2}', token=Secret("sesame"))
    assert (request.method, request.url) == ("POST", base + PATH)
    assert request.body == b'{"events":[{"a":1},{"b":2}]}'
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == "Bearer sesame"
    assert request.name == f"central collector {url}"
    assert "sesame" not in repr(request)


def test_without_a_token_none_is_sent() -> None:
    assert "Authorization" not in forward_request(URL, app_id="the app", lines=b"{}", token=None).headers


def test_an_app_that_cannot_stand_in_a_path_is_held() -> None:
    with pytest.raises(AppUnusable):
        forward_request(URL, app_id="..", lines=b"{}", token=None)


# -- a collector's answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accepted", "duplicates"), [(5, 0), (0, 5), (2, 3)])
def test_what_is_stored_or_known_is_delivered(accepted: int, duplicates: int) -> None:
    assert read(200, report(accepted, duplicates)) == {}


@pytest.mark.parametrize("refused", [(0,), (4, 1), (0, 1, 2, 3, 4)])
def test_each_refused_event_has_its_reason_which_names_the_central(refused: tuple[int, ...]) -> None:
    said = read(400, report(EVENTS - len(refused), 0, *refused))
    assert list(said) == sorted(refused)
    assert set(said.values()) == {f"{NAME}: email: missing"}


def test_a_400_about_the_request_as_a_whole_is_a_refusal_of_all_of_it() -> None:
    refusal = error(400, whole("the body is not JSON"))
    assert type(refusal) is Rejected
    assert str(refusal) == f"{NAME}: 400: the body is not JSON"


@pytest.mark.parametrize("status", [401, 403, 404, 405, 415, 421, 431])
def test_what_a_person_must_see_to_holds_and_says_the_centrals_reason(status: int) -> None:
    held = error(status, whole("it is not for you"))
    assert isinstance(held, Unusable)
    assert str(held) == f"{NAME}: {status}: it is not for you"


@pytest.mark.parametrize("status", [408, 429, 500, 503, 507])
def test_what_passes_is_tried_again_after_the_time_that_the_central_states(status: int) -> None:
    later = error(status, whole("the queue is full"), {"retry-after": "7"})
    assert isinstance(later, Retryable)
    assert later.retry_after_seconds == 7
    assert str(later) == f"{NAME}: {status}: the queue is full"


@pytest.mark.parametrize("events", [1, EVENTS])
def test_what_is_too_large_for_the_central_is_halved_down_to_the_event_that_is(events: int) -> None:
    assert isinstance(error(413, whole("the body is larger than"), events=events), TooLarge)


# -- answers that no collector gives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>welcome</html>",
        b"{}",
        b"[]",
        b"null",
        b'{"success": true}',
        b'{"accepted": 5}',
        b'{"accepted": 5, "duplicates": 0, "rejected": 0}',
        b'{"accepted": "5", "duplicates": 0, "rejected": 0, "errors": []}',
        b'{"accepted": 5, "duplicates": 0, "rejected": 0, "errors": []',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_an_answer_that_is_no_collectors_delivers_nothing(status: int, body: bytes) -> None:
    assert isinstance(error(status, body), Retryable)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, report(4)),
        (200, report(6)),
        (200, report(0)),
        (200, report(6, -1)),
        (200, report(4, 0, 2)),
        (400, report(5)),
        (400, report(3, 0, 2)),
        (400, report(3, 0, 2, 2)),
        (400, report(4, 0, 5)),
        (400, report(4, 0, -1)),
        (400, report(4, 0, 2).replace(b'"index":2,', b"")),
    ],
)
def test_counts_that_are_not_the_batchs_own_deliver_and_bury_nothing(status: int, body: bytes) -> None:
    assert isinstance(error(status, body), Retryable)


@pytest.mark.parametrize("status", [201, 204, 502])
def test_a_status_that_no_collector_answers_with_is_a_failure_whatever_the_body_says(status: int) -> None:
    assert isinstance(error(status, report(5)), Retryable)


@pytest.mark.parametrize(("status", "kind"), [(301, Unusable), (401, Unusable), (422, Unusable), (503, Retryable)])
def test_what_a_proxy_answers_buries_nothing(status: int, kind: Any) -> None:
    assert isinstance(error(status, b"<html>"), kind)


def test_a_proxys_413_halves_and_does_not_bury() -> None:
    assert isinstance(error(413, b"<html>"), TooLarge)
    assert type(error(413, b"<html>", events=1)) is Unusable
