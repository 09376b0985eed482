"""What can be read: apps with what was pushed to them, workflows, audit events page by page; and how often."""

import asyncio
import datetime as dt
from typing import Any

import aiohttp
import pytest

from collector.contract.models import EXPORT_REQUESTS_PER_SECOND, MAX_AUDIT_EVENTS_PER_PAGE
from collector.contract.operations import (
    GET_APP_DETAILS,
    GET_APP_SUMMARIES,
    GET_AUDIT_EVENTS,
    GET_PROVISIONING_WORKFLOW_EXECUTION,
    LIST_PROVISIONING_EXECUTION_SUMMARIES,
    LIST_PROVISIONING_WORKFLOWS,
    PUBLISH_ORG_CHART,
    PUBLISH_PROVISIONED_USERS,
    PUBLISH_SPEND_DATA,
    SETUP_APPLICATION,
    Operation,
)
from collector.sandbox.seed import plant, read_seed
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.fake_clock import START_MS, FakeClock
from tests.sandbox.client import APP, Client, event, serving

DAY_MS = 86_400_000
NEW_YEAR_MS = 1_767_225_600_000


async def details(client: Client, app_id: str = APP) -> Any:
    answer = await client.call(GET_APP_DETAILS, applicationId=app_id)
    assert answer.status == 200
    return answer.json


# -- apps --------------------------------------------------------------------------------------------------------------


async def test_summaries_list_every_app_with_what_is_known_of_it(client: Client) -> None:
    made = await client.call(SETUP_APPLICATION, {"appName": "Example", "appCategory": "Documents"})
    assert (await client.call(GET_APP_SUMMARIES)).json == {
        "apps": [
            {"ApplicationId": APP, "AppName": APP, "AppStatus": "active"},
            {
                "ApplicationId": made.json["appId"],
                "AppName": "Example",
                "AppStatus": "active",
                "AppCategory": "Documents",
            },
        ]
    }


async def test_details_of_an_app_that_nothing_was_pushed_to_say_so(client: Client) -> None:
    assert await details(client) == {
        "ApplicationId": APP,
        "AppName": APP,
        "AppStatus": "active",
        "Activity": {"totalUsers": 0, "activeUsers": 0},
    }


async def test_active_are_the_addresses_of_the_30_days_up_to_the_newest_event(client: Client) -> None:
    await client.call(PUBLISH_PROVISIONED_USERS, {"users": [{"email": "a"}, {"email": "z"}, {"email": "a"}]}, appId=APP)
    await client.push(
        event(NEW_YEAR_MS, email="a"),
        event(NEW_YEAR_MS, email="A"),
        event(NEW_YEAR_MS - 30 * DAY_MS, email="b"),
        event(NEW_YEAR_MS - 30 * DAY_MS - 1, email="c"),
    )
    assert (await details(client))["Activity"] == {
        "totalUsers": 2,
        "activeUsers": 3,
        "lastActivityDate": "2026-01-01",
    }


@pytest.mark.parametrize("timestamp", [2**63 - 1, -(2**63)])
async def test_a_time_beyond_the_calendar_gives_no_last_day(client: Client, timestamp: int) -> None:
    await client.push(event(timestamp))
    assert (await details(client))["Activity"] == {"totalUsers": 0, "activeUsers": 1}


# -- workflows ---------------------------------------------------------------------------------------------------------

SEED = b"""{"workflows": [{"workflowId": "leavers", "workflowName": "Leavers", "executions": [
    {"executionId": "later", "startTime": "2026-01-02T01:00:00+01:00", "endTime": "2026-01-02T00:00:01Z"},
    {"executionId": "first", "status": "done", "startTime": "2026-01-01T00:00:00Z", "users": [{"email": "a"}]},
    {"executionId": "never"}]}]}"""


@pytest.fixture
async def seeded(client: Client, state: State) -> Client:
    await plant(state, read_seed(SEED))
    return client


