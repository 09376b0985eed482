"""The client of all fifteen operations, against the real sandbox over real sockets."""

import asyncio
import datetime as dt
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.config.model import Upstream
from collector.contract.models import (
    MAX_AUDIT_EVENTS_PER_PAGE,
    AppSetup,
    AuditEvent,
    CustomField,
    Event,
    OrgChartUser,
    ProvisionedUser,
    SpendRecord,
)
from collector.contract.operations import BY_ID, OPERATIONS, SCOPE_READ, SCOPE_WRITE
from collector.errors import (
    AppUnusable,
    ChunkFailed,
    CollectorError,
    CredentialsRefused,
    MalformedAnswer,
    NotDone,
    OutcomeUnknown,
    Rejected,
    Retryable,
    TooLarge,
    Unusable,
)
from collector.sandbox.faults import Fault
from collector.sandbox.grants import CLIENT_ID, CLIENT_SECRET
from collector.sandbox.seed import Seed, read_seed
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from collector.upstream.calls import ATTEMPTS, WHERE_TO_LOOK
from collector.upstream.client import AUDIT_WINDOW, Client, upload_queries
from tests.embedded import config
from tests.fake_clock import FakeClock

APP = "the-app"
DAY = dt.timedelta(days=1)
T0 = dt.datetime(2026, 1, 15, tzinfo=dt.UTC)

SEED: Seed = read_seed(
    json.dumps(
        {
            "apps": [{"appId": APP, "appName": "The App"}],
            "workflows": [
                {
                    "workflowId": "w",
                    "workflowName": "Offboarding",
                    "executions": [
                        {
                            "executionId": str(day),
                            "startTime": (T0 + day * DAY).isoformat(),
                            "users": [{"email": "user@example.com", "suggestedOutcome": "remove"}],
                        }
                        for day in range(3)
                    ],
                }
            ],
        }
    ).encode()
)


