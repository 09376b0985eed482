"""Where a run of `collector api audit-events` stopped, and how the next one goes on.

A cursor says from when on to ask next, and which events from then on were written already. Events appear upstream with
a delay: so each pass asks again for the last `OVERLAP`, by upstream's clock where ours is ahead of it, and leaves out
what was written. Whatever appears later than that is missed.

What is promised: no event is missed, and none is written twice, however often runs end and begin anew. The one
exception is a run that ends (is killed, finds the disk full, or its machine dies) after events have left and before the
cursor that names them is on disk: those, at most `BATCH` of them, are written a second time. Events leave first, the
cursor follows, by writing another file, fsync and rename. A line that was torn stays torn, and its event follows whole.
"""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from collector.clock import Clock
from collector.contract.models import MAX_AUDIT_EVENTS_PER_PAGE, AuditEvent
from collector.errors import UNPARSABLE, Unusable
from collector.upstream.client import Client

OVERLAP = timedelta(minutes=5)
WINDOW = timedelta(days=1)
"""How much is asked for before a cursor on disk moves on: the IDs of so much time are kept in it."""
BATCH = MAX_AUDIT_EVENTS_PER_PAGE


_Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""With a time zone: without one it cannot be held against now."""


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From when on to ask, and the events from then on that were written, by ID, each with its time."""

    since: _Instant
    written: dict[str, _Instant] = {}


class CursorFile:
    """A cursor on disk."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process uses it meanwhile. Raises Unusable where one does, or the directory cannot be written."""
        lock = self._file.with_name(f"{self._file.name}.lock")
        try:
            file = lock.open("ab")
        except OSError as error:
            raise Unusable(f"{lock}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Unusable(f"{self._file}: another process goes by this cursor") from error
            except OSError as error:
                raise Unusable(f"{lock} cannot be locked: {error.strerror}") from error
            yield

    def load(self) -> Cursor | None:
        """What was saved last; None where nothing was. Raises Unusable where it is no cursor."""
        try:
            cursor = msgspec.json.decode(self._file.read_bytes(), type=Cursor)
            return msgspec.structs.replace(cursor, since=cursor.since.astimezone(UTC))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unusable(f"{self._file}: {error.strerror}") from error
        except (*UNPARSABLE, OverflowError) as error:
            raise Unusable(f"{self._file} is no cursor: {error}; remove it to begin anew") from error

    def save(self, cursor: Cursor) -> None:
        """Returns once it is on disk; a crash on the way leaves the one before. Raises Unusable."""
        new = self._file.with_name(f"{self._file.name}.new")
        try:
            with new.open("wb") as file:
                file.write(msgspec.json.encode(cursor))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._file)
            directory = os.open(self._file.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise Unusable(f"{self._file}: {error.strerror}") from error


class Trail:
    """Writes events and keeps the cursor behind them. `write` returns once they have left the process.

    It is called before each `save`, also where there are none: what stands before them (a header) is out then, too.
    `window` is how much is asked for before the cursor moves on.
    """

    def __init__(
        self,
        client: Client,
        cursor: Cursor,
        *,
        clock: Clock,
        write: Callable[[Sequence[AuditEvent]], object],
        save: Callable[[Cursor], object],
        window: timedelta = WINDOW,
    ) -> None:
        self._client = client
        self._since = cursor.since
        self._written = dict(cursor.written)
        self._clock = clock
        self._write = write
        self._save = save
        self._window = window

    async def follow(self, until: datetime | None = None) -> None:
        """Everything from the cursor up to `until`, or to now, is written, and the cursor says so.

        Nothing is looked for more than a `WINDOW` from now, however late `until` is.

        Cancelled, it lets what is being written come to its end. The errors are those of the client and of `write`, and
        Unusable where the cursor is far in the future: nothing would come for as long.
        """
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        end = min(until or now, now + WINDOW)
        start = self._since
        if start - now > WINDOW:
            raise Unusable(f"asked for from {start.isoformat()}, which is yet to come; is this machine's clock right?")
        while start < end:
            stop = min(start + self._window, end)
            batch: dict[str, AuditEvent] = {}
            async for event in self._client.audit_events(start, stop):
                if event.event_id not in self._written:
                    batch[event.event_id] = event
                if len(batch) == BATCH:
                    await asyncio.to_thread(self._keep, batch, stop)
                    batch = {}
            settled = min(stop, now - self._client.ahead - OVERLAP)
            settled = settled.replace(microsecond=0)  # in case upstream counts in seconds
            await asyncio.to_thread(self._keep, batch, stop, max(self._since, settled))
            start = stop

    def _keep(self, batch: dict[str, AuditEvent], stop: datetime, since: datetime | None = None) -> None:
        """The events are written; and where it is said `since` when to ask next, those before it can be forgotten."""
        self._write(list(batch.values()))
        self._written |= {event_id: _time(event, stop) for event_id, event in batch.items()}
        if since is not None:
            self._since = since
            self._written = {event_id: time for event_id, time in self._written.items() if time >= since}
        self._save(Cursor(self._since, self._written))


def _time(event: AuditEvent, otherwise: datetime) -> datetime:
    """When it happened; without a zone that is UTC."""
    time = event.timestamp or otherwise
    return time if time.tzinfo else time.replace(tzinfo=UTC)
