"""What is read from the queue's file, beside the writer and without disturbing it (synchronous; one thread's)."""

import contextlib
import sqlite3
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from collector.clock import Clock
from collector.errors import QueueUnavailable
from collector.queue.base import (
    REASON_LETTERS,
    SHOWN_LETTERS,
    SHOWN_REASONS,
    AppStats,
    DeadLetter,
    DeadLetters,
    QueueStats,
    Reason,
)
from collector.queue.sqlite.database import APP_SHIFT, FILE_NAME, SQL, damaged, open_reader, translated
from collector.queue.sqlite.run import LEASE_BATCHES, Segment
from collector.queue.sqlite.soundness import lines_crc

READ_BATCHES, READ_BYTES = 8, 2**20
"""Most that is read of an app's backlog at once, beyond LEASE_BATCHES: a lease needs so much to choose from."""


class View:
    """The reading connection. Use it from one thread only."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE_NAME
        self._connection = open_reader(directory)
        self._apps: dict[str, int] = {}

    def _execute(self, *statement: Any) -> sqlite3.Cursor:
        if self._connection.was_closed_by_fork:
            self._connection = open_reader(self._file.parent)
        return self._connection.execute(*statement)

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """All that is read in the block is of the same commit; errors as in `translated`."""
        with translated(self._file):
            self._execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:  # after some errors SQLite has ended it by itself
                    self._execute("COMMIT")

    def next_segments(self, app_id: str, after: int, batch_events: int) -> list[Segment]:
        """The app's next segments after number `after`: all that a lease can choose from, and some for those to come.

        Reads no more than these and the sizes of a few, however many wait.
        """
        with self._snapshot():
            start, end = self._bounds(app_id)
            numbers = self._reach(max(after, start), end, batch_events)
            return self._segments(app_id, numbers[0], numbers[-1]) if numbers else []

    def segments(self, app_id: str, first: int, last: int, events: int) -> list[Segment]:
        """What an earlier lease covered, of which so many events were given back.

        Raises QueueUnavailable where it is gone.
        """
        with translated(self._file):
            segments = self._segments(app_id, first, last)
        if not segments:
            raise QueueUnavailable(
                f"{self._file}: segments {first} to {last} are gone; has another process flushed this queue?"
            )
        if sum([segment.events for segment in segments]) != events:
            raise damaged(self._file, f"segments {first} to {last} should hold {events} events, and do not")
        return segments

    def _bounds(self, app_id: str) -> tuple[int, int]:
        """The numbers between which all of the app's segments lie."""
        app = self._apps.get(app_id)
        if app is None:
            row = self._execute(SQL["find_app"], (app_id,)).fetchone()
            if row is None:
                return 0, 0
            app = self._apps[app_id] = row[0]
        return app << APP_SHIFT, (app + 1) << APP_SHIFT

    def _reach(self, after: int, end: int, batch_events: int) -> list[int]:
        """The numbers of the segments to read: few where they are large, many where they are small."""
        limit = READ_BATCHES + 1  # where each fills a request, the last of these shows that the others are enough
        while True:
            row = self._execute(SQL["segment_sizes"], (after, end, limit)).fetchone()
            numbers, events, sizes = (_numbers(words) for words in row)
            count = sum(
                total <= LEASE_BATCHES * batch_events or (total <= READ_BATCHES * batch_events and size <= READ_BYTES)
                for total, size in zip(accumulate(events), accumulate(sizes), strict=True)
            )
            if count < limit:
                return numbers[: max(1, count)]
            limit *= 8

    def _segments(self, app_id: str, first: int, last: int) -> list[Segment]:
        lines, *columns = self._execute(SQL["range_lines"], (first, last)).fetchone()
        if lines is None:
            return []
        segments, at, joined = [], 0, memoryview(lines)
        for number, stamp, events, size, crc in zip(*map(_numbers, columns), strict=True):
            of_one = bytes(joined[at : at + size])
            if of_one.count(b"\n") + 1 != events or crc not in {-1, lines_crc(app_id, of_one)}:
                raise damaged(self._file, f"segment {number} does not match its checksum")
            segments.append(Segment(number, stamp, events, of_one))
            at += size + 1
        return segments

    def dead_letters(self) -> DeadLetters:
        """Why events became dead letters, and the latest. Costs the same however many there are."""
        with translated(self._file):
            reasons = self._execute(SQL["dead_reasons"], (REASON_LETTERS, SHOWN_REASONS)).fetchall()
            latest = self._execute(SQL["latest_dead"], (SHOWN_LETTERS,)).fetchall()
        return DeadLetters([Reason(*row) for row in reasons], [DeadLetter(*row) for row in latest])

    def stats(self, clock: Clock) -> QueueStats:
        """The queue at this instant. Costs the same however many events wait or are remembered."""
        with self._snapshot():
            rows = self._execute(SQL["app_stats"]).fetchall()
            (remembered,) = self._execute(SQL["remembered"]).fetchone()
        with translated(self._file):
            wal = self._file.with_name(FILE_NAME + "-wal")
            file_bytes, wal_bytes = self._file.stat().st_size, wal.stat().st_size if wal.exists() else 0
        now_us = clock.now_us()
        apps = [
            AppStats(
                name, events, size, None if stamp is None else max(0, now_us - stamp) // 1000, dead, dead_bytes, kept
            )
            for name, events, size, dead, dead_bytes, kept, stamp in rows
        ]
        return QueueStats.over(apps, remembered_keys=remembered, file_bytes=file_bytes, wal_bytes=wal_bytes)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def _numbers(words: str | None) -> list[int]:
    return [int(word) for word in words.split(",")] if words else []
