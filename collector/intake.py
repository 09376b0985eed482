"""From the bytes that an app sent to batches the queue can take, and from its verdicts to an answer.

All sources share this. An event is taken or rejected on its own: one bad event never costs its neighbours. Valid
events are written out once, here, as the lines of JSON that upstream will get; nothing re-encodes them later.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import msgspec

from collector.errors import MalformedBody
from collector.events import (
    APP_ID_MAX_CHARS,
    EMAIL_MAX_CHARS,
    EVENT_NAME_MAX_CHARS,
    UsageEvent,
    event_key,
)
from collector.observe.metrics import Metrics
from collector.queue.base import Batch, Queue

MAX_ERRORS_SAID = 1000
"""Rejected events that an answer lists one by one: a body of rubbish must not become a larger answer."""

SHOWN_VALUE_CHARS = 60

# What msgspec raises for text that is not JSON at all; ValidationError, its subclass, is about single events.
UNPARSABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class BodyFormat(Enum):
    """How a body holds its events."""

    JSON = "one event, an array of events, or an object with an array `events`"
    ENVELOPE = "an object with an array `events`, as upstream takes it"
    NDJSON = "one event a line"


class Rejection(msgspec.Struct, omit_defaults=True):
    """Why one event (`index`, from 0, in the order they were sent) or a whole request (no index) was refused."""

    reason: str
    index: int | None = None


class Report(msgspec.Struct):
    """What became of a request's events. Every answer of the HTTP source has this shape, errors included."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    errors: list[Rejection] = []

    def reject(self, index: int, reason: str) -> None:
        """Counts one rejected event, and lists it while the list is of a readable length."""
        self.rejected += 1
        if len(self.errors) < MAX_ERRORS_SAID:
            self.errors.append(Rejection(reason, index))
        elif len(self.errors) == MAX_ERRORS_SAID:
            self.errors.append(
                Rejection("more events were rejected than are listed; send fewer in one request to see all")
            )


