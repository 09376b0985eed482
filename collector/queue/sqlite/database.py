"""The queue's SQLite file: how it is opened, what it is told, how it comes to its schema, how its errors translate.

Pragmas, and why:

- `journal_mode=WAL`: one append per commit, and readers never block the writer (https://sqlite.org/wal.html).
- `synchronous=FULL`: in WAL mode each commit is fsynced before it returns (https://sqlite.org/pragma.html). That is
  what an acknowledgement stands on. NORMAL loses the latest commits with the power: seen, none of 100 survived.
- `auto_vacuum=INCREMENTAL`: lets the file shrink in small steps after an outage; costs about 5 % of insert speed.
- `wal_autocheckpoint=4000`: a checkpoint each 16 MiB of log; at the default 1000 the same hot pages are copied to the
  database four times as often.
- `journal_size_limit=64 MiB`: the log's file is cut back to this after a checkpoint that emptied it.
- `busy_timeout`: another process of the same program may be committing; wait for it, a commit takes milliseconds.
- `cache_size=16 MiB`: the B-tree's inner pages of 50 million keys and the leaves of live traffic fit.
- `secure_delete=OFF`: Debian's SQLite fills what is deleted with zeros, and so writes each delivered event twice;
  without that a backlog leaves a sixth faster. What is deleted stays on disk until its page is used again, as it would
  in the log in either case.
- `trusted_schema=OFF`, `cell_size_check=ON`: a damaged or foreign file is noticed earlier.
"""

import contextlib
import errno
import functools
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from pathlib import Path

from collector.errors import CollectorError, DiskFull, QueueBroken, QueueDamaged, QueueUnavailable
from collector.forks import Connection
from collector.queue.sqlite.lock import is_there, nobody_present
from collector.queue.sqlite.reserve import with_reserve
from collector.queue.sqlite.soundness import stored_schema
from collector.queue.sqlite.write_ahead_log import AUTO_CHECKPOINT_PAGES, EMPTY, PAGE_BYTES, read_log

FILE_NAME = "queue.sqlite3"
APPLICATION_ID = 0x55434F4C  # "UCOL", at byte 68 of the file
BUSY_TIMEOUT_MS = 10_000
WAL_LIMIT_BYTES = 64 * 2**20
CACHE_KIB = 16 * 1024

RETRY_AFTER_SECONDS = 5.0


