"""What several tests stand on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import settings

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from collector.upstream.transport import Transport
from tests.fake_clock import FakeClock

# How long an example takes says nothing about the property, and much about who else uses the machine.
settings.register_profile("collector", deadline=None)
settings.load_profile("collector")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def state() -> AsyncIterator[State]:
    state = await State.open()
    yield state
    await state.close()


@pytest.fixture
async def sandbox(state: State) -> AsyncIterator[Sandbox]:
    """An upstream that knows no app, and takes it amiss if it is asked for what no operation expects."""
    async with _serving(Sandbox(state)) as sandbox:
        yield sandbox


@pytest.fixture
async def upstream(state: State) -> AsyncIterator[Sandbox]:
    """The same that takes events of every app."""
    async with _serving(Sandbox(state, create_apps=True)) as sandbox:
        yield sandbox


@asynccontextmanager
async def _serving(sandbox: Sandbox) -> AsyncIterator[Sandbox]:
    await sandbox.start("127.0.0.1", 0)
    yield sandbox
    await sandbox.stop()
    assert (await sandbox.stats()).unexpected == 0


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    transport = Transport(timeout_seconds=30)
    await transport.open()
    yield transport
    await transport.close()
