"""From the bytes that an app sent to events, and to the reasons why some are none (pure).

An event is taken or rejected on its own: one bad event never costs its neighbours. A body in which nothing is amiss is
decoded in one go by a strict type; only where that fails does a slower path look at each event by itself. A body that
is not JSON at all is refused as a whole: where its events begin and end would be a guess.

Text is taken as it was sent: nothing is trimmed, case-folded, normalised or rounded. Of a field that is given twice the
last counts, as most parsers have it (RFC 8259 section 4 leaves it open), but the others must be sound too.
"""

import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Annotated, Any

import msgspec

from collector.errors import UNPARSABLE, MalformedBody, TooLarge
from collector.events import (
    APP_ID_EXPECTED,
    EMAIL_MAX_CHARS,
    EVENT_NAME_MAX_CHARS,
    KEPT_MAX_BYTES,
    UsageEvent,
    is_app_id,
)

SHOWN_VALUE_CHARS = 60

HALF_A_PAIR = ("surrogate", "end of hex escape")
"""How msgspec puts it that half a surrogate pair stands alone: in what it reads, and in what it skips."""

Field = tuple[str, Any]
"""A name and a type, as msgspec.defstruct takes them."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SPACES = b" \t\r\n"

COMMAS_PER_EVENT = 8
"""A body that is not clean is cut into its events before any of them is looked at. One of nothing but commas would make
eight million of 16 MiB: more than so many for each event that a request may hold, and it is not cut up at all."""

REQUIRED = ("timestamp", "email", "eventName")
"""An object with these is an event, also where it has a field `events`."""


class BodyFormat(Enum):
    """How a body holds its events."""

    JSON = "one event, several in a row, an array of events, or an object with an array `events`"
    ENVELOPE = "an object with an array `events`, as upstream takes it"
    NDJSON = "one event a line"


JSON, ENVELOPE, NDJSON = BodyFormat  # in Python 3.11 to look up a member takes as long as to decode half an event


class Rejection(msgspec.Struct, omit_defaults=True):
    """Why one event (`index`, from 0, in the order they were sent) or a whole request (no index) was refused."""

    reason: str
    index: int | None = None


class Parsed(msgspec.Struct):
    """A body's events in their order, None in the place of each that was rejected."""

    events: list[UsageEvent | None]
    rejections: list[Rejection] = []
    unknown_fields: int = 0


