"""For programs that log: a usage event for each record that names a person and an action.

logging.getLogger("wiki.usage").addHandler(UsageHandler(client))
logging.getLogger("wiki.usage").info("saved", extra={"email": "user@example.com", "event_name": "page_saved"})

Others pass unnoticed, so that the handler may sit on a logger that sees everything.
"""

import logging
from collections.abc import Callable

from collector.integrations.recording import Recorder, Recording, Usage


def usage_of(record: logging.LogRecord) -> Usage | None:
    """A record's `email` and `event_name`, where it was logged with both as `extra`."""
    email, event_name = getattr(record, "email", None), getattr(record, "event_name", None)
    return None if email is None or event_name is None else (email, event_name)


class UsageHandler(logging.Handler):
    """Records what `usage(record)` finds, stamped with the time of the log's record."""

    def __init__(
        self,
        recorder: Recorder,
        *,
        usage: Callable[[logging.LogRecord], Usage | None] = usage_of,
        app_id: str | None = None,
        level: int = logging.NOTSET,
    ) -> None:
        super().__init__(level)
        self._recording = Recording(recorder, usage, app_id)

    def emit(self, record: logging.LogRecord) -> None:
        """The usage that the record tells of is recorded; never raises."""
        self._recording.record(record, timestamp_ms=int(record.created * 1000))
