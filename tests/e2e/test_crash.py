"""`kill -9`, at random instants and at every named step: nothing that was acknowledged is lost, doubled or altered.

`make test` does 20 rounds, `make soak` a thousand. Failures that are proven harmless here: the death of the process
while it writes, commits, flushes, settles, prunes, migrates, checkpoints, starts or stops, again and again on one file.
"""

import random
from inspect import isfunction
from pathlib import Path

import aiohttp

from collector.queue.sqlite.database import SQL
from collector.queue.sqlite.store import Store
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import Books, random_event, settled
from tests.e2e.crashes import NOT_TAKEN, Figures, crashes
from tests.e2e.daemon import running
from tests.e2e.oracle import new_seed
from tests.e2e.rigged import steps

ROUNDS = 20


async def test_twenty_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    figures, seed = Figures(), new_seed()
    await crashes(tmp_path, seed=seed, rounds=ROUNDS, figures=figures, first=seed)
    assert not figures.missed
    assert figures.kills == ROUNDS
    assert figures.acknowledged > ROUNDS


def test_every_public_method_of_the_store_and_every_statement_is_a_step_at_which_the_daemon_is_killed() -> None:
    methods = {f"store.Store.{name}" for name, value in vars(Store).items() if isfunction(value) and name[0] != "_"}
    assert methods | {f"sql.{name}" for name in SQL} <= set(steps())
    assert set(NOT_TAKEN) <= set(steps())


async def test_events_that_wait_survive_a_kill_while_upstream_is_down(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    books, rng = Books(), random.Random(1)
    settings = {"events__keep_fields": "note"}
    async with running(tmp_path, "http://127.0.0.1:1", **settings) as daemon, aiohttp.ClientSession() as session:
        await books.post(session, daemon.url, [random_event(rng) for _ in range(2_500)])
    async with running(tmp_path, sandbox.url, **settings) as daemon:
        await settled(state, books.accepted)
        assert await daemon.stop() == 0
    assert (await books.balance(state)).lost == []
