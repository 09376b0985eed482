"""Which queue it is: the one place that knows both."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from collector.clock import Clock
from collector.config import Config
from collector.errors import Unusable
from collector.observe.metrics import Metrics
from collector.queue.base import Backend, DeadLetters, QueueStats
from collector.queue.by_hand import ByHand
from collector.queue.limits import Limits
from collector.queue.sqlite.by_hand import FileByHand
from collector.queue.sqlite.queue import SqliteQueue
from collector.queue.sqlite.rescue.recover import examine
from collector.queue.sqlite.step_thread import StepThread
from collector.queue.sqlite.view import View
from collector.queue.sqlite.writer import Writer

if TYPE_CHECKING:
    from collector.queue.jetstream.by_hand import StreamByHand

JETSTREAM = "jetstream"


def backend(
    config: Config,
    *,
    clock: Clock,
    metrics: Metrics,
    new_thread: Callable[[str], StepThread] = StepThread,
    writer: Writer | None = None,
) -> Backend:
    """The queue that `queue.backend` names, not open yet. A file is written by `writer`, or in a thread."""
    queue = config.queue
    if queue.backend == JETSTREAM:
        from collector.queue.jetstream.queue import JetStreamQueue  # noqa: PLC0415 - who has SQLite needs none of it

        return JetStreamQueue(
            config.jetstream,
            batch_events=config.flush.batch_events,
            limits=Limits.of(queue),
            dedup_retention_seconds=queue.dedup_retention,
            clock=clock,
            metrics=metrics,
        )
    return SqliteQueue(
        queue.path,
        batch_events=config.flush.batch_events,
        limits=Limits.of(queue),
        dedup_retention_seconds=queue.dedup_retention,
        clock=clock,
        metrics=metrics,
        new_thread=new_thread,
        writer=writer,
    )


def by_hand(config: Config, *, for_writing: bool = False) -> ByHand:
    """The same queue for one command. Raises what opening the queue raises."""
    if config.queue.backend == JETSTREAM:
        return _stream_by_hand(config)
    return FileByHand(config.queue.path, for_writing=for_writing)


def at_rest(config: Config) -> tuple[str, QueueStats, DeadLetters]:
    """Where the queue is, how much there is of what, and why events are dead letters, as anybody can see it.

    Raises what opening the queue raises.
    """
    if config.queue.backend == JETSTREAM:
        with _stream_by_hand(config) as stream:
            return stream.place, stream.stats(), stream.dead_letters()
    view = View(config.queue.path)
    try:
        return str(config.queue.path), view.stats(Clock()), view.dead_letters()
    finally:
        view.close()


def problems(config: Config) -> list[str]:
    """What is wrong with the queue, found by looking at all of it. Raises what opening the queue raises."""
    if config.queue.backend == JETSTREAM:
        with _stream_by_hand(config) as stream:
            return stream.problems()
    return examine(config.queue.path)


def need_file(config: Config, what: str) -> None:
    """Raises Unusable where the queue is no file."""
    if config.queue.backend == JETSTREAM:
        raise Unusable(f'{what} is for the file of queue.backend = "sqlite"; JetStream keeps its replicas sound itself')


def _stream_by_hand(config: Config) -> "StreamByHand":
    from collector.queue.jetstream.by_hand import StreamByHand  # noqa: PLC0415 - as above

    return StreamByHand(config.jetstream)
