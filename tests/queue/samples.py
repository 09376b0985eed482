"""Events to put, what is read back of them, and what a queue's file really holds."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from collector.clock import Clock
from collector.events import event_key, split_keys
from collector.observe.metrics import Metrics
from collector.queue.base import Batch
from collector.queue.limits import Limits
from collector.queue.sqlite.at_hand import AtHand
from collector.queue.sqlite.database import FILE_NAME
from collector.queue.sqlite.queue import SqliteQueue
from collector.queue.sqlite.run import Run
from collector.queue.sqlite.view import View

EMAIL = "someone@example.com"

EAGER: dict[str, Any] = {
    "LARGE_PUT_KEYS": 2,
    "FAR_PUTS": 1,
    "OPENS_AFTER": 1,
    "OPENS_AFTER_OTHERS": 3,
    "CLOSES_AFTER": 4,
    "CAPACITY": 24,
    "STEP_KEYS": 3,
    "BUCKET_MS": 8,
    "MAX_BUCKET_KEYS": 5,
}
"""What a few events in disorder need of recent_keys.py to be treated there as hundreds of thousands are."""
ROOT = Path(__file__).parents[2]


def key(app_id: str, number: int) -> bytes:
    """The key of an app's event with this number."""
    return event_key(app_id, number, EMAIL, "opened")


def line(app_id: str, number: int) -> bytes:
    """Its JSON: of differing lengths, so that a byte counted wrongly shows."""
    padding = "ü" * (number % 7)
    return f'{{"timestamp":{number},"email":"{EMAIL}","eventName":"opened","note":"{app_id}{padding}"}}'.encode()


def lines(app_id: str, numbers: Iterable[int]) -> bytes:
    """Several of them, as a batch holds them."""
    return b"\n".join(line(app_id, number) for number in numbers)


def batch(app_id: str, numbers: Iterable[int]) -> Batch:
    """A batch of an app's events with these numbers."""
    numbers = list(numbers)
    return Batch(app_id, b"".join(key(app_id, number) for number in numbers), lines(app_id, numbers))


def batches(app_id: str, numbers: Sequence[int]) -> list[Batch]:
    """The same of any number of events, in as many batches as it takes."""
    return [batch(app_id, numbers[start : start + 1000]) for start in range(0, len(numbers), 1000)]


def numbers_in(app_id: str, text: bytes) -> list[int]:
    """The numbers of an app's events in lines of JSON, each of them byte for byte as it was put."""
    numbers = []
    for each in text.split(b"\n"):
        number = int(each.removeprefix(b'{"timestamp":').partition(b",")[0])
        assert each == line(app_id, number)
        numbers.append(number)
    return numbers


def sqlite_queue(directory: Path, **settings: Any) -> SqliteQueue:
    """A queue, not open yet, of small batches and with room for a megabyte, unless `settings` say otherwise."""
    limits = {name: settings.pop(name) for name in Limits.__struct_fields__ if name in settings}
    usual: dict[str, Any] = {
        "batch_events": 10,
        "limits": roomy(**limits),
        "dedup_retention_seconds": 86_400,
        "clock": Clock(),
        "metrics": Metrics(),
    }
    return SqliteQueue(directory, **(usual | settings))


def roomy(**limits: Any) -> Limits:
    """Room for a megabyte of everything, but for what `limits` say."""
    return msgspec.structs.replace(Limits(10**6, 10**6, 10**6), **limits)


def next_run(view: View, app_id: str, after: int, batch_events: int) -> Run | None:
    """What a lease would cover that is read after that segment."""
    at_hand, segments = AtHand(), view.next_segments(app_id, after, batch_events)
    at_hand.add(segments)
    return at_hand.next_run(segments[0].number - 1, 0, batch_events) if segments else None


class Stored(NamedTuple):
    """One app's share of a file: what `app` says of it, and what is really there."""

    counted_events: int
    counted_bytes: int
    counted_dead: int
    events: int
    bytes: int
    dead: int
    numbers: list[int]
    """Of the waiting events, in order."""
    segments: list[int]
    """How many lines each segment holds."""


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[sqlite3.Connection]:
    """A connection of the test's own to a queue's file, in autocommit."""
    connection = sqlite3.connect(directory / FILE_NAME, isolation_level=None, timeout=0)
    try:
        yield connection
    finally:
        connection.close()


def stored(directory: Path) -> dict[str, Stored]:
    """What a queue's file holds, counted line by line."""
    shares = {}
    with opened(directory) as connection:
        for app, name, events, size, dead in connection.execute(
            "SELECT app, name, waiting_events, waiting_bytes, dead_events FROM app"
        ).fetchall():
            rows = connection.execute(
                "SELECT events, lines FROM segment WHERE segment >> 40 = ? ORDER BY segment", (app,)
            ).fetchall()
            numbers = [number for _, text in rows for number in numbers_in(name, text)]
            assert [count for count, _ in rows] == [text.count(b"\n") + 1 for _, text in rows]
            (really_dead,) = connection.execute("SELECT count(*) FROM dead WHERE app = ?", (app,)).fetchone()
            shares[name] = Stored(
                events,
                size,
                dead,
                len(numbers),
                sum(len(text) + 1 for _, text in rows),
                really_dead,
                numbers,
                [count for count, _ in rows],
            )
    return shares


def waiting_numbers(directory: Path, app_id: str) -> list[int]:
    """The numbers of an app's events that wait in a file, in order."""
    share = stored(directory).get(app_id)
    return share.numbers if share else []


def remembered(directory: Path) -> dict[bytes, int]:
    """Every key that a file holds, with its stamp, which is in seconds."""
    with opened(directory) as connection:
        return all_keys(connection)


def all_keys(connection: sqlite3.Connection) -> dict[bytes, int]:
    """The same: those in the tree, and those that have not entered it yet."""
    recent = {
        key: stamp
        for stamp, keys in connection.execute("SELECT stamp, keys FROM recent_keys")
        for key in split_keys(keys)
    }
    return recent | dict(connection.execute("SELECT key, stamp FROM seen"))


@contextlib.contextmanager
def child(code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Another Python process that runs `code`, with pipes to talk to it; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=ROOT,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: "subprocess.Popen[str]") -> str:
    """The next line that a child says; empty once it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: "subprocess.Popen[str]", words: str = "") -> None:
    """Sends a child a line."""
    assert process.stdin is not None
    process.stdin.write(words + "\n")
    process.stdin.flush()