class BodyParser:
    """Reads bodies into events. Fields in `keep_fields` stay with the event as the JSON they came as.

    `expected` says for people what each field of an event may be.
    """

    def __init__(
        self,
        *,
        keep_fields: Sequence[str] = (),
        max_events: int,
        max_email_chars: int = EMAIL_MAX_CHARS,
        max_event_name_chars: int = EVENT_NAME_MAX_CHARS,
        max_kept_bytes: int = KEPT_MAX_BYTES,
    ) -> None:
        self._max_events = max_events
        self._max_kept_bytes = max_kept_bytes
        self.expected = {
            "timestamp": "an integer, milliseconds since the epoch (int64)",
            "email": f"text of 3 to {max_email_chars} characters with an @ inside",
            "eventName": f"text of 1 to {max_event_name_chars} characters",
            "appId": f"{APP_ID_EXPECTED}, or no such field",
        }
        texts: list[Field] = [
            ("email", Annotated[str, msgspec.Meta(min_length=3, max_length=max_email_chars)]),
            ("event_name", Annotated[str, msgspec.Meta(min_length=1, max_length=max_event_name_chars)]),
        ]
        names = [name for name in keep_fields if name not in UsageEvent.__struct_encode_fields__]
        strict, lenient = (
            _event_type(texts, names, forbid_unknown_fields=True),
            _event_type(texts, names, forbid_unknown_fields=False),
        )
        envelope = msgspec.defstruct("Envelope", [("events", list[strict])], forbid_unknown_fields=True)  # type: ignore[valid-type]
        self._kept = [f"kept_{number}" for number in range(len(names))]
        self._known = set(lenient.__struct_encode_fields__)
        self._strict = msgspec.json.Decoder(strict)
        self._strict_list = msgspec.json.Decoder(list[strict])  # type: ignore[valid-type]
        self._strict_envelope = msgspec.json.Decoder(envelope)
        self._lenient = msgspec.json.Decoder(lenient)
        self._raw = msgspec.json.Decoder(msgspec.Raw)
        self._raw_list = msgspec.json.Decoder(list[msgspec.Raw])
        self._raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def parse_row(self, bodies: Sequence[bytes]) -> Parsed:
        """The events of many small JSON bodies in one go, or an empty `events` where that cannot be done.

        It is done where nothing is amiss in any of them, and each begins and ends as an object does: put in a row, an
        end that is missing in one cannot be found in the next.
        """
        if all(body[:1] == b"{" and body.endswith((b"}", b"}\n")) for body in bodies):
            try:
                events: list[Any] = self._strict.decode_lines(b"\n".join(bodies))
            except UNPARSABLE:
                return Parsed([])
            if len(events) <= max(len(bodies), self._max_events):  # else one of them may have too many
                return self._cleaned(Parsed(events))
        return Parsed([])

    def parse(self, body: bytes, body_format: BodyFormat) -> Parsed:
        """The body's events. A byte order mark before them is ignored (RFC 8259 section 8.1).

        Raises MalformedBody where an array, an envelope or a row of objects is not JSON: nobody knows then where its
        events begin and end. Raises TooLarge for more than `max_events`. Of NDJSON neither is said: each line is on its
        own, and who reads it can take it in pieces.
        """
        limit = sys.maxsize if body_format is NDJSON else self._max_events
        try:
            parsed = Parsed(self._clean(body, body_format))
        except UNPARSABLE:
            if body.count(b",") > COMMAS_PER_EVENT * limit:
                raise TooLarge(
                    f"not all events of the body are sound, and it has more than {COMMAS_PER_EVENT} commas for each of "
                    f"events.max_per_request = {limit}: send fewer in one request"
                ) from None
            parsed = self._sift(self._candidates(body.removeprefix(BYTE_ORDER_MARK), body_format))
        if len(parsed.events) > limit:
            raise self._too_many(len(parsed.events))
        return self._cleaned(parsed)

    def _clean(self, body: bytes, body_format: BodyFormat) -> list[Any]:
        """The events of a body in which nothing is amiss. Raises UNPARSABLE for any other."""
        if body_format is NDJSON:
            events = self._strict.decode_lines(body)
            if events and body.count(b"\n") - body.endswith(b"\n") >= len(events):
                raise msgspec.DecodeError("there are lines that hold no event, or a part of one")
            return events
        if body_format is JSON:
            if _is_array(body):
                return self._strict_list.decode(body)
            try:
                if events := self._strict.decode_lines(body):  # for a single one no slower than decode()
                    return events
            except msgspec.ValidationError:
                pass  # an envelope, or not clean
        return self._strict_envelope.decode(body).events  # type: ignore[attr-defined,no-any-return]

    def _candidates(self, body: bytes, body_format: BodyFormat) -> Iterable[msgspec.Raw | MalformedBody]:
        """Each of the body's events, still as JSON, or why there is none in its place. Raises MalformedBody."""
        if body_format is NDJSON:
            return self._lines(body)
        try:
            if body_format is JSON and _is_array(body):
                return self._raw_list.decode(body)
            if body_format is JSON and len(row := self._raw.decode_lines(body)) > 1:
                return row
            fields = self._raw_fields.decode(body)
            is_event = body_format is JSON and fields.keys() >= {*REQUIRED}
            if "events" in fields and not is_event:
                return self._raw_list.decode(fields["events"])
        except msgspec.ValidationError as error:
            raise MalformedBody(f"expected {body_format.value}: {error}") from error
        except UNPARSABLE as error:
            raise MalformedBody(f"the body is {_unreadable(error)}") from error
        if body_format is ENVELOPE:
            raise MalformedBody("events: missing; expected an array of events")
        return [msgspec.Raw(body)]

    def _lines(self, body: bytes) -> Iterable[msgspec.Raw | MalformedBody]:
        for line in body.split(b"\n"):
            if line and not line.isspace():
                try:
                    # Files with byte order marks are put together, and some senders put several events on one line.
                    yield from self._raw.decode_lines(line.removeprefix(BYTE_ORDER_MARK))
                except UNPARSABLE as error:
                    yield MalformedBody(_unreadable(error))

    def _sift(self, candidates: Iterable[msgspec.Raw | MalformedBody]) -> Parsed:
        """Decodes events one by one; counts unknown fields, and says why what is no event is none."""
        parsed = Parsed([])
        for index, candidate in enumerate(candidates):
            event: UsageEvent | None = None
            if isinstance(candidate, MalformedBody):
                parsed.rejections.append(Rejection(str(candidate), index))
            else:
                try:
                    sound = self._lenient.decode(candidate)
                    parsed.unknown_fields += len(self._raw_fields.decode(candidate).keys() - self._known)
                    event = sound
                except msgspec.ValidationError as error:
                    parsed.rejections.append(Rejection(self._explain(candidate, error), index))
                except UNPARSABLE as error:
                    parsed.rejections.append(Rejection(_unreadable(error), index))
            parsed.events.append(event)
        return parsed

    def _explain(self, candidate: msgspec.Raw, error: msgspec.ValidationError) -> str:
        """Why JSON is not an event: the field, what was sent there, what is expected."""
        try:
            fields = self._raw_fields.decode(candidate)
        except msgspec.ValidationError:
            return f"{shown(candidate)}; expected an object"
        except UNPARSABLE as unparsable:
            return _unreadable(unparsable)
        missing = [name for name in REQUIRED if name not in fields]
        if missing:
            return "; ".join(f"{name}: missing; expected {self.expected[name]}" for name in missing)
        field = str(error).rpartition("`$.")[2].rstrip("`")
        if field in self.expected:
            return f"{field}: {shown(fields[field])}; expected {self.expected[field]}"
        return str(error)

    def _too_many(self, events: int) -> TooLarge:
        return TooLarge(f"the body has {events} events; allowed: events.max_per_request = {self._max_events}")

    def _cleaned(self, parsed: Parsed) -> Parsed:
        """The same with kept JSON on one line, without events whose kept JSON cannot be kept."""
        if self._kept:
            for index, event in enumerate(parsed.events):
                if event is not None and (problem := self._clean_kept(event)):
                    parsed.events[index] = None
                    parsed.rejections.append(Rejection(problem, index))
        return parsed

    def _clean_kept(self, event: UsageEvent) -> str | None:
        """Puts kept JSON on one line; why it cannot be kept, if so: nobody has looked into it yet."""
        size = 0
        for name in self._kept:
            kept = getattr(event, name)
            if kept is msgspec.UNSET:
                continue
            written = bytes(kept)
            size += len(written)
            if size > self._max_kept_bytes:
                return f"kept fields take more than events.max_kept_bytes = {self._max_kept_bytes} bytes"
            try:
                # Line ends can only stand between tokens (RFC 8259 section 7): spaces do as well there.
                text = written.decode().replace("\n", " ").replace("\r", " ")
            except UnicodeDecodeError as error:
                return _unreadable(error)
            setattr(event, name, msgspec.Raw(text))
        return None