class Instant(FakeClock):
    """Whoever sleeps is awake at once; how long they meant to sleep is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)


@pytest.fixture
async def sandbox(state: State) -> AsyncIterator[Sandbox]:
    """A sandbox that knows an app and a workflow, and limits nobody."""
    sandbox = Sandbox(state, seed=SEED, export_limit=0)
    await sandbox.start("127.0.0.1", 0)
    yield sandbox
    await sandbox.stop()
    assert (await sandbox.stats()).unexpected == 0


@pytest.fixture
def clock() -> Instant:
    return Instant()


@pytest.fixture
def settings(sandbox: Sandbox, tmp_path: Path) -> Upstream:
    return config(tmp_path, sandbox.url).upstream


@pytest.fixture
async def client(settings: Upstream, clock: Instant) -> AsyncIterator[Client]:
    async with Client(settings, clock=clock) as client:
        yield client


async def _audit(client: Client) -> list[Any]:
    return [event async for event in client.audit_events(T0, T0 + DAY)]


CALLS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "getAccessToken": lambda client: client.access_token(),
    "setupApplication": lambda client: client.create_app(AppSetup("Wiki")),
    "publishUsageEvents": lambda client: client.push_events(APP, [Event(1, "user@example.com", "saved")]),
    "publishSpendData": lambda client: client.push_spend(APP, [SpendRecord(1.5, "USD", T0.date())]),
    "publishProvisionedUsers": lambda client: client.set_users(APP, [ProvisionedUser("user@example.com")]),
    "getProvisionedUsers": lambda client: client.list_users(APP),
    "deleteProvisionedUsers": lambda client: client.delete_users(APP, ["user@example.com"]),
    "publishOrgChart": lambda client: client.push_org_chart([OrgChartUser("user@example.com")]),
    "getBatchUploadUrls": lambda client: client.upload_urls(APP, ["report.csv"]),
    "getAppSummaries": lambda client: client.list_apps(),
    "getAppDetails": lambda client: client.show_app(APP),
    "listProvisioningWorkflows": lambda client: client.list_workflows(),
    "listProvisioningExecutionSummaries": lambda client: client.list_executions("w"),
    "getProvisioningWorkflowExecution": lambda client: client.show_execution("w", "1"),
    "getAuditEvents": _audit,
}
"""One call of each operation, which succeeds."""

CALLED = [name for name in CALLS if name != "getAccessToken"]
ANSWERED = [name for name in CALLED if BY_ID[name].answer is not None]
REPLAYED = [name for name in CALLED if BY_ID[name].is_replayable]
NOT_REPLAYED = [name for name in CALLED if not BY_ID[name].is_replayable]


async def failure(client: Client, name: str) -> CollectorError:
    """What a call raises; of a chunk the reason why it failed."""
    with pytest.raises(CollectorError) as caught:
        await CALLS[name](client)
    error = caught.value
    assert name in str(error)
    if isinstance(error, ChunkFailed):
        assert isinstance(error.__cause__, CollectorError)
        return error.__cause__
    return error


def test_every_operation_is_called_here() -> None:
    assert list(CALLS) == [operation.id for operation in OPERATIONS]
    assert set(WHERE_TO_LOOK) == set(NOT_REPLAYED) == {"setupApplication", "publishSpendData"}


# -- each operation ----------------------------------------------------------------------------------------------------


async def test_an_app_that_was_made_is_listed_and_shown(client: Client) -> None:
    app = await client.create_app(AppSetup("Wiki", app_category="Docs"))
    assert app.app_name == "Wiki"
    assert {"Wiki", "The App"} <= {summary.app_name for summary in await client.list_apps()}
    assert (await client.show_app(app.app_id)).app_name == "Wiki"


async def test_events_are_pushed_by_the_thousand(client: Client, state: State, sandbox: Sandbox) -> None:
    assert await client.push_events(APP, (Event(n, "user@example.com", "saved") for n in range(2500))) == 2500
    assert (await state.stats()).distinct == 2500
    assert (await sandbox.stats()).requests == 3


async def test_users_are_set_listed_and_deleted(client: Client) -> None:
    users = [ProvisionedUser(f"user{n}@example.com", role="editor") for n in range(3)]
    await client.set_users(APP, users)
    assert sorted(await client.list_users(APP), key=lambda user: user.email) == users
    await client.set_users(APP, users[:2])
    await client.delete_users(APP, [users[0].email])
    assert list(await client.list_users(APP)) == [users[1]]


async def test_spend_is_booked(client: Client) -> None:
    await client.push_spend(APP, [SpendRecord(1.5, "USD", T0.date()), SpendRecord(2.25, "USD", T0.date(), "seats")])
    details = await client.show_app(APP)
    assert details.fiscal_spend is not None
    assert (details.fiscal_spend.total_spend, details.fiscal_spend.currency) == (3.75, "USD")


async def test_an_org_chart_is_pushed_by_the_thousand(client: Client, state: State) -> None:
    people = [OrgChartUser(f"user{n}@example.com", manager_email="boss@example.com") for n in range(1500)]
    assert await client.push_org_chart(people, [CustomField("Entity", "string")]) == 1500
    assert len((await state.records.org_chart())["users"]) == 1500


async def test_custom_fields_are_pushed_where_there_are_no_people(
    client: Client, sandbox: Sandbox, state: State
) -> None:
    assert await client.push_org_chart([], [CustomField("Entity", "string")]) == 0
    assert list(map(bytes, (await state.records.org_chart())["customFieldsConfig"])) == [
        b'{"name":"Entity","type":"string"}'
    ]
    requests = (await sandbox.stats()).requests
    assert await client.push_org_chart([]) == 0
    assert (await sandbox.stats()).requests == requests


async def test_workflows_and_executions_are_read(client: Client) -> None:
    assert [workflow.workflow_name for workflow in await client.list_workflows()] == ["Offboarding"]
    within = await client.list_executions("w", T0 + DAY, T0 + 2 * DAY)
    assert [execution.execution_id for execution in within] == ["1"]
    execution = await client.show_execution("w", "2")
    assert execution.users is not None
    assert [user.suggested_outcome for user in execution.users] == ["remove"]


@pytest.mark.parametrize("scope", [SCOPE_WRITE, SCOPE_READ])
async def test_a_token_is_fetched(client: Client, scope: str) -> None:
    token = await client.access_token(scope)
    assert token.access_token
    assert token.access_token not in repr(token)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in CALLED if "{appId}" in BY_ID[name].path and 400 in BY_ID[name].errors]
)
async def test_an_unknown_app_is_said(client: Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "APP", "nobodys")
    assert "nobodys" in str(await failure(client, name))


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_a_name_that_cannot_stand_in_a_path_is_refused(client: Client, name: str) -> None:
    with pytest.raises(AppUnusable):
        await client.list_users(name)
    with pytest.raises(Rejected):
        await client.show_app(name)


async def test_text_that_is_not_utf_8_is_refused_and_not_sent(client: Client, sandbox: Sandbox) -> None:
    for attempt in (
        client.list_users("\udce9"),
        client.upload_urls(APP, ["\udce9.csv"]),
        client.create_app(AppSetup("\udce9")),
        client.delete_users(APP, ["\udce9@example.com"]),
    ):
        with pytest.raises(Rejected, match=r"\\udce9.* is not UTF-8"):
            await attempt
    assert (await sandbox.stats()).unexpected == 0


@pytest.mark.parametrize("wrong", ["file:///secret", "http://[", "", "report.csv"])
async def test_an_upload_url_that_is_none_is_said_at_once(
    client: Client, sandbox: Sandbox, clock: Instant, tmp_path: Path, wrong: str
) -> None:
    file = tmp_path / "report.csv"
    file.touch()
    answer = json.dumps({"uploadUrls": [{"filename": file.name, "uploadUrl": wrong}]})
    sandbox.set_faults(Fault(operation="getBatchUploadUrls", status=200, body=answer))
    with pytest.raises(MalformedAnswer, match=r"upload of 'report.csv': the uploadUrl that upstream gave is no http"):
        await client.upload(APP, [file])
    assert clock.slept == []


async def test_what_is_not_there_is_said(client: Client) -> None:
    with pytest.raises(Rejected, match="getAppDetails: 404"):
        await client.show_app("nobodys")
    with pytest.raises(Rejected, match="getProvisioningWorkflowExecution: 404"):
        await client.show_execution("w", "nobodys")


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize(
    ("status", "meaning"),
    [(400, Rejected), (401, CredentialsRefused), (404, Rejected), (405, Unusable), (302, Unusable)],
)
async def test_an_error_names_its_operation_and_is_not_tried_again(
    client: Client, sandbox: Sandbox, clock: Instant, name: str, status: int, meaning: type[CollectorError]
) -> None:
    sandbox.set_faults(Fault(operation=name, status=status, body='{"message": "because"}'))
    assert isinstance(await failure(client, name), meaning)
    assert clock.slept == []


async def test_a_refused_token_is_renewed_once(client: Client, sandbox: Sandbox) -> None:
    await client.list_apps()
    sandbox.forget_tokens()
    await client.list_apps()
    assert (await sandbox.stats()).tokens == 2


WRONG_SHAPES = {
    "empty": "",
    "HTML": "<!doctype html><title>Sign in</title>",
    "truncated": '{"apps": [{"Applica',
    "null": "null",
    "another type": "[1, 2]",
    "nothing in it": "{}",
}


@pytest.mark.parametrize("shape", WRONG_SHAPES)
@pytest.mark.parametrize("name", ANSWERED)
async def test_an_answer_of_the_wrong_shape_is_a_clear_error(
    client: Client, sandbox: Sandbox, name: str, shape: str
) -> None:
    sandbox.set_faults(Fault(operation=name, status=200, body=WRONG_SHAPES[shape]))
    error = await failure(client, name)
    expected = Retryable if shape == "HTML" else MalformedAnswer
    assert isinstance(error, OutcomeUnknown if name in NOT_REPLAYED else expected)
    if shape == "nothing in it":
        required = answer_of(name).__struct_encode_fields__[0]  # the contract's own name of what is missing
        assert required in str(error)


def answer_of(name: str) -> Any:
    """The type of an operation's answer."""
    return BY_ID[name].answer


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("value", [None, 7, {"unexpected": True}], ids=["null", "number", "object"])
async def test_a_field_of_the_wrong_type_is_named(client: Client, sandbox: Sandbox, name: str, value: Any) -> None:
    required = answer_of(name).__struct_encode_fields__[0]
    sandbox.set_faults(Fault(operation=name, status=200, body=json.dumps({required: value})))
    error = await failure(client, name)
    assert isinstance(error, OutcomeUnknown if name in NOT_REPLAYED else MalformedAnswer)
    assert f"$.{required}" in str(error)


