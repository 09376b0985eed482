"""An embeddable usage-event collector: exact deduplication, a durable queue, batched delivery to Productiv."""

from typing import TYPE_CHECKING, Any

from collector.config import Config
from collector.errors import (
    CollectorError,
    ConfigInvalid,
    MalformedBody,
    QueueBroken,
    QueueBusy,
    QueueFull,
    QueueInUse,
    QueueUnavailable,
    Rejected,
    Retryable,
    Unusable,
)
from collector.events import UsageEvent
from collector.version import __version__

if TYPE_CHECKING:
    from collector.agent import Collector, StopReport

__all__ = [
    "Collector",
    "CollectorError",
    "Config",
    "ConfigInvalid",
    "MalformedBody",
    "QueueBroken",
    "QueueBusy",
    "QueueFull",
    "QueueInUse",
    "QueueUnavailable",
    "Rejected",
    "Retryable",
    "StopReport",
    "Unusable",
    "UsageEvent",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """The agent brings aiohttp with it, half of the time that an import takes: only who uses it pays."""
    if name in {"Collector", "StopReport"}:
        from collector import agent  # noqa: PLC0415

        return getattr(agent, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
