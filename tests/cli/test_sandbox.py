"""`collector sandbox` as a child process: the upstream that people try things out with."""

import asyncio
import re
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.sandbox.server import SandboxStats
from tests.cli.child import finish, own_environment, run, started
from tests.patience import PATIENCE_SECONDS

PUSH = "/services/push/v1/customer/apps/wiki/usage-events"


class Child:
    """One run of `collector sandbox`."""

    def __init__(self, process: asyncio.subprocess.Process, said: str, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.said = said
        match = re.search(r"listens on (\S+)", said)
        assert match is not None, said
        self.url = match[1]
        self._session = session

    async def token(self) -> str:
        form = {"grant_type": "client_credentials", "client_id": "sandbox", "client_secret": "sandbox"}
        async with self._session.post(f"{self.url}/oauth2/token", data=form) as response:
            answer = msgspec.json.decode(await response.read(), type=dict[str, object])
        return str(answer["access_token"])

    async def push(self, token: str, *timestamps: int) -> int:
        events = [{"timestamp": stamp, "email": "person@example.com", "eventName": "viewed"} for stamp in timestamps]
        async with self._session.post(
            self.url + PUSH, json={"events": events}, headers={"Authorization": f"Bearer {token}"}
        ) as response:
            await response.read()
            return response.status

    async def stats(self) -> SandboxStats:
        async with self._session.get(f"{self.url}/_sandbox/stats") as response:
            return msgspec.json.decode(await response.read(), type=SandboxStats)


@asynccontextmanager
async def sandbox(*words: str) -> AsyncIterator[Child]:
    # Not PYTHONUNBUFFERED: what it says must come through a pipe by its own doing.
    async with (
        started("sandbox", "--listen", "127.0.0.1:0", *words, env=own_environment()) as process,
        aiohttp.ClientSession() as session,
    ):
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS)
        yield Child(process, said.decode(), session)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_listens_serves_and_ends_with_status_0_on_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with sandbox("--data", str(tmp_path / "kept"), "--create-apps") as child:
        assert "client_id=sandbox client_secret=sandbox" in child.said
        token = await child.token()
        assert await child.push(token, 1, 2, 3) == 200
        assert await child.push(token, 3, 4) == 200
        child.process.send_signal(number)
        ended = await finish(child.process)
    assert ended == (0, "sandbox received 5 events, 4 distinct, in 2 requests\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_kept_data_survives_a_restart(tmp_path: Path, number: signal.Signals) -> None:
    options = ("--data", str(tmp_path / "not" / "there" / "yet"), "--create-apps")
    async with sandbox(*options) as child:
        assert await child.push(await child.token(), 1, 2, 3) == 200
        child.process.send_signal(number)
        await finish(child.process)
    async with sandbox(*options) as child:
        assert (await child.stats()).distinct == 3
        assert await child.push(await child.token(), 3, 4) == 200
        stats = await child.stats()
        assert (stats.received, stats.distinct, stats.requests) == (5, 4, 2)


async def test_without_data_nothing_is_kept_and_no_file_is_written(tmp_path: Path) -> None:
    for _ in range(2):
        async with sandbox("--create-apps") as child:
            assert (await child.stats()).distinct == 0
            assert await child.push(await child.token(), 1) == 200
    assert not list(tmp_path.iterdir())


async def test_without_create_apps_an_app_that_nobody_set_up_is_refused() -> None:
    async with sandbox() as child:
        assert await child.push(await child.token(), 1) == 400
        assert (await child.stats()).received == 0


async def test_the_faults_of_a_file_are_in_force(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text('{"faults": [{"status": 503, "times": 2}, {"moreThan": 2, "status": 413}]}')
    async with sandbox("--create-apps", "--faults", str(script)) as child:
        token = await child.token()
        assert [await child.push(token, 1) for _ in range(3)] == [503, 503, 200]
        assert await child.push(token, 1, 2, 3) == 413
        assert (await child.stats()).distinct == 1


async def test_a_cut_reaches_the_client(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text('{"faults": [{"cut": true, "times": 1}, {"cut": true, "raw": "HTTP/1.1 299 half", "times": 1}]}')
    async with sandbox("--create-apps", "--faults", str(script)) as child:
        token = await child.token()
        for said in ("^Server disconnected$", "code=299"):
            with pytest.raises(aiohttp.ServerDisconnectedError, match=said):
                await child.push(token, 1)
        assert (await child.stats()).received == 0
        assert await child.push(token, 1) == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"faults": [{"status": 99}]}', b'{"faults": [{"statsu": 500}]}'],
)
async def test_a_broken_faults_file_is_a_clean_error(tmp_path: Path, content: bytes) -> None:
    script = tmp_path / "faults.json"
    script.write_bytes(content)
    ended = await run("sandbox", "--listen", "127.0.0.1:0", "--faults", str(script))
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"collector: {script}: ")
    assert "Traceback" not in ended.err


async def test_a_seed_file_and_an_export_limit_are_taken(tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_text('{"apps": [{"appId": "wiki", "users": [{"email": "person@example.com"}]}]}')
    async with sandbox("--seed", str(seed), "--export-limit", "1") as child, aiohttp.ClientSession() as session:
        token = await child.token()
        assert await child.push(token, 1) == 200
        headers = {"Authorization": f"Bearer {token}"}
        statuses = []
        for _ in range(2):
            async with session.get(
                f"{child.url}/services/export/v1/customer/app-details/wiki", headers=headers
            ) as answer:
                statuses.append(answer.status)
        assert statuses == [200, 429]


async def test_a_broken_seed_is_a_clean_error_that_names_the_field(tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_text('{"apps": [{"appID": "wiki"}]}')
    ended = await run("sandbox", "--listen", "127.0.0.1:0", "--seed", str(seed))
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"collector: {seed}: ")
    assert "appI" in ended.err
    assert "Traceback" not in ended.err


async def test_a_directory_for_data_that_cannot_be_made_is_a_clean_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("by a file")
    ended = await run("sandbox", "--listen", "127.0.0.1:0", "--data", f"{tmp_path}/taken/new")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"collector: {tmp_path}/taken/new/sandbox.sqlite3: Not a directory\n"


async def test_data_of_another_version_is_a_clean_error(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "sandbox.sqlite3")
    connection.execute("CREATE TABLE app (app_id TEXT)")
    connection.close()
    ended = await run("sandbox", "--listen", "127.0.0.1:0", "--data", str(tmp_path))
    assert (ended.status, ended.out) == (1, "")
    assert "schema version" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1", ":", "127.0.0.1:http"])
async def test_a_bad_listen_is_wrong_usage(listen: str) -> None:
    ended = await run("sandbox", f"--listen={listen}")
    assert (ended.status, ended.out) == (2, "")
    assert "--listen" in ended.err
    assert "Traceback" not in ended.err


async def test_a_missing_faults_file_is_wrong_usage(tmp_path: Path) -> None:
    ended = await run("sandbox", "--faults", str(tmp_path / "missing.json"))
    assert ended.status == 2
    assert "missing.json" in ended.err


async def test_an_address_in_use_is_named() -> None:
    async with sandbox() as child:
        listen = child.url.removeprefix("http://")
        ended = await run("sandbox", "--listen", listen)
    assert (ended.status, ended.out) == (1, "")
    assert f"cannot listen on {listen}: Address already in use\n" in ended.err
    assert "Traceback" not in ended.err
