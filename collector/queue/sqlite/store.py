"""What is written to the queue's file, in whole transactions (synchronous; see writer.py).

Invariants:

1. A key enters `seen` or `recent_keys` in the transaction that stores its event in `segment`: there is no instant at
   which one is there without the other, so an acknowledged event is neither lost nor stored twice.
2. The counts in `app` equal what `segment` and `dead` hold, at every commit (the schema's triggers see to it).
3. A segment goes, or gets shorter, only in the transaction that settles it.
4. Nothing is carried over from an earlier transaction but the numbers of apps, which never change, and keys that came
   in disorder, which are forgotten where another process commits (see recent_keys.py); so several processes can write
   to one file, and SQLite's lock orders them.

What is done inside is in segments.py.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from collector.clock import Clock, WallTime
from collector.errors import CollectorError, DiskFull, QueueBroken, QueueInUse, QueueUnavailable
from collector.events import KEY_BYTES
from collector.observe.logs import get_logger
from collector.queue.sqlite.database import (
    BUSY_TIMEOUT_MS,
    FILE_NAME,
    MAX_FRESH_KEYS,
    RETRY_AFTER_SECONDS,
    SQL,
    WAL_LIMIT_BYTES,
    open_writer,
    translate,
)
from collector.queue.sqlite.drafts import Fates, drafts_of
from collector.queue.sqlite.lock import Presence, RoleLock
from collector.queue.sqlite.operations import Done, Operation, Put, Settle, Waiting
from collector.queue.sqlite.recent_keys import RecentKeys
from collector.queue.sqlite.rescue.ready import make_ready
from collector.queue.sqlite.reserve import Reserve
from collector.queue.sqlite.segments import Segments

log = get_logger(__name__)

T = TypeVar("T")

VACUUM_PAGES, VACUUM_SECONDS = 256, 0.01
"""Most pages given back to the file system in one step (1 MiB), and the time after which it ends."""

KEPT_ROWS = 50
"""Rows of delivered events deleted in one step: up to 200,000 events, 18 MB, some ten milliseconds."""

SETTLER_LOOK_SECONDS = 0.01

TRIAL_BYTES = 256 * 2**10
"""What must fit into the file before a disk that was full counts as one that takes events again."""


class Store:
    """The writing connection. Use it from one thread only."""

    def __init__(self, directory: Path, *, batch_events: int, clock: Clock) -> None:
        self._file = directory / FILE_NAME
        self._segment_events = min(batch_events, MAX_FRESH_KEYS)
        self._clock = clock
        self._wall = WallTime(clock)
        self._presence = Presence(directory)
        self._settler = RoleLock(directory, "settler")
        self._reserve = Reserve(directory)
        self._reconnections = 0
        self.trouble: CollectorError | None = None
        """Why the disk does not let us commit, since the last commit that failed; None where it does. While it is
        DiskFull only settlements are tried, until `recover` finds room."""
        self._presence.enter(alone=lambda: make_ready(directory), patience_seconds=BUSY_TIMEOUT_MS / 1000)
        try:
            self._connect()
        except BaseException:
            self._presence.release()
            raise
        self._prepare()
        self._inode = self._file.stat().st_ino

    def _prepare(self) -> None:
        """The log is folded in, the reserve is there, and no key that came in disorder waits; or it is in trouble."""
        try:
            # What a process left in the log when it died was perhaps never synced, as after an fsync that failed: once
            # folded into the database it is. Before that nothing of it may be acknowledged as known.
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._reserve.take()
            if self._execute(SQL["has_recent"]).fetchone():
                self.enter_recent_keys()
        except (sqlite3.Error, OSError) as error:
            self._meet(translate(error, self._file))
        except CollectorError as error:
            self._meet(error)

    def transact(self, operations: Sequence[Operation]) -> Sequence[Done | CollectorError]:
        """One transaction for all operations; returns after its fsync, with what became of each.

        Where the disk refuses, nothing is stored; settlements are tried once more on their own, since they free room.
        A commit whose fsync failed is undone by SQLite, and the next one writes over what it left in the log: what is
        answered later never rests on what was not synced.
        """
        if not isinstance(self.trouble, DiskFull):
            try:
                done = self._attempt(operations)
            except sqlite3.Error as error:
                self._meet(translate(error, self._file))
            else:
                if self.trouble is not None and any(each.bytes for each in done):  # known events alone write nothing
                    self._forget_trouble()
                return done
        return self._transact_settlements(operations, self.trouble or QueueUnavailable("the disk has refused"))

    def _transact_settlements(
        self, operations: Sequence[Operation], failure: CollectorError
    ) -> Sequence[Done | CollectorError]:
        """What became of each where puts fail for that reason: settlements are tried without them."""
        settlements = [operation for operation in operations if isinstance(operation, Settle)]
        is_full = isinstance(failure, DiskFull)
        if settlements and (is_full or len(settlements) < len(operations)):
            for _ in range(2 if is_full else 1):
                with contextlib.suppress(sqlite3.Error):
                    settled = iter(self._attempt(settlements))
                    return [next(settled) if isinstance(operation, Settle) else failure for operation in operations]
                if is_full:
                    self._reserve.give(self._connection)
        return [failure] * len(operations)

    def recover(self) -> None:
        """Where the disk was in the way: events are taken again if it no longer is, else the trouble stays.

        It is not where the log can be folded into the database, the reserve can be had, and a commit that needs room
        goes through.
        """
        if self.trouble is None:
            return
        try:
            with self._translated():
                self._reserve.clear_up(self._connection)
                self._reserve.take()
                self._execute("BEGIN IMMEDIATE")
                self._execute(SQL["try_room"], (TRIAL_BYTES,))
                self._execute(SQL["end_trial"])
                self._execute("COMMIT")
        except CollectorError as error:
            self._meet(error)
        else:
            self._forget_trouble()

    def _meet(self, trouble: CollectorError) -> None:
        if type(trouble) is not type(self.trouble):
            log.error("queue.unavailable", error=str(trouble))
        self.trouble = trouble

    def _forget_trouble(self) -> None:
        log.info("queue.available_again", after=str(self.trouble))
        self.trouble = None

    def _connect(self) -> None:
        self._connection = open_writer(self._file.parent)
        self._execute: Callable[..., sqlite3.Cursor] = self._connection.execute
        self._recent = RecentKeys(self._execute, self._wall)
        self._segments = Segments(self._execute, self._recent, self._clock, self._wall, self._segment_events)

    def reconnect(self) -> None:
        """Where the program has forked meanwhile, the file is opened again (see forks.py). Raises as when it was first.

        Who was here stays present: nobody has put another file in its place.
        """
        if self._connection.was_closed_by_fork:
            self.check_file()
            try:
                self._connect()
            except CollectorError as error:
                self._meet(error)
                raise
            self._reconnections += 1
            self._prepare()

    def _attempt(self, operations: Sequence[Operation]) -> list[Done]:
        puts = [operation for operation in operations if isinstance(operation, Put)]
        batches = [batch for put in puts for batch in put.batches]
        drafts = drafts_of(batches, self._segment_events)
        fates = Fates(batches)
        if len(drafts) == 1 and len(puts) == len(operations) and self._segments.add_alone(drafts[0], batches):
            return fates.done(puts)
        self._execute("BEGIN IMMEDIATE")
        try:
            if drafts:
                self._recent.begin()
                for draft in drafts:
                    self._segments.add(draft, batches, fates)
            put = iter(fates.done(puts))
            done = [
                next(put) if isinstance(operation, Put) else self._segments.settle(operation)
                for operation in operations
            ]
            self._execute("COMMIT")
        except BaseException:
            self._rollback()
            raise
        return done

    def _rollback(self) -> None:
        self._recent.forget()
        self._segments.forget()
        # After some errors SQLite has rolled back by itself; and a connection may be closed.
        with contextlib.suppress(sqlite3.ProgrammingError):
            if self._connection.in_transaction:
                self._execute("ROLLBACK")

    def apps(self) -> list[Waiting]:
        """Every app and what waits of it, as the file says now."""
        with self._translated():
            return [Waiting(*row) for row in self._execute(SQL["load_apps"])]

    def settle_alone(self, patience_seconds: float) -> None:
        """Nobody else settles from now on, until `let_settle` or `close`.

        Who dies gives up the flusher's role at once; the process that writes for him may be amid his last settlements
        then. Raises QueueUnavailable where such a one has not ended in time.
        """
        deadline = time.monotonic() + patience_seconds
        while not self._settler.is_held:
            try:
                self._settler.acquire()
            except QueueInUse as error:
                if time.monotonic() >= deadline:
                    raise QueueUnavailable(str(error), retry_after_seconds=RETRY_AFTER_SECONDS) from error
                time.sleep(SETTLER_LOOK_SECONDS)

    def let_settle(self) -> None:
        """Another process may settle; harmless where it may already."""
        self._settler.release()

    def foreign_commits(self) -> int:
        """A number that changes when some other connection has committed, or may have."""
        with self._translated():
            return int(self._execute("PRAGMA data_version").fetchone()[0]) + (self._reconnections << 32)

    def remembered_keys(self) -> int:
        """How many keys the file holds."""
        with self._translated():
            return int(self._execute(SQL["remembered"]).fetchone()[0])

    def prune(self, after: bytes, keys: int, before_us: int) -> bytes | None:
        """Forgets what was received before `before_us` among the next `keys` keys; where to go on, None at the end."""
        with self._translated():
            row = self._execute(SQL["prune_reach"], (after, keys - 1)).fetchone()
            reach = row[0] if row else b"\xff" * (KEY_BYTES + 1)
            self._execute("BEGIN IMMEDIATE")
            (oldest_recent,) = self._execute(SQL["oldest_recent"]).fetchone()
            if oldest_recent is not None:  # what stands in a row of it as well must not enter once more
                before_us = min(before_us, oldest_recent * 1_000_000)
            forgotten = self._execute(SQL["prune"], (after, reach, before_us)).rowcount
            self._execute(SQL["count_pruned"], (forgotten,))
            self._execute("COMMIT")
            return reach if row else None

    @property
    def is_crowded(self) -> bool:
        """There is something for `make_room` to do."""
        return self._recent.is_crowded

    def make_room(self) -> None:
        """What a commit leaves for after its answers: some keys that came in disorder enter the tree."""
        try:
            self._enter_keys(self._recent.make_room)
        except CollectorError as error:
            self._meet(error)

    def enter_recent_keys(self) -> bool:
        """All keys that others left enter the tree, or some of ours; whether there are more."""
        return self._enter_keys(self._recent.leave)

    def _enter_keys(self, step: Callable[[], T]) -> T:
        """A transaction that is not synced: where it is lost, the rows in which the keys came are there instead."""
        with self._translated():
            self._execute("PRAGMA synchronous = NORMAL")
            try:
                self._execute("BEGIN IMMEDIATE")
                self._recent.begin()
                done = step()
                self._execute("COMMIT")
            except BaseException:
                self._rollback()
                raise
            finally:  # outside of a transaction, where alone it takes effect
                self._execute("PRAGMA synchronous = FULL")
            return done

    def drop_kept(self, before_ms: int) -> bool:
        """Whether there may be more, after a few of the kept events that were delivered before that are deleted."""
        with self._translated():
            if not self._execute(SQL["has_kept"], (before_ms,)).fetchone():
                return False  # and no lock was taken
            return self._execute(SQL["drop_kept"], (before_ms, KEPT_ROWS)).rowcount == KEPT_ROWS

    def check_file(self) -> None:
        """Raises QueueBroken where the file was removed or replaced: what is written to it would be gone with us."""
        with self._translated():
            is_ours = self._file.exists() and self._file.stat().st_ino == self._inode
        if not is_ours:
            raise QueueBroken(
                f"{self._file} was removed or replaced while it was open; what was acknowledged since then dies with "
                "this process. Start the collector again, and never touch its files while it runs"
            )

    def tidy(self) -> bool:
        """Shrinks the file; whether keys that came in disorder may enter the tree, since none have come for a while."""
        self.shrink()
        return self._recent.rest()

    def shrink(self) -> None:
        """Gives a few free pages back to the file system where a fifth of the file is free, and caps the log."""
        with self._translated():
            (pages,) = self._execute("PRAGMA page_count").fetchone()
            (free,) = self._execute("PRAGMA freelist_count").fetchone()
            if free > max(16 * VACUUM_PAGES, pages // 5):
                self._vacuum()
            wal = self._file.with_name(FILE_NAME + "-wal")
            if wal.stat().st_size > WAL_LIMIT_BYTES:
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _vacuum(self) -> None:
        # Page by page, for each takes the longer the more are free (0.2 ms among 200,000: SQLite looks through its list
        # of them), and because sqlite3 leaves off after the first page of a larger step anyway.
        until = self._clock.monotonic() + VACUUM_SECONDS
        self._execute("BEGIN IMMEDIATE")
        for _ in range(VACUUM_PAGES):
            self._execute("PRAGMA incremental_vacuum(1)")
            if self._clock.monotonic() >= until:
                break
        self._execute("COMMIT")

    def close(self) -> None:
        """Closes the file; the last connection folds the log into the database."""
        try:
            if not self._connection.was_closed_by_fork:
                with contextlib.suppress(CollectorError):  # whoever opens the file next enters them then
                    while self._recent.is_open and self.enter_recent_keys():
                        pass
                with self._translated():
                    self._connection.close()
        finally:
            self._settler.release()
            self._presence.release()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Inside it, SQLite's errors leave as ours, and a transaction that they interrupted is rolled back."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._rollback()
            raise translate(error, self._file) from error
