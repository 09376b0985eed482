"""What was sent, what was acknowledged, what arrived: kept on the outside, and held against one another at the end."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from collector.sandbox.state import State

Key = tuple[str, int, str, str]

APPS = ("wiki", "tickets", "crm")


class Event(msgspec.Struct, rename="camel", frozen=True):
    """An event as a client sends it to /v1/events."""

    app_id: str
    timestamp: int
    email: str
    event_name: str

    @property
    def key(self) -> Key:
        return (self.app_id, self.timestamp, self.email, self.event_name)


def random_events(rng: random.Random, count: int) -> list[Event]:
    """Events of which some are the same by chance."""
    return [
        Event(
            rng.choice(APPS),
            rng.randrange(2_000),
            f"person{rng.randrange(20)}@example.com",
            f"action {rng.randrange(5)}",
        )
        for _ in range(count)
    ]


class Books:
    """Sent, acknowledged, and what the sandbox kept."""

    def __init__(self) -> None:
        self.sent: set[Key] = set()
        self.acknowledged: set[Key] = set()
        self.accepted = 0

    async def post(self, session: aiohttp.ClientSession, url: str, events: Sequence[Event]) -> dict[str, Any]:
        """Posts events; only an answer makes them acknowledged. Raises what the connection raises."""
        self.sent |= {event.key for event in events}
        body = b"\n".join(msgspec.json.encode(event) for event in events)
        async with session.post(
            f"{url}/v1/events", data=body, headers={"Content-Type": "application/x-ndjson"}
        ) as response:
            answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        assert answer["accepted"] + answer["duplicates"] == len(events)
        self.accepted += answer["accepted"]
        self.acknowledged |= {event.key for event in events}
        return answer

    async def check(self, state: State) -> None:
        """Everything acknowledged has arrived, nothing has that was not sent, and it arrived as it was sent."""
        arrived = Counter[Key]()
        for app_id, line in await state.events():
            event = msgspec.json.decode(line, type=dict[str, Any])
            assert event.keys() == {"timestamp", "email", "eventName"}
            arrived[(app_id, event["timestamp"], event["email"], event["eventName"])] += 1
        assert not self.acknowledged - arrived.keys(), "acknowledged events are lost"
        assert not arrived.keys() - self.sent, "events arrived that nobody sent"
        assert set(arrived.values()) <= {1}


async def settled(state: State, expected: int, *, seconds: float = 30.0) -> None:
    """Returns when the sandbox holds so many distinct events; fails with what it holds when time is up."""
    async with asyncio.timeout(seconds):
        while (await state.stats()).distinct < expected:  # noqa: ASYNC110 - another process's doing sets no event here
            await asyncio.sleep(0.02)