@pytest.mark.parametrize("name", ANSWERED)
async def test_more_fields_than_the_contract_has_and_nulls_in_place_of_missing_ones_do_no_harm(
    client: Client, sandbox: Sandbox, name: str
) -> None:
    kind = answer_of(name)
    answer = dict.fromkeys(kind.__struct_encode_fields__) | {"new": {"in": ["v2"]}}
    required, field_type = kind.__struct_encode_fields__[0], kind.__annotations__[kind.__struct_fields__[0]]
    item = {"filename": "report.csv", "uploadUrl": "http://localhost/x"} if name == "getBatchUploadUrls" else None
    answer[required] = "x" if field_type is str else [item] if item else []
    sandbox.set_faults(Fault(operation=name, status=200, body=json.dumps(answer)))
    await CALLS[name](client)


# -- trying again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPLAYED)
@pytest.mark.parametrize(
    "fault", [Fault(status=503), Fault(cut=True), Fault(cut=True, after=True), Fault(status=429)], ids=str
)
async def test_what_may_be_done_twice_is_tried_again(
    client: Client, sandbox: Sandbox, clock: Instant, name: str, fault: Fault
) -> None:
    sandbox.set_faults(msgspec.structs.replace(fault, operation=name, times=ATTEMPTS - 1))
    await CALLS[name](client)
    retried_by_aiohttp = fault.cut and BY_ID[name].method in {"GET", "PUT", "DELETE"}  # RFC 9110 section 9.2.2
    assert len(clock.slept) == (ATTEMPTS - 1) // (2 if retried_by_aiohttp else 1)


