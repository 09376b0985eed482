"""What a sandbox knows from the start: a JSON document that a person writes.

    {"apps": [...], "orgChart": {...}, "workflows": [{..., "executions": [...]}], "auditEvents": [...]}

Fields are named as in the contract; all but the IDs may be missing, none may be null, and unknown ones are refused.
"""

import datetime as dt

import msgspec

from collector.contract.models import (
    AuditEvent,
    Email,
    Execution,
    ExecutionSummary,
    OrgChart,
    Outcome,
    ProvisionedUser,
    SpendRecord,
    Workflow,
)
from collector.errors import UNPARSABLE
from collector.sandbox.exact import as_asked
from collector.sandbox.records import microseconds
from collector.sandbox.state import Profile, State


class SeedApp(Profile, rename="camel", kw_only=True):
    """An app with its users and its spend."""

    app_id: str
    app_name: str | None = None
    users: list[ProvisionedUser] = msgspec.field(default_factory=list)
    spend_data: list[SpendRecord] = msgspec.field(default_factory=list)


class SeedExecution(msgspec.Struct, rename="camel"):
    """An execution of the workflow that it stands in."""

    execution_id: str
    status: str | None = None
    start_time: dt.datetime | None = None
    end_time: dt.datetime | None = None
    users: list[Outcome] = []


class SeedWorkflow(msgspec.Struct, rename="camel"):
    """A provisioning workflow."""

    workflow_id: str
    workflow_name: str | None = None
    application_id: str | None = None
    status: str | None = None
    executions: list[SeedExecution] = []


class SeedAuditEvent(msgspec.Struct, rename="camel"):
    """Something somebody did before the sandbox was there."""

    event_id: str
    timestamp: dt.datetime
    event_type: str | None = None
    user_email: Email | None = None
    details: dict[str, msgspec.Raw] | None = None


class Seed(msgspec.Struct, rename="camel"):
    """The whole document."""

    apps: list[SeedApp] = []
    org_chart: OrgChart = OrgChart()
    workflows: list[SeedWorkflow] = []
    audit_events: list[SeedAuditEvent] = []


def read_seed(document: bytes) -> Seed:
    """The seed that a document holds. Raises ValueError that names the field and what is allowed in it."""
    try:
        msgspec.json.decode(document, type=as_asked(Seed, forbid_unknown_fields=True))
        return msgspec.json.decode(document, type=Seed)
    except UNPARSABLE as error:
        raise ValueError(str(error)) from None


async def plant(state: State, seed: Seed) -> None:
    """The state knows what the seed holds. An app that is there already stays as it is, with its users and spend."""
    records = state.records
    for app in seed.apps:
        profile = Profile(**{name: getattr(app, name) for name in Profile.__struct_fields__})
        if await state.add_app(app.app_id, app.app_name or app.app_id, profile):
            await records.set_users(app.app_id, app.users)
            await records.add_spend(app.app_id, app.spend_data)
    await records.merge_org_chart(seed.org_chart)
    for workflow in seed.workflows:
        workflow_id = workflow.workflow_id
        await records.add_workflow(
            Workflow(workflow_id, workflow.workflow_name, workflow.application_id, workflow.status),
            [
                (
                    ExecutionSummary(one.execution_id, workflow_id, one.status, one.start_time, one.end_time),
                    Execution(one.execution_id, workflow_id, one.status, one.users),
                )
                for one in workflow.executions
            ],
        )
    for event in seed.audit_events:
        at_us = microseconds(event.timestamp)
        known = AuditEvent(event.event_id, event.event_type, event.timestamp, event.user_email, event.details)
        await records.add_audit_event(known, at_us)
