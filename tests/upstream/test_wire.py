"""What is sent, byte for byte, and what every answer means."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from collector.contract.models import AccessToken
from collector.contract.operations import PUBLISH_USAGE_EVENTS
from collector.errors import (
    AppUnusable,
    CollectorError,
    CredentialsRefused,
    NotDone,
    Rejected,
    Retryable,
    TooLarge,
    Unanswered,
    Unusable,
)
from collector.events import UsageEvent
from collector.upstream.wire import (
    MAX_RETRY_AFTER_SECONDS,
    SAID_CHARS,
    Request,
    Response,
    read_push,
    read_token,
    retry_after_seconds,
    token_request,
    usage_events_request,
)

NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)
NOW_SECONDS = NOW.timestamp()
OPERATION = "publishUsageEvents"


def push_error(
    status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, lines: bytes = b"{}"
) -> CollectorError | None:
    """What a push's answer means; None for success."""
    response = Response(status, headers or {}, body)
    try:
        read_push(response, OPERATION, app_id="the-app", lines=lines, now_seconds=NOW_SECONDS)
    except CollectorError as error:
        return error
    return None


def token_error(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> CollectorError:
    with pytest.raises(CollectorError) as caught:
        read_token(Response(status, headers or {}, body), now_seconds=NOW_SECONDS)
    return caught.value


def push(lines: bytes = b"{}", *, app_id: str = "the-app") -> Request:
    return usage_events_request(
        "https://api.example.com", PUBLISH_USAGE_EVENTS.path, app_id=app_id, lines=lines, token="hunter2"
    )


# -- what an answer means ----------------------------------------------------------------------------------------------

MEANING_OF_PUSH: dict[type[CollectorError], list[int]] = {
    Rejected: [400, 422],
    CredentialsRefused: [401],
    AppUnusable: [403, 404],
    TooLarge: [413],
    NotDone: [429],
    Unanswered: [408, 504],
    Retryable: [100, 102, 201, 202, 204, 206, 226, 425, 500, 501, 502, 503, 507, 520, 599, 600, 999],
    Unusable: [300, 301, 302, 303, 304, 307, 308, 402, 405, 406, 409, 410, 411, 412, 414, 415, 417, 418, 426, 431, 451],
}
MEANING_OF_TOKEN: dict[type[CollectorError], list[int]] = {
    CredentialsRefused: [400, 401, 403],
    NotDone: [429],
    Unanswered: [408, 504],
    Retryable: [100, 201, 202, 204, 425, 500, 502, 503, 599, 600],
    Unusable: [301, 302, 303, 307, 308, 402, 404, 405, 410, 413, 415, 422],
}


@pytest.mark.parametrize(
    ("status", "meaning"), [(status, meaning) for meaning, all_of in MEANING_OF_PUSH.items() for status in all_of]
)
def test_each_status_of_a_push_says_what_to_do(status: int, meaning: type[CollectorError]) -> None:
    error = push_error(status, b'{"message":"because"}')
    assert type(error) is meaning
    assert str(error).startswith(OPERATION)
    assert str(status) in str(error)


@pytest.mark.parametrize(
    ("status", "meaning"), [(status, meaning) for meaning, all_of in MEANING_OF_TOKEN.items() for status in all_of]
)
def test_each_status_of_a_token_request_says_what_to_do(status: int, meaning: type[CollectorError]) -> None:
    error = token_error(status, b'{"message":"because"}')
    assert type(error) is meaning
    assert str(error).startswith("getAccessToken")
    assert str(status) in str(error)


@given(st.integers(100, 999), st.binary(max_size=50), st.dictionaries(st.just("retry-after"), st.text(max_size=20)))
def test_no_answer_means_anything_else(status: int, body: bytes, headers: dict[str, str]) -> None:
    error = push_error(status, body, headers)
    assert error is not None or status == 200
    assert isinstance(error, Retryable | Rejected | Unusable | None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"unknown_app"}',
        b'{"message":"Unknown app 7"}',
        b"App not found",
        b"application not found",
        b"INVALID APP ID",
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_a_refusal_that_names_the_app_is_not_about_the_events(status: int, body: bytes) -> None:
    error = push_error(status, body)
    assert type(error) is AppUnusable
    assert "'the-app'" in str(error)


def test_a_refusal_that_quotes_an_event_is_about_the_events() -> None:
    lines = b'{"eventName":"opened"}\n{"eventName":"Unknown App dialog"}'
    quoting = b'{"message":"no such day in {\\"eventName\\":\\"Unknown App dialog\\"}"}'
    assert type(push_error(400, quoting, lines=lines)) is Rejected
    assert type(push_error(400, b"Application not found", lines=lines)) is AppUnusable


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 422, 429, 500])
def test_upstreams_own_words_are_passed_on(status: int) -> None:
    assert str(push_error(status, b'{"message": "because"}')).endswith(': {"message": "because"}')


