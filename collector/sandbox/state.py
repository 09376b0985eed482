"""What the sandbox knows: apps, and every event it took, by its key. SQLite: in memory, or in a file that stays."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import aiosqlite
import msgspec

FILE_NAME = "sandbox.sqlite3"

# The log is not synced at each commit: this must survive the death of its process, not that of the machine.
SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS app (
  app_id   TEXT PRIMARY KEY,
  app_name TEXT NOT NULL,
  received INTEGER NOT NULL DEFAULT 0,
  distinct_events INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS request (  -- of apps that do not exist, too
  app_id   TEXT PRIMARY KEY,
  requests INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS event (
  app_id TEXT NOT NULL, timestamp INTEGER NOT NULL, email TEXT NOT NULL, event_name TEXT NOT NULL, json BLOB NOT NULL,
  PRIMARY KEY (app_id, timestamp, email, event_name)
) STRICT, WITHOUT ROWID;
"""

STATS = """
SELECT app_id, sum(requests), sum(received), sum(distinct_events) FROM (
  SELECT app_id, requests, 0 AS received, 0 AS distinct_events FROM request
  UNION ALL
  SELECT app_id, 0, received, distinct_events FROM app
) GROUP BY app_id ORDER BY app_id
"""


class AppCounts(msgspec.Struct):
    """What one app was sent, whether it exists or not.

    Usage-event requests of any outcome, events taken, and how many of these are distinct.
    """

    requests: int = 0
    received: int = 0
    distinct: int = 0


class Stats(msgspec.Struct):
    """The same over all apps, and by app."""

    requests: int
    received: int
    distinct: int
    apps: dict[str, AppCounts]


class KeptEvent(msgspec.Struct, frozen=True):
    """One event as it is kept: its key, and the JSON it came as."""

    timestamp: int
    email: str
    event_name: str
    json: bytes


class State:
    """Use `await State.open(...)`; every method that changes something returns after its commit."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._transaction = asyncio.Lock()  # statements of two coroutines must not meet in one transaction

    @classmethod
    async def open(cls, directory: Path | None = None) -> Self:
        """The state in `directory`, made if need be; without one it lives and dies with the process."""
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        place = ":memory:" if directory is None else str(directory / FILE_NAME)
        connection = await aiosqlite.connect(place, isolation_level=None)
        await connection.executescript(SCHEMA)
        return cls(connection)

    async def close(self) -> None:
        """All is in the file, if there is one."""
        await self._connection.close()

    async def add_app(self, app_id: str, app_name: str) -> None:
        """The app exists."""
        async with self._transaction:
            await self._connection.execute(
                "INSERT OR IGNORE INTO app (app_id, app_name) VALUES (?, ?)", (app_id, app_name)
            )

    async def has_app(self, app_id: str) -> bool:
        """Whether the app exists."""
        return bool(await self._connection.execute_fetchall("SELECT 1 FROM app WHERE app_id = ?", (app_id,)))

    async def count_request(self, app_id: str) -> None:
        """One more usage-events request for the app, whatever comes of it and whether or not there is such an app."""
        async with self._transaction:
            await self._connection.execute(
                "INSERT INTO request VALUES (?, 1) ON CONFLICT DO UPDATE SET requests = requests + 1", (app_id,)
            )

    async def keep(self, app_id: str, events: Sequence[KeptEvent]) -> None:
        """The events are kept, all of them or none; one that is known already is counted as received, no more."""
        rows = [(app_id, event.timestamp, event.email, event.event_name, event.json) for event in events]
        async with self._transaction:
            await self._connection.execute("BEGIN")
            try:
                cursor = await self._connection.executemany("INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?, ?)", rows)
                await self._connection.execute(
                    "UPDATE app SET received = received + ?, distinct_events = distinct_events + ? WHERE app_id = ?",
                    (len(rows), max(0, cursor.rowcount), app_id),
                )
                await self._connection.execute("COMMIT")
            except BaseException:
                await self._connection.execute("ROLLBACK")
                raise

    async def stats(self) -> Stats:
        """What was received so far."""
        rows = await self._connection.execute_fetchall(STATS)
        apps = {app_id: AppCounts(*counts) for app_id, *counts in rows}
        return Stats(
            requests=sum(app.requests for app in apps.values()),
            received=sum(app.received for app in apps.values()),
            distinct=sum(app.distinct for app in apps.values()),
            apps=apps,
        )

    async def events(self) -> Iterable[tuple[str, bytes]]:
        """App and JSON of every event kept, in key order."""
        rows = await self._connection.execute_fetchall("SELECT app_id, json FROM event")
        return [(app_id, json) for app_id, json in rows]

    async def reset(self) -> None:
        """Everything is forgotten, apps included."""
        async with self._transaction:
            await self._connection.execute("DELETE FROM event")
            await self._connection.execute("DELETE FROM app")
            await self._connection.execute("DELETE FROM request")
