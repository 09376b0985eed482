"""A writer that does not come back: its disk hangs (a network's, or one that is frozen), or somebody has stopped it.

Nothing fails then, and whoever waits for a commit waits on: nothing that was given can be taken back. What can be done
is to say so, and to let nobody else wait.
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import TypeVar

from collector.errors import QueueUnavailable
from collector.observe.logs import get_logger
from collector.queue.sqlite.database import RETRY_AFTER_SECONDS

log = get_logger(__name__)

T = TypeVar("T")

HANG_SECONDS = 15.0
"""Longer than the queue waits for another process that holds the file, and any one step on a disk that works."""


class HangWatch:
    """Tells by steps of the writer, one each second, whether it comes to what it is given."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._trouble: str | None = None

    @property
    def trouble(self) -> QueueUnavailable | None:
        """Why nothing can be stored at the moment; None where the writer answers."""
        if self._trouble is None:
            return None
        return QueueUnavailable(self._trouble, retry_after_seconds=RETRY_AFTER_SECONDS)

    def watch(self, step: asyncio.Future[T]) -> asyncio.Future[T]:
        """The step of the writer, which has just been asked for."""
        late = asyncio.get_running_loop().call_later(HANG_SECONDS, self._begin)
        step.add_done_callback(partial(self._end, late))
        return step

    def _begin(self) -> None:
        self._trouble = f"{self._directory}: nothing could be written for {HANG_SECONDS:.0f} s; the disk seems to hang"
        log.error("queue.unavailable", error=self._trouble)

    def _end(self, late: asyncio.TimerHandle, step: asyncio.Future[object]) -> None:
        late.cancel()
        if self._trouble is not None and not step.cancelled():
            log.info("queue.available_again", after=self._trouble)
            self._trouble = None
