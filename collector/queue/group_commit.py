"""Many waiting callers, one transaction: whatever arrives while a commit runs goes into the next one.

One fsync then serves as many callers as the load brings, without a timer and without delay when there is no load.
The transaction runs in one thread of its own as a single call, because each hop between threads costs up to an
interpreter switch interval.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from collector.errors import CollectorError, QueueUnavailable
from collector.queue.base import Verdict
from collector.queue.operations import Done, Put, Settle
from collector.queue.step_thread import StepThread

MAX_GROUP_BYTES = 2 * 2**20
"""About 20,000 events: bounds how long one commit takes, and so how long the next caller waits."""


Operation = Put | Settle
Verdicts = asyncio.Future[Sequence[Verdict]]


class GroupCommit:
    """Feeds operations to `transact` in groups; one group at a time, in order.

    `transact` runs in the writer's thread. `applied` is called on the loop with the operations of a group that were
    done, in the order of commits and before any caller of the group wakes, also for those that were cancelled: a
    cancelled caller never cancels a commit.
    """

    def __init__(
        self,
        thread: StepThread,
        transact: Callable[[Sequence[Operation]], Sequence[Done | CollectorError]],
        *,
        applied: Callable[[Sequence[tuple[Operation, Done]]], None],
        observe_commit: Callable[[float, int], None],
    ) -> None:
        self._thread = thread
        self._transact = transact
        self._applied = applied
        self._observe_commit = observe_commit
        self._loop = asyncio.get_running_loop()
        self._operations: list[Operation] = []
        self._callers: list[Verdicts] = []
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
        self._operations.append(operation)
        self._callers.append(caller)
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
        size = count = 0
        for operation in self._operations:
            size += operation.bytes
            if count and size > MAX_GROUP_BYTES:
                break
            count += 1
        operations, self._operations = self._operations[:count], self._operations[count:]
        callers, self._callers = self._callers[:count], self._callers[count:]
        started = time.perf_counter()
        running = self._thread.run(lambda: self._transact(operations))
        running.add_done_callback(lambda done: self._finish(operations, callers, done, started))

    def _finish(
        self,
        operations: Sequence[Operation],
        callers: Sequence[Verdicts],
        running: asyncio.Future[Sequence[Done | CollectorError]],
        started: float,
    ) -> None:
        self._observe_commit(time.perf_counter() - started, len(operations))
        failure = running.exception()
        results = [failure] * len(operations) if failure else running.result()
        done = []
        for operation, result in zip(operations, results, strict=True):
            self.uncommitted_bytes -= operation.bytes
            if isinstance(result, Done):
                done.append((operation, result))
        self._applied(done)
        if self._operations:
            self._start()
        else:
            self._committing = False
            self._idle.set()
        for caller, result in zip(callers, results, strict=True):
            if caller.done():
                continue  # it was cancelled
            if isinstance(result, Done):
                caller.set_result(result.verdicts)
            else:
                caller.set_exception(result)
