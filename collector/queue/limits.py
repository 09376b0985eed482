"""What a full queue refuses, and in which words: puts, and burials where dead letters have no room.

Each queue counts what it holds, and compares; a limit that has changed holds from then on, and what is there stays.
"""

from collections.abc import Sequence

import msgspec

from collector.errors import DeadLettersFull, QueueBusy, QueueFull
from collector.queue.base import Burial

BUSY_RETRY_AFTER_SECONDS = 1.0
FULL_RETRY_AFTER_SECONDS = 5.0


class Limits(msgspec.Struct, frozen=True):
    """Most bytes of lines that wait for delivery, of those that still wait for their commit, and of dead letters."""

    max_bytes: int
    max_uncommitted_bytes: int
    max_dead_bytes: int

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

    def dead_letters_full(self, dead_bytes: int, buried: Sequence[Burial]) -> DeadLettersFull:
        """Why these are not buried, for which `max_dead_bytes` leaves no room."""
        return DeadLettersFull(
            f"dead letters take {dead_bytes} of queue.max_dead_bytes = {self.max_dead_bytes} bytes, so "
            f"nothing more is buried, and this app's events wait. Upstream refuses {len(buried)} of them: "
            f"{buried[0].reason}. Make room: collector queue dead list, export, and retry or purge"
        )
