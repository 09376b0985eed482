"""A collector as its users run it: a child process with its own environment."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.rigged import Rig
from tests.patience import PATIENCE_SECONDS, until
from tests.settings import sandboxed, variables

ROOT = Path(__file__).parents[2]


class NotStartedError(AssertionError):
    """The daemon ended before it listened; the message is what it said."""

    status: int | None = None


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "collector", *words]


def environment(folder: Path, upstream_url: str, **settings: str) -> dict[str, str]:
    """What a daemon needs to run in `folder` and deliver to a sandbox; settings are `section__key="value"`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("COLLECTOR_")}
    defaults = sandboxed(folder, upstream_url) | {
        "http__listen": "127.0.0.1:0",
        "flush__linger": "50ms",
        "flush__backoff_base": "20ms",
        "flush__backoff_max": "200ms",
        "log__format": "json",
    }
    return own | variables(defaults | settings)


class Daemon:
    """One run of `collector run`: its process, where it listens, and what it logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._logged: list[str] = []
        self._said_more = asyncio.Event()
        self._started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read_log())

    @classmethod
    async def start(
        cls,
        folder: Path,
        upstream_url: str,
        rig: Rig | None = None,
        variables: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        /,
        **settings: str,
    ) -> "Daemon":
        """A daemon that listens. Raises NotStartedError if it does not come to that.

        A `rig` says what is wrong with it; `variables` are added to its environment; `wrapper` is a command that runs
        it.
        """
        words = command("run")
        env = environment(folder, upstream_url, **settings) | dict(variables or {})
        if rig is not None:
            words = [sys.executable, "-m", "tests.e2e.rigged"]
            env |= {"TEST_RIG": msgspec.json.encode(rig).decode(), "PYTHONPATH": str(ROOT)}
        process = await asyncio.create_subprocess_exec(
            *wrapper,
            *words,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        daemon = cls(process)
        try:
            await asyncio.wait_for(asyncio.shield(daemon._started), PATIENCE_SECONDS)
        except NotStartedError as error:
            error.status = await daemon.ended()
            raise
        return daemon

    @property
    def url(self) -> str:
        return self._started.result()

    @property
    def udp_address(self) -> tuple[str, int]:
        """Where it takes datagrams."""
        host, _, port = str(self.log("agent.started")[0]["udp"]).rpartition(":")
        return host, int(port)

    async def metrics(self) -> dict[str, float]:
        """All metrics by name, with labels as they stand in the exposition, but without quotes: `x_total{a=b}`."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
            return {
                sample.name
                + ("{" + ",".join(f"{k}={v}" for k, v in sample.labels.items()) + "}" if sample.labels else ""): (
                    sample.value
                )
                for family in families
                for sample in family.samples
            }

    async def measures(self, fact: Callable[[dict[str, float]], object], *, seconds: float = PATIENCE_SECONDS) -> None:
        """Returns once its metrics are so. Raises TimeoutError."""

        async def is_so() -> bool:
            return bool(fact(await self.metrics()))

        await until(is_so, seconds=seconds, pause_seconds=0.02)

    async def readiness(self) -> tuple[int, str]:
        """Status and body of /readyz."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/readyz") as answer:
            assert (answer.status == 503) is ("Retry-After" in answer.headers)
            return answer.status, await answer.text()

    async def until_readiness_is(self, status: int, *, seconds: float = PATIENCE_SECONDS) -> str:
        """What /readyz says, once it has this status; the metric says the same then. Raises TimeoutError."""
        said = ""

        async def is_so() -> bool:
            nonlocal said
            now, said = await self.readiness()
            return now == status

        await until(is_so, seconds=seconds, pause_seconds=0.02)
        assert (await self.metrics())["collector_queue_unavailable"] == (status == 503)
        return said

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    def log(self, event: str) -> list[dict[str, object]]:
        """The log's entries for one event."""
        entries = [msgspec.json.decode(line, type=dict[str, object]) for line in self._logged if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == event]

    @property
    def output(self) -> str:
        return "\n".join(self._logged)

    async def logs(self, event: str, times: int = 1) -> dict[str, object]:
        """The log's first entry for an event, or the one that is asked for, once it is there."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(entries := self.log(event)) < times:
                await self._said_more.wait()
                self._said_more.clear()
        return entries[times - 1]

    @property
    def writer(self) -> int:
        """The process that writes its queue."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        [pid] = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        return pid

    def send(self, number: signal.Signals) -> None:
        # Not the process object's own way: where the process has just died, that takes its status away from `ended`.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    async def ended(self) -> int:
        """The exit status, once the process is gone and all it said was read."""
        status = await asyncio.wait_for(self._process.wait(), PATIENCE_SECONDS)
        await self._reading
        return status

    async def freeze(self) -> None:
        """From now on it answers nobody, whatever its queue's writer still does."""
        self.send(signal.SIGSTOP)
        stat = Path(f"/proc/{self._process.pid}/stat")
        await until(lambda: stat.read_text().rpartition(") ")[2].startswith("T"))

    async def kill(self) -> None:
        """As a crash would: no handler runs, nothing is flushed."""
        if self.is_running:
            self.send(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        self.send(signal.SIGTERM)
        return await self.ended()

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._logged.append(line.decode().rstrip())
            self._said_more.set()
            if match := re.search(r'"event":"agent.started".*"http":(?:"([^"]+)"|null)', self._logged[-1]):
                self._started.set_result(f"http://{match[1]}")
        if not self._started.done():
            self._started.set_exception(NotStartedError(f"the daemon did not start:\n{self.output}"))


@asynccontextmanager
async def running(
    folder: Path,
    upstream_url: str,
    rig: Rig | None = None,
    variables: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    /,
    **settings: str,
) -> AsyncIterator[Daemon]:
    """A daemon for the length of a block, killed with -9 at its end if it is still there."""
    daemon = await Daemon.start(folder, upstream_url, rig, variables, wrapper, **settings)
    try:
        yield daemon
    finally:
        await daemon.kill()
