"""A collector that takes over a new configuration while it runs."""

import asyncio
import re
import threading
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.agent import Collector
from collector.config.kinds import Address, Secret
from collector.config.load import keys
from collector.config.model import Config
from collector.election import Delivery
from collector.errors import ConfigInvalid
from collector.queue.sqlite.queue import SqliteQueue
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.config.test_load import SETTINGS
from tests.e2e.books import settled
from tests.embedded import config, embedded, metric
from tests.patience import until

OWN_FILE = ("access.tokens_file", "upstream.client_secret_file", "upstream.client_secret", "forward.token_file")
"""What these stand for is tested below and where they are read."""
OUTSIDE = ("log.level", "log.format", "access.allow_unauthenticated")
"""The first two are the command line's, the third is looked at when something changes."""


def facts(thing: object, path: str = "collector", seen: frozenset[int] = frozenset()) -> Iterable[tuple[str, object]]:
    """Every setting that the parts of a collector hold, by where it is held."""
    if id(thing) in seen:
        return
    seen |= {id(thing)}
    if isinstance(thing, bool | int | float | str | bytes | Path | Address | None):
        yield path, thing
    elif isinstance(thing, Secret):
        yield path, thing.reveal()
    elif isinstance(thing, re.Pattern):
        yield path, thing.pattern
    elif isinstance(thing, frozenset | set):
        yield path, sorted(map(str, thing))
    elif isinstance(thing, dict):
        for name, value in thing.items():
            yield from facts(value, f"{path}[{name}]", seen)
    elif isinstance(thing, list | tuple) and not isinstance(thing, type):
        for place, value in enumerate(thing):
            yield from facts(value, f"{path}[{place}]", seen)
    elif type(thing).__module__.startswith("collector."):
        for name in (*getattr(thing, "__dict__", {}), *getattr(type(thing), "__slots__", ())):
            if not isinstance(value := getattr(thing, name, None), type) and not _is_runtime(name):
                yield from facts(value, f"{path}.{name}", seen)


def _is_runtime(name: str) -> bool:
    return name in {"_clock", "metrics", "_metrics", "_started", "_wall", "_history"}


def made(settings: Config) -> Collector:
    return Collector(settings, listens=True, delivery=Delivery.EXCLUSIVE)


def before_a_change(folder: Path, dotted: str) -> Config:
    forward = {"forward__url": "http://central.example.com"} if dotted.startswith("forward.") else {}
    return config(folder, "http://127.0.0.1:1", **forward)


def with_one_changed(folder: Path, dotted: str) -> Config:
    section, _, name = dotted.partition(".")
    value = SETTINGS[dotted][1]
    before = before_a_change(folder, dotted)
    return msgspec.structs.replace(
        before, **{section: msgspec.structs.replace(getattr(before, section), **{name: value})}
    )


LIVE = [key.dotted for key in keys() if not key.needs_restart and key.dotted not in {*OWN_FILE, *OUTSIDE}]


@pytest.mark.parametrize("dotted", LIVE)
async def test_a_collector_that_was_reloaded_is_as_one_that_was_made_anew(tmp_path: Path, dotted: str) -> None:
    before = before_a_change(tmp_path, dotted)
    after = with_one_changed(tmp_path, dotted)
    assert after != before
    reloaded = made(before)
    assert reloaded.reload(after).in_force == (dotted,)
    held, anew, old = dict(facts(reloaded)), dict(facts(made(after))), dict(facts(made(before)))
    assert held == anew
    settings = {place for place in anew if "_config" not in place}
    assert any(anew[place] != old.get(place) for place in settings) or dotted == "stop.deadline", "somebody holds it"


async def test_what_needs_a_restart_stays_as_it_was_and_is_told_each_time(tmp_path: Path) -> None:
    before = config(tmp_path, "http://127.0.0.1:1")
    wanted = with_one_changed(tmp_path, "flush.batch_events")
    collector = made(before)
    for _ in range(2):
        found = collector.reload(wanted)
        assert (found.in_force, found.need_restart, found.config) == ((), ("flush.batch_events",), before)
    assert dict(facts(collector)) == dict(facts(made(before)))


async def test_a_reload_that_would_leave_a_socket_open_to_strangers_changes_nothing(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token-0123456789\n")
    open_to_all = config(tmp_path, "http://127.0.0.1:1", http__listen="0.0.0.0:0", access__tokens_file=str(tokens))
    async with Collector(open_to_all, listens=True) as collector:
        at_home = config(tmp_path, "http://127.0.0.1:1", apps__default="crm")  # sound by itself, where it is a restart
        with pytest.raises(ConfigInvalid, match=r"TCP at '0\.0\.0\.0:\d+' can be reached.*give access\.tokens_file"):
            collector.reload(at_home)
        url = f"http://127.0.0.1:{collector.http_address.port}/v1/events"
        event = {"timestamp": 1, "email": "person@example.com", "eventName": "seen"}
        async with aiohttp.ClientSession() as session:
            for headers, status in (({}, 401), ({"Authorization": "Bearer first-token-0123456789"}, 200)):
                async with session.post(url, json=event, headers=headers) as answer:
                    assert answer.status == status
        assert (await collector.status()).apps[0].app_id == "wiki", "not even what could have been taken over"
        collector.reload(config(tmp_path, "http://127.0.0.1:1", access__allow_unauthenticated="true"))
        async with aiohttp.ClientSession() as session, session.post(url, json=event) as answer:
            assert answer.status == 200


async def test_a_right_secret_lets_held_events_go_at_once(tmp_path: Path, state: State) -> None:
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0)
    async with embedded(tmp_path, sandbox.url, upstream__client_secret="wrong", flush__hold_retry="1h") as collector:
        await collector.record(email="person@example.com", event_name="seen", app_id="wiki")
        await until(lambda: metric(collector, "held_apps") == 1)
        collector.reload(config(tmp_path, sandbox.url, flush__hold_retry="1h"))
        await settled(state, 1)
        await until(lambda: metric(collector, "held_apps") == 0)
    await sandbox.stop()


async def test_where_events_go_elsewhere_after_a_restart_delivery_goes_on_as_it_was_until_then(
    tmp_path: Path, state: State
) -> None:
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0)
    async with embedded(tmp_path, sandbox.url) as collector:
        elsewhere = config(tmp_path, sandbox.url, forward__url="http://central.example.com")
        upstream = msgspec.structs.replace(elsewhere.upstream, client_id=None, client_secret=None)
        collector.reload(msgspec.structs.replace(elsewhere, upstream=upstream))
        await collector.record(email="person@example.com", event_name="seen", app_id="wiki")
        await settled(state, 1)
    await sandbox.stop()


async def test_fewer_requests_at_one_time_are_fewer_at_once(tmp_path: Path) -> None:
    async with embedded(tmp_path, "http://127.0.0.1:1") as collector:
        assert metric(collector, "in_flight_limit") > 2
        collector.reload(config(tmp_path, "http://127.0.0.1:1", flush__max_in_flight="2"))
        assert metric(collector, "in_flight_limit") == 2


async def test_a_round_trip_ends_after_what_the_writer_was_given_before(tmp_path: Path) -> None:
    async with embedded(tmp_path, "http://127.0.0.1:1") as collector:
        gate = threading.Event()
        assert isinstance(collector._queue, SqliteQueue)
        hanging = collector._queue._writer.run(lambda _store: gate.wait())
        trip = asyncio.create_task(collector.round_trip())
        assert (await collector.status()).is_running, "the loop is well, and so is the reader"
        assert not trip.done()
        gate.set()
        assert (await trip).startswith("events waiting: 0")
        assert hanging.done()
