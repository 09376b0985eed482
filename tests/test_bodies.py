"""What a body's bytes become: the events its sender meant, a reason for each that is none, and nothing else."""

import json
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from collector.bodies import BodyFormat, BodyParser, Parsed
from collector.errors import MalformedBody
from collector.events import INT64_MAX, INT64_MIN, UsageEvent

JSON, ENVELOPE, NDJSON = BodyFormat.JSON, BodyFormat.ENVELOPE, BodyFormat.NDJSON

FIELDS: Mapping[str, object] = {"timestamp": 1_700_000_000_000, "email": "user@example.com", "eventName": "login"}
EVENT = json.dumps(FIELDS).encode()
PLAIN = UsageEvent(1_700_000_000_000, "user@example.com", "login")


def with_json(**fields: bytes) -> bytes:
    """EVENT with more fields, or others in place of its own; values are JSON as it goes over the wire."""
    members = {name: json.dumps(value).encode() for name, value in FIELDS.items()} | fields
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in members.items()) + b"}"


def without(*names: str) -> bytes:
    return json.dumps({name: value for name, value in FIELDS.items() if name not in names}).encode()


def wrapped(events: Sequence[bytes], body_format: BodyFormat) -> bytes:
    """A body of that format with these events in it."""
    if body_format is NDJSON:
        return b"\n".join(events)
    array = b"[" + b",".join(events) + b"]"
    return array if body_format is JSON else b'{"events":' + array + b"}"


def parse(body: bytes, body_format: BodyFormat = JSON, *, keep: Sequence[str] = ()) -> Parsed:
    return BodyParser(keep_fields=keep).parse(body, body_format)


def plain(parsed: Parsed) -> list[UsageEvent | None]:
    """The events without what is kept beside their own fields."""
    return [
        event and UsageEvent(event.timestamp, event.email, event.event_name, event.app_id) for event in parsed.events
    ]


def taken_whole(body: bytes, body_format: BodyFormat = JSON, *, keep: Sequence[str] = ()) -> list[UsageEvent | None]:
    """The events of a body in which nothing is amiss."""
    parsed = parse(body, body_format, keep=keep)
    assert parsed.rejections == []
    assert parsed.unknown_fields == 0
    return plain(parsed)


def reason(event: bytes) -> str:
    """Why this one event, between two good ones, is none."""
    parsed = parse(wrapped([EVENT, event, EVENT], JSON))
    assert plain(parsed) == [PLAIN, None, PLAIN]
    [rejection] = parsed.rejections
    assert rejection.index == 1
    return rejection.reason


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "body_format", "count"),
    [
        (EVENT, JSON, 1),
        (b" \r\n\t" + EVENT + b"\n", JSON, 1),
        (wrapped([EVENT], JSON), JSON, 1),
        (b"\r\n\t [ " + EVENT + b" , " + EVENT + b" ] \n", JSON, 2),
        (wrapped([EVENT, EVENT], ENVELOPE), JSON, 2),
        (wrapped([EVENT, EVENT], ENVELOPE), ENVELOPE, 2),
        (b'{"source":{"events":[]},"events":[' + EVENT + b'],"version":2}', JSON, 1),
        (b'{"source":{"events":[]},"events":[' + EVENT + b'],"version":2}', ENVELOPE, 1),
        (EVENT, NDJSON, 1),
        (wrapped([EVENT, EVENT, EVENT], NDJSON), NDJSON, 3),
    ],
)
def test_each_format_gives_its_events_in_their_order(body: bytes, body_format: BodyFormat, count: int) -> None:
    assert taken_whole(body, body_format) == [PLAIN] * count


@pytest.mark.parametrize(
    ("body", "body_format"),
    [
        (b"[]", JSON),
        (b' { "events" : [ ] } ', JSON),
        (b'{"events":[]}', ENVELOPE),
        (b"", NDJSON),
        (b"\n", NDJSON),
        (b" \t\r\n\r\n  ", NDJSON),
    ],
)
def test_a_body_may_hold_no_events(body: bytes, body_format: BodyFormat) -> None:
    assert taken_whole(body, body_format) == []


