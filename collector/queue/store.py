"""What is written to the queue's file, in whole transactions (synchronous; owned by the writer's thread).

Invariants:

1. A key enters `seen` in the transaction that stores its event in `segment`: there is no instant at which one is
   there without the other, so an acknowledged event is neither lost nor stored twice.
2. `app.waiting_events` and `waiting_bytes` equal what `segment` holds, at every commit.
3. Stamps rise with every commit that stores events, over all processes: a key with another stamp is an older one.
4. A segment goes only in the transaction that settles it: delivered, buried, or put back in part.
5. Nothing is read back from memory of an earlier transaction but the numbers of apps, which never change; so several
   processes can write to one file, and SQLite's lock orders them.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec

from collector.clock import Clock
from collector.errors import CollectorError, QueueFull
from collector.events import KEY_BYTES
from collector.queue.base import Batch, Burial, Verdict
from collector.queue.database import FILE_NAME, RETRY_AFTER_SECONDS, SQL, WAL_LIMIT_BYTES, open_writer, translate

VACUUM_PAGES = 256
"""Pages given back to the file system in one step: 1 MiB, a few milliseconds."""


class Put(msgspec.Struct, frozen=True):
    """Store these batches, all of them or none."""

    batches: Sequence[Batch]

    @property
    def bytes(self) -> int:
        """Size of the events' JSON."""
        return sum(len(batch.lines) for batch in self.batches)


class Settle(msgspec.Struct, frozen=True):
    """Take away a range of one app's segments with its `events`: bury some of them, put `rest` back in their place."""

    app_id: str
    first: int
    last: int
    events: int
    dead: Sequence[tuple[Burial, bytes]] = ()
    rest_events: int = 0
    rest_lines: bytes = b""

    @property
    def bytes(self) -> int:
        """A settlement holds nothing that was not counted before."""
        return 0


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """How many events of one app wait after a transaction."""

    app: int
    app_id: str
    events: int
    oldest_stamp: int | None = None


class Committed(msgspec.Struct, frozen=True):
    """What one operation's commit did: verdicts for a Put, and what waits now of each app it touched."""

    waiting: Sequence[Waiting]
    verdicts: Sequence[Verdict] = ()