# -- 200 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b'{"success":true}',
        b' { "success" : true, "count": 7 } ',
        b"{}",
        b"[]",
        b"null",
        b"true",
        b"OK",
        b'"success"',
        b"\xff",
        b"[" * 100_000,
        b'{"failures":0}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_200_that_does_not_say_otherwise_is_success(body: bytes) -> None:
    assert push_error(200, body) is None


@pytest.mark.parametrize("success", ["false", "null", "0", "1", '"true"', '"false"', "[]", "{}", "1.0"])
def test_a_200_whose_success_is_not_true_is_tried_again(success: str) -> None:
    error = push_error(200, f'{{"success":{success},"message":"because"}}'.encode())
    assert type(error) is Retryable
    assert "because" in str(error)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<html>", {}),
        (b"\r\n  <!DOCTYPE html><p>Sign in", {}),
        (b"<?xml version='1.0'?>", {}),
        (b"\xef\xbb\xbf<!DOCTYPE html>", {}),
        ("<html>".encode("utf-16"), {"content-type": "Text/HTML; charset=utf-16"}),
        (b"Sign in", {"content-type": "application/xhtml+xml"}),
    ],
)
def test_a_page_with_200_comes_from_something_in_between(body: bytes, headers: dict[str, str]) -> None:
    error = push_error(200, body, headers)
    assert type(error) is Retryable
    assert "proxy" in str(error)


# -- the token ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "token"),
    [
        (b'{"access_token":"a","token_type":"bearer","expires_in":60}', AccessToken("a", "bearer", 60)),
        (b'{"access_token":"a"}', AccessToken("a", "Bearer", 3600)),
        (b'{"expires_in":60,"scope":"x","access_token":"a","ext":{"a":[]}}', AccessToken("a", "Bearer", 60)),
        (b'{"access_token":"a","token_type":null,"expires_in":null}', AccessToken("a", "Bearer", 3600)),
        (b'{"access_token":"a","expires_in":60.0}', AccessToken("a", "Bearer", 60)),
        (b'{"access_token":"a","expires_in":"60"}', AccessToken("a", "Bearer", 60)),
    ],
)
def test_a_token_is_read_with_its_lifetime(body: bytes, token: AccessToken) -> None:
    assert read_token(Response(200, {}, body), now_seconds=NOW_SECONDS) == token


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b'{"access_token":"\xff"}',
        b'{"access_token":null}',
        b'{"access_token":7}',
        b'{"access_token":"a","expires_in":"soon"}',
        b'{"access_token":"a","expires_in":60.5}',
        b'{"access_token":"a"',
    ],
)
def test_an_answer_that_is_no_token_is_tried_again(body: bytes) -> None:
    error = token_error(200, body)
    assert type(error) is Retryable
    assert str(error).startswith("getAccessToken: the answer is no token")


# -- Retry-After -------------------------------------------------------------------------------------------------------


