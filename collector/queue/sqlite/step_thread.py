"""A thread that runs steps for an event loop, one after the other.

In place of a ThreadPoolExecutor of one thread, whose two futures and three locks a step cost a tenth of the speed of
small puts.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from collector.forks import use_of_connections

T = TypeVar("T")

Heard = Callable[[Any, BaseException | None], None]
"""Hears on the loop what a step has returned, or why it has not."""


class StepThread:
    """The thread starts with the first step and ends with `shutdown`; it keeps no program from ending.

    No step is under way while the program forks.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._steps: SimpleQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, Heard] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._use = use_of_connections()

    def run(self, step: Callable[[], T], take: Callable[[T], None] | None = None) -> asyncio.Future[T]:
        """What `step` returns or raises. A caller that does not wait for it any more does not stop it.

        `take` gets what it returns before the loop hears of any later step; the caller wakes some turns after that.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self.post(step, loop, partial(resolve, future, take))
        return future

    def post(self, step: Callable[[], Any], loop: asyncio.AbstractEventLoop, heard: Heard) -> None:
        """Runs `step` after all that was given before; then the loop hears of it. A step may post another one."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._steps.put((step, loop, heard))

    def shutdown(self) -> None:
        """Returns when all steps are done and the thread has ended."""
        if self._thread is not None:
            self._steps.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (item := self._steps.get()) is not None:
            step, loop, heard = item
            result: Any = None
            failure: BaseException | None = None
            try:
                with self._use:
                    result = step()
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has closed; nobody waits
                loop.call_soon_threadsafe(heard, result, failure)
            del item, step, loop, heard, result, failure  # or they would live until the next step


def resolve(
    future: asyncio.Future[Any], take: Callable[[Any], None] | None, result: object, failure: BaseException | None
) -> None:
    """A step is done, or has failed: `take` hears of it, and whoever still waits."""
    if take is not None and failure is None:
        take(result)
    if future.done():
        return  # its caller was cancelled
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
