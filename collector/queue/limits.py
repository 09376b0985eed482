"""What a full queue refuses, and in which words: puts, and burials where dead letters have no room.

Each queue counts what it holds, and compares; a limit that has changed holds from then on, and what is there stays.
That puts are refused is said in the log as an outage is: when it begins and when it is over.
"""

from typing import Self

import msgspec

from collector.clock import Clock
from collector.config.model import Queue
from collector.errors import DeadLettersFull, QueueBusy, QueueFull
from collector.observe.logs import get_logger

log = get_logger(__name__)

BUSY_RETRY_AFTER_SECONDS = 1.0
FULL_RETRY_AFTER_SECONDS = 5.0
QUIET_SECONDS = 30.0
"""For how long nothing is refused before refusals count as over: senders come back within FULL_RETRY_AFTER_SECONDS, and
a queue that is drained at its limit takes one put and refuses the next."""


class Limits(msgspec.Struct, frozen=True):
    """Most bytes of lines that wait for delivery, of those that still wait for their commit, and of dead letters.

    What was delivered is kept for so many seconds, where the queue is a file.
    """

    max_bytes: int
    max_uncommitted_bytes: int
    max_dead_bytes: int
    keep_delivered_seconds: float = 0.0

    @classmethod
    def of(cls, queue: Queue) -> Self:
        """What a configuration says."""
        return cls(queue.max_bytes, queue.max_uncommitted, queue.max_dead_bytes, queue.keep_delivered)

    def full(self, waiting_bytes: int) -> QueueFull:
        """Why a put is refused for which `max_bytes` leaves no room."""
        return QueueFull(
            f"{waiting_bytes} of queue.max_bytes = {self.max_bytes} bytes wait for delivery",
            retry_after_seconds=FULL_RETRY_AFTER_SECONDS,
        )

    def busy(self, uncommitted_bytes: int) -> QueueBusy:
        """Why a put is refused for which `max_uncommitted_bytes` leaves no room."""
        return QueueBusy(
            f"{uncommitted_bytes} of queue.max_uncommitted = {self.max_uncommitted_bytes} bytes wait for their commit",
            retry_after_seconds=BUSY_RETRY_AFTER_SECONDS,
        )

    def dead_letters_full(self, dead_bytes: int, events: int, reason: str) -> DeadLettersFull:
        """Why so many are not buried, for which `max_dead_bytes` leaves no room; `reason` is the first's."""
        return DeadLettersFull(
            f"dead letters take {dead_bytes} of queue.max_dead_bytes = {self.max_dead_bytes} bytes, so "
            f"nothing more is buried, and this app's events wait. Upstream refuses {events} of them: {reason}. "
            "Make room: collector queue dead list, export, and retry or purge"
        )


class Refusals:
    """Puts that a limit refuses, from the first until there are none for QUIET_SECONDS."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._puts = 0
        self._since = self._latest = 0.0

    def noted(self, error: QueueFull | QueueBusy) -> QueueFull | QueueBusy:
        """The same, for a put that is refused with it."""
        self._latest = self._clock.monotonic()
        if not self._puts:
            self._since = self._latest
            log.warning("queue.refusals_began", error=str(error))
        self._puts += 1
        return error

    def look(self) -> None:
        """Says that they are over, where they are. To be called about once a second."""
        if self._puts and self._clock.monotonic() >= self._latest + QUIET_SECONDS:
            seconds = round(self._latest - self._since, 1)
            log.info("queue.refusals_ended", seconds=seconds, refused_puts=self._puts)
            self._puts = 0
