"""What is pushed besides usage events: users, spend, the org chart; and that wrong bodies change nothing."""

import json
from typing import Any

import aiohttp
import pytest

from collector.contract.models import MAX_ORG_CHART_USERS_PER_REQUEST
from collector.contract.operations import (
    BY_ID,
    DELETE_PROVISIONED_USERS,
    GET_APP_DETAILS,
    GET_BATCH_UPLOAD_URLS,
    GET_PROVISIONED_USERS,
    OPERATIONS,
    PUBLISH_ORG_CHART,
    PUBLISH_PROVISIONED_USERS,
    PUBLISH_SPEND_DATA,
    SCOPE_READ,
    SCOPE_WRITE,
    SETUP_APPLICATION,
    Operation,
)
from collector.sandbox import server
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.sandbox.client import APP, BODIES, Client, given, serving

ANN = {"email": "ann@example.com", "firstName": "Ann", "role": "admin"}
BOB = {"email": "bob@example.com"}
DONE = {"success": True}


async def users(client: Client) -> Any:
    return (await client.call(GET_PROVISIONED_USERS, appId=APP)).json["users"]


async def spend(client: Client) -> Any:
    return (await client.call(GET_APP_DETAILS, applicationId=APP)).json.get("FiscalSpend")


async def org_chart(client: Client) -> Any:
    return (await client.request("GET", "/_sandbox/org-chart")).json


# -- users -------------------------------------------------------------------------------------------------------------


async def test_the_users_that_are_pushed_are_the_full_list(client: Client) -> None:
    assert await users(client) == []
    for pushed in ([ANN, BOB], [BOB], []):
        answer = await client.call(PUBLISH_PROVISIONED_USERS, {"users": pushed}, appId=APP)
        assert (answer.status, answer.json) == (200, DONE)
        assert await users(client) == pushed


async def test_of_two_users_with_one_address_the_later_counts(client: Client) -> None:
    await client.call(PUBLISH_PROVISIONED_USERS, {"users": [ANN, BOB, {"email": ANN["email"]}]}, appId=APP)
    assert await users(client) == [BOB, {"email": ANN["email"]}]


async def test_users_are_removed_by_address_and_it_does_not_matter_whether_they_were_there(client: Client) -> None:
    await client.call(PUBLISH_PROVISIONED_USERS, {"users": [ANN, BOB]}, appId=APP)
    for _ in range(2):
        removed = {"users": [{"email": ANN["email"]}, {"email": "Bob@example.com"}]}
        assert (await client.call(DELETE_PROVISIONED_USERS, removed, appId=APP)).status == 200
        assert await users(client) == [BOB]


async def test_users_of_one_app_are_not_those_of_another(client: Client, state: State) -> None:
    await state.add_app("other", "other")
    await client.call(PUBLISH_PROVISIONED_USERS, {"users": [ANN]}, appId=APP)
    await client.call(PUBLISH_PROVISIONED_USERS, {"users": [BOB]}, appId="other")
    await client.call(DELETE_PROVISIONED_USERS, {"users": [ANN]}, appId="other")
    assert await users(client) == [ANN]


# -- spend -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "total"),
    [
        ([], None),
        ([{}], {"totalSpend": 0.0}),
        (
            [{"amount": 1.5, "currency": "USD"}, {"amount": 2, "currency": "USD"}],
            {"totalSpend": 3.5, "currency": "USD"},
        ),
        (
            [{"amount": 9, "currency": "EUR"}, {"amount": 1, "currency": "USD"}, {"amount": 2, "currency": "USD"}],
            {"totalSpend": 3.0, "currency": "USD"},
        ),
        ([{"amount": 9, "currency": "USD"}, {"amount": 1, "currency": "EUR"}], {"totalSpend": 1.0, "currency": "EUR"}),
        ([{"amount": 1e308, "currency": "USD"}] * 2, {"currency": "USD"}),
    ],
    ids=["nothing", "without fields", "one currency", "most records", "of equals the first by name", "beyond a double"],
)
async def test_spend_is_totalled_in_the_currency_that_most_records_are_in(
    client: Client, records: list[object], total: object
) -> None:
    assert (await client.call(PUBLISH_SPEND_DATA, {"spendData": records}, appId=APP)).json == DONE
    assert await spend(client) == total