@pytest.mark.parametrize("body_format", [JSON, ENVELOPE])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"null",
        b"true",
        b"1",
        b'"text"',
        b"events",
        b"{",
        EVENT[:-1],
        EVENT + EVENT,
        EVENT + b"\n" + EVENT,
        b'{"events":null}',
        b'{"events":{}}',
        b'{"events":' + EVENT + b"}",
        b'{"events":[' + EVENT + b"]",
        b"\xef\xbb\xbf" + EVENT,
        b"\xff\xfe{\x00}\x00",
        b"\x00",
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b'{"events":' * 10_000 + b"1" + b"}" * 10_000,
        with_json(deep=b"[" * 10_000 + b"]" * 10_000),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_without_events_that_could_be_told_apart_is_malformed(body: bytes, body_format: BodyFormat) -> None:
    with pytest.raises(MalformedBody):
        parse(body, body_format)


@pytest.mark.parametrize("body", [EVENT, wrapped([EVENT], JSON), b"{}", b'{"Events":[]}'])
def test_an_envelope_is_nothing_but_an_envelope(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="events"):
        parse(body, ENVELOPE)


def test_what_is_malformed_is_told_apart_from_what_is_of_the_wrong_kind() -> None:
    with pytest.raises(MalformedBody, match="the body is not JSON"):
        parse(b"{]")
    with pytest.raises(MalformedBody, match="expected one event, an array of events, or an object"):
        parse(b"7")


# -- lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        EVENT + b"\n" + EVENT + b"\n",
        EVENT + b"\r\n" + EVENT + b"\r\n",
        b"\n\n" + EVENT + b"\r\n\r\n \t\n" + EVENT,
        b"  " + EVENT + b"\t \r\n\t" + EVENT + b" ",
        EVENT + EVENT,
        EVENT + b" " + EVENT + b"\n",
        EVENT + b"\r" + EVENT,
        EVENT.replace(b" ", b"\r") + b"\n" + EVENT.replace(b" ", b"\t"),
    ],
)
def test_lines_may_end_as_the_sender_likes_and_hold_more_than_one_event(body: bytes) -> None:
    assert taken_whole(body, NDJSON) == [PLAIN, PLAIN]
    # The same through the slow path, which a line that is no event leads to.
    assert plain(parse(body + b"\n{}\n" + body, NDJSON)) == [PLAIN, PLAIN, None, PLAIN, PLAIN]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"}",
        b"not JSON",
        b"NaN",
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b"\xef\xbb\xbf" + EVENT,
        b"\xff",
        b"\x00",
        EVENT[:-1],
        EVENT + b"}",
        EVENT + b",",
        with_json(eventName=b'"\xff"'),
        with_json(eventName=b'"\x00"'),
        with_json(eventName=b'"\\ud83d"'),
        with_json(deep=b"[" * 10_000 + b"]" * 10_000),
    ],
    ids=lambda line: repr(line[-24:]),
)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\n\n"])
def test_a_line_that_is_not_json_costs_only_itself(line: bytes, line_end: bytes) -> None:
    parsed = parse(line_end.join([EVENT, line, EVENT, line, EVENT]), NDJSON)
    assert plain(parsed) == [PLAIN, None, PLAIN, None, PLAIN]
    assert [rejection.index for rejection in parsed.rejections] == [1, 3]
    assert all(rejection.reason.startswith("not JSON: ") for rejection in parsed.rejections)


def test_a_line_of_another_kind_is_said_to_be_one() -> None:
    parsed = parse(b"\n".join([b"7", wrapped([EVENT], JSON), b"null", EVENT]), NDJSON)
    assert plain(parsed) == [None, None, None, PLAIN]
    assert [rejection.index for rejection in parsed.rejections] == [0, 1, 2]
    assert all("expected an object" in rejection.reason for rejection in parsed.rejections)


# -- fields nobody asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body_format", list(BodyFormat))
def test_unknown_fields_are_dropped_and_counted(body_format: BodyFormat) -> None:
    events = [
        EVENT,
        with_json(team=b'"red"', tags=b'{"a":{"b":1}}'),
        with_json(Email=b"7", app_id=b"null", event_name=b"[]"),
    ]
    parsed = parse(wrapped(events, body_format), body_format)
    assert parsed.rejections == []
    assert plain(parsed) == [PLAIN, PLAIN, PLAIN]
    assert parsed.unknown_fields == 5
    assert {msgspec.json.encode(event) for event in parsed.events} == {msgspec.json.encode(PLAIN)}


