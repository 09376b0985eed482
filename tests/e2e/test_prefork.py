"""A pre-fork server with the collector in the program that it loads: workers are killed under load, nothing is lost."""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.daemon import environment
from tests.patience import until

APP = "wiki"
WORKERS = 4
KILLS = 4

PROGRAM = """
import os
from collector import SyncCollector
from collector.config import load

collector = SyncCollector(load(environment=dict(os.environ)))

def app(environ, start_response):
    number = int(environ["PATH_INFO"][1:])
    verdict = collector.record(email="user@example.com", event_name="saved", timestamp_ms=number)
    collector.record_nowait(email="nobody@example.com", event_name="seen", timestamp_ms=number)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {verdict.value}".encode()]
"""


@asynccontextmanager
async def served(folder: Path, upstream_url: str) -> AsyncIterator[Path]:
    """gunicorn, which loads the program before it forks; where its socket is."""
    (folder / "program.py").write_text(PROGRAM)
    listens_on = folder / "http.sock"
    settings = (
        "--preload",
        f"--workers={WORKERS}",
        f"--bind=unix:{listens_on}",
        f"--chdir={folder}",
        "--no-control-socket",
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gunicorn", *settings, "program:app"),
        env=environment(folder, upstream_url, apps__default=APP, stop__deadline="1s"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        def listens() -> bool:
            assert process.returncode is None
            return listens_on.exists()

        await until(listens)
        yield listens_on
    finally:
        process.terminate()
        await process.wait()


async def test_workers_that_are_killed_lose_nothing_and_another_delivers(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    await state.add_app(APP, APP)
    numbers = itertools.count(1)
    acknowledged: set[int] = set()
    sent: set[int] = set()
    workers: set[str] = set()
    killed = [0]  # and nobody yet delivers where there is no number
    stop = asyncio.Event()

    async def client(session: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            number = next(numbers)
            sent.add(number)
            try:
                async with session.post(f"http://localhost/{number}") as answer:
                    if answer.status == 200:
                        worker, verdict = (await answer.text()).split()
                        assert verdict == "accepted"
                        workers.add(worker)
                        acknowledged.add(number)
            except aiohttp.ClientError:
                pass  # its worker was killed

    async with served(tmp_path, sandbox.url) as listens_on:
        connector = aiohttp.UnixConnector(str(listens_on), force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as clients:
            for _ in range(8):
                clients.create_task(client(session))
            for kill in range(1, KILLS + 1):

                def is_due(goal: int = kill * 100) -> bool:
                    return len(acknowledged) >= goal and _flusher(tmp_path) not in killed

                await until(is_due)
                killed.append(_flusher(tmp_path))
                os.kill(killed[-1], signal.SIGKILL)
            await until(lambda: len(workers) > WORKERS)  # one is new, in the place of those that were killed
            stop.set()

        async def all_is_there() -> bool:
            return acknowledged <= await _delivered(state)

        await until(all_is_there, pause_seconds=0.02)
    assert await _delivered(state) <= sent
    assert len(set(killed)) == 1 + KILLS


def _flusher(folder: Path) -> int:
    """The process that delivers."""
    return int((folder / "queue" / "flusher.lock").read_text() or 0)


async def _delivered(state: State) -> set[int]:
    """The numbers of the events that were recorded with an acknowledgement, at the sandbox."""
    events = [json.loads(line) for _, line in await state.events()]
    return {event["timestamp"] for event in events if event["email"] == "user@example.com"}