async def test_spend_that_is_pushed_twice_counts_twice(client: Client) -> None:
    for _ in range(2):
        body = {"spendData": [{"amount": 1, "currency": "USD", "date": "2026-01-15", "description": "seats"}]}
        await client.call(PUBLISH_SPEND_DATA, body, appId=APP)
    assert await spend(client) == {"totalSpend": 2.0, "currency": "USD"}


# -- the org chart -----------------------------------------------------------------------------------------------------


async def test_pages_of_the_org_chart_are_merged_by_address(client: Client) -> None:
    first = {"users": [ANN | {"title": "Lead"}, BOB], "customFieldsConfig": [{"name": "Unit", "type": "string"}]}
    second = {
        "users": [BOB | {"managerEmail": ANN["email"]}],
        "customFieldsConfig": [{"name": "Start", "type": "date"}],
    }
    for page in (first, second):
        answer = await client.call(PUBLISH_ORG_CHART, page)
        assert (answer.status, answer.json) == (200, DONE)
    assert await org_chart(client) == {
        "users": [
            {"email": ANN["email"], "firstName": "Ann", "title": "Lead"},
            {"email": BOB["email"], "managerEmail": ANN["email"]},
        ],
        "customFieldsConfig": [{"name": "Start", "type": "date"}, {"name": "Unit", "type": "string"}],
    }


async def test_more_than_1000_people_at_once_are_refused_and_none_is_kept(client: Client) -> None:
    people = [{"email": f"person{number}@example.com"} for number in range(MAX_ORG_CHART_USERS_PER_REQUEST + 1)]
    answer = await client.call(PUBLISH_ORG_CHART, {"users": people})
    assert answer.status == 400
    assert "1000" in answer.json["message"]
    assert (await org_chart(client))["users"] == []
    assert (await client.call(PUBLISH_ORG_CHART, {"users": people[:-1]})).status == 200
    assert len((await org_chart(client))["users"]) == 1000


# -- what every operation has in common --------------------------------------------------------------------------------

BEARERS = [operation for operation in OPERATIONS if operation.scope is not None]


@pytest.mark.parametrize("operation", BEARERS, ids=lambda operation: operation.id)
async def test_a_token_without_the_scope_of_an_operation_is_refused_with_401(
    client: Client, operation: Operation
) -> None:
    other = SCOPE_WRITE if operation.scope == SCOPE_READ else SCOPE_READ
    for scope, error in ((other, "insufficient_scope"), (None, "invalid_token")):
        if scope is None:
            client.token = ""
        else:
            await client.authorize(scope=scope)
        answer = await client.call(operation, BODIES.get(operation.id), **given(operation))
        assert (answer.status, answer.json["error"]) == (401, error)
        assert "Bearer" in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize("operation", BEARERS, ids=lambda operation: operation.id)
async def test_of_an_unknown_app_workflow_or_execution_the_contracts_status_is_answered(
    client: Client, operation: Operation
) -> None:
    names = given(operation, appId="nobodys", applicationId="nobodys")
    answer = await client.call(operation, BODIES.get(operation.id), **names)
    expected = {"getAppDetails": 404, "getProvisioningWorkflowExecution": 404}
    expected |= {one.id: 400 for one in BEARERS if "{appId}" in one.path} | {GET_PROVISIONED_USERS.id: 200}
    assert answer.status == expected.get(operation.id, 200)
    assert answer.status in {200, *operation.errors}
    assert answer.status == 200 or answer.json.keys() == {"error", "message"}


