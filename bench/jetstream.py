"""SQLite beside JetStream with one and three servers and 1, 2 and 4 collectors; and three ways to know duplicates.

All processes share the machine's cores, so that this shows what an event costs and how the shape is, not how much a
cluster of machines could take. CPU is user + system by process, from before the load until the sink has every event.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.loads import Posts, load
from bench.processes import child, cpu_seconds, first_line, python
from bench.rows import Sample
from collector.config.model import JetStream
from collector.events import DIGEST_BYTES, pack_keys
from collector.queue.jetstream.connection import Connection
from collector.queue.jetstream.stream import key_tokens
from tests import nats

if TYPE_CHECKING:
    from nats.aio.msg import Msg

COLLECTORS = (1, 2, 4)
REQUESTS = 200
BATCH = 999
WAYS = ("atomic batch", "subject a key", "Nats-Msg-Id")
WAY_EVENTS = 100 * BATCH
IN_FLIGHT = 4
LINE = b'{"timestamp":1700000000000,"email":"someone@example.com","eventName":"document_opened_7"}'
DEADLINE_SECONDS = 60.0


@contextmanager
def servers(folder: Path, count: int) -> Iterator[list[nats.Server]]:
    """So many servers with a leader."""
    with tempfile.TemporaryDirectory(dir=folder) as own, ExitStack() as stack:
        if count == 1:
            found = [stack.enter_context(nats.server(Path(own)))]
        else:
            found = stack.enter_context(nats.cluster(Path(own), syncs=False))
        asyncio.run(until_led(found))
        yield found


async def until_led(found: list[nats.Server]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                await make_and_delete(found)
            except Exception:  # noqa: BLE001 - until there is a leader
                await asyncio.sleep(0.2)
            else:
                return


async def make_and_delete(found: list[nats.Server]) -> None:
    connection = Connection(JetStream(servers=tuple(server.url for server in found)))
    await connection.open()
    try:
        await connection.request("STREAM.CREATE.probe", {"name": "probe", "num_replicas": len(found)})
        await connection.request("STREAM.DELETE.probe")
    finally:
        await connection.close()


def through_collectors(folder: Path, found: list[nats.Server], collectors: int) -> str:
    """Posts of 1000 events into fresh collectors that share a queue; SQLite where there are no servers."""
    with ExitStack() as stack:
        queue = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        sink = stack.enter_context(child(python("bench.sink")))
        sink_url = f"http://127.0.0.1:{int(first_line(sink.stdout))}"
        settings = {
            "COLLECTOR_HTTP__LISTEN": "127.0.0.1:0",
            "COLLECTOR_APPS__DEFAULT": "bench",
            "COLLECTOR_QUEUE__PATH": queue,
            "COLLECTOR_FLUSH__LINGER": "100ms",
            "COLLECTOR_UPSTREAM__BASE_URL": sink_url,
            "COLLECTOR_UPSTREAM__TOKEN_URL": f"{sink_url}/oauth2/token",
            "COLLECTOR_UPSTREAM__CLIENT_ID": "bench",
            "COLLECTOR_UPSTREAM__CLIENT_SECRET": "bench",
            "COLLECTOR_LOG__FORMAT": "json",
        }
        if found:
            settings |= {
                "COLLECTOR_QUEUE__BACKEND": "jetstream",
                "COLLECTOR_JETSTREAM__SERVERS": ",".join(server.url for server in found),
                "COLLECTOR_JETSTREAM__STREAM": f"bench{collectors}",
                "COLLECTOR_JETSTREAM__REPLICAS": str(len(found)),
            }
        pids, ports = [], []
        for _ in range(collectors):
            process = stack.enter_context(child(python("collector", "run"), **settings))
            while '"agent.started"' not in (line := first_line(process.stderr)):
                pass
            pids.append(process.pid)
            ports.append(int(str(msgspec.json.decode(line)["http"]).rpartition(":")[2]))
        before = [sum(map(cpu_seconds, each)) for each in (pids, [server.pid for server in found])]
        started = time.perf_counter()
        loads = [
            stack.enter_context(child(load(port, Posts(1000, REQUESTS // collectors, 4), seed)))
            for seed, port in enumerate(ports, 1)
        ]
        samples = [msgspec.json.decode(first_line(each.stdout), type=Sample) for each in loads]
        events = sum(sample.events for sample in samples)
        while delivered(sink_url) < events:
            assert time.perf_counter() - started < DEADLINE_SECONDS, f"{delivered(sink_url)} of {events} delivered"
            time.sleep(0.02)
        ended = time.perf_counter() - started
        after = [sum(map(cpu_seconds, each)) for each in (pids, [server.pid for server in found])]
        ours, theirs = ((end - begin) / events * 1e6 for begin, end in zip(before, after, strict=True))
        rate = sum(sample.events / sample.seconds for sample in samples)
        name = f"JetStream, {len(found)} servers" if found else "SQLite"
        return f"{name:<22}{collectors:>11}{rate:>12,.0f}{events / ended:>13,.0f}{ours:>13.1f}{theirs:>12.1f}"


def delivered(sink_url: str) -> int:
    with urllib.request.urlopen(f"{sink_url}/count", timeout=10) as answer:  # noqa: S310 - our own sink
        return int(json.load(answer)["events"])


async def by_way(found: list[nats.Server], way: str) -> str:
    """Events with keys of their own, published in one of the ways, four thousand in flight."""
    connection = Connection(JetStream(servers=tuple(server.url for server in found)))
    await connection.open()
    name = "W" + str(WAYS.index(way))
    config: dict[str, Any] = {
        "name": name,
        "subjects": [f"{name}.>"],
        "discard": "new",
        "num_replicas": len(found),
        "allow_atomic": True,
        "duplicate_window": 3600 * 10**9,
    }
    if way == "subject a key":
        config |= {"discard_new_per_subject": True, "max_msgs_per_subject": 1}
    await connection.request(f"STREAM.CREATE.{name}", config)
    memory = sum(server.resident_bytes for server in found)
    theirs, ours, started = sum(cpu_seconds(server.pid) for server in found), time.process_time(), time.perf_counter()
    one = in_one_batch if way == "atomic batch" else in_single_messages
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def send(number: int) -> None:
        async with slots:
            await one(connection, name, way, number)

    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*map(send, range(WAY_EVENTS // BATCH)))
    seconds, ours = time.perf_counter() - started, time.process_time() - ours
    theirs = sum(cpu_seconds(server.pid) for server in found) - theirs
    memory = (sum(server.resident_bytes for server in found) - memory) // len(found)
    info = await connection.request(f"STREAM.INFO.{name}")
    await connection.close()
    return (
        f"{way:<22}{len(found):>11}{WAY_EVENTS / seconds:>12,.0f}{ours / WAY_EVENTS * 1e6:>13.1f}"
        f"{theirs / WAY_EVENTS * 1e6:>12.1f}{memory / WAY_EVENTS:>12,.0f}{info['state']['bytes'] / WAY_EVENTS:>12,.0f}"
    )


def keys(number: int) -> bytes:
    """A batch's keys as live traffic has them: two a millisecond, then a digest."""
    first = number * BATCH
    timestamps = [1_700_000_000_000 + place // 2 for place in range(first, first + BATCH)]
    return pack_keys(timestamps, [os.urandom(DIGEST_BYTES) for _ in timestamps])


async def in_one_batch(connection: Connection, stream: str, _way: str, number: int) -> None:
    out = []
    for place, token in enumerate(key_tokens(keys(number)), 1):
        head = (
            b"NATS/1.0\r\nNats-Batch-Id:%d\r\nNats-Batch-Sequence:%d\r\n"
            b"Nats-Expected-Last-Subject-Sequence:0\r\n\r\n" % (number, place)
        )
        out.append(b"HPUB %s.k.%s %d %d\r\n%s\r\n" % (stream.encode(), token, len(head), len(head), head))
    lines = b"\n".join([LINE] * BATCH)
    head = b"NATS/1.0\r\nNats-Batch-Id:%d\r\nNats-Batch-Sequence:%d\r\nNats-Batch-Commit:1\r\n\r\n" % (
        number,
        BATCH + 1,
    )
    async with connection.answers() as (inbox, arrived):
        sizes = b"%d %d" % (len(head), len(head) + len(lines))
        out.append(b"HPUB %s.d.app %s %s\r\n%s%s\r\n" % (stream.encode(), inbox.encode(), sizes, head, lines))
        await connection.send(b"".join(out))
        check(await arrived.get())


async def in_single_messages(connection: Connection, stream: str, way: str, number: int) -> None:
    async with connection.answers() as (inbox, arrived):
        out = []
        for token in key_tokens(keys(number)):
            if way == "subject a key":
                subject, head = b"%s.k.%s" % (stream.encode(), token), b"NATS/1.0\r\nPut:%d\r\n\r\n" % number
            else:
                subject, head = b"%s.d" % stream.encode(), b"NATS/1.0\r\nNats-Msg-Id:%s\r\n\r\n" % token
            sizes = b"%d %d" % (len(head), len(head) + len(LINE))
            out.append(b"HPUB %s %s %s\r\n%s%s\r\n" % (subject, inbox.encode(), sizes, head, LINE))
        await connection.send(b"".join(out))
        for _ in range(BATCH):
            check(await arrived.get())


def check(message: "Msg") -> None:
    assert b'"error"' not in message.data, message.data


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.jetstream", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="where queues and streams are made")
    folder = parser.parse_args().folder.resolve()
    print(
        f"{'way to know duplicates':<22}{'servers':>11}{'events/s':>12}{'client us/ev':>13}{'servers us':>12}", end=""
    )
    print(f"{'RSS B/ev':>12}{'disk B/ev':>12}")
    for count in (1, 3):
        for way in WAYS:
            with servers(folder, count) as found:
                print(asyncio.run(by_way(found, way)), flush=True)
    print(f"\n{'queue':<22}{'collectors':>11}{'events/s':>12}{'delivered/s':>13}{'CPU us/event':>13}{'servers us':>12}")
    print(through_collectors(folder, [], 1), flush=True)
    for count in (1, 3):
        with servers(folder, count) as found:
            for collectors in COLLECTORS:
                print(through_collectors(folder, found, collectors), flush=True)


if __name__ == "__main__":
    main()