async def test_in_the_end_it_gives_up_and_says_why(client: Client, sandbox: Sandbox, clock: Instant) -> None:
    sandbox.set_faults(Fault(operation="getAppSummaries", status=503, body="overloaded"))
    assert str(await failure(client, "getAppSummaries")) == "getAppSummaries: 503: overloaded"
    assert len(clock.slept) == ATTEMPTS - 1


async def test_a_wait_that_upstream_asks_for_is_kept(client: Client, sandbox: Sandbox, clock: Instant) -> None:
    sandbox.set_faults(Fault(operation="getAppSummaries", status=429, headers={"Retry-After": "7"}, times=1))
    await client.list_apps()
    assert 7 <= clock.slept[0] < 8


@pytest.mark.parametrize("name", NOT_REPLAYED)
@pytest.mark.parametrize(
    "fault",
    [Fault(status=503), Fault(status=500), Fault(cut=True, after=True), Fault(status=200, body='{"success": false}')],
    ids=str,
)
async def test_what_may_not_be_done_twice_is_not_and_the_error_says_where_to_look(
    client: Client, sandbox: Sandbox, clock: Instant, name: str, fault: Fault
) -> None:
    sandbox.set_faults(msgspec.structs.replace(fault, operation=name))
    error = await failure(client, name)
    assert isinstance(error, OutcomeUnknown)
    assert "before you try again" in str(error)
    assert clock.slept == []


@pytest.mark.parametrize("name", NOT_REPLAYED)
async def test_what_was_certainly_not_done_is_tried_again_whatever_it_is(
    client: Client, sandbox: Sandbox, clock: Instant, name: str
) -> None:
    sandbox.set_faults(Fault(operation=name, status=429, times=2), Fault(operation="getAccessToken", cut=True, times=1))
    await CALLS[name](client)
    assert len(clock.slept) == 3


async def test_an_upstream_that_is_not_there_has_certainly_not_acted(settings: Upstream, clock: Instant) -> None:
    elsewhere = msgspec.structs.replace(settings, base_url="http://127.0.0.1:9")
    async with Client(elsewhere, clock=clock) as client:
        with pytest.raises(NotDone, match=r"publishSpendData: cannot connect to 127\.0\.0\.1:9: Connection refused$"):
            await CALLS["publishSpendData"](client)
    assert len(clock.slept) == ATTEMPTS - 1


