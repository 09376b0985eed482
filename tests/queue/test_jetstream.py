"""The queue in JetStream: the contract on a real server, what is shared, what is refused, and what survives."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.clock import Clock
from collector.config.kinds import Seconds, Secret
from collector.config.model import JetStream
from collector.errors import CredentialsRefused, DeadLettersFull, QueueFull, QueueUnavailable, Unusable
from collector.observe.metrics import Metrics
from collector.queue.base import Burial, Queue, Verdict
from collector.queue.jetstream.connection import Connection
from collector.queue.jetstream.queue import JetStreamQueue
from collector.queue.jetstream.stream import Streams, app_token
from tests import nats
from tests.fake_clock import FakeClock
from tests.queue.contract import BATCH_EVENTS, QueueContract, available, lease, lease_all, numbers_of
from tests.queue.samples import batch

Opener = Callable[..., Awaitable[JetStreamQueue]]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nats.Server]:
    with nats.server(tmp_path_factory.mktemp("nats")) as one:
        yield one


@pytest.fixture
def settings(server: nats.Server) -> JetStream:
    """A stream of the test's own."""
    return JetStream(servers=(server.url,), replicas=1, stream=f"test{next(NUMBERS)}", lease_timeout=Seconds(1.0))


@pytest.fixture
async def open_queue(settings: JetStream, clock: FakeClock) -> AsyncIterator[Opener]:
    """Opens collectors of one fleet, and closes those that are open at its end."""
    opened: list[JetStreamQueue] = []

    async def open_one(
        *,
        max_bytes: int = 10**6,
        max_dead_bytes: int = 10**6,
        retention_seconds: float = 86_400,
        clock: Clock = clock,
        settings: JetStream = settings,
    ) -> JetStreamQueue:
        queue = JetStreamQueue(
            settings,
            batch_events=BATCH_EVENTS,
            max_bytes=max_bytes,
            max_uncommitted_bytes=10**6,
            max_dead_bytes=max_dead_bytes,
            dedup_retention_seconds=retention_seconds,
            clock=clock,
            metrics=Metrics(),
        )
        await queue.open()
        opened.append(queue)
        return queue

    yield open_one
    for queue in opened:
        await queue.close()


@pytest.fixture
async def queue(open_queue: Opener) -> Queue:
    return await open_queue()


class TestContract(QueueContract):
    """What any queue shows."""
