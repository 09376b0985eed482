"""What the sandbox keeps besides apps and events: users, spend, the org chart, uploads, workflows, audit events.

Whatever changes one of them at `at_us` (microseconds since the epoch) writes its audit event in the same transaction;
without a time it is there from the start, and nobody's doing.
"""

import datetime as dt
import math
from collections.abc import Sequence
from typing import Any

import aiosqlite
import msgspec

from collector.contract.models import (
    AuditEvent,
    Execution,
    ExecutionSummary,
    FiscalSpend,
    OrgChart,
    ProvisionedUser,
    SpendRecord,
    Workflow,
)
from collector.sandbox.database import Database

ACTOR = "sandbox@example.com"
"""Who did what audit events tell: nobody real."""
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)

_encode = msgspec.json.Encoder().encode


class Upload(msgspec.Struct, rename="camel", frozen=True):
    """A file that was uploaded: whose, and what came."""

    app_id: str
    filename: str
    bytes: int
    sha256: str


def microseconds(time: dt.datetime) -> int:
    """Microseconds since the epoch."""
    return (time - EPOCH) // _MICROSECOND


class Records:
    """Part of the state; every method that changes something returns after its commit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- users -----------------------------------------------------------------------------------------------------

    async def set_users(self, app_id: str, users: Sequence[ProvisionedUser], at_us: int | None = None) -> None:
        """These are the app's users, and no others. Of two with one address the later counts."""
        async with self._database.transaction() as connection:
            await connection.execute("DELETE FROM user WHERE app_id = ?", (app_id,))
            await connection.executemany(
                "INSERT OR REPLACE INTO user (app_id, email, json) VALUES (?, ?, ?)",
                [(app_id, user.email, _encode(user)) for user in users],
            )
            await _audit(connection, at_us, "users.set", {"appId": app_id, "users": len(users)})

    async def remove_users(self, app_id: str, emails: Sequence[str], at_us: int) -> None:
        """These are no users of the app, whether or not they were."""
        async with self._database.transaction() as connection:
            cursor = await connection.executemany(
                "DELETE FROM user WHERE app_id = ? AND email = ?", [(app_id, email) for email in emails]
            )
            await _audit(connection, at_us, "users.removed", {"appId": app_id, "users": max(0, cursor.rowcount)})

    async def users(self, app_id: str) -> list[ProvisionedUser]:
        """The app's users, as they were sent."""
        rows = await self._database.rows("SELECT json FROM user WHERE app_id = ? ORDER BY user", (app_id,))
        return [msgspec.json.decode(json, type=ProvisionedUser) for (json,) in rows]

    async def count_users(self) -> dict[str, int]:
        """How many users each app has that has any."""
        return dict(await self._database.rows("SELECT app_id, count(*) FROM user GROUP BY app_id"))

    # -- spend -----------------------------------------------------------------------------------------------------

    async def add_spend(self, app_id: str, records: Sequence[SpendRecord], at_us: int | None = None) -> None:
        """The records are added to what is there; sent twice they count twice."""
        async with self._database.transaction() as connection:
            await connection.executemany(
                "INSERT INTO spend (app_id, amount, currency, day, description) VALUES (?, ?, ?, ?, ?)",
                [(app_id, one.amount, one.currency, one.date and str(one.date), one.description) for one in records],
            )
            await _audit(connection, at_us, "spend.published", {"appId": app_id, "records": len(records)})

    async def fiscal_spend(self) -> dict[str, FiscalSpend]:
        """By app that has spend: the total in the currency that most of its records are in.

        Of equals, the first by name. Records in other currencies are left out: there are no rates here. There is no
        total where it is beyond a double.
        """
        rows = await self._database.rows(
            "SELECT app_id, currency, coalesce(sum(amount), 0.0) FROM spend GROUP BY app_id, currency"
            " ORDER BY app_id, count(*) DESC, currency"
        )
        spend: dict[str, FiscalSpend] = {}
        for app_id, currency, total in rows:
            spend.setdefault(app_id, FiscalSpend(total if math.isfinite(total) else None, currency))
        return spend

    # -- the org chart ---------------------------------------------------------------------------------------------

    async def merge_org_chart(self, chart: OrgChart, at_us: int | None = None) -> None:
        """The people in it, by address, and the custom fields, by name, take the place of those before; others stay."""
        async with self._database.transaction() as connection:
            await connection.executemany(
                "INSERT OR REPLACE INTO person VALUES (?, ?)", [(user.email, _encode(user)) for user in chart.users]
            )
            await connection.executemany(
                "INSERT OR REPLACE INTO custom_field VALUES (?, ?)",
                [(field.name or "", _encode(field)) for field in chart.custom_fields_config],
            )
            await _audit(connection, at_us, "org_chart.published", {"users": len(chart.users)})

    async def org_chart(self) -> dict[str, list[msgspec.Raw]]:
        """The whole of it."""
        people = await self._database.rows("SELECT json FROM person ORDER BY email")
        fields = await self._database.rows("SELECT json FROM custom_field ORDER BY name")
        return {
            "users": [msgspec.Raw(json) for (json,) in people],
            "customFieldsConfig": [msgspec.Raw(json) for (json,) in fields],
        }

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def add_upload(self, upload: Upload, at_us: int) -> None:
        """The app's file of this name is this one."""
        async with self._database.transaction() as connection:
            await connection.execute(
                "INSERT OR REPLACE INTO upload VALUES (?, ?, ?, ?)", msgspec.structs.astuple(upload)
            )
            details = {"appId": upload.app_id, "filename": upload.filename, "bytes": upload.bytes}
            await _audit(connection, at_us, "file.uploaded", details)

    async def uploads(self) -> list[Upload]:
        """All files, by app and name."""
        rows = await self._database.rows("SELECT app_id, filename, bytes, sha256 FROM upload ORDER BY app_id, filename")
        return [Upload(*row) for row in rows]

    # -- workflows -------------------------------------------------------------------------------------------------

    async def add_workflow(self, workflow: Workflow, executions: Sequence[tuple[ExecutionSummary, Execution]]) -> None:
        """The workflow and these executions of it are known."""
        rows = [
            (
                workflow.workflow_id,
                execution.execution_id,
                summary.start_time and microseconds(summary.start_time),
                _encode(summary),
                _encode(execution),
            )
            for summary, execution in executions
        ]
        async with self._database.transaction() as connection:
            await connection.execute(
                "INSERT OR REPLACE INTO workflow VALUES (?, ?)", (workflow.workflow_id, _encode(workflow))
            )
            await connection.executemany("INSERT OR REPLACE INTO execution VALUES (?, ?, ?, ?, ?)", rows)

    async def workflows(self) -> list[msgspec.Raw]:
        """All workflows."""
        return [msgspec.Raw(json) for (json,) in await self._database.rows("SELECT json FROM workflow ORDER BY rowid")]

    async def executions(self, workflow_id: str, since_us: int | None, until_us: int | None) -> list[msgspec.Raw]:
        """The workflow's executions that started in the range, in that order. One that never started is in no range."""
        rows = await self._database.rows(
            "SELECT summary FROM execution WHERE workflow_id = ?1"
            " AND (?2 IS NULL OR start_us >= ?2) AND (?3 IS NULL OR start_us < ?3) ORDER BY start_us, execution_id",
            (workflow_id, since_us, until_us),
        )
        return [msgspec.Raw(summary) for (summary,) in rows]

    async def execution(self, workflow_id: str, execution_id: str) -> msgspec.Raw | None:
        """One execution with its users; None where there is none."""
        query = "SELECT json FROM execution WHERE workflow_id = ? AND execution_id = ?"
        for (json,) in await self._database.rows(query, (workflow_id, execution_id)):
            return msgspec.Raw(json)
        return None

    # -- audit events ----------------------------------------------------------------------------------------------

    async def audit(self, event_type: str, details: dict[str, Any], at_us: int) -> None:
        """The sandbox's own activity is written down."""
        async with self._database.transaction() as connection:
            await _audit(connection, at_us, event_type, details)

    async def add_audit_event(self, event: AuditEvent, at_us: int) -> None:
        """An event of somebody else's doing is known, with the ID that it has."""
        await self._database.execute(
            "INSERT OR REPLACE INTO audit (at_us, event_id, json) VALUES (?, ?, ?)",
            (at_us, event.event_id, _encode(event)),
        )

    async def audit_events(
        self, since_us: int | None, until_us: int | None, after: tuple[int, str] | None, limit: int
    ) -> list[tuple[int, str, msgspec.Raw]]:
        """Time, ID and event of up to `limit` events in the range and after this one, in order of time and ID."""
        at_us, event_id = after or (-(2**63), "")
        rows = await self._database.rows(
            "SELECT at_us, event_id, json FROM audit WHERE (at_us, event_id) > (?1, ?2)"
            " AND (?3 IS NULL OR at_us >= ?3) AND (?4 IS NULL OR at_us < ?4) ORDER BY at_us, event_id LIMIT ?5",
            (at_us, event_id, since_us, until_us, limit),
        )
        return [(at_us, event_id, msgspec.Raw(json)) for at_us, event_id, json in rows]


async def _audit(connection: aiosqlite.Connection, at_us: int | None, event_type: str, details: dict[str, Any]) -> None:
    """Numbered, so that events of one microsecond have an order, and what comes later stands later."""
    if at_us is None:
        return
    [(number,)] = await connection.execute_fetchall("SELECT coalesce(max(number), 0) + 1 FROM audit")
    event = AuditEvent(f"sandbox-{number:012}", event_type, EPOCH + at_us * _MICROSECOND, ACTOR, details)
    row = (number, at_us, event.event_id, _encode(event))
    await connection.execute("INSERT OR REPLACE INTO audit VALUES (?, ?, ?, ?)", row)