# -- chunks ------------------------------------------------------------------------------------------------------------


async def test_a_chunk_that_fails_is_named_with_what_is_upstream_already(
    client: Client, sandbox: Sandbox, state: State
) -> None:
    sandbox.set_faults(Fault(operation="publishUsageEvents", event_name="poison", status=400, body="no"))
    events = [Event(n, "user@example.com", "poison" if n == 1700 else "saved") for n in range(2500)]
    with pytest.raises(ChunkFailed, match="chunk 2, items 1001 to 2000, failed; 1000 are upstream") as caught:
        await client.push_events(APP, events)
    assert (caught.value.done, caught.value.last) == (1000, 2000)
    assert isinstance(caught.value.__cause__, Rejected)
    assert (await state.stats()).distinct == 1000


async def test_a_chunk_that_is_too_large_is_halved_and_so_are_those_after_it(
    client: Client, sandbox: Sandbox, state: State
) -> None:
    sandbox.set_faults(Fault(operation="publishUsageEvents", more_than=300, status=413))
    assert await client.push_events(APP, (Event(n, "user@example.com", "saved") for n in range(2500))) == 2500
    stats = await state.stats()
    assert (stats.distinct, stats.received) == (2500, 2500)


async def test_one_event_that_is_too_large_is_named(client: Client, sandbox: Sandbox, state: State) -> None:
    sandbox.set_faults(Fault(operation="publishUsageEvents", event_name="large", status=413))
    events = [Event(n, "user@example.com", "large" if n == 2 else "saved") for n in range(4)]
    with pytest.raises(ChunkFailed, match=r"items 3 to 3, failed; 2 are upstream.*413") as caught:
        await client.push_events(APP, events)
    assert isinstance(caught.value.__cause__, TooLarge)
    assert (await state.stats()).distinct == 2


# -- the export limit --------------------------------------------------------------------------------------------------


async def test_the_limit_on_exports_is_never_met(state: State, tmp_path: Path) -> None:
    sandbox = Sandbox(state, seed=SEED)  # as the contract has it: 20 requests a second
    await sandbox.start("127.0.0.1", 0)
    clock = Instant()
    async with Client(config(tmp_path, sandbox.url).upstream, clock=clock) as client:
        for _ in range(30):
            await client.list_workflows()
    await sandbox.stop()
    assert clock.slept == []  # no 429


# -- audit events ------------------------------------------------------------------------------------------------------


async def _seeded_audit(state: State, count: int, step: dt.timedelta) -> None:
    for number in range(count):
        event = {"eventId": f"{number:06}", "timestamp": (T0 + number * step).isoformat()}
        await state.records.add_audit_event(
            msgspec.convert(event, AuditEvent),
            int((T0 + number * step).timestamp() * 1e6),
        )


async def test_audit_events_come_page_by_page_and_each_once(client: Client, state: State) -> None:
    count = 2 * MAX_AUDIT_EVENTS_PER_PAGE + 7
    await _seeded_audit(state, count, dt.timedelta(seconds=1))
    seen = [event.event_id async for event in client.audit_events(T0, T0 + DAY)]
    assert seen == [f"{number:06}" for number in range(count)]


async def test_a_range_is_asked_for_in_windows_that_meet_without_gap_or_overlap(
    client: Client, state: State, clock: Instant
) -> None:
    await _seeded_audit(state, 100, AUDIT_WINDOW / 20)
    until = T0 + 4.5 * AUDIT_WINDOW
    clock.jump(until.timestamp() - clock.now_ms() / 1000)
    seen = [event.event_id async for event in client.audit_events(T0, until)]
    assert seen == [f"{number:06}" for number in range(90)]


@pytest.mark.parametrize(("since", "requests"), [(T0, 3), (T0 + 50 * AUDIT_WINDOW, 1), (None, 1)])
async def test_windows_that_are_wholly_in_the_future_are_not_asked_for(
    client: Client, sandbox: Sandbox, clock: Instant, since: dt.datetime | None, requests: int
) -> None:
    clock.jump((T0 + 1.5 * AUDIT_WINDOW).timestamp() - clock.now_ms() / 1000)
    empty = Fault(operation="getAuditEvents", status=200, body='{"events": []}', times=requests)
    sandbox.set_faults(empty, Fault(operation="getAuditEvents", status=400, body="one request too many"))
    assert not [event async for event in client.audit_events(since, T0 + 60 * AUDIT_WINDOW)]