def http_date(seconds_from_now: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW_SECONDS + seconds_from_now, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("1", 1),
        (" 120 ", 120),
        ("007", 7),
        ("3600", 3600),
        ("3601", MAX_RETRY_AFTER_SECONDS),
        ("9" * 400, MAX_RETRY_AFTER_SECONDS),
        ("9" * 5000, MAX_RETRY_AFTER_SECONDS),
        (http_date(90), 90),
        ("Thu, 15 Jan 2026 12:00:30 GMT", 30),
        ("Thursday, 15-Jan-26 12:00:30 GMT", 30),
        ("Thu, 15 Jan 2026 13:00:30 +0100", 30),
        (http_date(0), 0),
        (http_date(-1), 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        (http_date(86_400), MAX_RETRY_AFTER_SECONDS),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_SECONDS),
        ("", None),
        (" ", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        ("0x10", None),
        ("inf", None),
        ("nan", None),
        ("10, 20", None),
        ("\u00b2", None),
        ("Thu, 32 Jan 2026 12:00:30 GMT", None),
        ("Thu, 15 Jan 2026 25:00:00 GMT", None),
        ("Thu, 15 Jan 99999 12:00:00 GMT", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_retry_after_is_a_number_of_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, now_seconds=NOW_SECONDS) == seconds


@given(st.text() | st.text("0123456789 :,-+.GMTSunThuJanNov", max_size=40), st.floats(0, 4e9))
def test_no_retry_after_is_negative_longer_than_an_hour_or_an_error(value: str, now_seconds: float) -> None:
    seconds = retry_after_seconds(value, now_seconds=now_seconds)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_SECONDS


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(("header", "seconds"), [("7", 7), (http_date(7), 7), ("soon", None), (None, None)])
def test_what_is_tried_again_is_tried_when_upstream_wishes(
    status: int, header: str | None, seconds: float | None
) -> None:
    headers = {} if header is None else {"retry-after": header}
    for error in (push_error(status, headers=headers), token_error(status, headers=headers)):
        assert isinstance(error, Retryable)
        assert error.retry_after_seconds == seconds


@pytest.mark.parametrize("wrong_seconds", [-3600, 0, 3600])
def test_a_date_is_held_against_upstreams_own_clock_where_it_tells_it(wrong_seconds: int) -> None:
    headers = {"retry-after": http_date(wrong_seconds + 20), "date": http_date(wrong_seconds)}
    assert getattr(push_error(503, headers=headers), "retry_after_seconds", None) == 20
    assert getattr(push_error(503, headers=headers | {"date": "noon"}), "retry_after_seconds", None) == max(
        0, wrong_seconds + 20
    ) - max(0, wrong_seconds + 20 - MAX_RETRY_AFTER_SECONDS)


# -- words that are shown ----------------------------------------------------------------------------------------------


@given(st.binary(max_size=2000), st.sampled_from([400, 401, 403, 404, 405, 413, 429, 500]))
@example(b"a\r\nb\x1b[31m\x00\x07\x7f\xc2\x85\xe2\x80\xae", 500)
@example(b"\xf0\x9f\x98\x80" * 500, 400)
@example(b"x" * 2000, 500)
@example("\u2028\u2029\u200f\ufeff".encode(), 400)
def test_upstreams_words_are_shown_harmlessly_in_one_short_line(body: bytes, status: int) -> None:
    for error in (push_error(status, body), token_error(status, body)):
        said = str(error)
        assert said.isprintable()
        assert len(said) < SAID_CHARS + 100


def test_words_that_are_shown_keep_what_can_be_read() -> None:
    error = push_error(500, b"  dis\xc3\xa9 \t\r\n\x1b[1m done \xff ")
    assert str(error) == "publishUsageEvents: 500: dis\u00e9 ?[1m done \ufffd"


# -- requests ----------------------------------------------------------------------------------------------------------

EVENTS = st.builds(
    UsageEvent,
    st.integers(-(2**63), 2**63 - 1),
    st.text(min_size=3, max_size=20),
    st.text(min_size=1, max_size=20) | st.sampled_from(["\n", "\r\n", "\x00", "],[", '"', "\\", "\u2028"]),
)


@given(st.lists(EVENTS, min_size=1, max_size=20))
def test_a_body_is_exactly_the_array_of_its_lines(events: list[UsageEvent]) -> None:
    lines = msgspec.json.Encoder().encode_lines(events)[:-1]
    request = push(lines)
    assert request.body == msgspec.json.encode({"events": events})
    assert json.loads(request.body) == {"events": [json.loads(line) for line in lines.split(b"\n")]}


def test_lines_go_into_the_body_byte_for_byte() -> None:
    lines = [b'{"timestamp":1,"team": 1.50}', b'{ "a" : "\\u0041\\n" }', b'{"b":"\xf0\x9f\x98\x80"}']
    assert push(b"\n".join(lines)).body == b'{"events":[' + b",".join(lines) + b"]}"


def test_a_push_is_a_post_of_json_with_the_token_in_its_header_and_nowhere_else() -> None:
    request = push(b"{}")
    assert (request.method, request.url) == (
        "POST",
        "https://api.example.com/services/push/v1/customer/apps/the-app/usage-events",
    )
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == "Bearer hunter2"
    assert request.headers["User-Agent"].startswith("usage-collector/")
    assert "hunter2" not in f"{request!r} {request} {request.url} {request.body!r}"


# A segment of dots is resolved away by whoever reads a URL (RFC 3986 section 5.2.4); quoting cannot help it.
APP_IDS = st.text(min_size=1, max_size=30).filter(lambda text: text not in {".", ".."})


@given(APP_IDS | st.text("/?#%&=+;:@.\\{} \n\x00a", min_size=3, max_size=10))
@example("a/b")
@example("../../../admin")
@example("a?b=c#d")
@example("a%2Fb")
@example("{appId}")
@example("\U0001f600\x00\r\n")
def test_an_app_id_is_one_segment_of_the_url_whatever_it_contains(app_id: str) -> None:
    request = push(app_id=app_id)
    prefix, suffix = "https://api.example.com/services/push/v1/customer/apps/", "/usage-events"
    assert request.url.startswith(prefix)
    assert request.url.endswith(suffix)
    segment = request.url.removeprefix(prefix).removesuffix(suffix)
    assert set("/?#&=+ \n\r\x00").isdisjoint(segment)
    assert segment.isascii()
    assert unquote(segment) == app_id
    # As the HTTP client reads it.
    assert URL(request.url).parts[-2] == app_id
    assert (URL(request.url).host, URL(request.url).query_string, URL(request.url).fragment) == (
        "api.example.com",
        "",
        "",
    )


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=40))
def test_a_token_is_asked_for_with_a_form_that_holds_id_secret_and_scopes(
    client_id: str, client_secret: str, scope: str
) -> None:
    request = token_request(
        "https://login.example.com/token", client_id=client_id, client_secret=client_secret, scope=scope
    )
    assert (request.method, request.url) == ("POST", "https://login.example.com/token")
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert isinstance(request.body, bytes)
    assert parse_qs(request.body.decode("ascii"), keep_blank_values=True, strict_parsing=True) == {
        "grant_type": ["client_credentials"],
        "client_id": [client_id],
        "client_secret": [client_secret],
        "scope": [scope],
    }


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_no_request_and_no_token_shows_what_is_secret() -> None:
    asked = token_request("https://login.example.com", client_id="client", client_secret="hunter2", scope="s")
    shown: list[Any] = [asked, push(b'{"email":"user@example.com"}'), AccessToken("hunter2")]
    for thing in shown:
        text = f"{thing!r} {thing} {[thing]}"
        assert "hunter2" not in text
        assert "user@example.com" not in text


@pytest.mark.parametrize(
    "body",
    [
        b'{"access_token":"hunter2","expires_in":"soon"}',
        b'{"access_token":["hunter2"]}',
        b'{"access_token":"hunter2"',
        b'{"access_token":"hunter2\xff"}',
        b'"hunter2"',
        b"hunter2",
    ],
)
def test_an_answer_that_cannot_be_read_does_not_show_the_token_in_it(body: bytes) -> None:
    error = token_error(200, body)
    assert "hunter2" not in f"{error!r} {error} {error.__cause__!r}"
    assert error.__suppress_context__, "the context may hold the answer"