def test_fields_of_what_is_no_event_are_not_counted() -> None:
    assert parse(wrapped([b'{"x":1,"y":2}', EVENT], JSON)).unknown_fields == 0


KEPT = [
    b"1.50",
    b"-0.0",
    b"1E+5",
    b"123456789012345678901234567890",
    b'"\\u0041\\/\\ud83d\\ude00"',
    b'"\xf0\x9f\x98\x80"',
]
KEPT += [b"null", b"false", b"[ 1 ,2]", b'{"b":1,  "a":{"b":[]},"a":2}', b'""', b"{}"]


@pytest.mark.parametrize("body_format", list(BodyFormat))
@pytest.mark.parametrize("value", KEPT)
@pytest.mark.parametrize("beside", [{}, {"unknown": b"1"}], ids=["clean", "sifted"])
def test_kept_fields_are_forwarded_byte_for_byte(
    body_format: BodyFormat, value: bytes, beside: dict[str, bytes]
) -> None:
    body = wrapped([with_json(team=value, **beside), EVENT], body_format)
    parsed = parse(body, body_format, keep=["team", "cost centre"])
    own = msgspec.json.encode(PLAIN)
    assert [msgspec.json.encode(event) for event in parsed.events] == [own[:-1] + b',"team":' + value + b"}", own]
    assert parsed.unknown_fields == len(beside)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_inside_kept_json_become_spaces_so_that_an_event_is_one_line(line_end: bytes) -> None:
    value = line_end.join([b"{", b'"a" :', b'[1,"\\n\\r"]', b"}"])
    [event] = parse(with_json(team=value), keep=["team"]).events
    written = msgspec.json.encode(event)
    assert b"\n" not in written
    assert b"\r" not in written
    assert written.endswith(value.replace(b"\n", b" ").replace(b"\r", b" ") + b"}")
    assert json.loads(written)["team"] == {"a": [1, "\n\r"]}


def test_of_a_kept_field_given_twice_the_last_stays() -> None:
    [event] = parse(EVENT[:-1] + b',"team":1,"team":[2]}', keep=["team"]).events
    assert json.loads(msgspec.json.encode(event)) == {**FIELDS, "team": [2]}


def test_an_events_own_fields_are_checked_even_where_they_are_named_as_kept() -> None:
    names = ["timestamp", "email", "eventName", "appId"]
    assert taken_whole(EVENT, keep=names) == [PLAIN]
    assert parse(with_json(email=b"7"), keep=names).events == [None]


# -- what is no event, and why -----------------------------------------------------------------------------------------

TIMESTAMP = "expected an integer, milliseconds since the epoch (int64)"
EMAIL = "expected text of 3 to 320 characters with an @ inside"
EVENT_NAME = "expected text of 1 to 1024 characters"
APP_ID = "expected text of 1 to 256 characters, or no such field"


@pytest.mark.parametrize(("field", "expected"), [("timestamp", TIMESTAMP), ("email", EMAIL), ("eventName", EVENT_NAME)])
def test_a_missing_field_is_named_with_what_is_expected(field: str, expected: str) -> None:
    assert reason(without(field)) == f"{field}: missing; {expected}"


def test_all_missing_fields_are_named() -> None:
    assert reason(b'{"time":1}') == "; ".join(
        [f"timestamp: missing; {TIMESTAMP}", f"email: missing; {EMAIL}", f"eventName: missing; {EVENT_NAME}"]
    )


@pytest.mark.parametrize("value", ["null", "7", "true", '"text"', "[]"])
def test_what_is_no_object_is_shown(value: str) -> None:
    assert reason(value.encode()) == f"{value}; expected an object"


