"""The operations that read what the platform knows: apps, provisioning workflows, audit events."""

import datetime as dt
from collections.abc import Mapping

import msgspec

from collector.contract.models import MAX_AUDIT_EVENTS_PER_PAGE, Activity, AppDetails, AppSummaries, FiscalSpend
from collector.contract.operations import (
    GET_APP_DETAILS,
    GET_APP_SUMMARIES,
    GET_AUDIT_EVENTS,
    GET_PROVISIONING_WORKFLOW_EXECUTION,
    LIST_PROVISIONING_EXECUTION_SUMMARIES,
    LIST_PROVISIONING_WORKFLOWS,
)
from collector.sandbox.calls import Call, Handler, Refusal, bad_request, unknown_app
from collector.sandbox.grants import Signer
from collector.sandbox.records import EPOCH, microseconds
from collector.sandbox.state import State

ACTIVE_DAYS = 30


class Place(msgspec.Struct, frozen=True, tag=True):
    """What a page token holds: the range that was asked for, and the last event that was answered.

    So pages stay as they are while events are added. Times are in microseconds since the epoch.
    """

    since_us: int | None
    until_us: int | None
    at_us: int
    event_id: str


class Export:
    """Carries them out on one state."""

    def __init__(self, state: State, signer: Signer) -> None:
        self._state = state
        self._records = state.records
        self._signer = signer

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By operation ID."""
        return {
            GET_APP_SUMMARIES.id: self._get_app_summaries,
            GET_APP_DETAILS.id: self._get_app_details,
            LIST_PROVISIONING_WORKFLOWS.id: self._list_workflows,
            LIST_PROVISIONING_EXECUTION_SUMMARIES.id: self._list_executions,
            GET_PROVISIONING_WORKFLOW_EXECUTION.id: self._get_execution,
            GET_AUDIT_EVENTS.id: self._get_audit_events,
        }

    async def _get_app_summaries(self, _call: Call) -> AppSummaries:
        return AppSummaries(await self._state.summaries())

    async def _get_app_details(self, call: Call) -> AppDetails:
        app_id: str = call.parameters["applicationId"]
        app = await self._state.app(app_id)
        if app is None:
            raise unknown_app(app_id, 404)
        name, profile = app
        spend: FiscalSpend | None = (await self._records.fiscal_spend()).get(app_id)
        return AppDetails(
            application_id=app_id,
            app_name=name,
            app_status=profile.app_status,
            vendor_name=profile.vendor_name,
            instances=profile.instances,
            activity=await self._activity(app_id),
            contracts=profile.contracts,
            fiscal_spend=spend,
            compliance=profile.compliance,
            sso_protocols=profile.sso_protocols,
        )

    async def _activity(self, app_id: str) -> Activity:
        """How much an app is used.

        All users are those provisioned. Active is whose address, as it came, is in an event of the 30 days up to the
        newest one: not up to today, so that old data tells something too. The last day is that of the newest event, in
        UTC; there is none where it is beyond the calendar.
        """
        total = (await self._records.count_users()).get(app_id, 0)
        newest_ms = await self._state.last_timestamp(app_id)
        if newest_ms is None:
            return Activity(total, 0)
        active = await self._state.people_since(app_id, newest_ms - ACTIVE_DAYS * 86_400_000)
        try:
            return Activity(total, active, (EPOCH + dt.timedelta(milliseconds=newest_ms)).date())
        except OverflowError:
            return Activity(total, active)

    async def _list_workflows(self, _call: Call) -> object:
        return {"workflows": await self._records.workflows()}

    async def _list_executions(self, call: Call) -> object:
        """Of a workflow that does not exist the contract says nothing: it has no executions."""
        return {"executions": await self._records.executions(call.parameters["workflowId"], *_range(call))}

    async def _get_execution(self, call: Call) -> object:
        workflow_id, execution_id = call.parameters["workflowId"], call.parameters["executionId"]
        execution = await self._records.execution(workflow_id, execution_id)
        if execution is None:
            message = f"workflow {workflow_id!r} has no execution {execution_id!r}"
            raise Refusal(404, "unknown_execution", message)
        return execution

    async def _get_audit_events(self, call: Call) -> object:
        since_us, until_us = _range(call)
        after = None
        if token := call.parameters.get("nextPageToken"):
            place = self._signer.read(token, Place)
            # The contract has no status but 401 here, which would send the client for a new access token.
            if place is None:
                raise bad_request("nextPageToken: not one that this sandbox has answered since its start")
            if (since_us, until_us) not in {(place.since_us, place.until_us), (None, None)}:
                raise bad_request("nextPageToken: of another range; expected startTime and endTime as before, or none")
            since_us, until_us = place.since_us, place.until_us
            after = (place.at_us, place.event_id)
        found = await self._records.audit_events(since_us, until_us, after, MAX_AUDIT_EVENTS_PER_PAGE + 1)
        page = found[:MAX_AUDIT_EVENTS_PER_PAGE]
        answer: dict[str, object] = {"events": [event for _, _, event in page]}
        if len(found) > len(page):
            at_us, event_id, _ = page[-1]
            answer["nextPageToken"] = self._signer.sign(Place(since_us, until_us, at_us, event_id))
        return answer


def _range(call: Call) -> tuple[int | None, int | None]:
    """From when, inclusive, to when, exclusive; in microseconds since the epoch. None where it is open."""
    times = (call.parameters.get("startTime"), call.parameters.get("endTime"))
    since, until = (microseconds(time) if time is not None else None for time in times)
    return since, until
