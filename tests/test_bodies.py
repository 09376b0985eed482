"""What a body's bytes become: the events its sender meant, a reason for each that is none, and nothing else."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from collector.bodies import COMMAS_PER_EVENT, SHOWN_VALUE_CHARS, BodyFormat, BodyParser, Parsed, app_id_problem
from collector.errors import MalformedBody, TooLarge
from collector.events import INT64_MAX, INT64_MIN, UsageEvent, event_key

JSON, ENVELOPE, NDJSON = BodyFormat.JSON, BodyFormat.ENVELOPE, BodyFormat.NDJSON

FIELDS: Mapping[str, object] = {"timestamp": 1_700_000_000_000, "email": "user@example.com", "eventName": "login"}
EVENT = json.dumps(FIELDS).encode()
PLAIN = UsageEvent(1_700_000_000_000, "user@example.com", "login")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MANY_EVENTS = 10_000


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


def parse(
    body: bytes, body_format: BodyFormat = JSON, *, keep: Sequence[str] = (), max_events: int = MANY_EVENTS
) -> Parsed:
    return BodyParser(keep_fields=keep, max_events=max_events).parse(body, body_format)


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


@pytest.mark.parametrize("body", [EVENT, wrapped([EVENT], JSON), b"{}", b'{"Events":[]}', BYTE_ORDER_MARK + EVENT])
def test_an_envelope_is_nothing_but_an_envelope(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="events"):
        parse(body, ENVELOPE)


@pytest.mark.parametrize("body", [EVENT + EVENT, wrapped([EVENT], ENVELOPE) * 2, wrapped([EVENT], ENVELOPE) + EVENT])
def test_an_envelope_stands_alone(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="the body is not JSON: "):
        parse(body, ENVELOPE)


@pytest.mark.parametrize("bad", [[], [b"7"]], ids=["clean", "sifted"])
def test_of_two_arrays_of_events_in_an_envelope_the_last_counts(bad: list[bytes]) -> None:
    body = b'{"events":[{}],"more":[],"events":' + wrapped([EVENT, *bad], JSON) + b"}"
    assert plain(parse(body, ENVELOPE)) == [PLAIN] + [None] * len(bad)


@pytest.mark.parametrize("body_format", list(BodyFormat))
def test_a_byte_order_mark_at_the_start_of_a_body_is_ignored(body_format: BodyFormat) -> None:
    assert taken_whole(BYTE_ORDER_MARK + wrapped([EVENT, EVENT], body_format), body_format) == [PLAIN, PLAIN]
    assert taken_whole(BYTE_ORDER_MARK + wrapped([], body_format), body_format) == []


def test_what_is_malformed_is_told_apart_from_what_is_of_the_wrong_kind() -> None:
    with pytest.raises(MalformedBody, match="the body is not JSON"):
        parse(b"{]")
    with pytest.raises(MalformedBody, match="expected one event, several in a row, an array of events, or an object"):
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
        b"\xff",
        b"\x00",
        EVENT[:-1],
        EVENT + b"}",
        EVENT + b",",
        with_json(eventName=b'"\xff"'),
        with_json(eventName=b'"\x00"'),
        with_json(eventName=b'"\\ud83d"'),
    ],
    ids=lambda line: repr(line[-24:]),
)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\n\n"])
def test_a_line_that_is_not_json_costs_only_itself(line: bytes, line_end: bytes) -> None:
    parsed = parse(line_end.join([EVENT, line, EVENT, line, EVENT]), NDJSON)
    assert plain(parsed) == [PLAIN, None, PLAIN, None, PLAIN]
    assert [rejection.index for rejection in parsed.rejections] == [1, 3]
    assert all(rejection.reason.startswith("not JSON: ") for rejection in parsed.rejections)


def test_a_byte_order_mark_is_ignored_on_every_line() -> None:
    parsed = parse(b"\n".join([BYTE_ORDER_MARK + EVENT, EVENT, BYTE_ORDER_MARK + EVENT]), NDJSON)
    assert plain(parsed) == [PLAIN, PLAIN, PLAIN]


def test_several_events_on_one_line_are_taken_but_if_one_is_no_json_the_line_is_one_rejection() -> None:
    parsed = parse(b"\n".join([EVENT + EVENT, EVENT + b"{", EVENT]), NDJSON)
    assert plain(parsed) == [PLAIN, PLAIN, None, PLAIN]


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
APP_ID = 'expected text of 1 to 256 characters other than "." and "..", or no such field'


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
            for value in ("null", "true", "false", '"1700000000000"', "1.0", "1.5", "-0.5", "[]", "{ }", '""')
        ],
        *[("timestamp", value, TIMESTAMP) for value in ("1e3", "1E+3", "1.70e12", "-0.0", "1e400", "-1e400", "1e-400")],
        ("timestamp", str(2**63), TIMESTAMP),
        ("timestamp", str(-(2**63) - 1), TIMESTAMP),
        ("timestamp", str(2**64), TIMESTAMP),
        *[("email", value, EMAIL) for value in ("null", "7.50", '""', '"@"', '"a@"', "[]", '["user@example.com"]')],
        *[("eventName", value, EVENT_NAME) for value in ("null", "7", "false", '""', "{}")],
        *[("appId", value, APP_ID) for value in ("null", "7", '""', "[]")],
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_expected(
    field: str, value: str, expected: str, beside: dict[str, bytes]
) -> None:
    assert reason(with_json(**{field: value.encode()}, **beside)) == f"{field}: {value}; {expected}"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("timestamp", "1" * 5000, TIMESTAMP),
        ("timestamp", "-" + "9" * 5000, TIMESTAMP),
        ("timestamp", "1." + "0" * 5000, TIMESTAMP),
        ("email", '"' + "x" * 100_000 + '"', EMAIL),
        ("eventName", '"' + "\U0001f600" * 100_000 + '"', EVENT_NAME),
        ("eventName", "[" * 200 + "]" * 200, EVENT_NAME),
    ],
    ids=lambda value: value[:10],
)
def test_a_long_value_is_cut_before_it_is_shown(field: str, value: str, expected: str) -> None:
    assert reason(with_json(**{field: value.encode()})) == f"{field}: {value[:SHOWN_VALUE_CHARS]}…; {expected}"


@pytest.mark.parametrize("written", ["7", " 1e3 ", '"a\\u0062c"'])
def test_what_is_no_object_is_shown_as_it_was_written(written: str) -> None:
    assert reason(written.encode()) == f"{written.strip()}; expected an object"


@pytest.mark.parametrize("app_id", [".", ".."])
def test_an_app_id_that_would_vanish_from_a_url_is_a_problem(app_id: str) -> None:
    assert app_id_problem(app_id) == f'appId: "{app_id}"; {APP_ID.removesuffix(", or no such field")}'


@pytest.mark.parametrize("app_id", ["...", ".a", "a.", " .", ".\n", "./", "../..", "%2e", "\u2024", "a/b", "x" * 256])
def test_every_other_app_id_is_one(app_id: str) -> None:
    assert app_id_problem(app_id) is None
    [event] = parse(with_json(appId=json.dumps(app_id).encode())).events
    assert event is not None
    assert event.app_id == app_id


@pytest.mark.parametrize("app_id", ["", "x" * 257])
def test_an_app_id_of_a_wrong_length_is_a_problem(app_id: str) -> None:
    assert (app_id_problem(app_id) or "").startswith(f'appId: "{app_id[: SHOWN_VALUE_CHARS - 1]}')


@pytest.mark.parametrize("timestamp", [INT64_MIN, -1, 0, 2**53 + 1, INT64_MAX])
def test_every_int64_is_a_timestamp_to_the_last_digit(timestamp: int) -> None:
    [event] = parse(with_json(timestamp=str(timestamp).encode())).events
    assert event is not None
    assert event.timestamp == timestamp


@pytest.mark.parametrize(
    ("parser", "field", "shortest", "longest"),
    [
        (BodyParser(max_events=1), "email", 3, 320),
        (BodyParser(max_events=1), "eventName", 1, 1024),
        (BodyParser(max_events=1), "appId", 1, 256),
        (BodyParser(max_events=1, max_email_chars=5), "email", 3, 5),
        (BodyParser(max_events=1, max_event_name_chars=2000), "eventName", 1, 2000),
    ],
)
@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f600"])
def test_lengths_are_counted_in_characters(
    parser: BodyParser, field: str, shortest: int, longest: int, character: str
) -> None:
    event = {"timestamp": 1, "email": "a@b", "eventName": "x"}

    def rejected(length: int) -> list[str]:
        text = "a@b"[:length] + character * (length - 3)
        body = json.dumps(event | {field: text}, ensure_ascii=False).encode()
        return [rejection.reason for rejection in parser.parse(body, JSON).rejections]

    [too_short], [too_long] = rejected(shortest - 1), rejected(longest + 1)
    assert (rejected(shortest), rejected(longest)) == ([], [])
    assert too_short.startswith(f'{field}: "')
    assert f"; expected text of {shortest} to {longest} characters" in too_long


@pytest.mark.parametrize("body_format", list(BodyFormat))
def test_kept_fields_of_an_event_are_limited_together_in_bytes(body_format: BodyFormat) -> None:
    def kept(size: int) -> bytes:
        return with_json(team=b'"\xc3\xa9"', site=b"[" + b" " * (size - 6) + b"]")

    parser = BodyParser(keep_fields=["team", "site"], max_events=3, max_kept_bytes=100)
    parsed = parser.parse(wrapped([kept(100), kept(101), EVENT], body_format), body_format)
    assert plain(parsed) == [PLAIN, None, PLAIN]
    [rejection] = parsed.rejections
    assert rejection.index == 1
    assert rejection.reason == "kept fields take more than events.max_kept_bytes = 100 bytes"


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


ALIKE = [
    "caf\u00e9@x",  # composed
    "cafe\u0301@x",  # decomposed
    "CAF\u00c9@x",
    " caf\u00e9@x",
    "caf\u00e9@x ",
    "caf\u00e9@x\t",
    "caf\u00e9 @x",
    "caf\u00a0\u00e9@x",
    "caf\u00e9@x\x00",
    "caf\u00e9\x00@x",
    "\u200bcaf\u00e9@x",
    "\ufeffcaf\u00e9@x",
    "caf\u00e9@\uff58",
    "\U0001f468\u200d\U0001f4bb@x",
    "\U0001f468\U0001f4bb@x",
    "\u263a@x",
    "\u263a\ufe0f@x",
]


@pytest.mark.parametrize("field", ["email", "eventName", "appId"])
@pytest.mark.parametrize("as_ascii", [True, False], ids=["escaped", "raw"])
@pytest.mark.parametrize("body_format", list(BodyFormat))
def test_texts_that_only_look_alike_stay_as_they_are_and_apart(
    field: str, as_ascii: bool, body_format: BodyFormat
) -> None:
    sent = [{**FIELDS, "appId": "app", field: text} for text in ALIKE]
    written = [json.dumps(event, ensure_ascii=as_ascii).encode() for event in sent]
    events: Sequence[Any] = taken_whole(wrapped(written, body_format), body_format)
    assert [json.loads(msgspec.json.encode(event)) for event in events] == sent
    assert len({event_key(e.app_id, e.timestamp, e.email, e.event_name) for e in events}) == len(ALIKE)


@pytest.mark.parametrize("beside", [b"", b',"unknown":1'], ids=["clean", "sifted"])
def test_of_a_field_given_twice_the_last_counts_and_each_must_be_sound(beside: bytes) -> None:
    body = EVENT[:-1] + b',"email":"other@example.com","timestamp":5,"appId":"a","appId":"b"' + beside + b"}"
    assert plain(parse(body)) == [UsageEvent(5, "other@example.com", "login", "b")]
    assert parse(EVENT[:-1] + b',"email":7' + beside + b"}").events == [None]
    assert parse(b'{"email":7,' + EVENT[1:-1] + beside + b"}").events == [None]


# -- how much one body may hold ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body_format", [JSON, ENVELOPE])
@pytest.mark.parametrize("event", [EVENT, with_json(unknown=b"1"), b"7"], ids=["clean", "sifted", "rejected"])
def test_a_body_of_more_events_than_allowed_is_too_large(body_format: BodyFormat, event: bytes) -> None:
    assert len(parse(wrapped([event] * 3, body_format), body_format, max_events=3).events) == 3
    with pytest.raises(TooLarge, match=r"the body has 4 events; allowed: events\.max_per_request = 3"):
        parse(wrapped([event] * 4, body_format), body_format, max_events=3)


def test_an_object_that_is_spread_over_lines_is_none_whatever_stands_beside_it() -> None:
    spread = EVENT.replace(b",", b",\n")
    for beside in ([], [EVENT], [EVENT, b"7"]):
        parsed = parse(b"\n".join([spread, *beside]), NDJSON)
        assert len(parsed.rejections) == spread.count(b"\n") + 1 + (b"7" in beside)


def test_an_event_may_have_a_field_that_envelopes_have() -> None:
    for value in (b"[]", b"7", b"[" + EVENT + b"]"):
        parsed = parse(with_json(events=value), JSON)
        assert (plain(parsed), parsed.unknown_fields) == ([PLAIN], 1)


def test_lines_may_be_any_number() -> None:
    assert len(parse(b"\n".join([EVENT, b"7"] * 50), NDJSON, max_events=3).events) == 100


@pytest.mark.parametrize("body_format", [JSON, ENVELOPE])
@pytest.mark.parametrize("max_events", [1, 3])
def test_a_body_that_is_not_clean_is_not_cut_up_where_it_has_too_many_commas(
    body_format: BodyFormat, max_events: int
) -> None:
    def body(commas: int, **unknown: bytes) -> bytes:
        event = with_json(**unknown)
        name = b"," * (commas - event.count(b","))
        return wrapped([event.replace(b"login", b"login" + name)], body_format)

    most = COMMAS_PER_EVENT * max_events
    assert len(parse(body(most, unknown=b"1"), body_format, max_events=max_events).events) == 1
    assert len(parse(body(most + 1), body_format, max_events=max_events).events) == 1  # it is clean
    with pytest.raises(TooLarge, match=r"more than 8 commas for each of events\.max_per_request"):
        parse(body(most + 1, unknown=b"1"), body_format, max_events=max_events)


# -- many small bodies in one go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", [b"", b"\n"])
def test_bodies_in_which_nothing_is_amiss_are_parsed_together(line_end: bytes) -> None:
    kept = with_json(team=b"[1,\n2]")
    parsed = BodyParser(keep_fields=["team"], max_events=3).parse_row([EVENT + line_end, kept + line_end, EVENT])
    assert (plain(parsed), parsed.rejections, parsed.unknown_fields) == ([PLAIN] * 3, [], 0)
    assert msgspec.json.encode(parsed.events[1]).endswith(b',"team":[1, 2]}')


# Two of the bodies make one event where they are put together, and none is an event by itself.
HALVES = EVENT.split(b" ", 1)


@pytest.mark.parametrize(
    "row",
    [
        [EVENT, b"7"],
        [EVENT, b""],
        [EVENT, BYTE_ORDER_MARK + EVENT],
        [EVENT, b" " + EVENT],
        [EVENT, with_json(unknown=b"1")],
        [wrapped([EVENT], JSON)],
        [wrapped([EVENT], ENVELOPE)],
        HALVES,
        [EVENT[:-1] + b',"team":{', b"}}"],
        [EVENT[:-1] + b',"team":"}', b'{"}'],
    ],
    ids=lambda row: repr(row[-1][:24]),
)
def test_bodies_of_which_one_is_not_clean_or_does_not_end_are_not_parsed_together(row: list[bytes]) -> None:
    assert BodyParser(keep_fields=["team"], max_events=MANY_EVENTS).parse_row(row).events == []