async def test_workflows_and_executions_are_those_of_the_seed(seeded: Client) -> None:
    workflows = (await seeded.call(LIST_PROVISIONING_WORKFLOWS)).json
    assert workflows == {"workflows": [{"workflowId": "leavers", "workflowName": "Leavers"}]}
    found = await seeded.call(GET_PROVISIONING_WORKFLOW_EXECUTION, workflowId="leavers", executionId="first")
    assert found.json == {"executionId": "first", "workflowId": "leavers", "status": "done", "users": [{"email": "a"}]}
    missed = await seeded.call(GET_PROVISIONING_WORKFLOW_EXECUTION, workflowId="joiners", executionId="first")
    assert (missed.status, missed.json["error"]) == (404, "unknown_execution")


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ({}, ["never", "first", "later"]),
        ({"startTime": "2026-01-01T00:00:00Z"}, ["first", "later"]),
        ({"startTime": "2026-01-01T00:00:00.000001Z"}, ["later"]),
        ({"endTime": "2026-01-02T00:00:00Z"}, ["first"]),
        ({"startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-02T00:00:00.000001Z"}, ["first", "later"]),
        ({"startTime": "2026-01-02T00:00:00Z", "endTime": "2026-01-01T00:00:00Z"}, []),
        ({"workflowId": "unknown"}, []),
    ],
)
async def test_executions_are_found_by_when_they_started(
    seeded: Client, times: dict[str, str], found: list[str]
) -> None:
    answer = await seeded.call(LIST_PROVISIONING_EXECUTION_SUMMARIES, **({"workflowId": "leavers"} | times))
    assert [execution["executionId"] for execution in answer.json["executions"]] == found


@pytest.mark.parametrize("operation", [LIST_PROVISIONING_EXECUTION_SUMMARIES, GET_AUDIT_EVENTS], ids=lambda one: one.id)
@pytest.mark.parametrize("name", ["startTime", "endTime"])
@pytest.mark.parametrize("value", ["", "yesterday", "2026-01-01", "2026-01-01T00:00:00", "1767225600000"])
async def test_a_time_that_cannot_be_read_is_refused_by_name(
    client: Client, operation: Operation, name: str, value: str
) -> None:
    given = {"workflowId": "leavers"} if "{workflowId}" in operation.path else {}
    answer = await client.call(operation, **given, **{name: value})
    assert (answer.status, answer.json["error"]) == (400, "bad_request")
    assert answer.json["message"].startswith(f"{name}: ")


# -- audit events ------------------------------------------------------------------------------------------------------


