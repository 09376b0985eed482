"""What the sandbox knows: apps, and every event it took, by its key; all other things are in its `records`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from collector.contract.models import AppSummary, Compliance, Contract, Instance
from collector.sandbox.database import Database
from collector.sandbox.records import Records

STATS = """
SELECT app_id, sum(requests), sum(received), sum(distinct_events) FROM (
  SELECT app_id, requests, 0 AS received, 0 AS distinct_events FROM request
  UNION ALL
  SELECT app_id, 0, received, distinct_events FROM app
) GROUP BY app_id ORDER BY app_id
"""


class Profile(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """What is known of an app besides its name and what is pushed. The contract's names, its app details' content."""

    app_description: str | None = None
    app_category: str | None = None
    app_url: str | None = None
    app_status: str = "active"
    vendor_name: str | None = None
    instances: list[Instance] | None = None
    contracts: list[Contract] | None = None
    compliance: Compliance | None = None
    sso_protocols: list[str] | None = None


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

    def __init__(self, database: Database, directory: Path | None) -> None:
        self._database = database
        self.directory = directory
        self.records = Records(database)

    @classmethod
    async def open(cls, directory: Path | None = None) -> Self:
        """The state in `directory`, made if need be; without one it lives and dies with the process.

        Raises Unusable where the directory holds the state of another version.
        """
        return cls(await Database.open(directory), directory)

    async def close(self) -> None:
        """All is in the file, if there is one."""
        await self._database.close()

    # -- apps ------------------------------------------------------------------------------------------------------

    async def add_app(self, app_id: str, app_name: str, profile: Profile | None = None) -> bool:
        """The app exists; whether it is new. One that is there stays as it is."""
        content = msgspec.json.encode(profile or Profile())
        return bool(
            await self._database.execute(
                "INSERT OR IGNORE INTO app (app_id, app_name, profile) VALUES (?, ?, ?)", (app_id, app_name, content)
            )
        )

    async def has_app(self, app_id: str) -> bool:
        """Whether the app exists."""
        return bool(await self._database.rows("SELECT 1 FROM app WHERE app_id = ?", (app_id,)))

    async def app(self, app_id: str) -> tuple[str, Profile] | None:
        """An app's name and profile; None where there is no such app."""
        for name, profile in await self._database.rows("SELECT app_name, profile FROM app WHERE app_id = ?", (app_id,)):
            return name, msgspec.json.decode(profile, type=Profile)
        return None

    async def names(self) -> dict[str, str]:
        """The name of each app."""
        return dict(await self._database.rows("SELECT app_id, app_name FROM app"))

    async def summaries(self) -> list[AppSummary]:
        """All apps, in the order in which they were made."""
        rows = await self._database.rows("SELECT app_id, app_name, profile FROM app ORDER BY rowid")
        profiles = ((app_id, name, msgspec.json.decode(profile, type=Profile)) for app_id, name, profile in rows)
        return [
            AppSummary(app_id, name, profile.app_status, profile.vendor_name, profile.app_category)
            for app_id, name, profile in profiles
        ]

    # -- usage events ----------------------------------------------------------------------------------------------

    async def count_request(self, app_id: str) -> None:
        """One more usage-events request for the app, whatever comes of it and whether or not there is such an app."""
        await self._database.execute(
            "INSERT INTO request VALUES (?, 1) ON CONFLICT DO UPDATE SET requests = requests + 1", (app_id,)
        )

    async def keep(self, app_id: str, events: Sequence[KeptEvent]) -> int:
        """The events are kept, all of them or none; how many are new. One that is known is counted as received."""
        rows = [(app_id, event.timestamp, event.email, event.event_name, event.json) for event in events]
        async with self._database.transaction() as connection:
            cursor = await connection.executemany("INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?, ?)", rows)
            new = max(0, cursor.rowcount)
            await connection.execute(
                "UPDATE app SET received = received + ?, distinct_events = distinct_events + ? WHERE app_id = ?",
                (len(rows), new, app_id),
            )
        return new

    async def stats(self) -> Stats:
        """What was received so far."""
        rows = await self._database.rows(STATS)
        apps = {app_id: AppCounts(*counts) for app_id, *counts in rows}
        return Stats(
            requests=sum(app.requests for app in apps.values()),
            received=sum(app.received for app in apps.values()),
            distinct=sum(app.distinct for app in apps.values()),
            apps=apps,
        )

    async def events(self) -> Iterable[tuple[str, bytes]]:
        """App and JSON of every event kept, in key order."""
        return await self._database.rows("SELECT app_id, json FROM event")

    async def last_timestamp(self, app_id: str) -> int | None:
        """The newest event's timestamp, in milliseconds since the epoch; None without events."""
        newest: int | None
        [(newest,)] = await self._database.rows("SELECT max(timestamp) FROM event WHERE app_id = ?", (app_id,))
        return newest

    async def people_since(self, app_id: str, timestamp: int) -> int:
        """How many addresses have an event of this time or later. Takes as long as there are such events."""
        query = "SELECT count(DISTINCT email) FROM event WHERE app_id = ? AND timestamp >= ?"
        people: int
        [(people,)] = await self._database.rows(query, (app_id, max(timestamp, -(2**63))))
        return people

    async def reset(self) -> None:
        """Everything is forgotten, apps included."""
        await self._database.empty()
