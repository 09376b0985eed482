"""Room on the disk that is kept for delivery: an empty file beside the queue's, given up when the disk is full.

To take events away from a SQLite file in WAL mode needs room before it frees any. Each settlement makes the log
longer; and the checkpoint that would let the log begin anew must first write to the database what the log holds, which
may make the database longer. On a disk without a free block a queue can neither take events nor let go of them. So:

- While all is well, the reserve's blocks are allocated. What fills the disk, also another program, stops short of them.
- When a commit finds the disk full, new events are refused, and settlements alone are written. When one of these finds
  no room, the reserve is given up, and the log is folded into the database and cut to nothing.
- Who opens the file first makes the log's index, and needs room for that: of the reserve, where the disk has none, and
  the rest of it is held again at once. So it is where a person purges.
- Each second as much of the reserve is taken back as can be had. When it is whole, and there is room beside it, new
  events are taken again.

Between being given up and taken back, for up to a second, the reserve is anybody's: another program that fills the disk
in that time, or another process that writes to this queue and has not met the full disk itself, may leave nothing of
it. Then delivery waits for a person to make room.
"""

import contextlib
import functools
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from collector.errors import DiskFull
from collector.queue.sqlite.write_ahead_log import AUTO_CHECKPOINT_PAGES, PAGE_BYTES

T = TypeVar("T")

FILE_NAME = "reserve"

RESERVE_BYTES = AUTO_CHECKPOINT_PAGES * PAGE_BYTES + 8 * 2**20
"""The most by which a checkpoint can make the database longer: all pages of a log that is due for one, and those of the
group of puts that made it so (2 MiB of lines, their keys, and what is around them)."""

STEP_BYTES = 2**20

MARGIN_BYTES = 4 * 2**20
"""What must be free beside the reserve before events are taken: a group of puts, in the log and in the database."""

VACUUM_PAGES = 4096
"""Pages given back in one step while the disk is full: nobody puts then, and room is what everybody waits for."""


class Reserve:
    """The reserve of one queue directory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE_NAME

    def take(self) -> None:
        """The reserve is whole, and there is room beside it. Raises OSError where that is not so.

        What can be had of it is held even then: others would take it.
        """
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        held = 0
        try:
            while held < RESERVE_BYTES + MARGIN_BYTES:
                os.posix_fallocate(descriptor, held, STEP_BYTES)
                held += STEP_BYTES
        finally:
            os.ftruncate(descriptor, min(held, RESERVE_BYTES))
            os.close(descriptor)

    def give(self, connection: sqlite3.Connection | None = None) -> None:
        """The reserve's room is free, and the log's where it can be; a failure shows in what comes next."""
        with contextlib.suppress(sqlite3.Error, OSError):
            if self._file.exists():
                os.truncate(self._file, 0)
            if connection is not None:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def clear_up(self, connection: sqlite3.Connection) -> None:
        """What delivery has freed inside the database and its log is given back to the file system."""
        connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")  # see Store._vacuum
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def lend(self, step: Callable[[], T], connection: sqlite3.Connection | None = None) -> T:
        """What the step returns, which is done again with the reserve's room where it finds the disk full.

        What the step leaves of that is held again at once.
        """
        try:
            return step()
        except DiskFull:
            self.give(connection)
            try:
                return step()
            finally:
                with contextlib.suppress(sqlite3.Error, OSError):
                    if connection is not None:
                        self.clear_up(connection)
                    if self._file.exists():  # who has a queue makes its reserve, and not who looks at it by hand
                        self.take()


def with_reserve(step: Callable[[Path], T]) -> Callable[[Path], T]:
    """A step in a queue's directory, to which its reserve is lent."""

    @functools.wraps(step)
    def lent(directory: Path) -> T:
        return Reserve(directory).lend(functools.partial(step, directory))

    return lent