def _event_type(texts: Sequence[Field], keep_fields: Sequence[str], *, forbid_unknown_fields: bool) -> type[UsageEvent]:
    """UsageEvent with limits of its texts and the fields to keep, which have their own names where it is encoded."""
    kept = [(f"kept_{number}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for number in range(len(keep_fields))]
    rename = {f"kept_{number}": name for number, name in enumerate(keep_fields)}
    rename |= dict(zip(UsageEvent.__struct_fields__, UsageEvent.__struct_encode_fields__, strict=True))
    return msgspec.defstruct(  # type: ignore[return-value]
        "Event",
        [*texts, *kept],
        bases=(UsageEvent,),
        rename=rename,
        forbid_unknown_fields=forbid_unknown_fields,
        kw_only=True,
        gc=False,
    )


def _is_array(body: bytes) -> bool:
    return body.lstrip(SPACES)[:1] == b"["


def app_id_problem(app_id: str) -> str | None:
    """Why no app can have this ID, or None where one can."""
    return None if is_app_id(app_id) else f"appId: {shown(app_id)}; expected {APP_ID_EXPECTED}"


def _unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if any(words in str(error) for words in HALF_A_PAIR):
        return f"not JSON: a lone surrogate is no character: {error}"
    return f"not JSON: {error}"


def shown(value: Any) -> str:
    """A value as its sender would write it (Raw: as its sender wrote it), cut to a readable length."""
    text = msgspec.json.encode(value).decode(errors="replace")
    return text if len(text) <= SHOWN_VALUE_CHARS else f"{text[:SHOWN_VALUE_CHARS]}…"
