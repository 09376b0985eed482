"""Many waiting callers, one transaction: whatever arrives while a commit runs goes into the next one.

One fsync then serves as many callers as the load brings, without a timer and without delay when there is no load.
The transaction runs in one thread of its own as a single call, because each hop between threads costs up to an
interpreter switch interval. Where more waits when it ends, that thread goes on with the next one by itself: the loop
hears of the first meanwhile.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from collector.errors import CollectorError, QueueUnavailable
from collector.queue.base import Verdict
from collector.queue.operations import Done, Put, Settle
from collector.queue.step_thread import StepThread

MAX_GROUP_BYTES = 2 * 2**20
"""About 20,000 events: bounds how long one commit takes, and so how long the next caller waits."""


Operation = Put | Settle
Verdicts = asyncio.Future[Sequence[Verdict]]


class _Commit(NamedTuple):
    """One that was made, or failed; each operation's result says which. When the last one ended, nothing waited."""

    operations: Sequence[Operation]
    callers: Sequence[Verdicts]
    results: Sequence[Done | BaseException]
    seconds: float
    is_last: bool


class GroupCommit:
    """Feeds operations to `transact` in groups; one group at a time, in order.

    `transact` runs in the writer's thread. `applied` is called on the loop with the operations of a group that were
    done, in the order of commits and before any caller of the group wakes, also for those that were cancelled: a
    cancelled caller never cancels a commit. `failed` hears there of each operation's failure.
    """

    def __init__(
        self,
        thread: StepThread,
        transact: Callable[[Sequence[Operation]], Sequence[Done | CollectorError]],
        *,
        applied: Callable[[Sequence[tuple[Operation, Done]]], None],
        failed: Callable[[BaseException], None],
        observe_commit: Callable[[float, int], None],
    ) -> None:
        self._thread = thread
        self._transact = transact
        self._applied = applied
        self._failed = failed
        self._observe_commit = observe_commit
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Operation, Verdicts]] = deque()  # the loop appends, the writer's thread takes
        self._committing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self.uncommitted_bytes = 0

    def submit(self, operation: Operation) -> Verdicts:
        """The operation's verdicts, after the commit that holds it, or what `transact` answered in their place.

        Raises QueueUnavailable after `close`.
        """
        if self._closed:
            raise QueueUnavailable("the queue is closed")
        caller: Verdicts = self._loop.create_future()
        self._waiting.append((operation, caller))
        self.uncommitted_bytes += operation.bytes
        if not self._committing:
            self._committing = True
            self._idle.clear()
            self._loop.call_soon(self._start)  # not at once: what else this turn of the loop brings joins the group
        return caller

    async def close(self) -> None:
        """Refuses what comes from now on, and returns after the commit of all that came before."""
        self._closed = True
        await self._idle.wait()

    def _start(self) -> None:
        self._thread.post(self._commit, self._loop, self._finish)

    def _commit(self) -> _Commit:
        """In the writer's thread: the next group, from taking it to its fsync."""
        waiting = self._waiting
        operations: list[Operation] = []
        callers: list[Verdicts] = []
        size = 0
        while waiting and (not operations or size + waiting[0][0].bytes <= MAX_GROUP_BYTES):
            operation, caller = waiting.popleft()
            operations.append(operation)
            callers.append(caller)
            size += operation.bytes
        started = time.perf_counter()
        results: Sequence[Done | BaseException]
        try:
            results = self._transact(operations)
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers
            results = [error] * len(operations)
        seconds = time.perf_counter() - started
        is_last = not waiting
        if not is_last:
            self._start()
        return _Commit(operations, callers, results, seconds, is_last)

    def _finish(self, commit: _Commit, _failure: BaseException | None) -> None:
        """On the loop."""
        self._observe_commit(commit.seconds, len(commit.operations))
        done = []
        for operation, result in zip(commit.operations, commit.results, strict=True):
            self.uncommitted_bytes -= operation.bytes
            if isinstance(result, Done):
                done.append((operation, result))
            else:
                self._failed(result)
        self._applied(done)
        if commit.is_last:
            if self._waiting:
                self._start()
            else:
                self._committing = False
                self._idle.set()
        for caller, result in zip(commit.callers, commit.results, strict=True):
            if caller.done():
                continue  # it was cancelled
            if isinstance(result, Done):
                caller.set_result(result.verdicts)
            else:
                caller.set_exception(result)
