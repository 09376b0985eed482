"""What was sent, what was acknowledged, what arrived: kept on the outside, and held against one another at the end.

An event is known by its key alone. The rest of it, `note`, follows from the key, so that whoever sends an event again
sends the same, and what arrives can be compared with what was sent to the letter.
"""

import io
import random
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from collector.queue.sqlite.database import FILE_NAME
from collector.sandbox.state import State
from tests.patience import PATIENCE_SECONDS, until

Key = tuple[str, int, str, str]

APPS = ("wiki", "tickets", "crm")

POISON = "poison"
"""An event of this name is refused by upstream for good, where the sandbox is told so."""


class Event(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """An event as a client sends it to /v1/events; `note` arrives only where it is among `events.keep_fields`."""

    app_id: str
    timestamp: int
    email: str
    event_name: str
    note: str = ""

    @property
    def key(self) -> Key:
        return (self.app_id, self.timestamp, self.email, self.event_name)


ERA_MS = 100_000


def random_event(rng: random.Random, era: int = 0) -> Event:
    """One of so many that some of an era are the same by chance; one of 300 is poisoned."""
    app_id, timestamp, person = rng.choice(APPS), era * ERA_MS + rng.randrange(ERA_MS), rng.randrange(20)
    name = POISON if (timestamp + person) % 300 == 0 else f"action {rng.randrange(5)}"
    return Event(app_id, timestamp, f"person{person}@example.com", name, f"{app_id} {timestamp} " + "ü" * person)


class Balance(msgspec.Struct):
    """How the books stand. All but the first three must be nothing."""

    acknowledged: int
    delivered: int
    buried: int
    lost: list[Key]
    """Acknowledged, and neither at upstream nor buried."""
    unsent: list[Key]
    """At upstream or buried, and sent by nobody."""
    altered: list[Key]
    """Other than it was sent; or delivered though it is poison, or buried though it is not, or without a reason."""
    doubled: int
    """Acknowledged as new although they were acknowledged before, or there twice."""
    swallowed: int
    """Acknowledged as duplicates although nobody had sent them before."""

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} acknowledged, {self.delivered} delivered, {self.buried} buried; "
            f"{len(self.lost)} lost, {len(self.unsent)} unsent, {len(self.altered)} altered, "
            f"{self.doubled} doubled, {self.swallowed} swallowed"
        )

    def assert_even(self) -> None:
        """Raises AssertionError with the figures, and some of the events."""
        wrong = self.lost[:3] + self.unsent[:3] + self.altered[:3]
        assert not wrong and not self.doubled and not self.swallowed, f"{self}; {wrong}"  # noqa: PT018 - one message


