"""From parsed events to batches the queue can take, and from its verdicts to an answer. All sources share this.

Valid events are written out once, here, as the lines of JSON that upstream will get; nothing re-encodes them later.
"""

from collections.abc import Sequence

import msgspec

from collector.bodies import EXPECTED, BodyFormat, BodyParser, Rejection, shown
from collector.events import UsageEvent, event_key
from collector.observe.metrics import Metrics
from collector.queue.base import Batch, Queue

MAX_ERRORS_SAID = 1000
"""Rejected events that an answer lists one by one: a body of rubbish must not become a larger answer."""


class Report(msgspec.Struct):
    """What became of a request's events. Every answer of the HTTP source has this shape, errors included."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    errors: list[Rejection] = []


class Intake:
    """Validates, groups and stores what the sources receive."""

    def __init__(
        self, queue: Queue, *, default_app: str | None, keep_fields: Sequence[str], batch_events: int, metrics: Metrics
    ) -> None:
        self._queue = queue
        self._parser = BodyParser(keep_fields=keep_fields)
        self._default_app = default_app
        self._batch_events = batch_events
        self._unknown_fields = metrics.unknown_fields
        self._encode_lines = msgspec.json.Encoder().encode_lines

    async def take(self, body: bytes, body_format: BodyFormat, app_id: str | None = None) -> Report:
        """What became of the body's events, after the commit that holds the accepted ones is on disk.

        `app_id` is the app of events that name none (default: the configured one). Raises MalformedBody for a body
        that cannot be parsed and Retryable where the queue cannot take it; both with nothing stored.
        """
        parsed = self._parser.parse(body, body_format)
        if parsed.unknown_fields:
            self._unknown_fields.inc(parsed.unknown_fields)
        rejections = parsed.rejections
        batches = self._batches(parsed.events, app_id or self._default_app, rejections)
        verdicts = await self._queue.put(batches) if batches else []
        return Report(
            accepted=sum(verdict.accepted for verdict in verdicts),
            duplicates=sum(len(verdict.duplicates) for verdict in verdicts),
            rejected=len(rejections),
            errors=_readable(rejections),
        )

    def _batches(
        self, events: Sequence[UsageEvent | None], default_app: str | None, rejections: list[Rejection]
    ) -> list[Batch]:
        """The events by app, in batches, with their keys; rejects what belongs to no app or is nobody's."""
        by_app: dict[str, tuple[list[bytes], list[UsageEvent]]] = {}
        for index, event in enumerate(events):
            if event is None:
                continue
            app_id = event.app_id or default_app  # UNSET is false
            if not app_id:
                rejections.append(Rejection("appId: missing, and no default app is configured (apps.default)", index))
                continue
            email = event.email
            if not 0 < email.find("@") < len(email) - 1:
                rejections.append(Rejection(f"email: {shown(email)}; expected {EXPECTED['email']}", index))
                continue
            group = by_app.get(app_id)
            if group is None:
                group = by_app[app_id] = ([], [])
            group[0].append(event_key(app_id, event.timestamp, email, event.event_name))
            group[1].append(event)
            event.app_id = msgspec.UNSET  # upstream has it in the path
        size = self._batch_events
        return [
            Batch(app_id, keys[start : start + size], self._encode_lines(members[start : start + size])[:-1])
            for app_id, (keys, members) in by_app.items()
            for start in range(0, len(keys), size)
        ]


def _readable(rejections: list[Rejection]) -> list[Rejection]:
    """In the order of the events, and not more than anybody would read."""
    rejections.sort(key=lambda rejection: rejection.index or 0)
    left_out = len(rejections) - MAX_ERRORS_SAID
    if left_out <= 0:
        return rejections
    return [*rejections[:MAX_ERRORS_SAID], Rejection(f"{left_out} more events were rejected and are not listed")]
