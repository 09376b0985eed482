"""Events go into the stream: transactions of many callers' events, each with an exact verdict."""

import asyncio
import contextlib
import itertools
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from collector.clock import Clock
from collector.config.model import JETSTREAM_MESSAGE_BYTES
from collector.errors import QueueFull, QueueUnavailable, Unusable
from collector.queue.base import Batch, Verdict
from collector.queue.jetstream.connection import ANSWER_SECONDS, Connection, ServerError, decoded
from collector.queue.jetstream.stream import WRONG_LAST_SEQUENCE, Streams, key_tokens, sequences_behind

if TYPE_CHECKING:
    from nats.aio.msg import Msg

MAX_KEYS = 940
"""In one transaction, of 1000 messages that the server takes in an atomic batch. The rest of these are for lines: of a
megabyte, less where the next line is too long."""
MAX_APPS = 20
MAX_BYTES = 20 * JETSTREAM_MESSAGE_BYTES
"""Of lines in one transaction. Two messages of an app that follow each other are longer than one, so that these are 40
messages at most and one more for each app."""
IN_FLIGHT = 4
"""Transactions at one time. The server allows 50 over all collectors."""
PATIENCE_SECONDS = 12.0
"""How long a transaction is tried: longer than the election of a leader takes."""
AGAIN_SECONDS = 0.05
STORAGE_FULL = frozenset({10047, 10023, 10028, 10077, 10120})
END_OF_ANSWERS = "204"


class Arrival(NamedTuple):
    """A message with lines that was stored."""

    app_id: str
    sequence: int
    events: int
    bytes: int


class _Event(NamedTuple):
    token: bytes
    line: bytes
    app_id: str


class _Put:
    """A caller's batches, and what is known of them so far."""

    __slots__ = ("batches", "bytes", "done", "duplicates", "left", "size")

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.bytes = sum(batch.bytes for batch in batches)
        self.left = self.size = sum(batch.events for batch in batches)
        self.duplicates: list[list[int]] = [[] for _ in batches]
        self.done: asyncio.Future[Sequence[Verdict]] = asyncio.get_running_loop().create_future()

    def verdicts(self) -> list[Verdict]:
        return [
            Verdict(batch.events - len(known), tuple(sorted(known)))
            for batch, known in zip(self.batches, self.duplicates, strict=True)
        ]


class _Place(NamedTuple):
    """Where in a put an event stands."""

    put: _Put
    batch: int
    position: int


