"""The queue in JetStream: the contract on a real server, what is shared, what is refused, and what survives."""

import asyncio
import gc
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nkeys
import pytest

from collector.clock import Clock
from collector.config.kinds import Seconds, Secret
from collector.config.model import JetStream
from collector.errors import CredentialsRefused, DeadLettersFull, QueueFull, QueueUnavailable, Unusable
from collector.observe.metrics import Metrics
from collector.queue.base import Batch, Burial, Lease, Queue, Verdict
from collector.queue.jetstream import connection, pruning, publication
from collector.queue.jetstream.connection import Connection
from collector.queue.jetstream.lanes import EPOCH, MessageId, Origin
from collector.queue.jetstream.pruning import purge_keys
from collector.queue.jetstream.queue import JetStreamQueue
from collector.queue.jetstream.stored import Stored, first_message
from collector.queue.jetstream.stream import Streams, app_token
from tests import nats
from tests.fake_clock import FakeClock
from tests.patience import PATIENCE_SECONDS, until
from tests.queue.contract import BATCH_EVENTS, QueueContract, lease, lease_all, numbers_of
from tests.queue.samples import batch, roomy

# nats-py leaves the sockets of attempts to connect that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

Opener = Callable[..., Awaitable[JetStreamQueue]]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nats.Server]:
    with nats.server(tmp_path_factory.mktemp("nats")) as one:
        yield one


@pytest.fixture
def settings(server: nats.Server) -> JetStream:
    """A stream of the test's own."""
    return JetStream(servers=(server.url,), replicas=1, stream=f"test{next(NUMBERS)}", lease_timeout=Seconds(1.0))


@pytest.fixture
async def open_queue(settings: JetStream, clock: FakeClock) -> AsyncIterator[Opener]:
    """Opens collectors of one fleet, and closes those that are open at its end."""
    opened: list[JetStreamQueue] = []

    async def open_one(
        *,
        retention_seconds: float = 86_400,
        clock: Clock = clock,
        settings: JetStream = settings,
        **limits: int,
    ) -> JetStreamQueue:
        queue = JetStreamQueue(
            settings,
            batch_events=BATCH_EVENTS,
            limits=roomy(**limits),
            dedup_retention_seconds=retention_seconds,
            clock=clock,
            metrics=Metrics(),
        )
        await queue.open()
        opened.append(queue)
        return queue

    yield open_one
    for queue in opened:
        await queue.close()
    gc.collect()


@pytest.fixture
async def queue(open_queue: Opener) -> Queue:
    return await open_queue()


class TestContract(QueueContract):
    """What any queue shows."""