@pytest.mark.parametrize("beside", [{}, {"unknown": b"1"}], ids=["clean", "sifted"])
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        *[
            ("timestamp", value, TIMESTAMP)
            for value in ("null", "true", "false", '"1700000000000"', "1.0", "1.5", "-0.5", "[]", "{}", '""')
        ],
        ("timestamp", str(2**63), TIMESTAMP),
        ("timestamp", str(-(2**63) - 1), TIMESTAMP),
        ("timestamp", str(2**64), TIMESTAMP),
        *[("email", value, EMAIL) for value in ("null", "7", '""', '"@"', '"a@"', "[]", '["user@example.com"]')],
        *[("eventName", value, EVENT_NAME) for value in ("null", "7", "false", '""', "{}")],
        *[("appId", value, APP_ID) for value in ("null", "7", '""', "[]")],
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_expected(
    field: str, value: str, expected: str, beside: dict[str, bytes]
) -> None:
    assert reason(with_json(**{field: value.encode()}, **beside)) == f"{field}: {value}; {expected}"


def test_a_long_value_is_cut_before_it_is_shown() -> None:
    said = reason(with_json(email=b'"' + b"x" * 100_000 + b'"'))
    assert said.startswith('email: "xxxx')
    assert said.endswith(f"…; {EMAIL}")
    assert len(said) < 200


@pytest.mark.parametrize("timestamp", [INT64_MIN, -1, 0, 2**53 + 1, INT64_MAX])
def test_every_int64_is_a_timestamp_to_the_last_digit(timestamp: int) -> None:
    [event] = parse(with_json(timestamp=str(timestamp).encode())).events
    assert event is not None
    assert event.timestamp == timestamp


@pytest.mark.parametrize(
    ("field", "shortest", "longest"), [("email", 3, 320), ("eventName", 1, 1024), ("appId", 1, 256)]
)
@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f600"])
def test_lengths_are_counted_in_characters(field: str, shortest: int, longest: int, character: str) -> None:
    def taken(length: int) -> bool:
        text = json.dumps("a@b"[:length] + character * (length - 3), ensure_ascii=False).encode()
        return parse(with_json(**{field: text})).events != [None]

    lengths = (shortest - 1, shortest, longest, longest + 1)
    assert [taken(length) for length in lengths] == [False, True, True, False]


# -- text as it comes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "email"),
    [
        (b'"\xf0\x9f\x98\x80@example.com"', "\U0001f600@example.com"),
        (b'"\\ud83d\\ude00@example.com"', "\U0001f600@example.com"),
        (b'"a\\u0000b@example.com"', "a\x00b@example.com"),
        (b'" Us\\u0065r@EXAMPLE.com\\n"', " User@EXAMPLE.com\n"),
        (b'"caf\xc3\xa9@example.com"', "caf\u00e9@example.com"),
        (b'"cafe\xcc\x81@example.com"', "cafe\u0301@example.com"),
        ('"a\u2028b@example.com"'.encode(), "a\u2028b@example.com"),
    ],
)
@pytest.mark.parametrize("body_format", list(BodyFormat))
def test_text_is_taken_as_it_was_meant_and_never_tidied(written: bytes, email: str, body_format: BodyFormat) -> None:
    [event] = parse(wrapped([with_json(email=written)], body_format), body_format).events
    assert event is not None
    assert event.email == email


@pytest.mark.parametrize(
    "written",
    [b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\x00"', b'"\x1f"', b'"\\ud83d"', b'"\\ude00\\ud83d"'],
)
@pytest.mark.parametrize("field", ["email", "eventName", "appId"])
def test_text_that_is_no_text_never_becomes_an_event(field: str, written: bytes) -> None:
    event = with_json(**{field: written})
    with pytest.raises(MalformedBody):
        parse(event)
    assert plain(parse(wrapped([EVENT, event, EVENT], NDJSON), NDJSON)) == [PLAIN, None, PLAIN]


@pytest.mark.parametrize("beside", [b"", b',"unknown":1'], ids=["clean", "sifted"])
def test_of_a_field_given_twice_the_last_counts(beside: bytes) -> None:
    body = EVENT[:-1] + b',"email":"other@example.com","timestamp":5,"appId":"a","appId":"b"' + beside + b"}"
    assert plain(parse(body)) == [UsageEvent(5, "other@example.com", "login", "b")]
    assert parse(EVENT[:-1] + b',"email":7' + beside + b"}").events == [None]
