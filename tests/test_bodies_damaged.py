"""Bodies of several JSON texts, and of none. Where nobody knows where the events begin and end, none is taken."""

import msgspec
import pytest

from collector.bodies import BodyFormat
from collector.errors import MalformedBody
from collector.events import UsageEvent
from tests.test_bodies import (
    BYTE_ORDER_MARK,
    ENVELOPE,
    EVENT,
    JSON,
    NDJSON,
    PLAIN,
    parse,
    plain,
    with_json,
    without,
    wrapped,
)

# Bytes in a string's place that are not UTF-8. They stand inside quotes, so that it is known where the event ends.
NOT_UTF8 = [b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"', b'"\xc0\x80"']

# What stands in a value's place and is no JSON.
NO_VALUE = [
    *[b'"\x00"', b'"\x1f"', b'"\t"', b'"\\ud800"', b'"\\ude00\\ud83d"', b'"\\x"', b'"\\u12"', b"'text'"],
    *[b"01", b"1.", b".5", b"+1", b"-", b"1e", b"0x1", b"1_000", b"NaN", b"-Infinity", b"None", b""],
]


def said(body: bytes, body_format: BodyFormat = JSON) -> str:
    """Why the body is malformed."""
    with pytest.raises(MalformedBody) as caught:
        parse(body, body_format, keep=["team"])
    return str(caught.value)


# -- events in a row, as Fluent Bit's json_stream sends them -----------------------------------------------------------


@pytest.mark.parametrize("beside", [{}, {"date": b"1.5"}], ids=["clean", "sifted"])
@pytest.mark.parametrize("between", [b"", b" ", b"\n", b"\r\n\t "])
@pytest.mark.parametrize("around", [b"", b" \r\n"])
def test_objects_in_a_row_are_events_as_those_of_an_array_are(
    beside: dict[str, bytes], between: bytes, around: bytes
) -> None:
    event = with_json(team=b'["}{"]', **beside)
    body = around + between.join([event, EVENT, event]) + around
    parsed = parse(body, keep=["team"])
    in_array = parse(wrapped([event, EVENT, event], JSON), keep=["team"])
    assert plain(parsed) == [PLAIN, PLAIN, PLAIN]
    assert msgspec.json.encode(parsed.events) == msgspec.json.encode(in_array.events)
    assert (parsed.rejections, parsed.unknown_fields) == (in_array.rejections, in_array.unknown_fields)


@pytest.mark.parametrize(
    "bad", [b"{}", b"7", b"null", wrapped([EVENT], JSON), wrapped([EVENT], ENVELOPE), without("email")]
)
def test_what_is_no_event_in_a_row_is_rejected_as_in_an_array(bad: bytes) -> None:
    parsed = parse(b" ".join([EVENT, bad, EVENT, bad]))
    assert plain(parsed) == [PLAIN, None, PLAIN, None]
    assert parsed.rejections == parse(wrapped([EVENT, bad, EVENT, bad], JSON)).rejections


@pytest.mark.parametrize(
    "between",
    [b",", b";", b"\x00", b"\x1e", b"text", b"}", b"]", b"[", b'"', b"{", EVENT[:-1], BYTE_ORDER_MARK],
)
def test_of_a_row_with_text_that_is_no_json_between_its_objects_nothing_is_taken(between: bytes) -> None:
    assert said(EVENT + between + EVENT).startswith("the body is not JSON: ")


# -- where the events begin and end would be a guess -------------------------------------------------------------------


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
        EVENT + b"," + EVENT,
        b"{]",
        b'{"events":null}',
        b'{"events":{}}',
        b'{"events":' + EVENT + b"}",
        b'{"events":nothing}',
        b"\xff\xfe{\x00}\x00",
        b'{"\xff":1}',
        BYTE_ORDER_MARK,
        BYTE_ORDER_MARK + BYTE_ORDER_MARK + EVENT,
        b"\x00",
    ],
)
def test_a_body_without_events_that_could_be_told_apart_is_malformed(body: bytes, body_format: BodyFormat) -> None:
    assert said(body, body_format)


@pytest.mark.parametrize(
    ("whole", "body_format"),
    [
        (EVENT, JSON),
        (EVENT + EVENT, JSON),
        (EVENT + b"\n" + EVENT, JSON),
        (wrapped([EVENT, EVENT], JSON), JSON),
        (wrapped([EVENT, EVENT], ENVELOPE), JSON),
        (wrapped([EVENT, EVENT], ENVELOPE), ENVELOPE),
    ],
    ids=["one", "row", "lines", "array", "envelope as JSON", "envelope"],
)
def test_of_a_body_that_was_cut_off_nothing_is_taken(whole: bytes, body_format: BodyFormat) -> None:
    ends_of_events = {len(EVENT), len(EVENT) + 1} if whole.startswith(EVENT) else set()
    for length in set(range(len(whole))) - ends_of_events:
        assert said(whole[:length], body_format).startswith("the body is not JSON: ")


# Strings full of what structure is made of: none of it may be mistaken for structure.
CONFUSING = with_json(eventName=rb'"}],[{\"events\":[\\"', extra=b'{"[":["{"]}')
CONFUSED = UsageEvent(PLAIN.timestamp, PLAIN.email, '}],[{"events":[\\')


