"""Somebody who speaks to the sandbox, with and without a token."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.sandbox.client import APP, Client


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def stranger(session: aiohttp.ClientSession, sandbox: Sandbox) -> Client:
    """Has no token."""
    return Client(session, sandbox)


@pytest.fixture
async def client(stranger: Client, state: State) -> Client:
    """Has a token, and there is an app."""
    await state.add_app(APP, APP)
    await stranger.authorize()
    return stranger
