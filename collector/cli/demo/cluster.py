"""A fleet: three collectors on three JetStream servers, of which the leader and a collector die suddenly."""

import asyncio
import importlib.util
import itertools
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import msgspec

from collector.cli.demo import load
from collector.cli.demo.books import FleetBooks
from collector.cli.demo.children import Collector, NatsServer, Sandbox, nats_servers
from collector.cli.demo.screen import DOWN, Member, Screen
from collector.errors import Unusable
from collector.intake import Report

SERVERS = 3
COLLECTORS = 3
SENDERS = 6
"""Requests at one time, each to another collector than the last."""
PUSH_SECONDS = 16.0
LEADER_DIES_AFTER_SECONDS = 3.0
LEADER_RETURNS_AFTER_SECONDS = 1.5
"""Counted from when another server leads, which takes some seven seconds."""
COLLECTOR_DIES_AFTER_SECONDS = 1.5
DEADLINE_SECONDS = 50.0
"""From the first event until everything is delivered."""
FORM_DEADLINE_SECONDS = 20.0
"""Until the servers have found each other and elected a leader."""
AGAIN_SECONDS = 0.25
REFRESH_SECONDS = 0.25
LEASE_TIMEOUT = "2s"
SLOW_ANSWERS = b'{"faults": [{"delaySeconds": 0.2}]}'
"""For the sandbox: so that a collector that dies is delivering something."""
IMPATIENCE = aiohttp.ClientTimeout(total=20.0)


async def show_cluster(folder: Path, rng: random.Random) -> FleetBooks:
    """The books at the end. Raises Unusable where something is missing, or does not start or end as it should."""
    if importlib.util.find_spec("nats") is None:
        raise Unusable("the collectors need the package nats-py for this; install usage-collector[nats]")
    servers = nats_servers(folder, SERVERS)
    (folder / "slow.json").write_bytes(SLOW_ANSWERS)
    settings = {
        "COLLECTOR_QUEUE__BACKEND": "jetstream",
        "COLLECTOR_JETSTREAM__SERVERS": ",".join(server.url for server in servers),
        "COLLECTOR_JETSTREAM__LEASE_TIMEOUT": LEASE_TIMEOUT,
    }
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=IMPATIENCE))
        sandbox = await stack.enter_async_context(Sandbox(folder, "--faults", str(folder / "slow.json")))
        for server in servers:
            await stack.enter_async_context(server)
        await _until_formed(session, servers)
        collectors = [Collector(folder, f"c{number + 1}", sandbox.url, settings) for number in range(COLLECTORS)]
        await asyncio.gather(*(stack.enter_async_context(collector) for collector in collectors))
        show = _Show(session, sandbox, servers, collectors)
        with Screen(show.books) as screen:
            await show.play(screen, rng)
    return show.books


async def _until_formed(session: aiohttp.ClientSession, servers: list[NatsServer]) -> None:
    deadline = time.monotonic() + FORM_DEADLINE_SECONDS
    while not all([await server.is_healthy(session) for server in servers]):
        if time.monotonic() > deadline:
            raise Unusable("the NATS servers have not formed a cluster")
        await asyncio.sleep(REFRESH_SECONDS)


