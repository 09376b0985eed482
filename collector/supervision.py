"""The tasks of an agent: each runs until the stop, and one that ends before is the end of all, loudly."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from collector.errors import CollectorError, Unusable
from collector.observe.logs import get_logger

log = get_logger("collector.agent")


class Supervision:
    """Who has died, and why. `begin` it in the loop of the tasks."""

    def __init__(self) -> None:
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._is_over = False
        self._failure: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """A death is noticed from now on."""
        self._failure = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        """From now on tasks may end."""
        self._is_over = True

    @property
    def dead(self) -> str | None:
        """The name of a task that has ended."""
        return next((name for name, task in self.tasks.items() if task.done()), None)

    def watch(self, name: str, work: Coroutine[Any, Any, None], opened: contextlib.AsyncExitStack) -> None:
        """Runs `work` until `opened` is closed, and takes its end before `end` as the end of the agent."""
        task = asyncio.create_task(work, name=name)
        self.tasks[name] = task
        task.add_done_callback(self._ended)

        async def cancel() -> None:
            task.remove_done_callback(self._ended)
            task.cancel()
            await asyncio.wait([task])

        opened.push_async_callback(cancel)

    async def failed(self) -> None:
        """Raises, once a task has died; never returns before."""
        assert self._failure is not None, "begin comes first"  # noqa: S101
        await asyncio.shield(self._failure)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self._is_over or self._failure is None or self._failure.done():
            return
        log.error("agent.task_died", task=task.get_name(), error=repr(error), exc_info=error)
        failure = Unusable(
            f"{task.get_name()} has died: {error!r}; this is a defect or a broken queue, the log has the details"
        )
        self._failure.set_exception(error if isinstance(error, CollectorError) else failure)