async def test_the_end_of_the_range_is_fixed_when_the_first_page_is_asked_for(
    client: Client, state: State, clock: Instant
) -> None:
    start = dt.datetime.fromtimestamp(clock.now_ms() / 1000, dt.UTC) - dt.timedelta(seconds=600)
    for number in range(2 * MAX_AUDIT_EVENTS_PER_PAGE):
        at = start + dt.timedelta(seconds=number)  # the last 400 of them are in the future
        await state.records.add_audit_event(AuditEvent(f"{number:06}", None, at), int(at.timestamp() * 1e6))
    seen = []
    async for event in client.audit_events(start):
        seen.append(event.event_id)
        clock.advance(10)
    assert len(seen) == 600


async def test_a_page_token_that_comes_again_ends_it_with_an_error(client: Client, sandbox: Sandbox) -> None:
    page = {"events": [{"eventId": "1"}], "nextPageToken": "again"}
    sandbox.set_faults(Fault(operation="getAuditEvents", status=200, body=json.dumps(page)))
    pages = client.audit_events(T0, T0 + DAY)
    assert [(await anext(pages)).event_id, (await anext(pages)).event_id] == ["1", "1"]
    with pytest.raises(MalformedAnswer, match="nextPageToken"):
        await anext(pages)


async def test_a_page_token_that_is_refused_is_no_reason_to_give_up_for_good(
    client: Client, state: State, sandbox: Sandbox
) -> None:
    await _seeded_audit(state, MAX_AUDIT_EVENTS_PER_PAGE + 1, dt.timedelta(seconds=1))
    pages = client.audit_events(T0, T0 + DAY)
    await anext(pages)
    sandbox.set_faults(Fault(operation="getAuditEvents", status=400, body="the token has expired"))
    with pytest.raises(Retryable, match="the token has expired; from the first page on it may succeed"):
        [event async for event in pages]
    with pytest.raises(Rejected):
        await anext(client.audit_events(T0, T0 + DAY))


async def test_a_time_without_a_zone_is_refused(client: Client) -> None:
    with pytest.raises(Rejected, match="startTime: 2026-01-15T00:00:00 has no time zone"):
        await client.list_executions("w", T0.replace(tzinfo=None))


# -- uploads -----------------------------------------------------------------------------------------------------------


