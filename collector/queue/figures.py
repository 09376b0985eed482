"""The queue's figures as the status document says them."""

from typing import Any

from collector.observe.status import AppState, AppStatus, QueueStatus
from collector.queue.base import AppStats, QueueStats


def queue_status(stats: QueueStats, path: str) -> QueueStatus:
    """All apps together."""
    return QueueStatus(
        path,
        waiting_events=stats.waiting_events,
        waiting_bytes=stats.waiting_bytes,
        oldest_age_seconds=_seconds(stats.oldest_age_ms),
        dead_events=stats.dead_events,
        remembered_keys=stats.remembered_keys,
        file_bytes=stats.file_bytes,
        wal_bytes=stats.wal_bytes,
    )


def app_status(app: AppStats, state: AppState, **trouble: Any) -> AppStatus:
    """One app, in this state, with what is known of its trouble."""
    age = _seconds(app.oldest_age_ms)
    return AppStatus(app.app_id, state, app.waiting_events, app.waiting_bytes, age, app.dead_events, **trouble)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