@pytest.mark.parametrize("operation", [BY_ID[name] for name in BODIES], ids=lambda operation: operation.id)
@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", "application/json"), (b"[]", "application/json"), (b"null", "application/json"), (b"{}", "text/plain")],
)
async def test_what_is_no_json_object_is_refused_with_400(
    client: Client, operation: Operation, body: bytes, content_type: str
) -> None:
    headers = {"Authorization": f"Bearer {client.token}", "Content-Type": content_type}
    path = operation.path.format(**given(operation))
    answer = await client.request(operation.method, path, data=body, headers=headers)
    assert (answer.status, answer.json["error"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("operation", "body", "about"),
    [
        (SETUP_APPLICATION, {"appName": "x", "appUrl": None}, r"`str`, got `null` - at `\$.appUrl`"),
        (PUBLISH_SPEND_DATA, {"spendData": None}, r"`array`, got `null` - at `\$.spendData`"),
        (PUBLISH_SPEND_DATA, {"spendData": [{"amount": "1"}]}, r"`float`, got `str` - at `\$.spendData\[0\].amount`"),
        (PUBLISH_SPEND_DATA, {"spendData": [{"date": "2026-02-30"}]}, r"date - at `\$.spendData\[0\].date`"),
        (PUBLISH_SPEND_DATA, {"spendData": [{"currency": None}]}, r"got `null` - at `\$.spendData\[0\].currency`"),
        (PUBLISH_PROVISIONED_USERS, {}, "required field `users`"),
        (PUBLISH_PROVISIONED_USERS, {"users": [ANN, {"role": "x"}]}, r"required field `email` - at `\$.users\[1\]`"),
        (PUBLISH_PROVISIONED_USERS, {"users": [ANN | {"role": None}]}, r"at `\$.users\[0\].role`"),
        (DELETE_PROVISIONED_USERS, {"users": [{"email": 7}]}, r"`str`, got `int` - at `\$.users\[0\].email`"),
        (PUBLISH_ORG_CHART, {"users": [{"managerEmail": "x"}]}, "required field `email`"),
        (PUBLISH_ORG_CHART, {"users": [ANN | {"title": None}]}, r"at `\$.users\[0\].title`"),
        (PUBLISH_ORG_CHART, {"customFieldsConfig": [{"type": None}]}, r"at `\$.customFieldsConfig\[0\].type`"),
    ],
)
async def test_a_wrong_field_is_named_with_what_is_allowed_and_nothing_changes(
    client: Client, operation: Operation, body: object, about: str
) -> None:
    await client.call(PUBLISH_PROVISIONED_USERS, {"users": [BOB]}, appId=APP)
    answer = await client.call(operation, body, **given(operation))
    assert answer.status == 400
    with pytest.raises(ValueError, match=about):
        raise ValueError(answer.json["message"])
    assert await users(client) == [BOB]
    assert await spend(client) is None
    assert await org_chart(client) == {"users": [], "customFieldsConfig": []}


async def test_fields_that_the_contract_does_not_name_are_ignored(client: Client) -> None:
    body = {"users": [ANN | {"team": None}], "more": None}
    assert (await client.call(PUBLISH_PROVISIONED_USERS, body, appId=APP)).status == 200
    assert await users(client) == [ANN]


async def test_apps_are_made_on_first_use_by_what_writes_but_not_by_what_is_refused(
    session: aiohttp.ClientSession, state: State
) -> None:
    async with serving(Sandbox(state, create_apps=True)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        assert (await client.call(PUBLISH_PROVISIONED_USERS, {"users": [{}]}, appId="refused")).status == 400
        assert (await client.call(GET_PROVISIONED_USERS, appId="asked-for")).json == {"users": []}
        for operation in (
            PUBLISH_SPEND_DATA,
            PUBLISH_PROVISIONED_USERS,
            DELETE_PROVISIONED_USERS,
            GET_BATCH_UPLOAD_URLS,
        ):
            answer = await client.call(operation, BODIES.get(operation.id), **given(operation, appId=operation.id))
            assert answer.status == 200
            assert await state.has_app(operation.id)
        assert not await state.has_app("refused")
        assert not await state.has_app("asked-for")


async def test_a_body_above_the_limit_is_refused_with_413(
    session: aiohttp.ClientSession, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1000)
    async with serving(Sandbox(state, create_apps=True)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        for size, status in ((900, 200), (1100, 413)):
            body = {"appName": "x" * (size - len(json.dumps({"appName": ""})))}
            assert (await client.call(SETUP_APPLICATION, body)).status == status
        assert (await sandbox.stats()).unexpected == 0


def test_an_operation_that_nobody_handles_is_found_when_a_sandbox_is_made(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "OPERATIONS", (*OPERATIONS, SETUP_APPLICATION._replace(id="newOne", path="/new")))
    with pytest.raises(KeyError, match="newOne"):
        Sandbox(state)