class Intake:
    """Validates, groups and stores what the sources receive."""

    def __init__(
        self, queue: Queue, *, default_app: str | None, keep_fields: Sequence[str], batch_events: int, metrics: Metrics
    ) -> None:
        self._queue = queue
        self._default_app = default_app
        self._batch_events = batch_events
        self._unknown_fields = metrics.unknown_fields
        self._keep_fields = tuple(name for name in keep_fields if name not in UsageEvent.__struct_encode_fields__)
        # A strict type first: where it fails, a slower path finds out what is wrong, or counts what is unknown.
        self._strict = self._event_type("StrictEvent", forbid_unknown_fields=True)
        self._lenient = self._event_type("LenientEvent", forbid_unknown_fields=False)
        self._decode_strict = msgspec.json.Decoder(self._strict)
        self._decode_strict_list = msgspec.json.Decoder(list[self._strict])  # type: ignore[name-defined]
        self._decode_strict_envelope = msgspec.json.Decoder(
            msgspec.defstruct("StrictEnvelope", [("events", list[self._strict])], forbid_unknown_fields=True)  # type: ignore[name-defined]
        )
        self._decode_lenient = msgspec.json.Decoder(self._lenient)
        self._decode_raw = msgspec.json.Decoder(msgspec.Raw)
        self._decode_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
        self._decode_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._encode_lines = msgspec.json.Encoder().encode_lines

    def _event_type(self, name: str, *, forbid_unknown_fields: bool) -> type[UsageEvent]:
        """UsageEvent with the configured additional fields, kept as the JSON they came as."""
        fields = [
            (f"kept_{number}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET)
            for number in range(len(self._keep_fields))
        ]
        rename = {f"kept_{number}": field for number, field in enumerate(self._keep_fields)}
        rename |= dict(zip(UsageEvent.__struct_fields__, UsageEvent.__struct_encode_fields__, strict=True))
        return msgspec.defstruct(
            name,
            fields,
            bases=(UsageEvent,),
            rename=rename,
            forbid_unknown_fields=forbid_unknown_fields,
            kw_only=True,
            gc=False,
        )

    async def take(self, body: bytes, body_format: BodyFormat, app_id: str | None = None) -> Report:
        """What became of the body's events, after the commit that holds the accepted ones is on disk.

        `app_id` is the app of events that name none (default: the configured one). Raises MalformedBody for a body
        that cannot be parsed and Retryable where the queue cannot take it; both with nothing stored.
        """
        report = Report()
        events = self._decode(body, body_format, report)
        batches = self._batches(events, app_id or self._default_app, report)
        if batches:
            for verdict in await self._queue.put(batches):
                report.accepted += verdict.accepted
                report.duplicates += len(verdict.duplicates)
        return report

    def _decode(self, body: bytes, body_format: BodyFormat, report: Report) -> list[UsageEvent | None]:
        """The body's events in their order, None in the place of each that was rejected."""
        if body_format is BodyFormat.NDJSON:
            try:
                return list(self._decode_strict.decode_lines(body))
            except UNPARSABLE:
                return self._sift(self._raw_lines(body), report)
        try:
            return self._decode_clean(body, body_format)
        except msgspec.ValidationError:
            return self._sift(self._raw_events(body, body_format), report)
        except UNPARSABLE as error:
            raise MalformedBody(f"the body is not JSON: {error}") from error

    def _decode_clean(self, body: bytes, body_format: BodyFormat) -> list[UsageEvent | None]:
        """The events of a body in which nothing is amiss. Raises ValidationError for any other."""
        if body_format is BodyFormat.JSON:
            if body.lstrip(b" \t\r\n")[:1] == b"[":
                return list(self._decode_strict_list.decode(body))
            try:
                return [self._decode_strict.decode(body)]
            except msgspec.ValidationError:
                pass  # not a single event: an envelope, or not clean
        return list(self._decode_strict_envelope.decode(body).events)  # type: ignore[attr-defined]

    def _raw_events(self, body: bytes, body_format: BodyFormat) -> list[msgspec.Raw]:
        """The body's events, each still as JSON. Raises MalformedBody where there is no list of events."""
        try:
            if body_format is BodyFormat.JSON and body.lstrip(b" \t\r\n")[:1] == b"[":
                return self._decode_raw_list.decode(body)
            fields = self._decode_raw_fields.decode(body)
            if "events" in fields:
                return self._decode_raw_list.decode(fields["events"])
        except msgspec.ValidationError as error:
            raise MalformedBody(f"expected {body_format.value}: {error}") from error
        except UNPARSABLE as error:
            raise MalformedBody(f"the body is not JSON: {error}") from error
        if body_format is BodyFormat.ENVELOPE:
            raise MalformedBody("events: missing; expected an array of events")
        return [msgspec.Raw(body)]

    def _raw_lines(self, body: bytes) -> Iterable[msgspec.Raw | MalformedBody]:
        """Each line's events (senders do put several on one line), or why the line has none."""
        for line in body.split(b"\n"):
            if line and not line.isspace():
                try:
                    yield from self._decode_raw.decode_lines(line)
                except UNPARSABLE as error:
                    yield MalformedBody(f"not JSON: {error}")

    def _sift(self, candidates: Iterable[msgspec.Raw | MalformedBody], report: Report) -> list[UsageEvent | None]:
        """Decodes events one by one: counts unknown fields, and rejects what is no event."""
        events: list[UsageEvent | None] = []
        for index, candidate in enumerate(candidates):
            event: UsageEvent | None = None
            try:
                if isinstance(candidate, MalformedBody):
                    raise candidate
                event = self._decode_lenient.decode(candidate)
                sent = self._decode_raw_fields.decode(candidate)
                self._unknown_fields.inc(sum(1 for name in sent if name not in self._lenient.__struct_encode_fields__))
            except msgspec.ValidationError as error:
                report.reject(index, _explain(candidate, error))
            except UNPARSABLE as error:
                report.reject(index, f"not JSON: {error}")
            except MalformedBody as error:
                report.reject(index, str(error))
            events.append(event)
        return events

    def _batches(self, events: Sequence[UsageEvent | None], default_app: str | None, report: Report) -> list[Batch]:
        """The events by app, in batches, with their keys; rejects what belongs to no app or is nobody's."""
        by_app: dict[str, tuple[list[bytes], list[UsageEvent]]] = {}
        for index, event in enumerate(events):
            if event is None:
                continue
            app_id = event.app_id or default_app  # UNSET is false
            if not app_id:
                report.reject(index, "appId: missing, and no default app is configured (apps.default)")
                continue
            email = event.email
            if not 0 < email.find("@") < len(email) - 1:
                report.reject(index, f"email: {_shown(email)}; expected {EXPECTED['email']}")
                continue
            group = by_app.get(app_id)
            if group is None:
                group = by_app[app_id] = ([], [])
            group[0].append(event_key(app_id, event.timestamp, email, event.event_name))
            group[1].append(event)
            event.app_id = msgspec.UNSET  # upstream has it in the path
            if self._keep_fields:
                self._put_kept_on_one_line(event)
        size = self._batch_events
        return [
            Batch(app_id, keys[start : start + size], self._encode_lines(members[start : start + size])[:-1])
            for app_id, (keys, members) in by_app.items()
            for start in range(0, len(keys), size)
        ]

    def _put_kept_on_one_line(self, event: UsageEvent) -> None:
        """Line ends in kept JSON can only stand between its tokens (RFC 8259 section 7): spaces do as well there."""
        for number in range(len(self._keep_fields)):
            kept = getattr(event, f"kept_{number}")
            if kept is not msgspec.UNSET:
                setattr(event, f"kept_{number}", msgspec.Raw(bytes(kept).replace(b"\n", b" ").replace(b"\r", b" ")))


EXPECTED = {
    "timestamp": "an integer, milliseconds since the epoch (int64)",
    "email": f"an e-mail address of 3 to {EMAIL_MAX_CHARS} characters, as text with an @ inside",
    "eventName": f"text of 1 to {EVENT_NAME_MAX_CHARS} characters",
    "appId": f"text of 1 to {APP_ID_MAX_CHARS} characters, or no such field",
}


def _explain(candidate: msgspec.Raw, error: msgspec.ValidationError) -> str:
    """Why JSON is not an event: the field, what stands there, what is allowed."""
    try:
        value = msgspec.json.decode(candidate)
    except UNPARSABLE as unparsable:
        return f"not JSON: {unparsable}"
    if not isinstance(value, dict):
        return f"{_shown(value)}; expected an object"
    field = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else ""
    missing = [name for name in ("timestamp", "email", "eventName") if name not in value]
    if missing:
        return "; ".join(f"{name}: missing; expected {EXPECTED[name]}" for name in missing)
    if field in EXPECTED:
        return f"{field}: {_shown(value[field])}; expected {EXPECTED[field]}"
    return str(error)


def _shown(value: Any) -> str:
    """A value as its sender would write it, cut to a readable length."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN_VALUE_CHARS else f"{text[:SHOWN_VALUE_CHARS]}…"
