"""From parsed events to batches the queue can take, and from its verdicts to an answer. All sources share this.

Valid events are written out once, here, as the lines of JSON that upstream will get; nothing re-encodes them later.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from operator import attrgetter, le
from typing import Any

import msgspec

from collector.bodies import BodyFormat, BodyParser, Parsed, Rejection, app_id_problem, shown
from collector.errors import Rejected, TooLarge
from collector.events import UsageEvent, pack_keys, sound_digest
from collector.observe.metrics import Metrics
from collector.queue.base import Batch, Queue, Verdict

MAX_ERRORS_SAID = 1000
"""Rejected events that an answer lists one by one: a body of rubbish must not become a larger answer."""

STREAM_PIECE_BYTES = 512 * 2**10
"""Lines of a stream that are stored together, about 5,000 events: more would hold more memory for hardly more speed."""

SORTED_EVENTS = 256
"""Batches of so many events are put in order of time here: else their keys are sorted where they are written, which
takes longer as it is (in disorder batches come in a tenth faster). Those of smaller ones are sorted there anyway, with
their neighbours'."""

LARGE_BODY_BYTES = 16 * 2**10
"""From this size on (about 200 events, a quarter of a millisecond) one body is read in a turn of the loop. Of several
that come at once the first is then being written while the next is read, and what else the loop has to do, as to hear
of commits and to deliver, does not wait for all of them. Also a stream of blank lines lets go of the loop with it."""

STREAM_PIECE_LINES = LARGE_BODY_BYTES
"""About so many at most: of lines that are no events half a megabyte would take half a second in one turn. A line takes
a byte at least: what is cut off for this is large, and waits for its turn."""

_app_id_of = attrgetter("app_id")

Keyed = dict[str, tuple[list[bytes], list[UsageEvent]]]
"""Events by app, and the digest of each."""


class Report(msgspec.Struct):
    """What became of a request's events. Every answer of the HTTP source has this shape, errors included."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    errors: list[Rejection] = []

    def add(self, verdicts: Sequence[Verdict], rejections: list[Rejection]) -> None:
        """Counts more events of the same request; lists what was rejected in the order of the events, up to a limit."""
        for verdict in verdicts:
            self.accepted += verdict.accepted
            self.duplicates += len(verdict.duplicates)
        if rejections:
            self.rejected += len(rejections)
            rejections.sort(key=lambda rejection: rejection.index or 0)
            self.errors += rejections[: MAX_ERRORS_SAID - len(self.errors)]

    def conclude(self) -> None:
        """No more events follow: says how many of the rejected ones are not listed."""
        if left_out := self.rejected - len(self.errors):
            self.errors.append(Rejection(f"{left_out} more events were rejected and are not listed"))


class Storing(msgspec.Struct, frozen=True):
    """A body's events on their way to disk. The parsed ones are gone: while they wait they would only grow cold."""

    verdicts: asyncio.Future[Sequence[Verdict]] | None
    """Of those that are sound, once the commit that holds them is on disk; None where none is."""
    events: int
    """How many the body had, with those that are rejected."""
    rejections: list[Rejection]
    unknown_fields: int


class Row(msgspec.Struct, frozen=True):
    """Bodies of one event each on their way to disk, together."""

    verdicts: asyncio.Future[Sequence[Verdict]]
    """By batch, once the commit that holds them is on disk."""
    places: Sequence[Sequence[int] | None]
    """By batch, which bodies its events are of; None where they are of all, in order."""

    def duplicates(self) -> list[int]:
        """The bodies whose event was known, once that is known. Raises Retryable where none is stored."""
        return [
            position if places is None else places[position]
            for verdict, places in zip(self.verdicts.result(), self.places, strict=True)
            for position in verdict.duplicates
        ]


