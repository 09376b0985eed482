"""What a seed decides beforehand: sizes and limits, how clients behave, when upstream fails, when the agent ends."""

import random
from pathlib import Path
from typing import NamedTuple

from collector.config import Config
from collector.config.kinds import Bytes, Seconds, Secret
from collector.config.model import Apps, Events, Flush, Queue, Stop
from collector.config.model import Upstream as UpstreamConfig
from collector.contract.models import MAX_EVENTS_PER_REQUEST

HOUR = 3600.0
DAY = 24 * HOUR

DEFAULT_APP = "wiki"
APPS = (DEFAULT_APP, "crm", "größe/1")

OUTAGES = ("503", "500", "429", "timeout", "cut", "cut after", "html", "unsuccessful")
HOLDS = ("401", "403", "404", "302", "418", "unknown app")
REFUSALS = ("400", "422", "413")
TOKEN_FAULTS = ("token 401", "token 503", "token timeout", "token garbage")
FAULTS = (*OUTAGES, *HOLDS, *TOKEN_FAULTS, "timeout after")


class Habits(NamedTuple):
    """How clients of one world send."""

    apps: tuple[str, ...]
    repeats: float
    """How likely an event is one that was sent before."""
    spoils: float
    """How likely an event is invalid."""
    poisons: float
    """How likely upstream will never take an event."""
    most_events: int
    hangs_up: float
    """How likely a client does not wait for its answer."""
    requests: int


class Largest(NamedTuple):
    """The largest request that upstream takes; to a larger one it says 413, or nothing."""

    events: int
    is_said: bool = True


ANY_SIZE = Largest(MAX_EVENTS_PER_REQUEST)


class Weather(NamedTuple):
    """What upstream does between two instants; to one app, or to all."""

    begins: float
    ends: float
    fault: str
    app_id: str | None


class Plan(NamedTuple):
    """One world, before anything happens in it."""

    seconds: float
    config: Config
    habits: Habits
    clients: int
    weather: list[Weather]
    fault_chance: float
    slow_seconds: float
    largest: Largest
    suspicious_burials: int
    ends: list[tuple[float, str]]
    """When and how each life ends."""

    @classmethod
    def draw(cls, fate: random.Random, directory: Path) -> "Plan":
        """A plan by chance."""
        seconds = fate.choice((20.0, 60.0, 600.0, 6 * HOUR, 3 * DAY))
        ends = ("crash", "crash in a step", "crash in a step", "stop", "crash in a stop")
        return cls(
            seconds,
            _draw_config(fate, seconds, directory),
            _draw_habits(fate),
            clients=fate.randint(1, 4),
            weather=[_draw_weather(fate, seconds) for _ in range(fate.choice((0, 1, 1, 2, 4)))],
            fault_chance=fate.choice((0.0, 0.0, 0.05, 0.3)),
            slow_seconds=fate.choice((0.01, 0.5, 5.0)),
            largest=fate.choice((ANY_SIZE, ANY_SIZE, Largest(2), Largest(7, is_said=False))),
            suspicious_burials=fate.choice((5, 50)),
            ends=sorted((fate.random() * seconds, fate.choice(ends)) for _ in range(fate.choice((0, 1, 2, 3)))),
        )


def _draw_config(fate: random.Random, seconds: float, directory: Path) -> Config:
    roomy = fate.random() < 0.6
    return Config(
        apps=Apps(default=DEFAULT_APP),
        events=Events(keep_fields=("note",)),
        queue=Queue(
            path=directory,
            dedup_retention=Seconds(fate.choice((5.0, 60.0, HOUR, DAY, 30 * DAY))),
            max_bytes=Bytes(2**20 if roomy else fate.choice((800, 3000, 8000))),
            max_uncommitted=Bytes(2**20 if roomy else fate.choice((700, 2500))),
        ),
        flush=Flush(
            batch_events=fate.choice((1, 3, 10, 1000)),
            linger=Seconds(fate.choice((0.0, 1.0, 5.0))),
            max_in_flight=fate.choice((2, 3, 4)),
            # Long worlds have long waits: what happens in them matters, not how often.
            backoff_max=Seconds(fate.choice((1.0, 60.0)) + seconds / 100),
            hold_retry=Seconds(fate.choice((5.0, 300.0)) + seconds / 100),
        ),
        upstream=UpstreamConfig(
            base_url="https://api.example.com",
            token_url="https://login.example.com/oauth2/token",
            client_id="simulated",
            client_secret=Secret("simulated"),
            timeout=Seconds(fate.choice((3.0, 30.0))),
        ),
        stop=Stop(deadline=Seconds(fate.choice((0.0, 1.0, 10.0)))),
    )


def _draw_habits(fate: random.Random) -> Habits:
    return Habits(
        apps=APPS[: fate.randint(1, 3)],
        repeats=fate.choice((0.0, 0.2, 0.7)),
        spoils=fate.choice((0.0, 0.0, 0.2)),
        poisons=fate.choice((0.0, 0.0, 0.1, 0.5)),
        most_events=fate.choice((3, 12, 40)),
        hangs_up=fate.choice((0.0, 0.1, 0.5)),
        requests=fate.randint(1, 6),
    )


def _draw_weather(fate: random.Random, seconds: float) -> Weather:
    begins = fate.random() * seconds
    fault = fate.choice((*OUTAGES, *OUTAGES, *HOLDS, *REFUSALS, *TOKEN_FAULTS))
    return Weather(begins, begins + fate.random() * seconds, fault, fate.choice((None, None, *APPS)))
