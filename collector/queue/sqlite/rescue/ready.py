"""What is done with a queue's directory before its file is opened: made, left alone, checked, or salvaged.

Whatever stands there, it ends in one of two ways: a sound file of ours, or an error that names the file and what to do.

- No file: one is made under another name and put in place when it is complete; so an empty file is never a new one.
- A file of another program, or of a newer version: refused, not touched.
- A file that we may not use: refused, with who we are and whose it is.
- A file of an earlier version: brought to this one.
- A damaged file of ours: set aside, and all that can be read is salvaged into a new one (see salvage.py).

Who has a file for himself alone checks it at each start: all of a small one, of a larger one no more than its head, its
schema and its log, for a gigabyte takes two to four seconds. What is wrong with the rest of it is noticed where it is
read; that ends the process, and makes the next start check all of it.
"""

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

from collector.errors import DiskFull, QueueBroken
from collector.observe.logs import get_logger
from collector.queue.sqlite.database import (
    APPLICATION_ID,
    FILE_NAME,
    MIGRATIONS,
    foreign,
    make_file,
    newer,
    schema_of,
    sync,
    take_over,
    translate,
    translated,
)
from collector.queue.sqlite.lock import forbidden
from collector.queue.sqlite.rescue.salvage import COMPLETE, MAKING, Salvaged, put_in_place, salvage
from collector.queue.sqlite.reserve import with_reserve
from collector.queue.sqlite.soundness import problems
from collector.queue.sqlite.write_ahead_log import read_log

log = get_logger(__name__)

CHECKED_WHOLE_BYTES = 256 * 2**20
"""A file of this size takes less than a second to check."""

DOUBTED = FILE_NAME + ".doubted"
"""A file of this name says that damage was noticed."""

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100


def make_ready(directory: Path) -> None:
    """A sound file of ours stands in the directory, be it new, as it was, or salvaged. Nobody else may be present.

    Raises QueueBroken or QueueUnavailable, with the file as it was.
    """
    try:
        _make_ready(directory)
    except DiskFull as error:
        raise QueueBroken(
            f"{directory / FILE_NAME}: there is no room on its disk to open it, or to make another where it is new or "
            "damaged; it was left as it was. Salvaging takes up to twice its size: free that and start again"
        ) from error


@with_reserve
def _make_ready(directory: Path) -> None:
    file = directory / FILE_NAME
    with translated(file):
        finish_interrupted(file)
        doubted = file.with_name(DOUBTED)
        found = damage(file, whole=doubted.exists() or _bytes(file) <= CHECKED_WHOLE_BYTES)
        if found:
            log.error("queue.file_damaged", file=str(file), problems=found)
            report(file, salvage(file))
        doubted.unlink(missing_ok=True)
        if not file.exists():
            make_file(file.with_name(MAKING))
            file.with_name(MAKING).replace(file)
            sync(file.parent)
        take_over(file)


def doubt(directory: Path) -> None:
    """The next start checks all of the file."""
    with contextlib.suppress(OSError):
        (directory / DOUBTED).touch()


def report(file: Path, salvaged: Salvaged) -> None:
    """Says at ERROR what became of a damaged file."""
    log.error("queue.file_salvaged", file=str(file), **salvaged.as_fields())


def finish_interrupted(file: Path) -> None:
    """Whatever an earlier salvage left is gone: what was complete is in place, what was not is deleted."""
    if file.with_name(COMPLETE).exists():
        put_in_place(file)


def damage(file: Path, *, whole: bool = True) -> list[str]:
    """What is wrong with our file, for people; nothing where it is sound or there is none. Reads it whole, or a little.

    Raises QueueBroken for a file that is not ours, of a newer version, or that we may not use.
    """
    wal = file.with_name(FILE_NAME + "-wal")
    _check_access(file)
    if not file.exists():
        return ["it is missing, and its log is there"] if wal.exists() and wal.stat().st_size else []
    with file.open("rb") as start:
        header = start.read(HEADER_BYTES)
    if found := _header_damage(header, file):
        return [found]
    written_ahead = read_log(wal)
    if written_ahead.torn_frames:
        log.warning(
            "queue.log_ends_torn",
            file=str(wal),
            frames=written_ahead.torn_frames,
            meaning="commits that failed or were interrupted, which nobody was told of; or damage after a power cut",
        )
    if written_ahead.is_damaged:
        return [written_ahead.damage]
    return problems_of(file, whole=whole)


def problems_of(file: Path, *, whole: bool = True) -> list[str]:
    """What SQLite and our checksums find wrong with the file, also while others use it. Raises QueueBroken.

    Nothing is written but what a process left half done that died while it turned a new file's log on: it is undone.
    """
    mode = "rw" if file.with_name(file.name + "-journal").exists() else "ro"
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise newer(file, version)
            return problems(connection, schema_of(version), whole=whole) if version else ["it has no schema"]
        finally:
            connection.close()
    except sqlite3.Error as error:
        if isinstance(translate(error, file), QueueBroken):
            return [str(error)]
        raise


def _header_damage(header: bytes, file: Path) -> str | None:
    """What is wrong with the head of our file. Raises QueueBroken where it is not ours, or newer."""
    if not header.strip(b"\0"):
        return "it is empty" if not header else "it begins with zeros"
    if len(header) < HEADER_BYTES:
        if MAGIC.startswith(header[: len(MAGIC)]):
            return "it is cut off within its first page"
        raise foreign(file, "not a database")
    if int.from_bytes(header[68:72]) != APPLICATION_ID:
        raise foreign(file, "a database of another program" if header.startswith(MAGIC) else "not a database")
    version = int.from_bytes(header[60:64])
    if version > len(MIGRATIONS):
        raise newer(file, version)
    return None if header.startswith(MAGIC) else "its first bytes are not those of a database"


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _check_access(file: Path) -> None:
    if not os.access(file.parent, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise forbidden(file.parent)
    for name in (FILE_NAME, FILE_NAME + "-wal", FILE_NAME + "-shm"):
        each = file.with_name(name)
        if each.exists() or each.is_symlink():
            if not stat.S_ISREG(each.stat().st_mode):
                raise QueueBroken(f"{each} is not a file; set queue.path to another directory, or move it away")
            if not os.access(each, os.R_OK | os.W_OK, effective_ids=True):
                raise forbidden(each)
