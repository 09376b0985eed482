"""Properties of the body parser, judged by a second reading of the same bytes that shares nothing with it."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collector.bodies import BodyFormat, BodyParser, Parsed
from collector.errors import MalformedBody
from collector.events import INT64_MAX, INT64_MIN, UsageEvent
from tests.test_bodies import MANY_EVENTS, NDJSON, parse, plain, wrapped

NAMES = st.sampled_from(["timestamp", "email", "eventName", "appId", "events", "team", "Email", ""])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.sampled_from([INT64_MIN - 1, INT64_MIN, INT64_MAX, INT64_MAX + 1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["user@example.com", "a@", "\x00", "\u2028", "\U0001f600"])
)
VALID = st.fixed_dictionaries(
    {
        "timestamp": st.integers(INT64_MIN, INT64_MAX),
        "email": st.text(min_size=3, max_size=30),
        "eventName": st.text(min_size=1, max_size=30),
    },
    optional={"appId": st.text(min_size=1, max_size=10)},
)
NEARLY = st.builds(lambda event, others: event | others, VALID, st.dictionaries(NAMES, LEAVES, max_size=2))
ANY_JSON = st.recursive(
    LEAVES | VALID | NEARLY,
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(NAMES, values, max_size=4)
        | st.builds(lambda events: {"events": events}, st.lists(values, max_size=4))
    ),
    max_leaves=12,
)


# Text that no JSON parser takes, and that holds nothing of which the structure around it is made.
NONSENSE = st.text(st.characters(codec="utf-8", exclude_characters='"\\[]{},\n'), max_size=8).map(
    lambda text: f"?{text}".encode()
)


def meant(value: Any) -> UsageEvent | None:
    """The event that a JSON value is by the contract; written apart from the parser, to judge it."""
    if not isinstance(value, dict):
        return None
    timestamp, email, event_name, app_id = (value.get(n) for n in ("timestamp", "email", "eventName", "appId"))
    fits = (
        (type(timestamp) is int and INT64_MIN <= timestamp <= INT64_MAX)
        and (isinstance(email, str) and 3 <= len(email) <= 320)
        and (isinstance(event_name, str) and 1 <= len(event_name) <= 1024)
        and ("appId" not in value or (isinstance(app_id, str) and 1 <= len(app_id) <= 256))
    )
    return msgspec.convert(value, UsageEvent) if fits else None


def said_once(parsed: Parsed) -> bool:
    """Whether each event was either taken or rejected with a reason, and never both or neither."""
    refused = [index for index, event in enumerate(parsed.events) if event is None]
    return [rejection.index for rejection in parsed.rejections] == refused


@given(ANY_JSON, st.booleans())
@example({"timestamp": 1, "email": "a@b", "eventName": "x", "events": [None]}, True)
@example([{"timestamp": 1, "email": "a@b", "eventName": "x", "appId": None}], True)
def test_any_json_gives_exactly_the_events_that_are_in_it(value: Any, as_ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=as_ascii).encode()
    if isinstance(value, list):
        candidates = value
    elif isinstance(value, dict) and value.keys() >= {"timestamp", "email", "eventName"}:
        candidates = [value]
    elif isinstance(value, dict) and isinstance(value.get("events", []), list):
        candidates = value.get("events", [value])
    else:
        with pytest.raises(MalformedBody):
            parse(body)
        return
    parsed = parse(body)
    assert plain(parsed) == [meant(candidate) for candidate in candidates]
    assert said_once(parsed)


@given(st.lists(st.dictionaries(NAMES, LEAVES) | NEARLY, min_size=2, max_size=6), st.sampled_from([b"", b" ", b"\r\n"]))
def test_objects_in_a_row_give_what_an_array_of_them_gives(values: list[Any], between: bytes) -> None:
    written = [json.dumps(value).encode() for value in values]
    parsed = parse(between.join(written))
    assert plain(parsed) == [meant(value) for value in values]
    assert parsed.rejections == parse(wrapped(written, BodyFormat.JSON)).rejections


@given(st.lists(ANY_JSON | NONSENSE, min_size=1, max_size=6), st.sampled_from(BodyFormat), st.booleans())
def test_nonsense_costs_the_whole_body_but_of_lines_only_its_own(
    pieces: list[Any], body_format: BodyFormat, as_ascii: bool
) -> None:
    written = [p if isinstance(p, bytes) else json.dumps(p, ensure_ascii=as_ascii).encode() for p in pieces]
    body = wrapped(written, body_format)
    if body_format is not NDJSON and any(isinstance(piece, bytes) for piece in pieces):
        with pytest.raises(MalformedBody):
            parse(body, body_format)
        return
    parsed = parse(body, body_format)
    assert plain(parsed) == [meant(piece) for piece in pieces]
    assert said_once(parsed)


@given(st.lists(NEARLY, max_size=4), NEARLY, st.data())
def test_of_a_row_that_was_cut_off_nothing_is_taken(
    values: list[Any], last: dict[str, Any], data: st.DataObject
) -> None:
    written = json.dumps(last).encode()
    cut_off = written[: data.draw(st.integers(1, len(written) - 1))]
    with pytest.raises(MalformedBody):
        parse(b"".join(json.dumps(value).encode() for value in values) + cut_off)


@given(st.lists(ANY_JSON, max_size=6), st.sampled_from([b"\n", b"\r\n", b"\n \n"]), st.booleans())
def test_any_lines_of_json_give_exactly_the_events_that_are_on_them(
    values: list[Any],
    line_end: bytes,
    as_ascii: bool,
) -> None:
    parsed = parse(line_end.join(json.dumps(value, ensure_ascii=as_ascii).encode() for value in values), NDJSON)
    assert plain(parsed) == [meant(value) for value in values]
    assert said_once(parsed)


def events_inside(body: bytes) -> Iterator[UsageEvent]:
    """Every event that any object in the body could be meant as, found by Python's own parser from every brace."""
    text = body.decode(errors="surrogateescape")
    decoder = json.JSONDecoder()
    for start, character in enumerate(text):
        if character == "{":
            try:
                value, _ = decoder.raw_decode(text, start)
            except (ValueError, RecursionError):
                continue
            if event := meant(value):
                yield event


