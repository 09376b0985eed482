"""Edge and central: two real collectors in a row before the sandbox, and books that are even over both."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import Books, Event
from tests.e2e.daemon import Daemon, running
from tests.e2e.oracle import Oracle, new_seed

KILLS = 2
SETTINGS = {"events__keep_fields": "note", "flush__hold_retry": "50ms"}


async def test_a_central_collector_that_is_killed_under_load_loses_and_doubles_nothing(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    folders = {"edge": tmp_path / "edge", "central": tmp_path / "central"}
    for folder in folders.values():
        folder.mkdir()
    oracle = Oracle(folders["edge"], sandbox, state, new_seed())
    central = await Daemon.start(folders["central"], sandbox.url, **SETTINGS)
    listen = central.url.removeprefix("http://")
    try:
        async with oracle.running(forward__url=central.url) as edge, oracle.load(edge):
            for _ in range(KILLS):
                await oracle.until_acknowledged(2_000)
                # After an outage the edge has its pause before it delivers again.
                await central.measures(lambda said: said["collector_events_total{source=http,verdict=accepted}"])
                await central.kill()
                await oracle.until_acknowledged(500)  # the edge takes events meanwhile
                central = await Daemon.start(folders["central"], sandbox.url, http__listen=listen, **SETTINGS)
        async with oracle.running(forward__url=central.url) as edge, aiohttp.ClientSession() as session:
            again = [oracle.books.sent[key] for key in sorted(oracle.books.remembered)]
            for start in range(0, len(again), 1000):
                await oracle.books.post(session, edge.url, again[start : start + 1000])
            await oracle.drained(edge)
            assert await edge.stop() == 0, edge.output
        await oracle.drained(central)
        assert await central.stop() == 0, central.output
    finally:
        await central.kill()
    queues = [folder / "queue" for folder in folders.values()]
    balance = await oracle.books.balance(state, queues)
    balance.assert_even()
    assert balance.delivered > KILLS * 2_000
    assert balance.buried


async def test_what_two_edges_are_sent_alike_counts_once_at_the_central_collector(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    books = Books()
    events = [Event("wiki", number, "person@example.com", "saved", f"note {number}") for number in range(2_500)]
    with_central = running(tmp_path / "central", sandbox.url, **SETTINGS)

    def edge(name: str, central: Daemon) -> AbstractAsyncContextManager[Daemon]:
        return running(tmp_path / name, sandbox.url, forward__url=central.url, **SETTINGS)

    async with with_central as central, edge("one", central) as one, edge("two", central) as two:
        async with aiohttp.ClientSession() as session:
            await books.post(session, one.url, events)
            books.forget()  # the other edge has not seen them
            await books.post(session, two.url, events[::-1])
        for daemon in (one, two):
            assert await daemon.stop() == 0, daemon.output
            assert daemon.log("agent.stopped")[0]["waiting_events"] == 0
        metrics = await central.metrics()
        assert await central.stop() == 0, central.output
    for verdict in ("accepted", "duplicate"):
        assert metrics[f"collector_events_total{{source=http,verdict={verdict}}}"] == 2_500
    assert (await sandbox.stats()).received == 2_500
    books.accepted = books.accepted // 2  # by each edge once
    books.swallowed = 0
    await books.check(state)
