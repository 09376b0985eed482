"""From the bytes that an app sent to events, and to the reasons why some are none (pure).

An event is taken or rejected on its own: one bad event never costs its neighbours. A body in which nothing is amiss is
decoded in one go by a strict type; only where that fails does a slower path look at each event by itself.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import msgspec

from collector.errors import MalformedBody
from collector.events import APP_ID_MAX_CHARS, EMAIL_MAX_CHARS, EVENT_NAME_MAX_CHARS, UsageEvent

SHOWN_VALUE_CHARS = 60

# What msgspec raises for text that is no JSON at all; ValidationError, a subclass of the first, is about one event.
UNPARSABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

EXPECTED = {
    "timestamp": "an integer, milliseconds since the epoch (int64)",
    "email": f"text of 3 to {EMAIL_MAX_CHARS} characters with an @ inside",
    "eventName": f"text of 1 to {EVENT_NAME_MAX_CHARS} characters",
    "appId": f"text of 1 to {APP_ID_MAX_CHARS} characters, or no such field",
}


class BodyFormat(Enum):
    """How a body holds its events."""

    JSON = "one event, an array of events, or an object with an array `events`"
    ENVELOPE = "an object with an array `events`, as upstream takes it"
    NDJSON = "one event a line"


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
    """Reads bodies into events. Fields in `keep_fields` stay with the event as the JSON they came as."""

    def __init__(self, *, keep_fields: Sequence[str] = ()) -> None:
        names = [name for name in keep_fields if name not in UsageEvent.__struct_encode_fields__]
        strict, lenient = (
            _event_type(names, forbid_unknown_fields=True),
            _event_type(names, forbid_unknown_fields=False),
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

    def parse(self, body: bytes, body_format: BodyFormat) -> Parsed:
        """The body's events. Raises MalformedBody where it holds none that could be told apart."""
        try:
            parsed = Parsed(self._clean(body, body_format))
        except msgspec.ValidationError:
            parsed = self._sift(self._candidates(body, body_format))
        except UNPARSABLE as error:
            if body_format is not BodyFormat.NDJSON:
                raise MalformedBody(f"the body is not JSON: {error}") from error
            parsed = self._sift(self._candidates(body, body_format))
        if self._kept:
            self._clean_kept(parsed)
        return parsed

    def _clean(self, body: bytes, body_format: BodyFormat) -> list[UsageEvent | None]:
        """The events of a body in which nothing is amiss. Raises ValidationError or UNPARSABLE for any other."""
        if body_format is BodyFormat.NDJSON:
            return list(self._strict.decode_lines(body))
        if body_format is BodyFormat.JSON:
            if _is_array(body):
                return list(self._strict_list.decode(body))
            try:
                return [self._strict.decode(body)]
            except msgspec.ValidationError:
                pass  # not a single event: an envelope, or not clean
        return list(self._strict_envelope.decode(body).events)  # type: ignore[attr-defined]

    def _candidates(self, body: bytes, body_format: BodyFormat) -> Iterable[msgspec.Raw | MalformedBody]:
        """Each of the body's events, still as JSON, or why there is none in its place. Raises MalformedBody."""
        if body_format is BodyFormat.NDJSON:
            return self._lines(body)
        try:
            if body_format is BodyFormat.JSON and _is_array(body):
                return self._raw_list.decode(body)
            fields = self._raw_fields.decode(body)
            if "events" in fields:
                return self._raw_list.decode(fields["events"])
        except msgspec.ValidationError as error:
            raise MalformedBody(f"expected {body_format.value}: {error}") from error
        except UNPARSABLE as error:
            raise MalformedBody(f"the body is not JSON: {error}") from error
        if body_format is BodyFormat.ENVELOPE:
            raise MalformedBody("events: missing; expected an array of events")
        return [msgspec.Raw(body)]

    def _lines(self, body: bytes) -> Iterable[msgspec.Raw | MalformedBody]:
        for line in body.split(b"\n"):
            if line and not line.isspace():
                try:
                    yield from self._raw.decode_lines(line)  # some senders put several events on one line
                except UNPARSABLE as error:
                    yield MalformedBody(f"not JSON: {error}")

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
                    parsed.rejections.append(Rejection(_explain(candidate, error), index))
                except UNPARSABLE as error:
                    parsed.rejections.append(Rejection(f"not JSON: {error}", index))
            parsed.events.append(event)
        return parsed

    def _clean_kept(self, parsed: Parsed) -> None:
        """Puts kept JSON on one line, and rejects events whose kept JSON is no text: nobody has looked into it yet."""
        for index, event in enumerate(parsed.events):
            try:
                for name in self._kept if event is not None else ():
                    kept = getattr(event, name)
                    if kept is not msgspec.UNSET:
                        # Line ends can only stand between tokens (RFC 8259 section 7): spaces do as well there.
                        text = bytes(kept).decode().replace("\n", " ").replace("\r", " ")
                        setattr(event, name, msgspec.Raw(text))
            except UnicodeDecodeError as error:
                parsed.events[index] = None
                parsed.rejections.append(Rejection(f"not JSON: {error}", index))


def _event_type(keep_fields: Sequence[str], *, forbid_unknown_fields: bool) -> type[UsageEvent]:
    """UsageEvent and the fields to keep; its encoded form has them under their own names again."""
    fields = [(f"kept_{number}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for number in range(len(keep_fields))]
    rename = {f"kept_{number}": name for number, name in enumerate(keep_fields)}
    rename |= dict(zip(UsageEvent.__struct_fields__, UsageEvent.__struct_encode_fields__, strict=True))
    return msgspec.defstruct(  # type: ignore[return-value]
        "Event",
        fields,
        bases=(UsageEvent,),
        rename=rename,
        forbid_unknown_fields=forbid_unknown_fields,
        kw_only=True,
        gc=False,
    )


def _is_array(body: bytes) -> bool:
    return body.lstrip(b" \t\r\n")[:1] == b"["


def _explain(candidate: msgspec.Raw, error: msgspec.ValidationError) -> str:
    """Why JSON is not an event: the field, what stands there, what is expected."""
    try:
        value = msgspec.json.decode(candidate)
    except UNPARSABLE as unparsable:
        return f"not JSON: {unparsable}"
    if not isinstance(value, dict):
        return f"{shown(value)}; expected an object"
    missing = [name for name in ("timestamp", "email", "eventName") if name not in value]
    if missing:
        return "; ".join(f"{name}: missing; expected {EXPECTED[name]}" for name in missing)
    field = str(error).rpartition("`$.")[2].rstrip("`")
    if field in EXPECTED:
        return f"{field}: {shown(value[field])}; expected {EXPECTED[field]}"
    return str(error)


def shown(value: Any) -> str:
    """A value as its sender would write it, cut to a readable length."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN_VALUE_CHARS else f"{text[:SHOWN_VALUE_CHARS]}…"
