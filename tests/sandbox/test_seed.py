"""What a seed may say, and that a sandbox knows it from the start and after each reset."""

import json
import re
from pathlib import Path

import aiohttp
import pytest

from collector.contract.operations import (
    GET_APP_DETAILS,
    GET_APP_SUMMARIES,
    GET_AUDIT_EVENTS,
    GET_PROVISIONED_USERS,
    LIST_PROVISIONING_WORKFLOWS,
    PUBLISH_PROVISIONED_USERS,
)
from collector.sandbox.seed import Seed, read_seed
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.sandbox.client import Client, opened, serving

README = Path(__file__).parents[2] / "README.md"

DOCUMENT: dict[str, list[dict[str, object]]] = {
    "apps": [
        {
            "appId": "wiki",
            "appName": "Wiki",
            "appStatus": "retired",
            "vendorName": "Example Inc.",
            "appCategory": "Documents",
            "appDescription": "Where it is written",
            "appUrl": "https://wiki.example.com",
            "instances": [{"instanceId": "1", "instanceName": "main"}],
            "contracts": [
                {"contractId": "7", "startDate": "2026-01-01", "endDate": "2026-12-31", "totalValue": 1200.0}
            ],
            "compliance": {"standards": ["ISO 27001"]},
            "ssoProtocols": ["SAML"],
            "users": [{"email": "person@example.com", "role": "admin"}],
            "spendData": [{"amount": 100, "currency": "EUR", "date": "2026-01-15"}],
        }
    ],
    "workflows": [{"workflowId": "leavers"}],
    "auditEvents": [{"eventId": "1", "timestamp": "2026-01-15T10:30:00Z", "details": {"from": None}}],
}
SEED = read_seed(json.dumps(DOCUMENT).encode())


async def test_all_that_a_seed_says_of_an_app_is_answered(session: aiohttp.ClientSession, state: State) -> None:
    async with serving(Sandbox(state, seed=SEED)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        app = DOCUMENT["apps"][0]
        summary = {
            "ApplicationId": "wiki",
            "AppName": "Wiki",
            "AppStatus": "retired",
            "VendorName": "Example Inc.",
        }
        assert (await client.call(GET_APP_SUMMARIES)).json == {"apps": [summary | {"AppCategory": "Documents"}]}
        assert (await client.call(GET_APP_DETAILS, applicationId="wiki")).json == summary | {
            "Instances": app["instances"],
            "Activity": {"totalUsers": 1, "activeUsers": 0},
            "Contracts": app["contracts"],
            "FiscalSpend": {"totalSpend": 100.0, "currency": "EUR"},
            "Compliance": app["compliance"],
            "SSOProtocols": app["ssoProtocols"],
        }
        assert (await client.call(GET_PROVISIONED_USERS, appId="wiki")).json == {"users": app["users"]}
        assert (await client.call(GET_AUDIT_EVENTS)).json == {"events": DOCUMENT["auditEvents"]}


async def test_a_reset_brings_the_seed_back(session: aiohttp.ClientSession, state: State) -> None:
    async with serving(Sandbox(state, seed=SEED)) as sandbox:
        client = Client(session, sandbox)
        await client.authorize()
        await client.call(PUBLISH_PROVISIONED_USERS, {"users": []}, appId="wiki")
        await state.add_app("other", "other")
        await client.request("POST", "/_sandbox/reset")
        assert len((await client.call(GET_PROVISIONED_USERS, appId="wiki")).json["users"]) == 1
        assert len((await client.call(GET_APP_SUMMARIES)).json["apps"]) == 1
        assert (await client.call(GET_AUDIT_EVENTS)).json == {"events": DOCUMENT["auditEvents"]}


async def test_a_seed_changes_nothing_of_an_app_that_is_in_the_data_already(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    for life in range(3):
        async with opened(tmp_path) as state, serving(Sandbox(state, seed=SEED)) as sandbox:
            client = Client(session, sandbox)
            await client.authorize()
            details = (await client.call(GET_APP_DETAILS, applicationId="wiki")).json
            assert details["FiscalSpend"]["totalSpend"] == 100.0
            assert details["Activity"]["totalUsers"] == (1 if life == 0 else 0)
            await client.call(PUBLISH_PROVISIONED_USERS, {"users": []}, appId="wiki")
            assert len((await client.call(LIST_PROVISIONING_WORKFLOWS)).json["workflows"]) == 1


def test_a_seed_may_be_empty() -> None:
    assert read_seed(b"{}") == Seed()


@pytest.mark.parametrize(
    ("document", "about"),
    [
        (b"", "truncated"),
        (b"[]", "got `array`"),
        (b"\xff", "malformed"),
        (b"[" * 100_000, "array"),
        (b'{"app":[]}', "unknown field `app`"),
        (b'{"apps":[{}]}', r"`appId` - at `\$.apps\[0\]`"),
        (b'{"apps":[{"appId":"a","name":"b"}]}', r"unknown field `name` - at `\$.apps\[0\]`"),
        (b'{"apps":[{"appId":"a","users":[{"mail":"b"}]}]}', r"`email` - at `\$.apps\[0\].users\[0\]`|`mail`"),
        (b'{"apps":[{"appId":"a","vendorName":null}]}', r"got `null` - at `\$.apps\[0\].vendorName`"),
        (b'{"apps":[{"appId":"a","contracts":[{"startDate":"soon"}]}]}', r"date - at `\$.apps\[0\].contracts\[0\]"),
        (b'{"workflows":[{"workflowId":"a","executions":[{"startTime":"x"}]}]}', r"executions\[0\]"),
        (b'{"auditEvents":[{"eventId":"a"}]}', "`timestamp`"),
        (b'{"auditEvents":[{"eventId":"a","timestamp":"2026-01-01T00:00:00"}]}', r"timezone.*auditEvents\[0\]"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_seed_that_cannot_be_meant_is_refused_with_the_field(document: bytes, about: str) -> None:
    with pytest.raises(ValueError, match=about):
        read_seed(document)


def test_the_seed_in_the_readme_is_one() -> None:
    [example] = re.findall(r"^```json\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    seed = read_seed(example.encode())
    assert all([seed.apps, seed.workflows, seed.workflows[0].executions, seed.audit_events])
