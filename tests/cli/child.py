"""`collector …` as a child process: never left behind, and all it said at its end."""

import asyncio
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.e2e.daemon import command
from tests.patience import PATIENCE_SECONDS

SECONDS = PATIENCE_SECONDS


class Ended(NamedTuple):
    """How a process ended, and what it said."""

    status: int
    out: str
    err: str


def own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("COLLECTOR_")}


@asynccontextmanager
async def started(
    *words: str, env: Mapping[str, str] | None = None, stdin: int = PIPE, stdout: int = PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, for the length of a block; killed at its end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        *command(*words),
        env=own_environment() if env is None else env,
        stdin=stdin,
        stdout=stdout,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def finish(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
    out, err = await asyncio.wait_for(process.communicate(stdin), SECONDS)
    assert process.returncode is not None
    return Ended(process.returncode, (out or b"").decode(), err.decode())


async def run(*words: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Ended:
    async with started(*words, env=env) as process:
        return await finish(process, stdin)