async def test_what_the_sandbox_did_is_in_its_audit_events_once_a_request(
    session: aiohttp.ClientSession, state: State, clock: FakeClock
) -> None:
    async with serving(Sandbox(state, clock=clock)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        app = (await client.call(SETUP_APPLICATION, {"appName": "Example"})).json["appId"]
        await client.call(PUBLISH_PROVISIONED_USERS, {"users": [{"email": "a"}]}, appId=app)
        clock.advance(1.5)
        await client.call(PUBLISH_SPEND_DATA, {"spendData": [{}, {}]}, appId=app)
        await client.push(event(), app_id=app)
        await client.call(PUBLISH_ORG_CHART, {"users": [{"email": "a"}]})
        await client.call(PUBLISH_ORG_CHART, {"users": [{}]})
        events = (await client.call(GET_AUDIT_EVENTS)).json["events"]
    assert [(one["eventType"], one["details"]) for one in events] == [
        ("app.created", {"appId": app, "appName": "Example"}),
        ("users.set", {"appId": app, "users": 1}),
        ("spend.published", {"appId": app, "records": 2}),
        ("org_chart.published", {"users": 1}),
    ]
    assert {one["userEmail"] for one in events} == {"sandbox@example.com"}
    start = dt.datetime.fromtimestamp(START_MS / 1000, dt.UTC)
    times = [dt.datetime.fromisoformat(one["timestamp"]) for one in events]
    assert times == [start, start, *[start + dt.timedelta(seconds=1.5)] * 2]
    assert len({one["eventId"] for one in events}) == 4


async def fill(state: State, *events: tuple[str, int]) -> None:
    for event_id, second in events:
        document = f'{{"auditEvents":[{{"eventId":"{event_id}","timestamp":"2026-01-01T00:00:{second:02}Z"}}]}}'
        await plant(state, read_seed(document.encode()))


async def audit_ids(client: Client, **given: str) -> tuple[list[str], str | None]:
    answer = (await client.call(GET_AUDIT_EVENTS, **given)).json
    return [one["eventId"] for one in answer["events"]], answer.get("nextPageToken")


async def test_audit_events_come_by_time_and_id_from_the_start_to_before_the_end(client: Client, state: State) -> None:
    await fill(state, ("b", 2), ("a", 2), ("z", 1), ("y", 3))
    assert await audit_ids(client) == (["z", "a", "b", "y"], None)
    start, end = "2026-01-01T00:00:02Z", "2026-01-01T00:00:03Z"
    assert await audit_ids(client, startTime=start) == (["a", "b", "y"], None)
    assert await audit_ids(client, endTime=end) == (["z", "a", "b"], None)
    assert await audit_ids(client, startTime=start, endTime=end) == (["a", "b"], None)


async def many(state: State, count: int) -> list[str]:
    ids = [f"event {number:04}" for number in range(count)]
    listed = ",".join(f'{{"eventId":"{one}","timestamp":"2026-01-01T00:00:30Z"}}' for one in ids)
    await plant(state, read_seed(f'{{"auditEvents":[{listed}]}}'.encode()))
    return ids


@pytest.mark.parametrize("over", [-1, 0, 1, MAX_AUDIT_EVENTS_PER_PAGE + 1])
async def test_pages_hold_500_events_and_the_last_has_no_token(client: Client, state: State, over: int) -> None:
    ids = await many(state, MAX_AUDIT_EVENTS_PER_PAGE + over)
    pages = []
    page, token = await audit_ids(client)
    pages.append(page)
    while token is not None:
        page, token = await audit_ids(client, nextPageToken=token)
        pages.append(page)
    assert [one for page in pages for one in page] == ids
    assert {len(page) for page in pages[:-1]} <= {MAX_AUDIT_EVENTS_PER_PAGE}
    assert len(pages) == -(-len(ids) // MAX_AUDIT_EVENTS_PER_PAGE)


async def test_events_that_come_between_two_pages_shift_nothing(client: Client, state: State) -> None:
    ids = await many(state, MAX_AUDIT_EVENTS_PER_PAGE + 10)
    first, token = await audit_ids(client)
    assert token is not None
    await fill(state, ("early", 0), ("late", 59))
    second, end = await audit_ids(client, nextPageToken=token)
    assert ([*first, *second], end) == ([*ids, "late"], None)


async def test_a_page_token_holds_its_range_and_is_good_for_no_other(client: Client, state: State) -> None:
    ids = await many(state, MAX_AUDIT_EVENTS_PER_PAGE + 10)
    await fill(state, ("late", 59))
    end = {"endTime": "2026-01-01T00:00:59Z"}
    _, token = await audit_ids(client, **end)
    assert token is not None
    for given in ({}, end, {"endTime": "2026-01-01T01:00:59+01:00"}):
        assert await audit_ids(client, nextPageToken=token, **given) == (ids[MAX_AUDIT_EVENTS_PER_PAGE:], None)
    for given in ({"endTime": "2026-01-01T00:00:58Z"}, end | {"startTime": "2026-01-01T00:00:00Z"}):
        assert (await client.call(GET_AUDIT_EVENTS, nextPageToken=token, **given)).status == 400
    for garbage in ("x", "é", "=" * 50, token[:-1], token + "A", token[4:]):
        answer = await client.call(GET_AUDIT_EVENTS, nextPageToken=garbage)
        assert (answer.status, answer.json["error"]) == (400, "bad_request"), garbage


# -- how often ---------------------------------------------------------------------------------------------------------


async def test_20_exports_within_a_second_are_answered_and_no_more(
    session: aiohttp.ClientSession, state: State, clock: FakeClock
) -> None:
    async with serving(Sandbox(state, create_apps=True, clock=clock)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()

        async def statuses(count: int) -> list[int]:
            operations = [(GET_APP_SUMMARIES, GET_AUDIT_EVENTS)[number % 2] for number in range(count)]
            return sorted([(await client.call(operation)).status for operation in operations])

        assert await statuses(10) == [200] * 10
        clock.advance(0.5)
        assert await statuses(12) == [200] * 10 + [429] * 2
        refused = await client.call(GET_APP_SUMMARIES)
        assert (refused.headers["Retry-After"], refused.json["error"]) == ("1", "too_many_requests")
        assert (await client.push(event())).status == 200, "what is pushed has no such limit"
        clock.advance(0.5)
        assert await statuses(11) == [200] * 10 + [429], "the first ten are a second old"
        clock.advance(1.0)
        answers = await asyncio.gather(*(client.call(GET_APP_SUMMARIES) for _ in range(30)))
        assert sorted(answer.status for answer in answers) == [200] * EXPORT_REQUESTS_PER_SECOND + [429] * 10


async def test_whoever_has_no_token_does_not_use_up_the_rate(
    session: aiohttp.ClientSession, state: State, clock: FakeClock
) -> None:
    async with serving(Sandbox(state, clock=clock, export_limit=1)) as sandbox:
        client = Client(session, sandbox)
        assert (await client.call(GET_APP_SUMMARIES)).status == 401
        await client.authorize()
        assert [(await client.call(GET_APP_SUMMARIES)).status for _ in range(2)] == [200, 429]


async def test_the_rate_can_be_left_unlimited(session: aiohttp.ClientSession, state: State, clock: FakeClock) -> None:
    async with serving(Sandbox(state, clock=clock, export_limit=0)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        assert {(await client.call(GET_APP_SUMMARIES)).status for _ in range(60)} == {200}
