"""The oracle: real daemons, load from several clients by HTTP and UDP, failures, and books that are even to the event.

    async with oracle_in(folder, seed) as oracle:
        async with oracle.running() as daemon, oracle.load(daemon):
            ...                       # what a test is about: a kill, a full disk, an upstream that fails
        await oracle.close_books()    # a last daemon, in good health: nothing waits, every event is there

What is chosen at random follows from the seed, which is printed; pytest shows it where a test fails, and with
COLLECTOR_TEST_SEED=N the same is chosen again. When exactly a process dies is up to the machine.
"""

import asyncio
import os
import random
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec

from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import POISON, Balance, Books, Event, exported, random_event
from tests.e2e.daemon import Daemon, command, environment, running
from tests.e2e.rigged import Rig
from tests.patience import PATIENCE_SECONDS, until

CLIENTS = 4
REFUSED_PAUSE_SECONDS = 0.05
"""After this a client that was refused tries again. Without a pause it takes the time in which a busy machine would
make room."""

POISONED = Fault(status=400, event_name=POISON, body="this event is not to my taste")
TROUBLES = (
    Fault(status=503, times=2),
    Fault(status=429, headers={"Retry-After": "0"}, times=2),
    Fault(cut=True, times=2),
    Fault(cut=True, after=True, times=2),
    Fault(status=500, after=True, times=1),
    Fault(status=401, times=1),
    Fault(status=403, times=1),
    Fault(delay_seconds=0.05, times=5),
)


def new_seed() -> int:
    """A seed that is printed, or the one that is asked for."""
    seed = int(os.environ.get("COLLECTOR_TEST_SEED") or random.SystemRandom().randrange(2**32))
    sys.stdout.write(f"seed {seed}; the same again with COLLECTOR_TEST_SEED={seed}\n")
    return seed