@pytest.mark.parametrize(
    "bad",
    [
        *[with_json(**{field: value}) for field in ("eventName", "team", "extra") for value in NO_VALUE],
        *[EVENT[:-1], EVENT[:-2] + b"}", EVENT[:-1] + b",}", EVENT + b"}", EVENT + b"]", EVENT + b"/* it said */"],
        *[with_json(extra=value) for value in (b"[1", b"[1}", b'"', b'"\\"')],
        *[b"nonsense", b"{nonsense}", b"{,}", b'{"timestamp"}', b'"', b"'" + EVENT + b"'"],
    ],
    ids=lambda bad: repr(bad[-24:]),
)
def test_an_element_that_is_no_json_costs_the_whole_body_but_of_lines_only_its_own(bad: bytes) -> None:
    events = [CONFUSING, bad, EVENT]
    for body_format in (JSON, ENVELOPE):
        assert said(wrapped(events, body_format), body_format).startswith("the body is not JSON: ")
    assert said(b" ".join(events)).startswith("the body is not JSON: ")
    parsed = parse(wrapped(events, NDJSON), NDJSON, keep=["team"])
    assert plain(parsed) == [CONFUSED, None, PLAIN]
    [rejection] = parsed.rejections
    assert (rejection.index, rejection.reason[:10]) == (1, "not JSON: ")


@pytest.mark.parametrize("half", [rb"\ud800@example.com", rb"\ud800\n@example.com", rb"\ude00\ud83d@example.com"])
@pytest.mark.parametrize("field", ["email", "team", "extra"])
def test_a_lone_surrogate_is_called_one_in_every_format(half: bytes, field: str) -> None:
    bad = with_json(**{field: b'"' + half + b'"'})
    reasons = [said(bad), *(said(wrapped([EVENT, bad], each), each) for each in (JSON, ENVELOPE))]
    [rejection] = parse(wrapped([EVENT, bad, EVENT], NDJSON), NDJSON, keep=["team"]).rejections
    for reason in (*reasons, rejection.reason):
        assert "a lone surrogate is no character" in reason


def test_a_hex_escape_that_is_none_is_not_called_a_surrogate() -> None:
    assert "surrogate" not in said(with_json(email=rb'"\u12zz@example.com"'))


@pytest.mark.parametrize("between", [b"", b" ", b",,", b",\n,", b":", b";"])
def test_of_an_array_whose_commas_are_not_one_between_two_events_nothing_is_taken(between: bytes) -> None:
    for array in (b"[" + EVENT + between + EVENT + b"]", b"[" + EVENT + b",]", b"[," + EVENT + b"]"):
        assert said(array).startswith("the body is not JSON: ")
        assert said(b'{"events":' + array + b"}", ENVELOPE).startswith("the body is not JSON: ")


@pytest.mark.parametrize("rest", [b',"more":nonsense', b",", b',"more"', b',"\xff":1'])
def test_an_envelope_with_text_that_is_no_json_beside_its_events_is_malformed(rest: bytes) -> None:
    assert said(b'{"events":[' + EVENT + b"]" + rest + b"}", ENVELOPE).startswith("the body is not JSON: ")


# -- an event that is no text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NOT_UTF8)
@pytest.mark.parametrize("field", ["email", "eventName", "appId", "team"])
@pytest.mark.parametrize("body_format", list(BodyFormat))
def test_an_event_that_is_not_utf8_costs_only_itself(field: str, value: bytes, body_format: BodyFormat) -> None:
    bad = with_json(**{field: value})
    parsed = parse(wrapped([EVENT, bad, CONFUSING, bad], body_format), body_format, keep=["team"])
    assert plain(parsed) == [PLAIN, None, CONFUSED, None]
    assert sorted(rejection.index or 0 for rejection in parsed.rejections) == [1, 3]
    assert all(rejection.reason.startswith("not JSON: ") for rejection in parsed.rejections)
    assert parse(bad, keep=["team"]).events == [None]


@pytest.mark.parametrize("value", NOT_UTF8)
def test_what_stands_in_a_field_that_is_dropped_need_not_be_utf8_since_nobody_reads_it(value: bytes) -> None:
    assert plain(parse(with_json(extra=value))) == [PLAIN]


# -- deep nesting ------------------------------------------------------------------------------------------------------


def deep(kind: str) -> bytes:
    """Many brackets. They are made where they are needed: nobody wants to see them where a test fails."""
    array = b"[" * 10_000
    return {
        "open": array,
        "closed": array + array.replace(b"[", b"]"),
        "objects": b'{"events":' * 10_000 + b"1" + b"}" * 10_000,
        "in a dropped field": with_json(deep=array + array.replace(b"[", b"]")),
        "in a kept field": with_json(team=array + array.replace(b"[", b"]")),
        "in a field of the event's own": with_json(eventName=array + array.replace(b"[", b"]")),
    }[kind]


DEEP = ["open", "closed", "objects", "in a dropped field", "in a kept field", "in a field of the event's own"]


@pytest.mark.parametrize("kind", DEEP)
def test_a_body_that_is_nested_too_deeply_is_malformed(kind: str) -> None:
    for body in (deep(kind), wrapped([EVENT, deep(kind), EVENT], JSON), EVENT + deep(kind)):
        assert said(body) == "the body is nested too deeply"
    assert said(wrapped([EVENT, deep(kind)], ENVELOPE), ENVELOPE) == "the body is nested too deeply"
    assert said(b'{"events":[],"more":' + deep(kind) + b"}", ENVELOPE) == "the body is nested too deeply"


@pytest.mark.parametrize("kind", DEEP)
def test_a_line_that_is_nested_too_deeply_costs_only_itself(kind: str) -> None:
    parsed = parse(wrapped([EVENT, deep(kind), EVENT], NDJSON), NDJSON, keep=["team"])
    assert plain(parsed) == [PLAIN, None, PLAIN]
    assert [(rejection.index, rejection.reason) for rejection in parsed.rejections] == [(1, "nested too deeply")]


def test_brackets_that_only_close_are_no_nesting() -> None:
    assert said(deep("open").replace(b"[", b"]")).startswith("the body is not JSON: ")
