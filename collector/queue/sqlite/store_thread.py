"""The store in a thread of this process.

A transaction runs there as a single call, because each hop between threads costs up to an interpreter switch interval.
Where more waits when it ends, the thread goes on with the next one by itself: the loop hears of the first meanwhile.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from collector.clock import Clock
from collector.errors import CollectorError
from collector.queue.sqlite.operations import Done, Operation
from collector.queue.sqlite.step_thread import StepThread
from collector.queue.sqlite.store import Store
from collector.queue.sqlite.writer import Commit, T, Take, make_commit


class StoreThread:
    """A `Writer`."""

    def __init__(self, thread: StepThread) -> None:
        self._thread = thread
        self._given: deque[Operation] = deque()  # the loop appends, the thread takes
        self._is_committing = False
        self._store: Store | None = None
        self._committed: Callable[[Commit], None]
        self._loop: asyncio.AbstractEventLoop

    @property
    def trouble(self) -> CollectorError | None:
        """See `Store.trouble`."""
        return self._store.trouble if self._store is not None else None

    async def open(
        self, directory: Path, *, batch_events: int, clock: Clock, committed: Callable[[Commit], None]
    ) -> None:
        """See `Writer.open`."""
        self._loop = asyncio.get_running_loop()
        self._committed = committed

        def open_store() -> None:  # also where nobody waits for it any more: `close` closes it
            self._store = Store(directory, batch_events=batch_events, clock=clock)

        await self._thread.run(open_store)

    def give(self, operation: Operation) -> None:
        """See `Writer.give`."""
        self._given.append(operation)
        if not self._is_committing:
            self._is_committing = True
            self._loop.call_soon(self._start)  # not at once: what else this turn of the loop brings joins the group

    def run(self, step: Callable[[Store], T], take: Take[T] | None = None) -> asyncio.Future[T]:
        """See `Writer.run`."""
        return self._thread.run(partial(self._with_store, step), take)

    async def close(self) -> None:
        """See `Writer.close`."""
        try:
            await self._thread.run(self._close_store)  # which comes after the opening, if that is still under way
        finally:
            self._thread.shutdown()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()

    def _with_store(self, step: Callable[[Store], T]) -> T:
        assert self._store is not None, "open comes first"  # noqa: S101
        self._store.reconnect()
        return step(self._store)

    def _transact(self, group: Sequence[Operation]) -> Sequence[Done | CollectorError]:
        return self._with_store(lambda store: store.transact(group))

    def _start(self) -> None:
        self._thread.post(self._commit, self._loop, self._finish)

    def _commit(self) -> tuple[Commit, bool]:
        """In the thread: a commit, and whether it is the last that was asked for."""
        commit = make_commit(self._transact, self._given)
        is_last = not self._given
        if not is_last:
            self._start()
        if self._store is not None and self._store.is_crowded:
            self._thread.post(partial(self._with_store, Store.make_room), self._loop, _ignore)
        return commit, is_last

    def _finish(self, made: tuple[Commit, bool], _failure: BaseException | None) -> None:
        """On the loop."""
        commit, is_last = made
        if is_last:
            if self._given:
                self._start()
            else:
                self._is_committing = False
        self._committed(commit)


def _ignore(_result: object, _failure: BaseException | None) -> None:
    pass
