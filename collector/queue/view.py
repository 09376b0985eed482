"""What is read from the queue's file, beside the writer and without disturbing it (synchronous; one thread's)."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from collector.clock import Clock
from collector.errors import QueueUnavailable
from collector.observe.status import REASON_LETTERS, SHOWN_LETTERS, SHOWN_REASONS, DeadLetters, Letter, Reason
from collector.queue.base import AppStats, QueueStats
from collector.queue.database import FILE_NAME, SQL, damaged, open_reader, translate
from collector.queue.run import LEASE_BATCHES, Run, best_reach
from collector.queue.soundness import lines_crc

APP_SHIFT = 40
"""A segment's number is (app << 40) + n."""


class View:
    """The reading connection. Use it from one thread only."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE_NAME
        self._connection = open_reader(directory)
        self._execute: Callable[..., sqlite3.Cursor] = self._connection.execute
        self._apps: dict[str, int] = {}

    def next_run(self, app_id: str, after: int, batch_events: int) -> Run | None:
        """The app's segments after number `after` that fill batches best; None where there are none.

        Reads no more than the run itself and the sizes of a few segments, however many wait.
        """
        try:
            # One transaction, so that all reads see the same commit.
            self._execute("BEGIN")
            try:
                start, end = self._bounds(app_id)
                numbers, sizes = self._sizes(max(after, start), end, batch_events)
                taken = best_reach(sizes, batch_events)
                if not taken:
                    return None
                return self._run(app_id, numbers[0], numbers[taken - 1], sum(sizes[:taken]), end)
            finally:
                self._execute("COMMIT")
        except sqlite3.Error as error:
            raise translate(error, self._file) from error

    def run(self, app_id: str, first: int, last: int, events: int) -> Run:
        """The run that an earlier lease covered."""
        try:
            return self._run(app_id, first, last, events, self._bounds(app_id)[1])
        except sqlite3.Error as error:
            raise translate(error, self._file) from error

    def _bounds(self, app_id: str) -> tuple[int, int]:
        """The numbers between which all of the app's segments lie."""
        app = self._apps.get(app_id)
        if app is None:
            row = self._execute(SQL["find_app"], (app_id,)).fetchone()
            if row is None:
                return 0, 0
            app = self._apps[app_id] = row[0]
        return app << APP_SHIFT, (app + 1) << APP_SHIFT

    def _sizes(self, after: int, end: int, batch_events: int) -> tuple[list[int], list[int]]:
        """Numbers and sizes of enough segments to choose from: few where they are large, many where they are small."""
        limit = LEASE_BATCHES + 1
        while True:
            numbers, sizes = (
                [int(word) for word in words.split(",")] if words else []
                for words in self._execute(SQL["segment_sizes"], (after, end, limit)).fetchone()
            )
            if len(sizes) < limit or sum(sizes) >= LEASE_BATCHES * batch_events:
                return numbers, sizes
            limit *= 8

    def _run(self, app_id: str, first: int, last: int, events: int, end: int) -> Run:
        lines, sizes, crcs = self._execute(SQL["range_lines"], (first, last)).fetchone()
        if lines is None:
            raise QueueUnavailable(
                f"{self._file}: segments {first} to {last} are gone; has another process flushed this queue?"
            )
        if lines.count(b"\n") + 1 != events or not _are_sound(app_id, lines, sizes, crcs):
            raise damaged(self._file, f"segments {first} to {last} do not match their checksums")
        following = self._execute(SQL["next_stamp"], (last, end)).fetchone()
        return Run(first, last, events, lines, following[0] if following else None)

    def dead_letters(self) -> DeadLetters:
        """Why events became dead letters, and the latest. Costs the same however many there are."""
        try:
            reasons = self._execute(SQL["dead_reasons"], (REASON_LETTERS, SHOWN_REASONS)).fetchall()
            latest = self._execute(SQL["latest_dead"], (SHOWN_LETTERS,)).fetchall()
        except sqlite3.Error as error:
            raise translate(error, self._file) from error
        return DeadLetters([Reason(*row) for row in reasons], [Letter(*row) for row in latest])

    def stats(self, clock: Clock) -> QueueStats:
        """The queue at this instant. Costs the same however many events wait or are remembered."""
        try:
            self._execute("BEGIN")
            try:
                rows = self._execute(SQL["app_stats"]).fetchall()
                (remembered,) = self._execute(SQL["remembered"]).fetchone()
            finally:
                self._execute("COMMIT")
            wal = self._file.with_name(FILE_NAME + "-wal")
            file_bytes, wal_bytes = self._file.stat().st_size, wal.stat().st_size if wal.exists() else 0
        except (sqlite3.Error, OSError) as error:
            raise translate(error, self._file) from error
        now_us = clock.now_us()
        apps = [
            AppStats(
                name, events, size, None if stamp is None else max(0, now_us - stamp) // 1000, dead, dead_bytes, kept
            )
            for name, events, size, dead, dead_bytes, kept, stamp in rows
        ]
        ages = [app.oldest_age_ms for app in apps if app.oldest_age_ms is not None]
        return QueueStats(
            waiting_events=sum(app.waiting_events for app in apps),
            waiting_bytes=sum(app.waiting_bytes for app in apps),
            oldest_age_ms=max(ages, default=None),
            dead_events=sum(app.dead_events for app in apps),
            dead_bytes=sum(app.dead_bytes for app in apps),
            kept_events=sum(app.kept_events for app in apps),
            remembered_keys=remembered,
            file_bytes=file_bytes,
            wal_bytes=wal_bytes,
            apps=apps,
        )

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def _are_sound(app_id: str, lines: bytes, sizes: str, crcs: str) -> bool:
    """Whether each of the segments whose lines were joined matches its checksum, where it has one."""
    at, joined = 0, memoryview(lines)
    for size, crc in zip(map(int, sizes.split(",")), map(int, crcs.split(",")), strict=True):
        if crc not in {-1, lines_crc(app_id, joined[at : at + size])}:
            return False
        at += size + 1
    return True
