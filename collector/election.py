"""The election: which of the processes that use one queue has the flusher's role, and with it delivers.

The role is taken by who finds it free, and falls free when its holder ends or dies. Nobody is told of that: who waits
for it looks once a second. Of a queue that several can deliver from at a time it is always free.
"""

import asyncio
from enum import Enum

from collector.clock import Clock
from collector.errors import QueueInUse, Retryable
from collector.observe.logs import get_logger
from collector.queue.base import Backend

log = get_logger("collector.agent")


ELECTION_SECONDS = 1.0
"""How often a process looks whether it can take delivery over from another that has ended."""


class Delivery(Enum):
    """Which of the processes that use one queue delivers from it."""

    EXCLUSIVE = "this one does, or does not start"
    ELECTED = "one of them does; when it ends or dies, another takes over"
    ELSEWHERE = "another one does"


class Election:
    """This process's part in it. `stand` before the queue is opened, `won` once it is, and `resign` at the end."""

    def __init__(self, queue: Backend, delivery: Delivery, *, clock: Clock) -> None:
        self.delivery = delivery
        self._queue = queue
        self._clock = clock
        self._withdrawn = asyncio.Event()

    def stand(self) -> None:
        """This process has the role, where it is free and may be its own.

        Raises QueueInUse where another process has what must be this one's.
        """
        if self.delivery is Delivery.ELSEWHERE:
            return
        try:
            self._queue.take_flusher_role()
        except QueueInUse:
            if self.delivery is Delivery.EXCLUSIVE:
                raise

    async def won(self) -> bool:
        """True once this process has the role and knows what waits; False where it withdraws before."""
        said = ""
        while not self._queue.is_flusher:
            if await self._clock.wait(self._withdrawn, ELECTION_SECONDS):
                return False
            try:
                self.stand()
                if self._queue.is_flusher:
                    await self._queue.refresh()  # what another process has delivered meanwhile waits no more
                    log.info("agent.elected", waiting_events=self._queue.waiting_events)
            except Retryable as error:  # the disk's, or a lack of descriptors in the program around us
                self.resign()
                if said != str(error):
                    said = str(error)
                    log.warning("agent.not_elected", error=said)
        return True

    def withdraw(self) -> None:
        """This process takes the role no more; what it has it keeps."""
        self._withdrawn.set()

    def resign(self) -> None:
        """Another process may have the role. Harmless where this one does not have it."""
        self._queue.release_flusher_role()
