"""An embeddable usage-event collector: exact deduplication, a durable queue, batched delivery to Productiv."""

import importlib
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
    from collector.election import Delivery
    from collector.intake import Report
    from collector.sources.recorder import Recorded
    from collector.sync import SyncCollector

__all__ = [
    "Collector",
    "CollectorError",
    "Config",
    "ConfigInvalid",
    "Delivery",
    "MalformedBody",
    "QueueBroken",
    "QueueBusy",
    "QueueFull",
    "QueueInUse",
    "QueueUnavailable",
    "Recorded",
    "Rejected",
    "Report",
    "Retryable",
    "StopReport",
    "SyncCollector",
    "Unusable",
    "UsageEvent",
    "__version__",
]


_LATE = {
    "Collector": "collector.agent",
    "Delivery": "collector.election",
    "Recorded": "collector.sources.recorder",
    "Report": "collector.intake",
    "StopReport": "collector.agent",
    "SyncCollector": "collector.sync",
}


def __getattr__(name: str) -> Any:
    """The agent brings aiohttp with it, half of the time that an import takes: only who uses it pays."""
    if module := _LATE.get(name):
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