def _sql(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _named_statements(text: str) -> dict[str, str]:
    """The statements of a file in which each stands under a line `-- name: …`."""
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {
        name: re.sub(r"^--.*\n", "", body, flags=re.MULTILINE).strip()
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


SQL = _named_statements(_sql("statements.sql"))

MIGRATIONS: tuple[str, ...] = tuple(
    _sql(name) for name in ("schema.sql", "schema_2.sql", "schema_3.sql", "schema_4.sql")
)
"""Script N (from 0) takes a file from schema version N to N + 1. Landed scripts never change: a file whose schema is
not, letter by letter, what they make is taken for damaged."""


WRITER = _sql("writer.sql")

MAX_FRESH_KEYS = 1000
"""Keys that one `put_fresh` takes: as many as writer.sql has places for."""

APP_SHIFT = 40
"""A segment's number is (app << 40) + n: see schema.sql."""

FIRST_MICROSECOND = 10**11
"""A stamp in `seen` from this on is in microseconds: see schema_3.sql."""


def make_file(file: Path) -> None:
    """An empty queue of the latest version, complete and on disk, in the place of whatever stood there.

    With auto_vacuum, tables begin in the pages 3, 4, 5 and so on in the order in which they were made: the same in
    every file, whatever it holds. Salvaging stands on that, and on the size of pages. Raises sqlite3.Error and OSError.
    """
    file.unlink(missing_ok=True)
    file.with_name(file.name + "-journal").unlink(missing_ok=True)  # a crash's: it would be rolled back into this one
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        migrate(connection, file)
    sync(file)


def sync(path: Path) -> None:
    """What is in a file, or the names in a directory, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def schema_of(version: int) -> tuple[tuple[str, str], ...]:
    """Name and text of everything that the schema of a version has."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, Path(":memory:"), MIGRATIONS[:version])
        return tuple(stored_schema(connection))


@with_reserve
def open_writer(directory: Path) -> Connection:
    """The queue's file in `directory`, made ready by ready.py, open for writing.

    Raises QueueBroken where the file is not a queue or is newer, QueueUnavailable where it is missing or older, or the
    disk does not let us. An older one is taken over only by who is alone (see ready.py): what a process of its version
    writes to it, or forgets, goes by other rules.
    """
    file = directory / FILE_NAME
    with _opening(file, "rw") as connection:
        version = _version(connection, file)  # a stranger's file is left as it is
        if version > len(MIGRATIONS):
            raise newer(file, version)
        if version < len(MIGRATIONS):
            raise QueueUnavailable(
                f"{file} has schema version {version}, and this collector writes {len(MIGRATIONS)}; stop every process "
                "that has it open, then start the daemon of this version: it takes the file over"
            )
        _log_ahead(connection)
        # Reads the schema: where WAL mode is new, CREATE TEMP TABLE would, and would leave a transaction open.
        connection.execute("SELECT count(*) FROM app").fetchall()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {AUTO_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA temp_store = MEMORY")  # there may be no folder to write to
        for statement in _split(WRITER):
            connection.execute(statement)
    return connection


@with_reserve
def open_reader(directory: Path) -> Connection:
    """The queue's file, open for reading only. Raises QueueBroken where there is none or it is not a queue.

    What a process that died has left with a damaged log is not opened: SQLite would leave out all that stands behind
    the damage and say so in the index, so that the next start would take it for the end of the log.
    """
    file = directory / FILE_NAME
    if not is_there(file):
        raise missing(file)
    with nobody_present(directory, patience_seconds=BUSY_TIMEOUT_MS / 1000) as is_left_behind:
        log = read_log(file.with_name(FILE_NAME + "-wal")) if is_left_behind else EMPTY
    if log.is_damaged:
        raise damaged(file, log.damage)
    with _explaining_to_readers(file), _opening(file, "ro") as connection:
        version = _version(connection, file)
        if version > len(MIGRATIONS):
            raise newer(file, version)
        if version < len(MIGRATIONS):
            raise QueueBroken(
                f"{file} has schema version {version}, this collector reads {len(MIGRATIONS)}; "
                "start the daemon of this version once to migrate it"
            )
    return connection


@contextlib.contextmanager
def _explaining_to_readers(file: Path) -> Iterator[None]:
    """To read a file in WAL mode SQLite makes the log's index beside it, or says something else where it cannot."""
    try:
        yield
    except QueueUnavailable as error:
        if os.access(file.parent, os.W_OK, effective_ids=True):
            raise
        raise QueueUnavailable(
            f"{file} can be read without the right to write beside it only while a collector has it open; "
            "copy the directory to where you may write, and set queue.path to the copy"
        ) from error


@contextlib.contextmanager
def _opening(file: Path, mode: str) -> Iterator[Connection]:
    """A connection that is closed where what is done with it in the block fails; errors as in `translated`."""
    with translated(file), contextlib.ExitStack() as failing:
        connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_MS / 1000,
            factory=Connection,
            check_same_thread=False,
        )
        failing.callback(connection.close)
        yield connection
        failing.pop_all()


def _log_ahead(connection: sqlite3.Connection) -> None:
    """WAL mode. To enter it a process needs the file alone for an instant, and SQLite itself does not wait for that."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def migrate(connection: sqlite3.Connection, file: Path, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Brings the schema to the latest version, all steps in one transaction. Raises QueueBroken for a newer file."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, file)
        if version > len(migrations):
            raise newer(file, version, len(migrations))
        for script in migrations[version:]:
            for statement in _split(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def take_over(file: Path) -> None:
    """A file of an earlier version is one of this from now on. Nobody else may have it open. Raises sqlite3.Error."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        if 0 < _version(connection, file) < len(MIGRATIONS):
            migrate(connection, file)


def _version(connection: sqlite3.Connection, file: Path) -> int:
    """The file's schema version; 0 is a new file. Raises QueueBroken where it belongs to some other program."""
    # One statement sees one commit: another process may be taking the file over at this moment.
    version, application_id, tables = connection.execute(
        "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)"
        " FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    if application_id != APPLICATION_ID and (version or tables):
        raise foreign(file, "a database of another program")
    return int(version)


def _split(script: str) -> list[str]:
    statements, rest = [], ""
    for line in script.splitlines(keepends=True):
        rest += line
        if sqlite3.complete_statement(rest):
            statements.append(rest)
            rest = ""
    return statements


def missing(file: Path) -> QueueBroken:
    """That there is no file, and when there would be one."""
    return QueueBroken(f"{file} does not exist; a collector that ran with this queue.path would have made it")


def foreign(file: Path, what: str) -> QueueBroken:
    """That the file is no queue but `what`, and what is to be done."""
    return QueueBroken(f"{file} is {what}; set queue.path to another directory, or move the file away")


def newer(file: Path, version: int, latest: int = len(MIGRATIONS)) -> QueueBroken:
    """That the file is of a version after `latest`, and what is to be done."""
    return QueueBroken(
        f"{file} has schema version {version}, newer than this collector's {latest}; "
        "install the version that wrote it, or set queue.path to another directory"
    )


def damaged(file: Path, what: str) -> QueueDamaged:
    """That the file is damaged, and what is to be done."""
    return QueueDamaged(
        f"{file} is damaged or not a database ({what}); start the collector, which sets a damaged queue aside and "
        "salvages what can be read, or do it by hand: collector queue recover"
    )


@contextlib.contextmanager
def translated(file: Path) -> Iterator[None]:
    """The errors of SQLite and of the system leave the block as ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise translate(error, file) from error


def translate(error: sqlite3.Error | OSError, file: Path) -> CollectorError:
    """The same failure in our own terms: who must act, and what to do."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(f"{file}: no room on the disk", retry_after_seconds=RETRY_AFTER_SECONDS)
    if isinstance(error, OSError):
        return QueueUnavailable(f"{file}: {error.strerror}", retry_after_seconds=RETRY_AFTER_SECONDS)
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    code = extended & 0xFF
    if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:  # the log's index could not grow
        return DiskFull(f"{file}: no room on the disk", retry_after_seconds=RETRY_AFTER_SECONDS)
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return damaged(file, str(error))
    return QueueUnavailable(f"{file}: {error}", retry_after_seconds=RETRY_AFTER_SECONDS)