class Intake:
    """Validates, groups and stores what the sources receive."""

    def __init__(
        self,
        queue: Queue,
        *,
        default_app: str | None,
        parser: BodyParser,
        batch_events: int,
        max_event_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._parser = parser
        self._default_app = default_app
        self._batch_events = batch_events
        self._max_event_bytes = max_event_bytes
        self._unknown_fields = metrics.unknown_fields
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._large_bodies = asyncio.Lock()

    def use_rules(self, *, default_app: str | None, parser: BodyParser, max_event_bytes: int) -> None:
        """From now on these hold; of a stream that is coming in, for the rest of it."""
        self._default_app, self._parser, self._max_event_bytes = default_app, parser, max_event_bytes

    def begin(self, body: bytes, body_format: BodyFormat, app_id: str | None = None) -> Storing:
        """Validates the body's events and gives them to the queue.

        `app_id` is the app of events that name none (default: the configured one). Raises MalformedBody for a body
        that cannot be parsed, TooLarge for one of too many events, and Retryable where the queue cannot take it; all
        with nothing stored.
        """
        return self._begin(self._parser.parse(body, body_format), app_id)

    @property
    def row_events(self) -> int:
        """How many bodies `begin_row` takes at most: batches of more may be put in another order."""
        return min(self._batch_events, SORTED_EVENTS - 1)

    def begin_row(self, bodies: Sequence[bytes]) -> Row | None:
        """Validates bodies of JSON of one event each, and gives these to the queue together.

        None, with nothing done, where one of them is anything else or something is amiss with it: then each is to
        `begin` by itself. Raises Retryable where the queue cannot take them, with nothing stored.
        """
        parsed = self._parser.parse_row(bodies)
        if parsed.rejections or len(parsed.events) != len(bodies):
            return None
        places: dict[str, list[int]] = {}
        by_app = _at_once(parsed.events, self._default_app)
        if by_app is None:
            for place, event in enumerate(parsed.events):
                if event is not None:
                    places.setdefault(event.app_id or self._default_app or "", []).append(place)
            by_app = self._one_by_one(parsed.events, self._default_app, parsed.rejections)
            if parsed.rejections:
                return None
        batches = [self._batch(app_id, digests, events) for app_id, (digests, events) in by_app.items()]
        return Row(asyncio.ensure_future(self._queue.put(batches)), [places.get(app_id) for app_id in by_app])

    async def take(
        self, body: bytes, body_format: BodyFormat, app_id: str | None = None, report: Report | None = None
    ) -> Report:
        """What became of the body's events, added to `report`, after the commit. Raises what `begin` raises."""
        report = report or Report()
        await self._turn(body)
        await self._wait(self.begin(body, body_format, app_id), report)
        report.conclude()
        return report

    def tell(self, storing: Storing, report: Report) -> None:
        """Adds to `report` what has become of events, once it is known. Raises Retryable where they are not stored."""
        verdicts = storing.verdicts.result() if storing.verdicts is not None else ()
        if storing.unknown_fields:
            self._unknown_fields.inc(storing.unknown_fields)
        report.add(verdicts, storing.rejections)

    async def take_lines(self, pieces: AsyncIterator[bytes], app_id: str | None, report: Report) -> None:
        """Stores NDJSON as it comes, and adds to `report` what became of the events with each commit.

        What was stored stays, whatever ends the stream: also a line that is too long, which raises TooLarge. A last
        line without a line end counts only where the stream has ended by itself. Holds no more than a piece and a line.
        Raises Retryable where the queue cannot take more, and what `pieces` raises.
        """
        events = size = 0
        parts: list[bytes] = []
        try:
            async for piece in pieces:
                size += len(piece)
                parts.append(piece)
                if size >= STREAM_PIECE_BYTES:
                    body = b"".join(parts)
                    for part in _few_lines(body):
                        events += await self._store_lines(part, part.rfind(b"\n") + 1, app_id, report, events)
                    rest = body[body.rfind(b"\n") + 1 :]
                    parts, size = [rest], len(rest)
            for part in _few_lines(b"".join(parts)):
                events += await self._store_lines(part, len(part), app_id, report, events)
        finally:
            report.conclude()

    async def _store_lines(self, body: bytes, end: int, app_id: str | None, report: Report, first_index: int) -> int:
        """Stores the lines up to `end`, or up to one that is too long; how many events they have.

        What is behind `end` is the beginning of a line. Raises TooLarge, after storing, where a line is too long.
        """
        sound = min(end, self._sound_bytes(body))
        await self._turn(body)
        storing = self.begin(body[:sound], BodyFormat.NDJSON, app_id)
        for rejection in storing.rejections:
            rejection.index = first_index + (rejection.index or 0)
        await self._wait(storing, report)
        if sound < end or len(body) - end > self._max_event_bytes:
            limit = f"events.max_event_bytes = {self._max_event_bytes} bytes"
            raise TooLarge(f"event {first_index + storing.events}: its line is longer than {limit}")
        return storing.events

    def _sound_bytes(self, body: bytes) -> int:
        """How much of the body comes before the first line that is too long."""
        at, limit = 0, self._max_event_bytes
        while len(body) - at > limit:
            end = body.rfind(b"\n", at, at + limit + 1)
            if end < 0:
                return at
            at = end + 1
        return len(body)

    async def take_datagrams(self, datagrams: Sequence[bytes], report: Report) -> None:
        """Adds to `report` what became of the events in small JSON bodies, after the commit that holds them.

        A datagram that cannot be parsed counts as one rejected event. Raises Retryable where the queue cannot take
        them, with nothing stored.
        """
        await self._wait(self._begin(self._parse_datagrams(datagrams), None), report)

    def _parse_datagrams(self, datagrams: Sequence[bytes]) -> Parsed:
        parsed = self._parser.parse_row(datagrams)
        return parsed if parsed.events else self._parse_each(datagrams)

    def _parse_each(self, datagrams: Sequence[bytes]) -> Parsed:
        together = Parsed([])
        for datagram in datagrams:
            index = len(together.events)
            try:
                parsed = self._parser.parse(datagram, BodyFormat.JSON)
            except Rejected as error:
                parsed = Parsed([None], [Rejection(str(error), 0)])
            together.events += parsed.events
            together.unknown_fields += parsed.unknown_fields
            for rejection in parsed.rejections:
                rejection.index = index + (rejection.index or 0)
            together.rejections += parsed.rejections
        return together

    async def _turn(self, body: bytes) -> None:
        """Returns when a body may be read; of large ones that is one in a turn of the loop."""
        if len(body) >= LARGE_BODY_BYTES:
            async with self._large_bodies:
                await asyncio.sleep(0)

    def _begin(self, parsed: Parsed, app_id: str | None) -> Storing:
        batches = self._batches(parsed.events, app_id or self._default_app, parsed.rejections)
        verdicts = asyncio.ensure_future(self._queue.put(batches)) if batches else None
        return Storing(verdicts, len(parsed.events), parsed.rejections, parsed.unknown_fields)

    async def _wait(self, storing: Storing, report: Report) -> None:
        if storing.verdicts is not None:
            await storing.verdicts
        self.tell(storing, report)

    def _batches(
        self, events: list[UsageEvent | None], default_app: str | None, rejections: list[Rejection]
    ) -> list[Batch]:
        """The events by app, in batches, with their keys. Adds to `rejections` what `_one_by_one` does."""
        by_app = None if rejections else _at_once(events, default_app)
        if by_app is None:
            by_app = self._one_by_one(events, default_app, rejections)
        size = self._batch_events
        batches: list[Batch] = []
        for app_id, (digests, members) in by_app.items():
            if len(members) <= size:
                batches.append(self._batch(app_id, digests, members))
            else:
                batches += [
                    self._batch(app_id, digests[start : start + size], members[start : start + size])
                    for start in range(0, len(members), size)
                ]
        return batches

    def _batch(self, app_id: str, digests: list[bytes], events: list[UsageEvent]) -> Batch:
        timestamps = [event.timestamp for event in events]
        if len(events) >= SORTED_EVENTS and not all(map(le, timestamps, timestamps[1:])):
            order = sorted(range(len(events)), key=timestamps.__getitem__)
            timestamps = [timestamps[place] for place in order]
            digests = [digests[place] for place in order]
            events = [events[place] for place in order]
        return Batch(app_id, pack_keys(timestamps, digests), self._encode_lines(events)[:-1])

    def _one_by_one(
        self, events: Sequence[UsageEvent | None], default_app: str | None, rejections: list[Rejection]
    ) -> Keyed:
        """The events by app, each looked at by itself; rejects what belongs to no app or is nobody's."""
        by_app: Keyed = {}
        for index, event in enumerate(events):
            if event is None:
                continue
            app_id = event.app_id or default_app  # UNSET is false
            if not app_id:
                rejections.append(Rejection("appId: missing, and no default app is configured (apps.default)", index))
                continue
            digest = sound_digest(app_id, event.email, event.event_name)
            if not digest:
                expected = self._parser.expected["email"]
                rejections.append(Rejection(f"email: {shown(event.email)}; expected {expected}", index))
                continue
            group = by_app.get(app_id)
            if group is None:
                if problem := app_id_problem(app_id):
                    rejections.append(Rejection(problem, index))
                    continue
                group = by_app[app_id] = ([], [])
            group[0].append(digest)
            group[1].append(event)
            event.app_id = msgspec.UNSET  # upstream has it in the path
        return by_app


def _few_lines(body: bytes) -> Iterator[bytes]:
    """The body in parts that end where lines do, each of about STREAM_PIECE_LINES at most."""
    lines = body.count(b"\n")
    step = len(body) if lines <= STREAM_PIECE_LINES else len(body) * STREAM_PIECE_LINES // lines
    start = 0
    while start < len(body):
        end = body.find(b"\n", start + step - 1) + 1 or len(body)
        yield body[start:end]
        start = end


def _at_once(events: list[Any], app_id: str | None) -> Keyed | None:
    """All events as one app's, where they name none and all are sound, as most are; None where that is not so.

    Takes half the time of `Intake._one_by_one`.
    """
    if not events or not app_id or app_id_problem(app_id) or any(map(_app_id_of, events)):
        return None
    digests = [sound_digest(app_id, event.email, event.event_name) for event in events]
    return {app_id: (digests, events)} if all(digests) else None
