"""An upstream that takes every app."""

from collections.abc import AsyncIterator

import pytest

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State


@pytest.fixture
async def sandbox(state: State) -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0)
    yield sandbox
    await sandbox.stop()
    assert (await sandbox.stats()).unexpected == 0
