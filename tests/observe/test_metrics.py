"""What is exported, what is documented, and what alerts and dashboard ask for are the same."""

import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from collector.agent import Collector
from collector.observe.metrics import Metrics
from tests.embedded import embedded

DEPLOY = Path(__file__).parents[2] / "deploy"
SUFFIXES = {"counter": "_total", "info": "_info"}


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    async with embedded(tmp_path, "http://127.0.0.1:1", stop__deadline="0s") as collector:
        yield collector


def exported(registry: CollectorRegistry) -> dict[str, tuple[str, str, str]]:
    """Every metric by name: type, labels and meaning."""
    sources: list[Any] = [source for source in registry._collector_to_names if hasattr(source, "_labelnames")]
    labels = {source._name: source._labelnames for source in sources}
    labels["collector_build"] = ("version", "python")
    return {
        family.name + SUFFIXES.get(family.type, ""): (
            "gauge" if family.type == "info" else family.type,
            ", ".join(f"`{label}`" for label in labels.get(family.name, ())),
            family.documentation,
        )
        for family in registry.collect()
    }


def documented() -> dict[str, tuple[str, str, str]]:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ?(.*?) \| (.*?) \| ?.*\|$", (DEPLOY / "metrics.md").read_text("utf-8"), re.MULTILINE
    )
    return {name: (kind, labels, meaning) for name, kind, labels, meaning in rows}


async def test_the_table_of_metrics_is_what_is_exported(collector: Collector) -> None:
    collector.metrics.watch_writer(os.getpid())
    assert documented() == exported(collector.metrics.registry)


def expressions(content: Any) -> Iterator[str]:
    """Every query of a dashboard."""
    if isinstance(content, dict):
        if isinstance(content.get("expr"), str):
            yield content["expr"]
        for value in content.values():
            yield from expressions(value)
    elif isinstance(content, list):
        for value in content:
            yield from expressions(value)


def asked_for(queries: str) -> set[str]:
    """The metrics that queries name; of a histogram its own name."""
    names = set(re.findall(r"\b(?:collector|process)_\w+", queries))
    return {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in names}


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    dashboard = list(expressions(msgspec.json.decode((DEPLOY / "grafana-dashboard.json").read_bytes())))
    alerts = re.findall(r"expr: (.*)", (DEPLOY / "alerts.yaml").read_text("utf-8"))
    assert len(dashboard) > 20
    assert len(alerts) > 5
    assert asked_for("\n".join(dashboard + alerts)) <= documented().keys()


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    dashboard = msgspec.json.decode((DEPLOY / "grafana-dashboard.json").read_bytes())
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    taken = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


async def test_no_label_names_an_app_and_no_series_says_when_it_began(collector: Collector) -> None:
    collector.metrics.events.labels("http", "accepted").inc()
    collector.metrics.observe_upstream(0.1, 200)
    exposition = collector.metrics.exposition().decode()
    assert "_created" not in exposition
    assert not re.search(r"\bapp(?:_id)?=", exposition)


@pytest.mark.parametrize(
    ("status", "said"), [(200, "2xx"), (301, "3xx"), (404, "4xx"), (429, "4xx"), (503, "5xx"), (None, "none")]
)
def test_requests_to_upstream_count_by_the_class_of_their_answer(status: int | None, said: str) -> None:
    metrics = Metrics()
    metrics.observe_upstream(0.25, status)
    assert metrics.registry.get_sample_value("collector_upstream_seconds_sum", {"status": said}) == 0.25