class Store:
    """The writing connection. Use it from one thread only."""

    def __init__(self, directory: Path, *, batch_events: int, max_bytes: int, clock: Clock) -> None:
        self._file = directory / FILE_NAME
        self._batch_events = batch_events
        self._max_bytes = max_bytes
        self._clock = clock
        self._apps: dict[str, int] = {}
        self._connection = open_writer(directory)
        self._execute: Callable[..., sqlite3.Cursor] = self._connection.execute

    def transact(self, operations: Sequence[Put | Settle]) -> list[Committed | CollectorError]:
        """One transaction for all operations; returns after its fsync, with what became of each.

        Where the disk refuses, nothing is stored; settlements are tried once more on their own, since they free room.
        """
        try:
            return self._attempt(operations)
        except sqlite3.Error as error:
            failure = translate(error, self._file)
        settlements = [operation for operation in operations if isinstance(operation, Settle)]
        settled: Iterator[Committed | CollectorError] = iter(())
        if len(settlements) < len(operations):
            with contextlib.suppress(sqlite3.Error):
                settled = iter(self._attempt(settlements))
        return [next(settled, failure) if isinstance(operation, Settle) else failure for operation in operations]

    def _attempt(self, operations: Sequence[Put | Settle]) -> list[Committed | CollectorError]:
        self._execute("BEGIN IMMEDIATE")
        try:
            puts = self._put([operation for operation in operations if isinstance(operation, Put)])
            results = [
                next(puts) if isinstance(operation, Put) else self._settle(operation) for operation in operations
            ]
            self._execute("COMMIT")
        except BaseException:
            self._rollback()
            raise
        return results

    def _rollback(self) -> None:
        # After some errors SQLite has rolled back by itself. Apps that the transaction added are gone with it.
        self._apps.clear()
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def _put(self, puts: Sequence[Put]) -> Iterator[Committed | CollectorError]:
        """Stores what is new of all puts together, then answers each. A put that has no room is refused alone."""
        if not puts:
            return iter(())
        waiting_bytes, last_stamp = self._execute(SQL["totals"]).fetchone()
        refused: set[int] = set()
        for position, put in enumerate(puts):
            if waiting_bytes + put.bytes > self._max_bytes:
                refused.add(position)
            else:
                waiting_bytes += put.bytes
        batches = [batch for position, put in enumerate(puts) if position not in refused for batch in put.batches]
        stamp = max(self._clock.now_ms(), last_stamp + 1)
        verdicts, fresh = self._remember(batches, stamp)
        waiting = {app_id: self._append(app_id, parts, stamp) for app_id, parts in fresh.items()}
        remaining = iter(verdicts)
        full = QueueFull(
            f"{waiting_bytes} of queue.max_bytes = {self._max_bytes} bytes wait for delivery",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
        return iter(
            [
                full
                if position in refused
                else Committed(
                    waiting=[
                        waiting[app_id] for app_id in {batch.app_id for batch in put.batches} if app_id in waiting
                    ],
                    verdicts=[next(remaining) for _ in put.batches],
                )
                for position, put in enumerate(puts)
            ]
        )

    def _remember(
        self, batches: Sequence[Batch], stamp: int
    ) -> tuple[list[Verdict], dict[str, list[tuple[int, bytes]]]]:
        """Enters all keys; a verdict for each batch, and by app the runs of lines that are new with their counts."""
        keys = list(chain.from_iterable(batch.keys for batch in batches))
        fresh: dict[str, list[tuple[int, bytes]]] = {}
        blob = b"".join(sorted(set(keys)))  # in key order, so that neighbours meet in the same page
        entered = self._execute(SQL["remember"], (blob, stamp)).rowcount if blob else 0
        if entered == len(keys):
            for batch in batches:
                fresh.setdefault(batch.app_id, []).append((len(batch.keys), batch.lines))
            return [Verdict(len(batch.keys)) for batch in batches], fresh

        taken: set[bytes] = set()
        if entered * KEY_BYTES < len(blob):
            (positions,) = self._execute(SQL["known"], (blob, stamp)).fetchone()
            taken = {
                blob[at : at + KEY_BYTES] for at in (int(position) * KEY_BYTES for position in positions.split(","))
            }
        verdicts = []
        for batch in batches:
            duplicates, new = [], []
            for position, (key, line) in enumerate(zip(batch.keys, batch.lines.split(b"\n"), strict=True)):
                if key in taken:
                    duplicates.append(position)
                else:
                    taken.add(key)
                    new.append(line)
            if new:
                fresh.setdefault(batch.app_id, []).append((len(new), b"\n".join(new)))
            verdicts.append(Verdict(len(new), tuple(duplicates)))
        return verdicts, fresh

    def _append(self, app_id: str, runs: Sequence[tuple[int, bytes]], stamp: int) -> Waiting:
        """Adds runs of lines to an app's segments, as many runs to a segment as make at most a batch."""
        app = self._app(app_id)
        events = 0
        parts: list[bytes] = []
        end = (self._batch_events, b"")  # a run that fits nowhere: it closes the last segment
        for run_events, lines in (*runs, end):
            if events and events + run_events > self._batch_events:
                joined = b"\n".join(parts)
                self._execute(SQL["add_segment"], (app, stamp, events, joined))
                self._execute(SQL["count_in"], (app, events, len(joined), stamp))
                events, parts = 0, []
            events += run_events
            parts.append(lines)
        return self._waiting(app, app_id)

    def _settle(self, settle: Settle) -> Committed:
        app = self._app(settle.app_id)
        events, size, stamp = self._execute(SQL["range_totals"], (settle.first, settle.last)).fetchone()
        self._execute(SQL["drop_range"], (settle.first, settle.last))
        if settle.rest_events:
            self._execute(SQL["put_back"], (settle.first, stamp, settle.rest_events, settle.rest_lines))
        for burial, line in settle.dead:
            self._execute(SQL["bury"], (app, self._clock.now_ms(), burial.reason, line))
        gone = (events - settle.rest_events, size - len(settle.rest_lines), len(settle.dead))
        self._execute(SQL["count_out"], (app, *gone))
        return Committed(waiting=[self._waiting(app, settle.app_id)])

    def _waiting(self, app: int, app_id: str) -> Waiting:
        return Waiting(app, app_id, self._execute(SQL["waiting"], (app,)).fetchone()[0])

    def _app(self, app_id: str) -> int:
        app = self._apps.get(app_id)
        if app is None:
            row = self._execute(SQL["find_app"], (app_id,)).fetchone()
            app = self._apps[app_id] = row[0] if row else self._execute(SQL["add_app"], (app_id,)).lastrowid or 0
        return app

    def apps(self) -> list[Waiting]:
        """Every app and what waits of it, as the file says now."""
        with self._translated():
            return [Waiting(*row) for row in self._execute(SQL["load_apps"])]

    def foreign_commits(self) -> int:
        """A number that changes when some other connection has committed."""
        with self._translated():
            return int(self._execute("PRAGMA data_version").fetchone()[0])

    def remembered_keys(self) -> int:
        """How many keys the file holds."""
        with self._translated():
            return int(self._execute(SQL["remembered"]).fetchone()[0])

    def prune(self, after: bytes, keys: int, before_ms: int) -> bytes | None:
        """Forgets what was received before `before_ms` among the next `keys` keys; where to go on, None at the end."""
        with self._translated():
            row = self._execute(SQL["prune_reach"], (after, keys - 1)).fetchone()
            reach = row[0] if row else b"\xff" * (KEY_BYTES + 1)
            self._execute("BEGIN IMMEDIATE")
            forgotten = self._execute(SQL["prune"], (after, reach, before_ms)).rowcount
            self._execute(SQL["count_pruned"], (forgotten,))
            self._execute("COMMIT")
            return reach if row else None

    def shrink(self) -> None:
        """Gives a few free pages back to the file system where a fifth of the file is free, and caps the log."""
        with self._translated():
            (pages,) = self._execute("PRAGMA page_count").fetchone()
            (free,) = self._execute("PRAGMA freelist_count").fetchone()
            if free > max(16 * VACUUM_PAGES, pages // 5):
                self._execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            wal = self._file.with_name(FILE_NAME + "-wal")
            if wal.stat().st_size > WAL_LIMIT_BYTES:
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Closes the file; the last connection folds the log into the database."""
        with self._translated():
            self._connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Inside it, SQLite's errors leave as ours, and a transaction that they interrupted is rolled back."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._rollback()
            raise translate(error, self._file) from error
