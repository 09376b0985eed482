"""Which queue it is: the one place that knows both."""

from collections.abc import Callable

from collector.clock import Clock
from collector.config import Config
from collector.observe.metrics import Metrics
from collector.queue.base import Backend
from collector.queue.sqlite import SqliteQueue
from collector.queue.step_thread import StepThread


def backend(
    config: Config,
    *,
    clock: Clock,
    metrics: Metrics,
    new_thread: Callable[[str], StepThread] = StepThread,
) -> Backend:
    """The queue that `queue.backend` names, not open yet."""
    queue = config.queue
    if queue.backend == "jetstream":
        from collector.queue.jetstream.queue import JetStreamQueue  # noqa: PLC0415 - who has SQLite needs none of it

        return JetStreamQueue(
            config.jetstream,
            batch_events=config.flush.batch_events,
            max_bytes=queue.max_bytes,
            max_uncommitted_bytes=queue.max_uncommitted,
            max_dead_bytes=queue.max_dead_bytes,
            dedup_retention_seconds=queue.dedup_retention,
            clock=clock,
            metrics=metrics,
        )
    return SqliteQueue(
        queue.path,
        batch_events=config.flush.batch_events,
        max_bytes=queue.max_bytes,
        max_uncommitted_bytes=queue.max_uncommitted,
        max_dead_bytes=queue.max_dead_bytes,
        dedup_retention_seconds=queue.dedup_retention,
        keep_delivered_seconds=queue.keep_delivered,
        clock=clock,
        metrics=metrics,
        new_thread=new_thread,
    )
