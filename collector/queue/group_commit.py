"""Many waiting callers, one transaction: whatever arrives while a commit runs goes into the next one.

One fsync then serves as many callers as the load brings, without a timer and without delay when there is no load.
The transaction runs in one thread of its own as a single call, because each hop between threads costs up to an
interpreter switch interval. A step takes what waits when it begins, not when it was given: so the thread can have its
next step before the last one is done, and goes on to it while the loop still reads the bodies of others.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from collector.errors import CollectorError, QueueUnavailable
from collector.queue.base import Verdict
from collector.queue.operations import Done, Put, Settle
from collector.queue.step_thread import StepThread

MAX_GROUP_BYTES = 2 * 2**20
"""About 20,000 events: bounds how long one commit takes, and so how long the next caller waits."""

AHEAD_BYTES = 32 * 2**10
"""So much has to wait before the thread is given its next step ahead. Less is committed together with what the loop
brings until it has heard of the last commit: of small puts more fit into one fsync then, and nothing is lost, since
the loop is quick to hear."""

Operation = Put | Settle
Verdicts = asyncio.Future[Sequence[Verdict]]
Group = list[tuple[Operation, Verdicts, Done | BaseException]]
"""What one transaction held, with what became of each."""


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
        self._waiting: deque[tuple[Operation, Verdicts]] = deque()  # the loop appends, the thread takes
        self._waiting_bytes = 0  # since a step was last given: what it will take, if not more
        self._steps = 0  # that the thread was given and the loop has not heard of
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
        self._waiting_bytes += operation.bytes
        self.uncommitted_bytes += operation.bytes
        if not self._steps:
            self._steps = 1
            self._idle.clear()
            self._loop.call_soon(self._give)  # not at once: what else this turn of the loop brings joins the group
        elif self._steps == 1 and self._waiting_bytes >= AHEAD_BYTES:
            self._steps = 2
            self._give()
        return caller

    async def close(self) -> None:
        """Refuses what comes from now on, and returns after the commit of all that came before."""
        self._closed = True
        await self._idle.wait()

    def _give(self) -> None:
        self._waiting_bytes = 0
        self._thread.run(self._commit).add_done_callback(self._finish)

    def _commit(self) -> Group:
        """In the thread: one transaction for what waits, or for as much of it as a group may hold."""
        size, taken = 0, list[tuple[Operation, Verdicts]]()
        while self._waiting:
            size += self._waiting[0][0].bytes
            if taken and size > MAX_GROUP_BYTES:
                break
            taken.append(self._waiting.popleft())
        if not taken:
            return []  # the step before this one had not begun when it was given, and has taken all
        started = time.perf_counter()
        results: Sequence[Done | BaseException]
        try:
            results = self._transact([operation for operation, _ in taken])
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers
            results = [error] * len(taken)
        self._observe_commit(time.perf_counter() - started, len(taken))
        return [(operation, caller, result) for (operation, caller), result in zip(taken, results, strict=True)]

    def _finish(self, step: asyncio.Future[Group]) -> None:
        group = step.result()
        done = []
        for operation, _, result in group:
            self.uncommitted_bytes -= operation.bytes
            if isinstance(result, Done):
                done.append((operation, result))
        if done:
            self._applied(done)
        self._steps -= 1
        if self._waiting and not self._steps:
            self._steps = 1
            self._give()
        elif not self._steps:
            self._idle.set()
        for _, caller, result in group:
            if caller.done():
                continue  # it was cancelled
            if isinstance(result, Done):
                caller.set_result(result.verdicts)
            else:
                caller.set_exception(result)