@st.composite
def damaged_bodies(draw: st.DrawFn) -> bytes:
    """Bodies that were right before somebody cut pieces out of them and put others in."""
    values = draw(st.lists(ANY_JSON, min_size=1, max_size=3))
    body = b" ".join(json.dumps(value, ensure_ascii=draw(st.booleans())).encode() for value in values)
    pieces = st.text('{}[]",:\\ \n\r\t\x0001.eEu', max_size=3).map(str.encode)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 3)))
        body = body[:start] + draw(pieces) + body[end:]
    return body


@settings(max_examples=300)
@given(st.binary(max_size=60) | damaged_bodies(), st.sampled_from(BodyFormat), st.sampled_from([(), ("team",)]))
def test_whatever_comes_nothing_but_malformed_body_is_raised_and_no_event_is_made_up(
    body: bytes, body_format: BodyFormat, keep: Sequence[str]
) -> None:
    try:
        parsed = parse(body, body_format, keep=keep)
    except MalformedBody:
        assert body_format is not NDJSON, "of lines each is judged on its own"
        return
    possible = list(events_inside(body))
    assert all(event in possible for event in plain(parsed) if event)


@given(st.lists(VALID, max_size=8), st.sampled_from(BodyFormat), st.booleans())
def test_valid_events_come_out_as_they_went_in(
    events: list[dict[str, Any]],
    body_format: BodyFormat,
    as_ascii: bool,
) -> None:
    written = [json.dumps(event, ensure_ascii=as_ascii).encode() for event in events]
    parsed = parse(wrapped(written, body_format), body_format)
    assert parsed.rejections == []
    assert [json.loads(msgspec.json.encode(event)) for event in parsed.events] == events


@given(st.lists(VALID.map(lambda event: json.dumps(event).encode()) | damaged_bodies(), max_size=4))
def test_bodies_that_are_parsed_together_give_what_each_of_them_gives(bodies: list[bytes]) -> None:
    parser = BodyParser(keep_fields=["team"], max_events=MANY_EVENTS)
    together = parser.parse_row(bodies)
    if together.events:
        each = [parser.parse(body, BodyFormat.JSON) for body in bodies]
        assert together.events == [event for parsed in each for event in parsed.events]
        reasons = [rejection.reason for parsed in each for rejection in parsed.rejections]
        assert [rejection.reason for rejection in together.rejections] == reasons
        assert not any(parsed.unknown_fields for parsed in [together, *each])