async def test_files_are_streamed_to_their_signed_urls(
    client: Client, sandbox: Sandbox, state: State, tmp_path: Path
) -> None:
    contents = {"small.csv": b"a,b\n", "large.bin": os.urandom(3 * 2**20 + 5), "empty.txt": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    sent: dict[str, list[int]] = {name: [] for name in contents}
    sandbox.set_faults(Fault(operation="upload", status=503, times=2))
    await client.upload(
        APP,
        [tmp_path / name for name in contents],
        lambda file, total: sent[file.name].append(total),
    )
    uploads = {upload.filename: upload.bytes for upload in await state.records.uploads()}
    assert uploads == {name: len(content) for name, content in contents.items()}
    assert [totals[-1:] for totals in sent.values()] == [[4], [3 * 2**20 + 5], []]
    assert sent["small.csv"] == [4, 4, 4]


@pytest.mark.parametrize("letter", ["x", "ß", "画"])
async def test_more_file_names_than_fit_into_one_request_get_their_urls_too(client: Client, letter: str) -> None:
    longest = letter * (250 // len(letter.encode()))
    names = [f"{number}{longest}" for number in range(50)] + [f"{number}.csv" for number in range(500)]
    assert list(await client.upload_urls(APP, names)) == names


def test_no_query_of_file_names_is_longer_than_any_server_takes_but_for_one_name_alone() -> None:
    names = ["x", *["y" * 500] * 9, "画" * 255, "z", "\udce9"]
    queries = list(upload_queries(names))
    assert [name for query in queries for _, name in query] == names
    assert [len(query) for query in queries] == [4, 4, 2, 1, 2]
    assert list(upload_queries([])) == []


async def test_a_url_that_is_refused_is_asked_for_anew(client: Client, sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "report.csv").write_bytes(b"a,b\n")
    sandbox.set_faults(Fault(operation="upload", status=403, times=1))
    await client.upload(APP, [tmp_path / "report.csv"])
    sandbox.set_faults(Fault(operation="upload", status=403))
    with pytest.raises(CredentialsRefused, match=r"upload of 'report\.csv': 403"):
        await client.upload(APP, [tmp_path / "report.csv"])


async def test_an_upload_carries_no_token_and_its_url_is_in_no_log_and_no_error(
    client: Client, sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report.csv").write_bytes(b"a,b\n")
    url = (await client.upload_urls(APP, ["report.csv"]))["report.csv"]
    secret = url.rpartition("=")[2]
    with caplog.at_level(logging.DEBUG):
        for fault in (Fault(status=403), Fault(status=500, body=url), Fault(cut=True), Fault(status=400, body=url)):
            sandbox.set_faults(msgspec.structs.replace(fault, operation="upload"))
            with pytest.raises(CollectorError) as caught:
                await client._calls.upload(url, tmp_path / "report.csv", None)
            assert secret not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert secret not in caplog.text


async def test_a_url_whose_host_cannot_be_is_said_and_not_shown(client: Client, tmp_path: Path) -> None:
    (tmp_path / "report.csv").write_bytes(b"a,b\n")
    url = f"http://{'a' * 64}.example.com/?signed=secret"
    with pytest.raises(Unusable, match=r"upload of 'report\.csv': the URL's host cannot be a host's name") as caught:
        await client._calls.upload(url, tmp_path / "report.csv", None)
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("signed", "sent"),
    [
        ("/b%40c/a%7Eb%2Fc.csv?X-Key=A%2F1&sig=ab%2Bc%2Fd%3D%3D&x=%7e%3A", None),
        ("/größe.csv?sig=a", "/gr%C3%B6%C3%9Fe.csv?sig=a"),
    ],
)
async def test_a_signed_url_is_asked_for_to_the_letter_with_no_header_that_nobody_signed(
    client: Client, tmp_path: Path, signed: str, sent: str | None
) -> None:
    (tmp_path / "report.csv").write_bytes(b"a,b\n")
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as storage:
        host, port = storage.sockets[0].getsockname()
        await client._calls.upload(f"http://{host}:{port}{signed}", tmp_path / "report.csv", None)
    [head] = heads
    assert head.startswith(f"PUT {sent or signed} HTTP/1.1\r\n".encode())
    assert b"content-type" not in head.lower()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("rubbish\r\n\r\n", "what answers there does not speak HTTP"),
        ('HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"apps":', "the answer broke off, or cannot be decoded"),
        (
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nxxxx",
            "the answer broke off, or cannot be",
        ),
    ],
)
async def test_an_answer_that_is_no_whole_http_is_said_in_one_line_without_the_url(
    client: Client, sandbox: Sandbox, raw: str, said: str
) -> None:
    sandbox.set_faults(Fault(operation="getAppSummaries", cut=True, raw=raw))
    with pytest.raises(Retryable) as caught:
        await client.list_apps()
    message = str(caught.value)
    assert message.startswith(f"getAppSummaries: {said}")
    assert "\n" not in message
    assert sandbox.url not in message


async def test_files_of_one_name_are_refused_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(Rejected, match=r"two files are called 'x\.csv'"):
        await client.upload(APP, [tmp_path / "x.csv", tmp_path / "a" / "x.csv"])


async def test_a_file_that_cannot_be_read_is_named(client: Client, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"missing\.csv: No such file"):
        await client.upload(APP, [tmp_path / "missing.csv"])


async def test_a_pipe_is_refused_rather_than_waited_for(client: Client, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(Unusable, match="pipe: not a regular file"):
        await client.upload(APP, [pipe])


def test_the_credentials_are_the_sandboxs(settings: Upstream) -> None:
    assert settings.client_secret is not None
    assert (settings.client_id, settings.client_secret.reveal()) == (CLIENT_ID, CLIENT_SECRET)