class Publication:
    """Takes puts while it is `open`, groups them, and tells each caller once all of its events are replicated."""

    def __init__(
        self,
        connection: Connection,
        streams: Streams,
        *,
        clock: Clock,
        ensure_app: Callable[[str], Awaitable[None]],
        arrived: Callable[[Sequence[Arrival]], None],
        observe_commit: Callable[[float, int], None],
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._clock = clock
        self._ensure_app = ensure_app
        self._arrived = arrived
        self._observe_commit = observe_commit
        self._waiting: deque[tuple[_Event, _Place]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._batch_ids = map(f"{secrets.token_hex(6)}{{:x}}".format, itertools.count())
        self._sending = asyncio.Lock()
        self._batches: dict[str, asyncio.Task[None]] = {}
        """Of the transactions in flight."""
        self.uncommitted_bytes = 0

    async def submit(self, batches: Sequence[Batch]) -> Sequence[Verdict]:
        """See `Queue.put`. Cancelling the caller changes nothing."""
        put = _Put(batches)
        if not put.size:
            return put.verdicts()
        self.uncommitted_bytes += put.bytes
        for number, batch in enumerate(batches):
            events = zip(key_tokens(batch.keys), batch.lines.split(b"\n"), strict=True)
            self._waiting.extend(
                (_Event(token, line, batch.app_id), _Place(put, number, position))
                for position, (token, line) in enumerate(events)
            )
        asyncio.get_running_loop().call_soon(self._begin)  # whoever puts in the same turn goes along
        return await asyncio.shield(put.done)

    async def close(self) -> None:
        """Every put that was begun has its verdict."""
        while self._waiting or self._in_flight:
            self._begin()
            if self._in_flight:
                await asyncio.wait(self._in_flight)

    def _begin(self) -> None:
        while self._waiting and len(self._in_flight) < IN_FLIGHT:
            events: dict[bytes, tuple[_Event, _Place]] = {}
            places: list[_Place] = []
            apps: set[str] = set()
            size = 0
            while self._waiting and len(events) < MAX_KEYS:
                event, place = self._waiting[0]
                if place.put.done.done():  # another part of it has failed
                    self._waiting.popleft()
                    continue
                apps.add(event.app_id)
                size += len(event.line) + 1
                if len(apps) > MAX_APPS or size > MAX_BYTES:
                    break
                self._waiting.popleft()
                if event.token in events:
                    place.put.duplicates[place.batch].append(place.position)
                else:
                    events[event.token] = event, place
                places.append(place)
            if places:
                task = asyncio.create_task(self._carry_out(events, places))
                self._in_flight.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._batches = {batch: owner for batch, owner in self._batches.items() if owner is not task}
        self._begin()

    async def _carry_out(self, events: dict[bytes, tuple[_Event, _Place]], places: Sequence[_Place]) -> None:
        began = self._clock.monotonic()
        try:
            known = await self._store([event for event, _ in events.values()])
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for it
            for put in {id(place.put): place.put for place in places}.values():
                if not put.done.done():
                    self.uncommitted_bytes -= put.bytes
                    put.done.set_exception(error)
                    put.done.exception()  # nobody may be there any more to hear it
            return
        for token in known:
            _, place = events[token]
            place.put.duplicates[place.batch].append(place.position)
        callers = 0
        for place in places:
            put = place.put
            put.left -= 1
            if not put.left and not put.done.done():
                callers += 1
                self.uncommitted_bytes -= put.bytes
                put.done.set_result(put.verdicts())
        self._observe_commit(self._clock.monotonic() - began, callers)

    async def _store(self, events: Sequence[_Event]) -> set[bytes]:
        """Stores those that are new; the tokens of those that were known. Raises QueueUnavailable, QueueFull.

        After an answer that was lost, the batch it would have been about may be stored or not, or be stored yet: its
        keys, where they are found, say so, and bar the next attempt until then.
        """
        left, known = {event.token: event for event in events}, set[bytes]()
        carrying_out = asyncio.current_task()
        assert carrying_out is not None  # noqa: S101
        mine = set[str]()
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while left:
            batch_id = next(self._batch_ids)
            mine.add(batch_id)
            self._batches[batch_id] = carrying_out
            failure = await self._attempt(batch_id, list(left.values()))
            if failure is None:
                return known
            try:
                found = await self._find(list(left))
            except (QueueUnavailable, ServerError) as error:
                found, failure = {}, QueueUnavailable(f"JetStream does not say which keys it has: {error}")
            if not mine.isdisjoint(found.values()):
                return known  # an earlier attempt had come through, with all that is left
            known |= found.keys()
            # What is known by another batch of this collector arrives before anybody hears that it is known.
            others = {self._batches[batch] for batch in found.values() if batch in self._batches}
            if others:
                await asyncio.wait(others)
            for token in found:
                del left[token]
            if not found:
                if asyncio.get_running_loop().time() > deadline:
                    raise failure
                await asyncio.sleep(AGAIN_SECONDS)
        return known

    async def _attempt(self, batch_id: str, events: Sequence[_Event]) -> QueueUnavailable | None:
        """None once the events are stored; else why they are not, or perhaps are.

        Raises QueueFull, and QueueUnavailable where only a person can help.
        """
        try:
            arrivals = await self._publish(batch_id, events)
        except QueueUnavailable as error:
            return error
        except Unusable as error:
            raise QueueUnavailable(str(error)) from error
        except ServerError as error:
            if error.err_code in STORAGE_FULL:
                raise QueueFull(f"JetStream has no room: {error}", retry_after_seconds=5.0) from error
            if error.err_code in WRONG_LAST_SEQUENCE:
                return QueueUnavailable("other batches with the same keys are on their way for too long")
            return QueueUnavailable(f"JetStream refuses a batch: {error}")
        self._arrived(arrivals)
        return None

    async def _publish(self, batch_id: str, events: Sequence[_Event]) -> list[Arrival]:
        """The messages with lines that were stored. Raises ServerError with nothing stored, QueueUnavailable."""
        messages = list(self._messages(events))
        async with contextlib.AsyncExitStack() as stack:
            async with self._sending:  # what was begun first is sent first
                for app_id in dict.fromkeys(app_id for app_id, _ in messages):
                    await self._ensure_app(app_id)
                inbox, arrived = await stack.enter_async_context(self._connection.answers())
                await self._connection.send(self._transaction(batch_id, inbox, events, messages))
            answer = decoded((await self._next(arrived)).data)
        if answer.get("batch") != batch_id:
            raise QueueUnavailable("JetStream has not taken a batch as one; is allow_atomic off?")
        numbers = sequences_behind(int(answer["seq"]), len(messages))
        return [
            Arrival(app_id, number, len(lines), sum(map(len, lines)) + len(lines))
            for number, (app_id, lines) in zip(numbers, messages, strict=True)
        ]

    def _transaction(
        self, batch_id: str, inbox: str, events: Sequence[_Event], messages: Sequence[tuple[str, list[bytes]]]
    ) -> bytes:
        """The commands that publish one atomic batch: the keys, then the lines; the last is answered."""
        name, keys = batch_id.encode(), self._streams.keys.encode()
        out = []
        for number, event in enumerate(events, 1):
            head = (
                b"NATS/1.0\r\nNats-Batch-Id:%s\r\nNats-Batch-Sequence:%d\r\n"
                b"Nats-Expected-Last-Subject-Sequence:0\r\n\r\n" % (name, number)
            )
            out.append(b"HPUB %s.%s %d %d\r\n%s\r\n" % (keys, event.token, len(head), len(head), head))
        for number, (app_id, lines) in enumerate(messages, len(events) + 1):
            is_last = number == len(events) + len(messages)
            commit = b"Nats-Batch-Commit:1\r\n" if is_last else b""
            head = b"NATS/1.0\r\nNats-Batch-Id:%s\r\nNats-Batch-Sequence:%d\r\n%s\r\n" % (name, number, commit)
            text = b"\n".join(lines)
            subject = self._streams.data_subject(app_id, len(lines), len(text) + 1)
            where = f"{subject} {inbox}" if is_last else subject
            out.append(b"HPUB %s %d %d\r\n%s%s\r\n" % (where.encode(), len(head), len(head) + len(text), head, text))
        return b"".join(out)

    def _messages(self, events: Sequence[_Event]) -> Iterator[tuple[str, list[bytes]]]:
        """The lines by app, in messages that the server takes."""
        by_app: dict[str, list[bytes]] = {}
        for event in events:
            by_app.setdefault(event.app_id, []).append(event.line)
        return itertools.chain.from_iterable(
            ((app_id, part) for part in cut(lines, JETSTREAM_MESSAGE_BYTES)) for app_id, lines in by_app.items()
        )

    async def _find(self, tokens: Sequence[bytes]) -> dict[bytes, str]:
        """Those of the keys that are stored, each with the batch that brought it. Raises QueueUnavailable."""
        found: dict[bytes, str] = {}
        prefix = f"{self._streams.keys}."
        body = msgspec.json.encode({"multi_last": [prefix + token.decode() for token in tokens]})
        async with self._connection.answers() as (inbox, arrived):
            subject = f"$JS.API.DIRECT.GET.{self._streams.events}"
            await self._connection.client.publish(subject, body, reply=inbox)
            while True:
                message = await self._next(arrived)
                headers = message.headers or {}
                status = headers.get("Status")
                if status in {END_OF_ANSWERS, "404"}:
                    return found
                if status is not None:
                    raise QueueUnavailable(f"JetStream does not say which keys it has: {status}")
                found[headers["Nats-Subject"].removeprefix(prefix).encode()] = headers.get("Nats-Batch-Id", "")

    async def _next(self, arrived: "asyncio.Queue[Msg]") -> "Msg":
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await arrived.get()
        except TimeoutError as error:
            raise QueueUnavailable("JetStream does not answer") from error


def cut(lines: Sequence[bytes], limit: int) -> list[list[bytes]]:
    """The lines in parts of at most so many bytes each, line ends included."""
    parts: list[list[bytes]] = []
    room = 0
    for line in lines:
        if not parts or room < len(line) + 1:
            parts.append([])
            room = limit
        parts[-1].append(line)
        room -= len(line) + 1
    return parts
