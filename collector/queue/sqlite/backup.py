"""A copy of a queue's file while others use it.

SQLite's backup in a single step: it reads one snapshot, so commits go on beside it and none of them is copied in part
(https://www.sqlite.org/backup.html; stepwise copying would begin again with each commit of another process). The log
cannot be folded up meanwhile and grows by what is committed in that time.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from collector.errors import QueueBroken, QueueInUse
from collector.queue.sqlite.database import FILE_NAME, open_reader, sync, translate


def back_up(directory: Path, to: Path) -> int:
    """The queue as it was at one instant is in the directory `to`, whole and on disk; returns the copy's bytes.

    Everything acknowledged before the call is in it. Raises QueueBroken where there is no queue, or something of one in
    `to`, or that is no place to write to; QueueInUse where another copy is being made there; QueueUnavailable and
    DiskFull. Nothing of a copy that failed is left.
    """
    target = to / FILE_NAME
    making = to / (FILE_NAME + ".backup")
    with closing(open_reader(directory)) as source:
        try:
            to.mkdir(mode=0o750, parents=True, exist_ok=True)
            with _alone_in(to):
                for there in (target, to / (FILE_NAME + "-wal")):  # a log would be taken for the copy's
                    if there.exists():
                        raise QueueBroken(f"{there} is there already; name a directory without a queue")
                making.unlink(missing_ok=True)
                making.touch(0o640)  # SQLite would not say why it cannot
                try:
                    with closing(sqlite3.connect(making)) as copy:
                        source.backup(copy, pages=-1)
                    sync(making)
                    making.rename(target)
                finally:
                    for end in ("", "-wal", "-shm"):
                        with suppress(OSError):
                            making.with_name(making.name + end).unlink()
                sync(to)
                return target.stat().st_size
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise QueueBroken(f"{error.filename}: {error.strerror}; name a directory that can be written") from error
        except (sqlite3.Error, OSError) as error:
            raise translate(error, target) from error


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """No other copy is made there within the block: two would write to one file, or take it from each other."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QueueInUse(f"another backup to {directory} is under way; name another directory") from None
        except OSError:
            pass  # some network file systems lock no directory
        yield
    finally:
        os.close(descriptor)
