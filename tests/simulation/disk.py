"""The agent's disk and its threads: real SQLite files that fail by script, steps that run on virtual time.

A crash copies the files as they are at that instant, also in the middle of a transaction, and the next life opens the
copy: only what was committed is in it. Nothing is fsynced, since no power fails here; that FULL was asked for is
checked instead.
"""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collector import forks
from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.step_thread import Heard, StepThread
from tests.simulation.loop import VirtualLoop

real_connect = sqlite3.connect

ERRORS = {
    "disk I/O error": sqlite3.SQLITE_IOERR,
    "database or disk is full": sqlite3.SQLITE_FULL,
    "database is locked": sqlite3.SQLITE_BUSY,
}


class Disk:
    """All lives' directories. `fails_each` is after how many statements, on average, one fails; 0: none does."""

    def __init__(self, folder: Path, loop: VirtualLoop, fate: random.Random, tell: Callable[..., None]) -> None:
        self._folder = folder
        self._loop = loop
        self._fate = fate
        self._tell = tell
        self._copies = 0
        self.directory = folder / "0"
        self.errors = list(ERRORS)
        self.fails_each = 0
        self._until_failure = 0
        self.slow_seconds = 0.0
        self.connections: list[Connection] = []
        self.threads: list[VirtualThread] = []
        self.crash_in: int | None = None
        """Statements until the process dies."""
        self.crash: Callable[[], None] = lambda: None

    def fail(self, each: int, errors: list[str]) -> None:
        """From now on about one in `each` statements fails."""
        self.fails_each, self.errors = each, errors
        self._until_failure = self._draw()

    def delay_seconds(self) -> float:
        """How long the next step takes."""
        return self._fate.random() * (0.002 + self.slow_seconds)

    def connect(self, database: Any, **options: Any) -> sqlite3.Connection:
        """In place of sqlite3.connect. What makes and checks files before they are opened works undisturbed."""
        if options.pop("factory", None) is not forks.Connection:
            plain: sqlite3.Connection = real_connect(database, **options)
            return plain
        if self.fails_each and self._fate.randrange(self.fails_each) == 0:
            self._tell("disk", "cannot be opened")
            raise _error("unable to open database file", sqlite3.SQLITE_CANTOPEN)
        connection: Connection = real_connect(database, factory=Connection, **options)
        connection.disk = self
        self.connections.append(connection)
        return connection

    def new_thread(self, name: str) -> "VirtualThread":
        """In place of StepThread."""
        thread = VirtualThread(name, self._loop, self)
        self.threads.append(thread)
        return thread

    def copy(self) -> None:
        """The next life's directory is a copy of this one as it is now."""
        self._copies += 1
        directory = self._folder / str(self._copies)
        directory.mkdir()
        for name in (FILE_NAME, FILE_NAME + "-wal"):
            if (file := self.directory / name).exists():
                shutil.copyfile(file, directory / name)
        log = directory / (FILE_NAME + "-wal")
        if log.exists() and self._fate.random() < 0.3:  # the frame that was being written
            with log.open("ab") as end:
                end.write(self._fate.randbytes(self._fate.randrange(1, 5000)))
        self.directory = directory

    def bury(self) -> None:
        """Closes what a dead life had open."""
        for connection in self.connections:
            connection.close()
        self.connections.clear()
        self.threads.clear()

    def execute(self, connection: "Connection", sql: str, run: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        """Runs a statement, or fails it, or lets the process die before or after it."""
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in <= 0:
                self.crash_in = None
                if self._fate.random() < 0.5:
                    cursor = run()
                    self._tell("disk", "the process dies behind: %s", sql[:40])
                    self.crash()
                    return cursor
                self._tell("disk", "the process dies before: %s", sql[:40])
                self.crash()
                return run()
        if self.fails_each and sql != "ROLLBACK":
            self._until_failure -= 1
            if self._until_failure <= 0:
                self._until_failure = self._draw()
                self._fail(connection, sql)
        return run()

    def _draw(self) -> int:
        return self._fate.randint(1, max(1, 2 * self.fails_each - 1))

    def _fail(self, connection: "Connection", sql: str) -> None:
        message = self._fate.choice(self.errors)
        in_reader = connection.is_reader
        if in_reader and message == "database or disk is full":
            return
        # SQLite rolls back by itself after some errors and leaves the transaction open after others.
        may_roll_back = message != "database is locked" or (in_reader and sql == "COMMIT")
        if connection.in_transaction and may_roll_back and (sql == "COMMIT" or self._fate.random() < 0.5):
            sqlite3.Connection.execute(connection, "ROLLBACK")
        self._tell("disk", "%s: %s", message, sql[:40])
        raise _error(message, ERRORS[message])


def _error(message: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


class Connection(forks.Connection):
    """A connection on the simulated disk."""

    disk: Disk
    is_closed = False
    is_full = False
    """`synchronous=FULL` was asked for."""
    is_reader = True

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql == "PRAGMA synchronous = FULL":
            self.is_full, self.is_reader, sql = True, False, "PRAGMA synchronous = OFF"
        elif sql.startswith("BEGIN IMMEDIATE"):
            assert self.is_full, "written to without synchronous=FULL"
        return self.disk.execute(self, sql, lambda: sqlite3.Connection.execute(self, sql, parameters))

    def close(self) -> None:
        self.is_closed = True
        super().close()


class VirtualThread(StepThread):
    """Runs steps in the loop, one after the other, each some virtual time after it was given."""

    def __init__(self, name: str, loop: VirtualLoop, disk: Disk) -> None:
        super().__init__(name)
        self._loop = loop
        self._disk = disk
        self._pending: list[tuple[Callable[[], Any], Heard]] = []
        self._is_busy = False
        self._heard_at = 0.0
        self.is_running = False

    def post(self, step: Callable[[], Any], _loop: asyncio.AbstractEventLoop, heard: Heard) -> None:
        self.is_running = True
        self._pending.append((step, heard))
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_later(self._disk.delay_seconds(), self._work)

    def shutdown(self) -> None:
        while self._pending:
            self._take()
        self.is_running = False

    def _work(self) -> None:
        if self._pending:
            self._take()
        self._is_busy = bool(self._pending)
        if self._is_busy:
            self._loop.call_later(self._disk.delay_seconds(), self._work)

    def _take(self) -> None:
        step, heard = self._pending.pop(0)
        result: Any = None
        failure: BaseException | None = None
        try:
            result = step()
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            failure = error
        # The loop hears of it later, but of one step after the other.
        self._heard_at = max(self._heard_at, self._loop.time() + self._disk.delay_seconds())
        self._loop.call_at(self._heard_at, heard, result, failure)