class _Show:
    """The story, and what is known of everybody in it."""

    def __init__(
        self, session: aiohttp.ClientSession, sandbox: Sandbox, servers: list[NatsServer], collectors: list[Collector]
    ) -> None:
        self.books = FleetBooks()
        self._session = session
        self._sandbox = sandbox
        self._servers = servers
        self._collectors = collectors
        self._in_doubt: set[bytes] = set()
        self._delivered: dict[str, int] = {}
        self._leader: NatsServer | None = None

    async def play(self, screen: Screen, rng: random.Random) -> None:
        """Apps push all the while, the leader dies and returns, a collector dies, and the others do its work."""
        requests = load.requests(rng, int(time.time() * 1000))
        self.books.sent_distinct = load.distinct(requests)
        started = time.monotonic()
        pushing = asyncio.create_task(self._push(requests))
        deaths = asyncio.create_task(self._deaths())
        try:
            while True:
                elapsed = time.monotonic() - started
                members = await self._observe()
                for task in (pushing, deaths):
                    if task.done():
                        await task
                is_done = pushing.done() and deaths.done() and not self.books.disagreements()
                down = " and ".join(member.name for member in members if member.state == DOWN)
                state = "draining" if pushing.done() else f"{down} {DOWN}" if down else "all are up"
                screen.show(elapsed, "done" if is_done else state, members)
                if is_done or elapsed > DEADLINE_SECONDS:
                    return
                await asyncio.sleep(REFRESH_SECONDS)
        finally:
            for task in (pushing, deaths):
                task.cancel()
            await asyncio.wait([pushing, deaths])

    async def _deaths(self) -> None:
        await asyncio.sleep(LEADER_DIES_AFTER_SECONDS)
        dead = await self._other_leader_than(None)
        await dead.kill()
        await self._other_leader_than(dead)
        await asyncio.sleep(LEADER_RETURNS_AFTER_SECONDS)
        await dead.start()
        await asyncio.sleep(COLLECTOR_DIES_AFTER_SECONDS)
        await self._collectors[0].kill()

    async def _other_leader_than(self, dead: NatsServer | None) -> NatsServer:
        while (leader := self._leader) is None or leader is dead:  # noqa: ASYNC110 - a server's doing
            await asyncio.sleep(REFRESH_SECONDS)
        return leader

    async def _push(self, requests: list[list[bytes]]) -> None:
        started = time.monotonic()
        left = iter(enumerate(requests))

        async def send() -> None:
            for number, request in left:
                await asyncio.sleep(max(0.0, started + PUSH_SECONDS * number / len(requests) - time.monotonic()))
                await self._send(number, request)

        async with asyncio.TaskGroup() as senders:
            for _ in range(SENDERS):
                senders.create_task(send())

    async def _send(self, number: int, request: list[bytes]) -> None:
        """Sent until a collector has answered for it, each time to the next, as behind a load balancer."""
        for turn in itertools.count(number):
            url = self._collectors[turn % len(self._collectors)].url
            try:
                async with self._session.post(
                    f"{url}/v1/events", data=b"\n".join(request), headers=load.HEADERS
                ) as response:
                    answer = await response.read()
            except (aiohttp.ClientError, TimeoutError):
                pass
            else:
                if response.ok:
                    report = msgspec.json.decode(answer, type=Report)
                    self.books.sent += len(request)
                    self.books.accepted += report.accepted
                    self.books.duplicates += report.duplicates
                    return
            self._in_doubt.update(request)
            self.books.in_doubt = len(self._in_doubt)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _observe(self) -> list[Member]:
        """What each says of itself; the books are up to date with it."""
        members = await self._observe_servers()
        waiting = []
        for collector in self._collectors:
            state = DOWN
            try:
                samples = await collector.metrics(self._session) if collector.is_up else {}
            except (aiohttp.ClientError, TimeoutError):
                samples = {}  # it dies at this moment
            if samples:
                state = "up"
                waiting.append(int(samples["collector_waiting_events"]))
                self._delivered[collector.name] = int(samples["collector_delivered_events_total"])
            figures = f"delivered {self._delivered.get(collector.name, 0):>6,}"
            members.append(Member(f"collector {collector.name}", state, figures))
        self.books.waiting = max(waiting, default=self.books.waiting)
        self.books.delivered = sum(self._delivered.values())
        stats = await self._sandbox.stats(self._session)
        self.books.sandbox_received, self.books.sandbox_distinct = stats.received, stats.distinct
        return members

    async def _observe_servers(self) -> list[Member]:
        members, self._leader = [], None
        self.books.replicas = []
        for server in self._servers:
            copy = await server.copy(self._session) if server.is_up else None
            self.books.replicas.append(copy.messages if copy else 0)
            if copy is not None and copy.is_leader:
                self._leader = server
            state = (
                DOWN if not server.is_up else "no copy" if copy is None else "leads" if copy.is_leader else "follows"
            )
            members.append(Member(f"server {server.name}", state, f"messages  {copy.messages:>6,}" if copy else ""))
        return members
