"""A whole collector inside the test's own loop, delivering to a sandbox."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from collector.agent import Collector
from collector.config import Config, load
from collector.election import Delivery
from tests.settings import sandboxed, variables


def config(folder: Path, upstream_url: str, **settings: str) -> Config:
    """What a test needs; settings are `section__key="value"`."""
    defaults = sandboxed(folder, upstream_url) | {
        "http__listen": "127.0.0.1:0",
        "apps__default": "wiki",
        "flush__linger": "20ms",
        "flush__backoff_base": "10ms",
        "flush__backoff_max": "50ms",
        "flush__hold_retry": "50ms",
        "stop__deadline": "2s",
    }
    return load(environment=variables(defaults | settings))


@asynccontextmanager
async def embedded(folder: Path, upstream_url: str, **settings: str) -> AsyncIterator[Collector]:
    """A collector that runs for the length of a block."""
    settled = config(folder, upstream_url, **settings)
    async with Collector(settled, listens=True, delivery=Delivery.EXCLUSIVE) as collector:
        yield collector


def metric(collector: Collector, name: str, **labels: str) -> float:
    return collector.metrics.registry.get_sample_value(f"collector_{name}", labels) or 0.0
