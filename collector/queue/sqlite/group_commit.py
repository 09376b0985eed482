"""Many waiting callers, one transaction: whatever arrives while a commit runs goes into the next one.

One fsync then serves as many callers as the load brings, without a timer and without delay when there is no load. The
writer makes the groups, each a single transaction; here is who waits for them, on the loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from collector.errors import QueueUnavailable
from collector.queue.base import Verdict
from collector.queue.sqlite.operations import Done, Operation
from collector.queue.sqlite.writer import Commit

Verdicts = asyncio.Future[Sequence[Verdict]]


class GroupCommit:
    """Gives operations to a writer by `give`, and lets their callers wait until `heard` is told of the commit.

    `applied` is called with the operations of a commit that were done, in the order of commits and before any of their
    callers wakes, also for those that were cancelled: a cancelled caller never cancels a commit. `failed` hears of each
    operation's failure.
    """

    def __init__(
        self,
        give: Callable[[Operation], None],
        *,
        applied: Callable[[Sequence[tuple[Operation, Done]]], None],
        failed: Callable[[BaseException], None],
        observe_commit: Callable[[float, int], None],
    ) -> None:
        self._give = give
        self._applied = applied
        self._failed = failed
        self._observe_commit = observe_commit
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Operation, Verdicts]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self.uncommitted_bytes = 0

    def submit(self, operation: Operation) -> Verdicts:
        """The operation's verdicts, after the commit that holds it, or what became of it in their place.

        Raises QueueUnavailable after `close`, and what the writer raises.
        """
        if self._closed:
            raise QueueUnavailable("the queue is closed")
        self._give(operation)
        caller: Verdicts = self._loop.create_future()
        self._waiting.append((operation, caller))
        self.uncommitted_bytes += operation.bytes
        self._idle.clear()
        return caller

    def heard(self, commit: Commit) -> None:
        """The operations that have waited longest were committed, or not."""
        self._observe_commit(commit.seconds, len(commit.results))
        done = []
        callers = []
        for result in commit.results:
            operation, caller = self._waiting.popleft()
            callers.append(caller)
            self.uncommitted_bytes -= operation.bytes
            if isinstance(result, Done):
                done.append((operation, result))
            else:
                self._failed(result)
        self._applied(done)
        if not self._waiting:
            self._idle.set()
        for caller, result in zip(callers, commit.results, strict=True):
            if caller.done():
                continue  # it was cancelled
            if isinstance(result, Done):
                caller.set_result(result.verdicts)
            else:
                caller.set_exception(result)

    async def close(self) -> None:
        """Refuses what comes from now on, and returns after the commit of all that came before."""
        self._closed = True
        await self._idle.wait()
