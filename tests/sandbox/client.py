"""Speaks to the sandbox by plain HTTP, as anybody could; nothing of the collector's own way out is in it."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from collector.contract.operations import GET_ACCESS_TOKEN, PUBLISH_USAGE_EVENTS, Operation
from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, Sandbox
from collector.sandbox.state import State

APP = "the-app"
FORM = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}

# What every operation can be called with.
GIVEN = {"appId": APP, "applicationId": APP, "workflowId": "none", "executionId": "none", "filenames": "a.csv"}
BODIES: dict[str, object] = {
    "setupApplication": {"appName": "Example"},
    "publishUsageEvents": {"events": []},
    "publishSpendData": {"spendData": []},
    "publishProvisionedUsers": {"users": [{"email": "user@example.com"}]},
    "deleteProvisionedUsers": {"users": [{"email": "user@example.com"}]},
    "publishOrgChart": {"users": [{"email": "user@example.com"}]},
}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One who has a token after `authorize`, and none before."""

    def __init__(self, session: aiohttp.ClientSession, sandbox: Sandbox) -> None:
        self._session = session
        self._url = sandbox.url
        self.token = ""

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        async with self._session.request(method, self._url + path, **options) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def ask_token(self, **form: str) -> Answer:
        return await self.request("POST", GET_ACCESS_TOKEN.path, data=FORM | form)

    async def authorize(self, **form: str) -> None:
        answer = await self.ask_token(**form)
        assert answer.status == 200
        self.token = answer.json["access_token"]

    async def post(self, path: str, body: bytes, content_type: str = "application/json") -> Answer:
        headers = {"Content-Type": content_type} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        return await self.request("POST", path, data=body, headers=headers)

    async def push(self, *events: object, app_id: str = APP) -> Answer:
        return await self.post(
            PUBLISH_USAGE_EVENTS.path.replace("{appId}", app_id), json.dumps({"events": events}).encode()
        )

    async def call(self, operation: Operation, body: object = None, **given: Any) -> Answer:
        """An operation of the contract: its path's parameters and the others by name, and a body as JSON."""
        path = operation.path.format(**{name: quote(str(value), safe="") for name, value in given.items()})
        query = {name: value for name, value in given.items() if f"{{{name}}}" not in operation.path}
        headers = {"Authorization": f"Bearer {self.token}"}
        return await self.request(operation.method, path, params=query, headers=headers, json=body)

    async def stats(self) -> Any:
        return (await self.request("GET", "/_sandbox/stats")).json


def event(number: int = 0, **fields: object) -> dict[str, object]:
    return {"timestamp": number, "email": "user@example.com", "eventName": "login"} | fields


def given(operation: Operation, **others: str) -> dict[str, str]:
    return {
        parameter.name: (GIVEN | others)[parameter.name] for parameter in operation.parameters if parameter.is_required
    }


@asynccontextmanager
async def opened(directory: Path | None = None) -> AsyncIterator[State]:
    """A state; closed however the test ends, for its thread would keep the process alive."""
    state = await State.open(directory)
    try:
        yield state
    finally:
        await state.close()


@asynccontextmanager
async def serving(sandbox: Sandbox) -> AsyncIterator[Sandbox]:
    """The sandbox, listening."""
    await sandbox.start("127.0.0.1", 0)
    try:
        yield sandbox
    finally:
        await sandbox.stop()
