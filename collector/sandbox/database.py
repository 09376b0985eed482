"""The sandbox's SQLite database: in memory, or in a file that stays; one transaction at a time."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import aiosqlite

from collector.errors import Unusable

FILE_NAME = "sandbox.sqlite3"
SCHEMA_VERSION = 2
"""PRAGMA user_version of the files that this program reads. The first one did not write it down: 0, with tables."""


class Database:
    """Use `await Database.open(...)`."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()  # statements of two coroutines must not meet in one transaction

    @classmethod
    async def open(cls, directory: Path | None) -> Self:
        """The database in `directory`, made if need be; without one it lives and dies with the process.

        Raises Unusable where the file is of another version, or cannot be made.
        """
        place = ":memory:" if directory is None else str(directory / FILE_NAME)
        try:
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)
            connection = await aiosqlite.connect(place, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise Unusable(f"{place}: {error.strerror if isinstance(error, OSError) else error}") from error
        try:
            await _prepare(connection, place)
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def close(self) -> None:
        """All is in the file, if there is one."""
        await self._connection.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """What is done in the block is committed when it ends, or not done at all."""
        async with self._lock:
            try:
                await self._connection.execute("BEGIN")
                yield self._connection
                await self._connection.execute("COMMIT")
            except BaseException:
                # Of who is cancelled amid a statement it is done all the same: also BEGIN, and also COMMIT.
                with suppress(sqlite3.OperationalError):
                    await self._connection.execute("ROLLBACK")
                raise

    async def execute(self, statement: str, parameters: Iterable[Any] = ()) -> int:
        """Committed; how many rows it changed."""
        async with self._lock:
            return (await self._connection.execute(statement, parameters)).rowcount

    async def empty(self) -> None:
        """Nothing is in any table."""
        async with self.transaction() as connection:
            for (table,) in await connection.execute_fetchall("SELECT name FROM sqlite_master WHERE type = 'table'"):
                await connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own schema

    async def rows(self, statement: str, parameters: Iterable[Any] = ()) -> Iterable[Any]:
        """What a query answers."""
        return await self._connection.execute_fetchall(statement, parameters)


async def _prepare(connection: aiosqlite.Connection, place: str) -> None:
    """The schema is there, and it is ours."""
    [(version,)] = await connection.execute_fetchall("PRAGMA user_version")
    [(tables,)] = await connection.execute_fetchall("SELECT count(*) FROM sqlite_master")
    if tables and version != SCHEMA_VERSION:
        raise Unusable(
            f"{place}: the sandbox's schema version {version}, this program reads {SCHEMA_VERSION} only; "
            "give --data another directory, or remove the file"
        )
    # The log is not synced at each commit: this must survive the death of its process, not that of the machine.
    await connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
    if not tables:
        schema = Path(__file__).with_name("schema.sql").read_text()
        await connection.executescript(f"BEGIN; {schema} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
