"""The file of a sandbox is read by the version that made it."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from collector.errors import Unusable
from collector.sandbox.database import FILE_NAME, SCHEMA_VERSION, Database
from tests.sandbox.client import opened


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
async def test_a_file_of_another_version_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    place = tmp_path / FILE_NAME
    connection = sqlite3.connect(place)
    connection.executescript(f"CREATE TABLE app (app_id TEXT PRIMARY KEY); PRAGMA user_version = {version}")
    connection.close()
    before = place.read_bytes()
    with pytest.raises(Unusable, match=rf"version {version}, this program reads {SCHEMA_VERSION} only.*--data"):
        await Database.open(tmp_path)
    assert place.read_bytes() == before


async def test_a_file_of_this_version_is_taken_as_it_is(tmp_path: Path) -> None:
    for _ in range(2):
        async with opened(tmp_path) as state:
            await state.add_app("wiki", "Wiki")
            assert await state.has_app("wiki")


async def test_what_fails_in_a_transaction_is_undone_and_the_next_goes_on(tmp_path: Path) -> None:
    database = await Database.open(tmp_path)

    async def fail() -> None:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO request VALUES ('a', 1)")
            await connection.execute("INSERT INTO request VALUES ('a', 1)")

    try:
        with pytest.raises(sqlite3.IntegrityError):
            await fail()
        assert not list(await database.rows("SELECT * FROM request"))
        assert await database.execute("INSERT INTO request VALUES ('a', 1)") == 1
    finally:
        await database.close()


@pytest.mark.parametrize("turns", range(1, 9))
async def test_a_transaction_that_is_cancelled_anywhere_leaves_none_open(turns: int) -> None:
    database = await Database.open(None)

    async def change() -> None:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO request VALUES ('a', 1)")

    try:
        changing = asyncio.create_task(change())
        for _ in range(turns):
            await asyncio.sleep(0)
        changing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await changing
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO request VALUES ('b', 1)")
        assert [app_id for app_id, _ in await database.rows("SELECT * FROM request")][-1] == "b"
    finally:
        await database.close()
