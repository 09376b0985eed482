"""`collector api …` as a child process, beside a real sandbox."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

import msgspec
import pytest

from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, Sandbox
from tests.cli.child import Ended, own_environment, run

APP = "wiki"


class Api(Protocol):
    def __call__(self, *words: str, stdin: str = "", **settings: str) -> "asyncio.Future[Ended]": ...


def environment(sandbox: Sandbox, **settings: str) -> dict[str, str]:
    credentials = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    upstream: Mapping[str, str] = {
        "base_url": sandbox.url,
        "token_url": f"{sandbox.url}/oauth2/token",
        **credentials,
        **settings,
    }
    return own_environment() | {f"COLLECTOR_UPSTREAM__{name}".upper(): value for name, value in upstream.items()}


@pytest.fixture
def api(sandbox: Sandbox) -> Api:
    """Runs a command to its end; settings are those of [upstream]."""

    def start(*words: str, stdin: str = "", **settings: str) -> "asyncio.Future[Ended]":
        return asyncio.ensure_future(_run(words, stdin, environment(sandbox, **settings)))

    return start


async def _run(words: tuple[str, ...], stdin: str, env: Mapping[str, str]) -> Ended:
    ended = await run("api", *words, stdin=stdin.encode(), env=env)
    assert "Traceback" not in ended.err
    return ended


def rows(ended: Ended) -> list[dict[str, object]]:
    return [msgspec.json.decode(line, type=dict[str, object]) for line in ended.out.splitlines()]
