"""Who writes the queue's file: one `Store`, which does one thing after the other, away from the event loop.

A host program has it in a thread of its process (store_thread.py), the daemon in a process of its own
(store_process.py): beside a busy loop each of the few statements of a commit would wait for the interpreter lock, and
all of them together take longer than the commit itself.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from collector.clock import Clock
from collector.errors import CollectorError
from collector.queue.sqlite.operations import Done, Operation
from collector.queue.sqlite.store import Store

MAX_GROUP_BYTES = 2 * 2**20
"""About 20,000 events: bounds how long one commit takes, and so how long the next caller waits."""

T = TypeVar("T")

Take = Callable[[T], None]
"""Gets what a step has returned before the loop hears of anything that was done later."""


class Commit(NamedTuple):
    """One that was made, or failed: what became of each operation in their order, and how long it took."""

    results: Sequence[Done | BaseException]
    seconds: float


class Writer(Protocol):
    """Does what it is given in order, and tells the loop of it in order."""

    @property
    def trouble(self) -> CollectorError | None:
        """See `Store.trouble`."""
        ...

    async def open(
        self, directory: Path, *, batch_events: int, clock: Clock, committed: Callable[[Commit], None]
    ) -> None:
        """The store is open, and `committed` hears of each commit in the loop that this was called in.

        Raises what `Store` raises.
        """
        ...

    def give(self, operation: Operation) -> None:
        """It is committed together with what else comes until the commit before has ended. Raises CollectorError."""
        ...

    def run(self, step: Callable[[Store], T], take: Take[T] | None = None) -> asyncio.Future[T]:
        """What a step returns or raises that is no commit. A caller that waits no more does not stop it."""
        ...

    async def close(self) -> None:
        """Returns when all is done that was given, and the file is closed, if it was ever open."""
        ...


def unheard(future: asyncio.Future[Any]) -> None:
    """Nobody waits for it, also not for its exception."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


def next_group(given: deque[Operation]) -> list[Operation]:
    """Takes the operations of the next commit out of those that were given: at least one, if there is any."""
    group: list[Operation] = []
    size = 0
    while given and (not group or size + given[0].bytes <= MAX_GROUP_BYTES):
        operation = given.popleft()
        group.append(operation)
        size += operation.bytes
    return group


def make_commit(
    transact: Callable[[Sequence[Operation]], Sequence[Done | CollectorError]], given: deque[Operation]
) -> Commit:
    """Commits the next group of what was given."""
    group = next_group(given)
    started = time.perf_counter()
    results: Sequence[Done | BaseException]
    try:
        results = transact(group)
    except BaseException as error:  # noqa: BLE001 - it belongs to the callers
        results = [error] * len(group)
    return Commit(results, time.perf_counter() - started)
