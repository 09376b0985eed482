"""Many waiting callers, one transaction: whatever arrives while a commit runs goes into the next one.

One fsync then serves as many callers as the load brings, without a timer and without delay when there is no load.
The transaction runs in one thread of its own as a single call, because each hop between threads costs up to an
interpreter switch interval.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from collector.errors import CollectorError, QueueUnavailable
from collector.queue.base import Verdict
from collector.queue.store import Done, Put, Settle

MAX_GROUP_BYTES = 2 * 2**20
"""About 20,000 events: bounds how long one commit takes, and so how long the next caller waits."""


Operation = Put | Settle
Caller = tuple[Operation, asyncio.Future[Sequence[Verdict]]]


class GroupCommit:
    """Feeds operations to `transact` in groups; one group at a time, in order.

    `transact` runs in the writer's thread. `applied` is called on the loop with each operation that was done, in the
    order of commits and before any caller of the group wakes, also when its own was cancelled: a cancelled caller never
    cancels a commit.
    """

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        transact: Callable[[Sequence[Operation]], Sequence[Done | CollectorError]],
        *,
        applied: Callable[[Operation, Done], None],
        observe_commit: Callable[[float, int], None],
    ) -> None:
        self._thread = thread
        self._transact = transact
        self._applied = applied
        self._observe_commit = observe_commit
        self._waiting: list[Caller] = []
        self._committing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self.uncommitted_bytes = 0

    async def submit(self, operation: Operation) -> Sequence[Verdict]:
        """The operation's verdicts, after the commit that holds it. Raises what `transact` answered for it."""
        if self._closed:
            raise QueueUnavailable("the queue is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[Verdict]] = loop.create_future()
        self._waiting.append((operation, future))
        self.uncommitted_bytes += operation.bytes
        if not self._committing:
            self._committing = True
            self._idle.clear()
            loop.call_soon(self._start)  # not at once: what else this turn of the loop brings joins the group
        return await future

    async def close(self) -> None:
        """Refuses what comes from now on, and returns after the commit of all that came before."""
        self._closed = True
        await self._idle.wait()

    def _start(self) -> None:
        size = count = 0
        for operation, _ in self._waiting:
            size += operation.bytes
            if count and size > MAX_GROUP_BYTES:
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        started = time.perf_counter()
        operations = [operation for operation, _ in group]
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._transact, operations)
        running.add_done_callback(lambda done: self._finish(group, done, started))

    def _finish(
        self, group: Sequence[Caller], running: asyncio.Future[Sequence[Done | CollectorError]], started: float
    ) -> None:
        self._observe_commit(time.perf_counter() - started, len(group))
        failure = running.exception()
        results = [failure] * len(group) if failure else running.result()
        for (operation, _), result in zip(group, results, strict=True):
            self.uncommitted_bytes -= operation.bytes
            if isinstance(result, Done):
                self._applied(operation, result)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():
                continue  # its caller was cancelled
            if isinstance(result, Done):
                future.set_result(result.verdicts)
            else:
                future.set_exception(result)
        if self._waiting:
            self._start()
        else:
            self._committing = False
            self._idle.set()