class Oracle:
    """One queue directory, one upstream, and the books of both."""

    def __init__(
        self, folder: Path, sandbox: Sandbox, state: State, seed: int, settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.settings = dict(settings or {})
        self.rng = random.Random(seed)
        self.books = Books()
        self.datagrams = 0
        self._era = 0
        self._sandbox = sandbox
        self._state = state
        self._recent: deque[Event] = deque(maxlen=2_000)
        self.upstream_has()

    @property
    def queue(self) -> Path:
        """The queue's directory."""
        return self.folder / "queue"

    def upstream_has(self, *troubles: Fault) -> None:
        """From now on upstream has these troubles and no others, but for poisoned events, which it never takes."""
        self._sandbox.set_faults(POISONED, *troubles)

    def forget(self) -> None:
        """What was acknowledged so far may be forgotten, and is not sent again, not even by chance."""
        self.books.forget()
        self._recent.clear()
        self._era += 1

    def running(
        self,
        rig: Rig | None = None,
        variables: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        /,
        **settings: str,
    ) -> AbstractAsyncContextManager[Daemon]:
        """A daemon for the length of a block; see `tests.e2e.daemon.running`."""
        ours = {"udp__listen": "127.0.0.1:0", "events__keep_fields": "note", "flush__hold_retry": "50ms"}
        return running(self.folder, self._sandbox.url, rig, variables, wrapper, **(ours | self.settings | settings))

    @asynccontextmanager
    async def load(
        self, daemon: Daemon, *, clients: int = CLIENTS, may_be_refused: bool = False
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Clients send for the length of a block, or until the daemon dies; the task ends when all of them have."""
        enough = asyncio.Event()

        async def all_clients() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    rng = random.Random(self.rng.random())
                    group.create_task(self._client(daemon, rng, enough, may_be_refused=may_be_refused))

        sending = asyncio.create_task(all_clients())
        try:
            yield sending
        finally:
            enough.set()
        await sending

    async def _client(self, daemon: Daemon, rng: random.Random, enough: asyncio.Event, *, may_be_refused: bool) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            async with aiohttp.ClientSession() as session:
                while not enough.is_set():
                    events, refused = self._events(rng, rng.choice((1, 3, 20, 600))), self.books.refused.total()
                    try:
                        await self.books.post(
                            session,
                            daemon.url,
                            events,
                            as_lines=rng.random() < 0.5,
                            may_be_refused=may_be_refused,
                        )
                    except (aiohttp.ClientError, ConnectionError):
                        return
                    if self.books.refused.total() > refused:
                        await asyncio.sleep(REFUSED_PAUSE_SECONDS)
                    events = self._events(rng, rng.choice((1, 3)))
                    self.books.send(events)
                    self.datagrams += len(events)
                    sender.sendto(b"\n".join(map(msgspec.json.encode, events)), daemon.udp_address)

    def new_events(self, count: int) -> list[Event]:
        """Events that were not sent before, but for what chance brings."""
        return [random_event(self.rng, self._era) for _ in range(count)]

    def _events(self, rng: random.Random, count: int) -> list[Event]:
        """New ones, and now and then ones that were sent before."""
        if self._recent and rng.random() < 0.2:
            return rng.choices(self._recent, k=count)
        events = [random_event(rng, self._era) for _ in range(count)]
        self._recent.extend(events)
        return events

    async def until_acknowledged(self, events: int, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Returns when so many more events were acknowledged. Raises TimeoutError."""
        enough = len(self.books.acknowledged) + events
        await until(lambda: len(self.books.acknowledged) >= enough, seconds=seconds)

    async def drained(self, daemon: Daemon, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Returns when nothing waits in the daemon any more; fails when that takes longer than the bound."""
        try:
            await daemon.measures(lambda said: not said["collector_waiting_events"], seconds=seconds)
        except TimeoutError:
            waiting = (await daemon.metrics())["collector_waiting_events"]
            raise AssertionError(f"{waiting} events still wait after {seconds} s:\n{daemon.output}") from None

    async def close_books(self) -> Balance:
        """How the books stand, which is even. Raises AssertionError where they are not."""
        balance = await self.last_balance()
        balance.assert_even()
        return balance

    async def last_balance(self) -> Balance:
        """How the books stand once a daemon and an upstream in good health have let the backlog come to nothing.

        Everything that was acknowledged is sent once more before that: it is known.
        """
        self.upstream_has()
        async with self.running() as daemon, aiohttp.ClientSession() as session:
            await daemon.until_readiness_is(200)
            again = [self.books.sent[key] for key in sorted(self.books.remembered)]
            for start in range(0, len(again), 1000):
                await self.books.post(session, daemon.url, again[start : start + 1000])
            await self.drained(daemon)
            assert await daemon.stop() == 0, daemon.output
            assert daemon.log("agent.stopped")[0]["waiting_events"] == 0
        if self.settings.get("queue__backend") == "jetstream":
            letters = await exported_letters(self.folder, self._sandbox.url, self.settings)
            return await self.books.balance(self._state, letters=letters)
        return await self.books.balance(self._state, [self.queue])

    async def sent_again(self) -> int:
        """Events that upstream has taken more than once."""
        stats = await self._sandbox.stats()
        return stats.received - stats.distinct


async def exported_letters(
    folder: Path, upstream_url: str, settings: Mapping[str, str]
) -> list[tuple[str, bytes, str]]:
    """The dead letters of a queue that is no file, as a person gets them."""
    process = await asyncio.create_subprocess_exec(
        *command("queue", "dead", "export"),
        env=environment(folder, upstream_url, **settings),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return exported(output)


@asynccontextmanager
async def oracle_in(folder: Path, seed: int, settings: Mapping[str, str] | None = None) -> AsyncIterator[Oracle]:
    """An oracle with an upstream of its own, in a directory that is made if need be; settings are for each daemon."""
    folder.mkdir(parents=True, exist_ok=True)
    state = await State.open()
    sandbox = Sandbox(state, create_apps=True)
    try:
        await sandbox.start("127.0.0.1", 0)
        yield Oracle(folder, sandbox, state, seed, settings)
        assert (await sandbox.stats()).unexpected == 0
    finally:
        await sandbox.stop()
        await state.close()