class Books:
    """Sent, acknowledged, and what upstream kept."""

    def __init__(self) -> None:
        self.sent: dict[Key, Event] = {}
        self.acknowledged: set[Key] = set()
        self.remembered: set[Key] = set()
        """Acknowledged, and known to the collector from then on."""
        self.accepted = self.duplicates = self.doubled = self.swallowed = 0
        self.refused: Counter[int] = Counter()
        """Requests that were refused, by status."""
        self._attempts: Counter[Key] = Counter()

    def send(self, events: Sequence[Event]) -> None:
        """Somebody sends these; nobody knows yet what becomes of them."""
        for event in events:
            assert self.sent.setdefault(event.key, event) == event
        self._attempts.update({event.key for event in events})

    def forget(self) -> None:
        """The collector may forget the keys that it has acknowledged so far."""
        self.remembered.clear()

    async def post(
        self,
        session: aiohttp.ClientSession,
        url: str,
        events: Sequence[Event],
        *,
        as_lines: bool = True,
        may_be_refused: bool = False,
    ) -> dict[str, Any]:
        """Posts events; only an answer makes them acknowledged. Raises what the connection raises."""
        known = self.remembered & {event.key for event in events}
        self.send(events)
        body = b"\n".join(map(msgspec.json.encode, events)) if as_lines else msgspec.json.encode(events)
        content_type = "application/x-ndjson" if as_lines else "application/json"
        data = io.BytesIO(body)  # of large bodies as bytes aiohttp warns
        async with session.post(f"{url}/v1/events", data=data, headers={"Content-Type": content_type}) as response:
            answer: dict[str, Any] = await response.json()
        self.accepted += answer["accepted"]
        self.duplicates += answer["duplicates"]
        if may_be_refused and response.status in {503, 507}:
            assert int(response.headers["Retry-After"]) >= 1
            self.refused[response.status] += 1
            return answer
        assert response.status == 200, answer
        assert answer["accepted"] + answer["duplicates"] == len(events)
        keys = {event.key for event in events}
        self.doubled += max(0, answer["accepted"] - len(keys - known))
        self.swallowed += max(0, sum(self._attempts[key] == 1 for key in keys) - answer["accepted"])
        self.acknowledged |= keys
        self.remembered |= keys
        return answer

    async def balance(
        self, state: State, queues: Iterable[Path] = (), letters: Iterable[tuple[str, bytes, str]] = ()
    ) -> Balance:
        """How the books stand, where nothing waits any more; `queues` are the directories that hold dead letters.

        Where they are elsewhere, `letters` are the dead letters themselves.
        """
        arrived, altered, twice = set[Key](), list[Key](), 0
        for app_id, line in await state.events():
            key, is_sound = self._compare(app_id, line)
            twice += key in arrived
            arrived.add(key)
            if not is_sound or key[3] == POISON:
                altered.append(key)
        buried = set[Key]()
        for app_id, line, reason in (*letters, *(letter for queue in queues for letter in dead_letters(queue))):
            key, is_sound = self._compare(app_id, line)
            twice += key in buried
            buried.add(key)
            if not is_sound or key[3] != POISON or not reason:
                altered.append(key)
        there = arrived | buried
        return Balance(
            acknowledged=len(self.acknowledged),
            delivered=len(arrived),
            buried=len(buried),
            lost=sorted(self.acknowledged - there),
            unsent=sorted(there - self.sent.keys()),
            altered=altered,
            doubled=self.doubled + twice + max(0, self.accepted - len(there)),
            swallowed=self.swallowed,
        )

    async def check(self, state: State, *queues: Path) -> None:
        """Everything acknowledged has arrived or is buried, nothing is there that was not sent, all of it as sent."""
        (await self.balance(state, queues)).assert_even()

    def _compare(self, app_id: str, line: bytes) -> tuple[Key, bool]:
        """Whose event this is, and whether it is as it was sent, which is true of events that nobody sent."""
        fields = msgspec.json.decode(line, type=dict[str, Any])
        key = (app_id, fields["timestamp"], fields["email"], fields["eventName"])
        sent = self.sent.get(key)
        return key, sent is None or {"appId": app_id, **fields} == msgspec.to_builtins(sent)


def dead_letters(queue: Path) -> list[tuple[str, bytes, str]]:
    """App, JSON and reason of every event that is buried in a queue's directory."""
    connection = sqlite3.connect(f"{(queue / FILE_NAME).absolute().as_uri()}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT name, line, reason FROM dead JOIN app USING (app)").fetchall()
    finally:
        connection.close()


def exported(ndjson: bytes) -> list[tuple[str, bytes, str]]:
    """App, JSON and reason of every event in what `collector queue dead export` writes."""
    letters = []
    for line in ndjson.splitlines():
        fields = msgspec.json.decode(line, type=dict[str, Any])
        del fields["buriedAt"]
        letters.append((fields.pop("appId"), fields.pop("reason"), fields))
    return [(app_id, msgspec.json.encode(fields), reason) for app_id, reason, fields in letters]


async def settled(state: State, expected: int, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Returns when the sandbox holds so many distinct events. Raises TimeoutError."""

    async def are_there() -> bool:
        return (await state.stats()).distinct >= expected

    await until(are_there, seconds=seconds, pause_seconds=0.02)
