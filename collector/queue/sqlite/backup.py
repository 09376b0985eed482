"""A copy of a queue's file while others use it.

SQLite's backup in a single step: it reads one snapshot, so commits go on beside it and none of them is copied in part
(https://www.sqlite.org/backup.html; stepwise copying would begin again with each commit of another process). The log
cannot be folded up meanwhile and grows by what is committed in that time.
"""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from collector.errors import QueueBroken
from collector.queue.sqlite.database import FILE_NAME, open_reader, sync, translate


def back_up(directory: Path, to: Path) -> int:
    """The queue as it was at one instant is in the directory `to`, whole and on disk; returns the copy's bytes.

    Everything acknowledged before the call is in it. Raises QueueBroken where there is no queue, or one in `to`, or
    that is no place to write to; QueueUnavailable and DiskFull. Nothing of a copy that failed is left.
    """
    target = to / FILE_NAME
    making = to / (FILE_NAME + ".backup")
    with closing(open_reader(directory)) as source:
        try:
            if target.exists():
                raise QueueBroken(f"{target} is there already; name a directory without a queue")
            to.mkdir(mode=0o750, parents=True, exist_ok=True)
            making.unlink(missing_ok=True)
            making.touch(0o640)  # SQLite would not say why it cannot
            with closing(sqlite3.connect(making)) as copy:
                source.backup(copy, pages=-1)
            sync(making)
            making.rename(target)
            sync(to)
            return target.stat().st_size
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise QueueBroken(f"{error.filename}: {error.strerror}; name a directory that can be written") from error
        except (sqlite3.Error, OSError) as error:
            for name in (making, making.with_name(making.name + "-wal"), making.with_name(making.name + "-shm")):
                with suppress(OSError):
                    name.unlink()
            raise translate(error, target) from error