async def leased_at_last(queue: JetStreamQueue, app_id: str) -> Lease:
    """A lease, once there is something that nobody else holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (held := await queue.lease(app_id, BATCH_EVENTS)) is None:
            await queue.refresh()
            await asyncio.sleep(0.02)
    return held


# a fleet


async def test_what_one_collector_has_taken_is_known_to_all_and_each_can_deliver_it(open_queue: Opener) -> None:
    one, other = await open_queue(), await open_queue()
    assert await one.put([batch("wiki", range(20))]) == [Verdict(20)]
    assert await other.put([batch("wiki", range(15, 25))]) == [Verdict(5, (0, 1, 2, 3, 4))]
    await other.refresh()
    assert numbers_of(*await lease_all(other, "wiki")) == list(range(25))


async def test_of_many_collectors_that_put_the_same_events_at_once_one_is_told_of_each_that_it_is_new(
    open_queue: Opener,
) -> None:
    fleet = [await open_queue() for _ in range(3)]
    verdicts = await asyncio.gather(
        *(queue.put([batch("wiki", range(begin, begin + 10))]) for begin in range(30) for queue in fleet)
    )
    assert sum(verdict.accepted for (verdict,) in verdicts) == 39
    assert sum(len(verdict.duplicates) for (verdict,) in verdicts) == 3 * 300 - 39
    await fleet[0].refresh()
    assert sorted(numbers_of(*await lease_all(fleet[0], "wiki"))) == list(range(39))


async def test_nothing_is_leased_by_two_collectors_and_small_messages_fill_batches(open_queue: Opener) -> None:
    one, other = await open_queue(), await open_queue()
    for number in range(30):
        await one.put([batch("wiki", [number])])
    await other.refresh()
    first = await asyncio.gather(*(queue.lease("wiki", BATCH_EVENTS) for queue in (one, other)))
    assert [held.events for held in first if held] == [BATCH_EVENTS, BATCH_EVENTS]
    rest = [*await lease_all(one, "wiki"), *await lease_all(other, "wiki")]
    assert sorted(numbers_of(*filter(None, first), *rest)) == list(range(30))


async def test_what_a_dead_collector_held_comes_to_another_and_what_a_living_one_holds_does_not(
    open_queue: Opener,
) -> None:
    dead, living, third = await open_queue(), await open_queue(clock=Clock()), await open_queue()
    tending = asyncio.create_task(living.maintain())
    try:
        await dead.put([batch("wiki", range(10))])
        await dead.lease("wiki", BATCH_EVENTS)
        await dead.put([batch("crm", range(10))])
        held = await leased_at_last(living, "crm")
        await dead._connection.close()
        assert numbers_of(await leased_at_last(third, "wiki")) == list(range(10))
        await until(lambda: living._looks >= 8)
        await third.refresh()
        assert await third.lease("crm", BATCH_EVENTS) is None
        await living.settle(held)
    finally:
        tending.cancel()
        await asyncio.wait([tending])


async def test_what_a_collector_held_when_it_closed_is_anybodys_at_once(open_queue: Opener) -> None:
    one, other = await open_queue(), await open_queue()
    await one.put([batch("wiki", range(15))])
    held = await lease(one, "wiki")
    await one.settle(held, returned=range(10))
    await one.close()
    first = await leased_at_last(other, "wiki")
    assert sorted(numbers_of(first, *await lease_all(other, "wiki"))) == list(range(15))


async def test_a_message_that_was_acknowledged_and_not_deleted_is_delivered_again_and_then_deleted(
    open_queue: Opener,
) -> None:
    one, other = await open_queue(), await open_queue()
    await one.put([batch("wiki", range(10))])
    await lease(one, "wiki")
    [message] = one._lanes["wiki"].messages.values()
    await one._connection.ask(message.reply, b"+ACK")
    await one._connection.close()
    held = await leased_at_last(other, "wiki")
    assert numbers_of(held) == list(range(10))
    await other.settle(held)
    await other.refresh()
    assert other.waiting_events == 0


async def test_what_is_settled_after_the_stream_was_made_anew_is_never_what_has_got_the_same_numbers(
    open_queue: Opener, settings: JetStream
) -> None:
    one = await open_queue()
    await one.put([batch("wiki", range(10))])
    old = await lease(one, "wiki")
    await one._connection.request(f"STREAM.DELETE.{settings.stream}")
    other = await open_queue()
    await other.put([batch("wiki", range(10, 20))])
    await other.put([batch("wiki", range(20, 30))])
    await one.refresh()
    new = await lease(one, "wiki")
    assert numbers_of(new) == list(range(10, 20))
    await one.settle(old)
    await one.settle(new, returned=range(10))
    assert (await other.stats()).waiting_events == 20
    await one.close()
    first = await leased_at_last(other, "wiki")
    assert sorted(numbers_of(first, *await lease_all(other, "wiki"))) == list(range(10, 30))


async def test_what_was_leased_before_the_consumer_was_made_anew_is_settled_at_once(
    open_queue: Opener, settings: JetStream
) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", range(10))])
    held = await lease(queue, "wiki")
    await queue._connection.request(f"CONSUMER.DELETE.{settings.stream}.wiki")
    await queue.refresh()
    await queue.settle(held)
    assert (await queue.stats()).waiting_events == 0
    assert await queue.lease("wiki", BATCH_EVENTS) is None


async def test_two_leases_that_share_a_message_are_settled_at_once_and_nothing_of_it_stays(open_queue: Opener) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", range(5))])
    await queue.put([batch("wiki", range(5, 15))])
    first, second = await lease(queue, "wiki"), await lease(queue, "wiki")
    assert (first.events, second.events) == (10, 5)
    await asyncio.gather(queue.settle(first), queue.settle(second))
    await queue.refresh()
    assert (queue.waiting_events, queue._lanes["wiki"].messages) == (0, {})


async def test_a_limit_for_the_fleet_is_shared_by_those_that_have_something_to_do(open_queue: Opener) -> None:
    fleet = [await open_queue() for _ in range(3)]

    async def is_shared() -> bool:
        for queue, is_busy in zip(fleet, (False, True, True), strict=True):
            await queue._fleet.announce(is_busy=is_busy)  # again: who has just subscribed has not heard the others
            await queue.refresh()  # once it is answered, what was said is on its way before what others say next
        return [queue.fleet_share() for queue in fleet] == [1 / 3, 1 / 2, 1 / 2]  # each counts itself

    await until(is_shared)


async def test_a_collector_that_had_to_connect_anew_still_hears_of_the_others(open_queue: Opener) -> None:
    one, other = await open_queue(), await open_queue()
    await one._connection.close()
    await one._tend_once()

    async def hears() -> bool:
        await other._fleet.announce(is_busy=True)
        return one.fleet_share() == 1 / 2

    await until(hears)


# exactness


async def test_a_put_whose_answer_was_lost_is_told_that_its_events_are_new(
    open_queue: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", [3])])
    publish = queue._publication._publish
    lost: list[str] = []

    async def publish_and_lose_the_answer(batch_id: str, events: Any) -> Any:
        arrivals = await publish(batch_id, events)
        if not lost:
            lost.append(batch_id)
            raise QueueUnavailable("the line was cut")
        return arrivals

    monkeypatch.setattr(queue._publication, "_publish", publish_and_lose_the_answer)
    assert await queue.put([batch("wiki", range(10))]) == [Verdict(9, (3,))]
    assert lost
    await queue.refresh()
    assert sorted(numbers_of(*await lease_all(queue, "wiki"))) == list(range(10))


async def test_thousands_of_events_in_one_put_are_all_stored_and_come_in_full_batches(open_queue: Opener) -> None:
    queue = await open_queue()
    assert (
        await queue.put([batch("wiki", range(begin, begin + 1000)) for begin in (0, 1000, 2000)]) == [Verdict(1000)] * 3
    )
    leases = [await queue.lease("wiki", 1000) for _ in range(3)]
    assert [held.events for held in leases if held] == [1000, 1000, 1000]
    assert sorted(numbers_of(*filter(None, leases))) == list(range(3000))


async def test_large_events_are_more_than_one_transaction(open_queue: Opener) -> None:
    queue = await open_queue(max_bytes=10**8, max_uncommitted_bytes=10**8)
    small = batch("wiki", range(publication.MAX_KEYS))
    large = b"\n".join(b'{"note":"%s"}' % (b"x" * 66_000) for _ in range(small.events))
    assert await queue.put([Batch("wiki", small.keys, large)]) == [Verdict(small.events)]


async def test_keys_are_forgotten_after_the_retention_but_no_event_that_waits(open_queue: Opener) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", [1])])
    await queue.settle(await lease(queue, "wiki"))
    await queue.put([batch("wiki", [2])])
    await queue.put([batch("crm", [3])])
    await queue.settle(await lease(queue, "crm"))
    await purge_keys(queue._connection, queue._streams, 3600)
    assert (await queue.stats()).remembered_keys == 3
    await purge_keys(queue._connection, queue._streams, 0)
    stats = await queue.stats()
    assert (stats.remembered_keys, stats.waiting_events) == (0, 1)
    assert await queue.put([batch("wiki", [1]), batch("crm", [3])]) == [Verdict(1), Verdict(1)]
    assert numbers_of(*await lease_all(queue, "wiki")) == [2, 1]


async def test_dead_letters_are_stored_once_however_often_they_are_buried_and_have_a_limit(open_queue: Opener) -> None:
    queue = await open_queue(max_dead_bytes=1000)
    await queue.put([batch("wiki", range(10))])
    held = await lease(queue, "wiki")
    await queue._bury("wiki", [(Burial(3, "no such day"), queue._leases.origins(held)[3])])
    size = queue._dead_bytes
    await queue.settle(held, buried=[Burial(3, "no such day")])
    assert queue._dead_bytes == size
    stats = await queue.stats()
    assert (stats.dead_events, stats.waiting_events, stats.apps[0].dead_events) == (1, 0, 1)
    [reason] = (await queue.dead_letters()).reasons
    assert (reason.reason, reason.events) == ("no such day", 1)
    await queue.put([batch("wiki", range(10, 20))])
    with pytest.raises(DeadLettersFull, match="1000 bytes"):
        await queue.settle(await lease(queue, "wiki"), buried=[Burial(place, "no such day") for place in range(10)])


async def test_a_stream_that_is_gone_is_said_in_our_own_words_and_keeps_nobody_from_closing(open_queue: Opener) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", range(10))])
    await queue._connection.request(f"STREAM.DELETE.{queue._streams.events}")
    for look in (queue.refresh, queue.stats):
        with pytest.raises(QueueUnavailable, match="stream not found"):
            await look()
    await queue.close()


async def test_a_dead_letter_of_a_stream_that_was_made_anew_is_another_one(open_queue: Opener) -> None:
    queue = await open_queue()
    for line in (b'{"a":1}', b'{"a":2}', b'{"a":2}'):
        await queue._bury("wiki", [(Burial(0, "no such day"), Origin(MessageId(7, EPOCH), 0, line))])
    assert (await queue.stats()).dead_events == 2


async def test_old_keys_are_not_purged_as_one_with_what_waits_where_a_replica_does_not_know_of_it_yet(
    open_queue: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = await open_queue()
    await queue.put([batch("wiki", [1])])

    async def behind(*args: Any, subject: str = ">", **more: Any) -> Stored | None:
        is_of_data = subject.startswith(queue._streams.data)
        return None if is_of_data else await first_message(*args, subject=subject, **more)

    monkeypatch.setattr(pruning, "first_message", behind)
    await purge_keys(queue._connection, queue._streams, 0)
    assert numbers_of(*await lease_all(queue, "wiki")) == [1]


async def test_a_message_of_which_a_part_is_settled_is_not_given_to_others_before_the_end(open_queue: Opener) -> None:
    one, other = await open_queue(), await open_queue()
    await one.put([batch("wiki", range(BATCH_EVENTS + 5))])
    await one.settle(await lease(one, "wiki"))
    await one._leases.give_back(one._lanes.values(), whole_only=True)
    await other.refresh()
    assert await other.lease("wiki", BATCH_EVENTS) is None
    assert numbers_of(await lease(one, "wiki")) == list(range(BATCH_EVENTS, BATCH_EVENTS + 5))


async def test_more_kinds_of_messages_wait_than_the_server_tells_of_at_once(open_queue: Opener) -> None:
    queue = await open_queue()
    kinds = 100_001
    subjects = [queue._streams.data_subject("wiki", number, 1) for number in range(1, kinds + 1)]
    for begin in range(0, kinds, 10_000):
        await queue._connection.send(
            b"".join(b"PUB %s 0\r\n\r\n" % each.encode() for each in subjects[begin : begin + 10_000])
        )
    async with asyncio.timeout(PATIENCE_SECONDS):
        while queue.waiting_events != kinds * (kinds + 1) // 2:  # as soon as the server has stored them
            await queue.refresh()


async def test_above_max_bytes_new_events_are_refused_and_that_is_said_once(
    open_queue: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    queue = await open_queue(max_bytes=2000)
    await queue.put([batch("wiki", range(10))])
    for _ in range(2):
        with pytest.raises(QueueFull, match=r"queue\.max_bytes = 2000"):
            await queue.put([batch("wiki", range(10, 30))])
    assert caplog.messages.count("queue.refusals_began") == 1


# what is refused, and what is said


async def test_a_stream_that_is_configured_differently_is_refused_with_each_difference(
    open_queue: Opener, settings: JetStream
) -> None:
    theirs, streams = Connection(settings), Streams(settings)
    await theirs.open()
    try:
        different = streams.definitions()[0] | {"max_age": 10**12, "allow_atomic": False, "max_msgs": 7}
        await theirs.request(f"STREAM.CREATE.{settings.stream}", different)
        with pytest.raises(Unusable) as refused:
            await open_queue()
        for difference in (
            "max_age is 1000000000000, must be 0",
            "allow_atomic is False, must be True",
            "max_msgs is 7",
        ):
            assert difference in str(refused.value)
        found = (await theirs.request(f"STREAM.INFO.{settings.stream}"))["config"]
        assert (found["max_age"], found["max_msgs"]) == (10**12, 7)
    finally:
        await theirs.close()


async def test_an_apps_consumer_that_is_configured_differently_is_refused_before_anything_is_read_with_it(
    open_queue: Opener, settings: JetStream
) -> None:
    queue, streams = await open_queue(), Streams(settings)
    await queue.put([batch("wiki", [1])])
    await queue._connection.request(f"CONSUMER.DELETE.{settings.stream}.wiki")
    for app_id in ("wiki", "crm"):
        different = streams.consumer(app_id) | {"headers_only": True}
        body = {"stream_name": settings.stream, "config": different}
        subject = f"CONSUMER.CREATE.{settings.stream}.{app_id}.{different['filter_subject']}"
        await queue._connection.request(subject, body)
    with pytest.raises(Unusable, match="headers_only is True, must be False"):
        await open_queue()
    with pytest.raises(QueueUnavailable, match="headers_only is True, must be False"):
        await queue.put([batch("crm", [1])])


@pytest.mark.parametrize("setting", ["credentials_file", "nkey_file"])
@pytest.mark.parametrize("content", ["", "SUACSSECRET", "-----BEGIN NATS USER JWT-----\nSECRET\n"])
async def test_files_without_credentials_are_named_and_nothing_of_them_is_said(
    open_queue: Opener, server: nats.Server, tmp_path: Path, setting: str, content: str
) -> None:
    file = tmp_path / "credentials"
    file.write_text(content, encoding="utf-8")
    given: dict[str, Any] = {setting: file}
    with pytest.raises(Unusable, match=f"jetstream.{setting}") as refused:
        await open_queue(settings=JetStream(servers=(server.url,), replicas=1, **given))
    assert "SECRET" not in str(refused.value)


async def test_an_nkey_opens_the_queue(open_queue: Opener, tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    file = tmp_path / "nkey"
    file.write_bytes(seed + b"\n")
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    with nats.server(tmp_path, f"authorization {{ users: [ {{ nkey: {public} }} ] }}\n") as one:
        queue = await open_queue(settings=JetStream(servers=(one.url,), nkey_file=file, replicas=1))
        assert await queue.put([batch("wiki", [1])]) == [Verdict(1)]
        await queue.close()


async def test_where_no_server_is_the_error_says_where_it_was_looked_for(
    open_queue: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
    [port] = nats.free_ports(1)
    with pytest.raises(QueueUnavailable, match=rf"jetstream\.servers .*127\.0\.0\.1:{port}"):
        await open_queue(settings=JetStream(servers=(f"nats://127.0.0.1:{port}",)))


async def test_wrong_credentials_are_refused_in_words_that_hold_no_password(open_queue: Opener, tmp_path: Path) -> None:
    with nats.server(tmp_path, "authorization { user: app, password: right }\n") as one:
        with pytest.raises(CredentialsRefused) as refused:
            await open_queue(settings=JetStream(servers=(one.url,), user="app", password=Secret("wrong"), replicas=1))
        assert "wrong" not in str(refused.value)
        queue = await open_queue(
            settings=JetStream(servers=(one.url,), user="app", password=Secret("right"), replicas=1)
        )
        assert await queue.put([batch("wiki", [1])]) == [Verdict(1)]
        await queue.close()


async def test_while_the_server_is_away_puts_are_refused_and_afterwards_all_goes_on(
    open_queue: Opener, tmp_path: Path
) -> None:
    with nats.server(tmp_path) as one:
        queue = await open_queue(settings=JetStream(servers=(one.url,), replicas=1), clock=Clock())
        await queue.put([batch("wiki", range(10))])
        tending = asyncio.create_task(queue.maintain())
        try:
            one.kill()
            await until(lambda: queue.trouble is not None)
            with pytest.raises(QueueUnavailable):
                await queue.put([batch("wiki", [99])])
            one.start()
            await until(lambda: queue.trouble is None)
            assert await queue.put([batch("wiki", [9, 10])]) == [Verdict(1, (0,))]
            assert numbers_of(*await lease_all(queue, "wiki")) == list(range(11))
        finally:
            tending.cancel()
            await asyncio.wait([tending])
            await queue.close()


def test_no_two_apps_have_the_same_token() -> None:
    names = ["wiki", "WIKI", "a b", "a=20b", "a.b", "*", ">", "ü", "x" * 101, "x" * 102, "=" * 60]
    tokens = [app_token(name) for name in names]
    assert len(set(tokens)) == len(names)
    assert all(set(token) <= set("=-_") | set(map(chr, range(48, 123))) and len(token) <= 100 for token in tokens)
