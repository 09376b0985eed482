"""`collector queue …` where the queue is a stream: the same words, beside a running daemon and without one."""

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from tests import nats
from tests.cli.test_queue import POISONED, Desk, events, keys
from tests.e2e.books import Books
from tests.e2e.daemon import environment, running

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nats.Server]:
    with nats.server(tmp_path_factory.mktemp("nats")) as one:
        yield one


@pytest.fixture
def upstream(upstream: Sandbox) -> Sandbox:
    upstream.set_faults(Fault(status=400, event_name="poison", body="not to my taste"))
    return upstream


def settings(server: nats.Server, stream: str) -> dict[str, str]:
    return {
        "queue__backend": "jetstream",
        "jetstream__servers": server.url,
        "jetstream__replicas": "1",
        "jetstream__stream": stream,
    }


async def test_the_queue_by_hand_is_the_same_with_a_stream(
    tmp_path: Path, server: nats.Server, upstream: Sandbox
) -> None:
    ours, desk, books = settings(server, "byhand"), Desk(tmp_path), Books()
    desk.env = environment(tmp_path, NOWHERE, **ours)
    async with running(tmp_path, upstream.url, **ours) as daemon:
        async with aiohttp.ClientSession() as session:
            await books.post(session, daemon.url, events(1000))
        await daemon.measures(lambda said: not said["collector_waiting_events"])
        stats = await desk.answer("queue", "stats")
        assert (stats["waitingEvents"], stats["deadEvents"], stats["rememberedKeys"]) == (0, 3, 1000)
        assert stats["apps"][0]["appId"] == "wiki"
        assert "not to my taste" in await desk.ask("queue", "dead", "list", "--app", "wiki")
        assert await desk.ask("queue", "check") == "the queue is sound\n"
        assert await daemon.stop() == 0
    assert keys(await desk.ask("queue", "dead", "export")) == {("wiki", number) for number in POISONED}
    assert await desk.answer("queue", "dead", "purge", "--number", "2", "--yes") == {"purged": 1}
    assert await desk.answer("queue", "dead", "retry", "--reason", "taste") == {"retried": 2}
    assert keys(await desk.ask("queue", "export")) == {("wiki", 0), ("wiki", 999)}
    assert await desk.answer("queue", "bury", "--app", "wiki", "--reason", "by hand", "--yes") == {"buried": 2}
    assert (await desk.ask("queue", "dead", "list", "--reason", "by hand")).endswith("2 dead letters\n")
    assert "sqlite" in await desk.ask("queue", "recover", status=1)
    assert "sqlite" in await desk.ask("queue", "backup", str(tmp_path / "copy"), status=1)
    assert "kept" in await desk.ask("replay", "--since", "-1d", status=1)


async def test_a_stream_that_is_missing_or_different_is_said_to_be_so(tmp_path: Path, server: nats.Server) -> None:
    desk = Desk(tmp_path)
    desk.env = environment(tmp_path, NOWHERE, **settings(server, "nothere"))
    assert "there is no stream 'nothere'" in await desk.ask("queue", "stats", status=1)
