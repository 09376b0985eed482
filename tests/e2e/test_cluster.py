"""A fleet on three real JetStream servers: leaders die, nodes vanish, collectors are killed, and the books are even."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from collector.config.model import JetStream
from collector.errors import QueueUnavailable
from collector.queue.jetstream.connection import Connection
from tests import nats
from tests.e2e.books import APPS
from tests.e2e.oracle import Oracle, new_seed, oracle_in
from tests.patience import PATIENCE_SECONDS

NUMBERS = itertools.count()
ENOUGH = 3000
Fleet = Callable[[], AbstractAsyncContextManager[Oracle]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[nats.Server]]:
    with nats.cluster(tmp_path_factory.mktemp("cluster"), syncs=True) as three:
        yield three


@pytest.fixture
async def oracle(servers: list[nats.Server], tmp_path: Path) -> AsyncIterator[Oracle]:
    """Books over daemons that share a stream of the test's own."""
    settings = {
        "queue__backend": "jetstream",
        "jetstream__servers": ",".join(server.url for server in servers),
        "jetstream__stream": f"test{next(NUMBERS)}",
        "jetstream__lease_timeout": "2s",
    }
    await all_well(servers)
    async with oracle_in(tmp_path, new_seed(), settings) as one:
        yield one


@asynccontextmanager
async def connected(servers: list[nats.Server]) -> AsyncIterator[Connection]:
    connection = Connection(JetStream(servers=tuple(server.url for server in servers)))
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


async def all_well(servers: list[nats.Server]) -> None:
    """The cluster has a leader that knows of all three servers."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                async with connected(servers) as connection:
                    made = await connection.request("STREAM.CREATE.probe", {"name": "probe", "num_replicas": 3})
                    await connection.request("STREAM.DELETE.probe")
                    if made["cluster"]["leader"]:
                        return
            except Exception:  # noqa: BLE001 - until it works
                await asyncio.sleep(0.2)


async def leader(servers: list[nats.Server], oracle: Oracle) -> nats.Server:
    """The server that leads the stream."""
    async with connected(servers) as connection:
        info = await connection.request(f"STREAM.INFO.{oracle.settings['jetstream__stream']}")
    return next(server for server in servers if server.name == info["cluster"]["leader"])


async def test_the_leader_dies_under_load_and_comes_back(servers: list[nats.Server], oracle: Oracle) -> None:
    async with oracle.running() as daemon, oracle.load(daemon, may_be_refused=True):
        await oracle.until_acknowledged(ENOUGH)
        dead = await leader(servers, oracle)
        dead.kill()
        await oracle.until_acknowledged(ENOUGH)
        dead.start()
        dead.wait()
    await oracle.close_books()


async def test_a_server_that_nobody_hears_from_any_more_is_done_without(
    servers: list[nats.Server], oracle: Oracle
) -> None:
    async with oracle.running() as daemon, oracle.load(daemon, may_be_refused=True):
        await oracle.until_acknowledged(ENOUGH)
        lost = await leader(servers, oracle)
        lost.freeze()
        try:
            await oracle.until_acknowledged(ENOUGH)
        finally:
            lost.thaw()
        await oracle.until_acknowledged(ENOUGH)
    await oracle.close_books()


async def test_leaders_of_the_stream_and_of_its_consumers_step_down_again_and_again_under_load(
    servers: list[nats.Server], oracle: Oracle
) -> None:
    stream = oracle.settings["jetstream__stream"]
    subjects = [f"STREAM.LEADER.STEPDOWN.{stream}", *(f"CONSUMER.LEADER.STEPDOWN.{stream}.{app}" for app in APPS)]
    async with AsyncExitStack() as stack:
        for _ in range(2):
            daemon = await stack.enter_async_context(oracle.running())
            await stack.enter_async_context(oracle.load(daemon, clients=2, may_be_refused=True))
        await oracle.until_acknowledged(ENOUGH)
        connection = await stack.enter_async_context(connected(servers))
        for subject in subjects * 2:
            with contextlib.suppress(QueueUnavailable):  # the leader of before is not followed by another one yet
                await connection.request(subject)
            await oracle.until_acknowledged(ENOUGH // 10)
    await oracle.close_books()


async def test_all_servers_die_at_once_and_nothing_acknowledged_is_gone(
    servers: list[nats.Server], oracle: Oracle
) -> None:
    async with oracle.running() as daemon, oracle.load(daemon, may_be_refused=True):
        await oracle.until_acknowledged(ENOUGH)
        for server in servers:
            server.kill()
        assert "JetStream" in (await daemon.until_readiness_is(503)) or "NATS" in (await daemon.readiness())[1]
        for server in servers:
            server.start()
        await daemon.until_readiness_is(200)
        await oracle.until_acknowledged(ENOUGH)
    await oracle.close_books()


async def test_of_three_collectors_one_is_killed_and_the_others_deliver_what_it_held(oracle: Oracle) -> None:
    async with AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(oracle.running()) for _ in range(3)]
        for daemon in fleet:
            await stack.enter_async_context(oracle.load(daemon, clients=2, may_be_refused=True))
        await oracle.until_acknowledged(ENOUGH)
        await fleet[0].kill()
        await oracle.until_acknowledged(ENOUGH)
    balance = await oracle.close_books()
    assert balance.buried


async def test_collectors_that_start_at_once_make_one_stream_and_are_one_fleet(oracle: Oracle) -> None:
    async with AsyncExitStack() as stack:
        fleet = [oracle.running() for _ in range(3)]
        for daemon in await asyncio.gather(*map(stack.enter_async_context, fleet)):
            await stack.enter_async_context(oracle.load(daemon, clients=1, may_be_refused=True))
        await oracle.until_acknowledged(ENOUGH)
    await oracle.close_books()
