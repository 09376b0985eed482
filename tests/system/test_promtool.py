"""Prometheus's own tool has nothing to say about our metrics and rules."""

import subprocess
from pathlib import Path

from tests.embedded import embedded
from tests.system.conftest import program

ALERTS = Path(__file__).parents[2] / "deploy" / "alerts.yaml"

CASES = """
rule_files: ["{alerts}"]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'collector_oldest_waiting_seconds{{instance="a"}}', values: '0+60x60'}}
      - {{series: 'collector_outage_seconds{{instance="a"}}', values: '0+60x60'}}
      - {{series: 'collector_held_apps{{instance="a"}}', values: '0x20 2x40'}}
      - {{series: 'collector_buried_events_total{{instance="a"}}', values: '0x20 3x40'}}
      - {{series: 'collector_udp_kernel_drops_total{{instance="a"}}', values: '5x60'}}
      - {{series: 'collector_waiting_bytes{{instance="a"}}', values: '0+10x60'}}
      - {{series: 'collector_queue_limit_bytes{{instance="a"}}', values: '1000x60'}}
    promql_expr_test:
      - expr: sort_desc(count by (alertname) (ALERTS{{alertstate="firing"}}))
        eval_time: 14m
        exp_samples:
          - {{labels: '{{alertname="CollectorUpstreamFails"}}', value: 1}}
      - expr: count by (alertname) (ALERTS{{alertstate="firing"}})
        eval_time: 30m
        exp_samples:
          - {{labels: '{{alertname="CollectorUpstreamFails"}}', value: 1}}
          - {{labels: '{{alertname="CollectorBacklogOld"}}', value: 1}}
          - {{labels: '{{alertname="CollectorAppsHeld"}}', value: 1}}
          - {{labels: '{{alertname="CollectorDeadLetters"}}', value: 1}}
"""


def promtool(*words: str, given: bytes = b"") -> tuple[int, str]:
    ended = subprocess.run(
        [program("promtool"), *words], input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return ended.returncode, ended.stdout.decode()


async def test_it_finds_nothing_to_say_about_the_metrics(tmp_path: Path) -> None:
    async with embedded(tmp_path, "http://127.0.0.1:1", stop__deadline="0s") as collector:
        for verdict in ("accepted", "duplicate", "rejected"):
            collector.metrics.events.labels("http", verdict).inc()
        collector.metrics.refusals.labels("udp", "kernel_drop").inc()
        collector.metrics.observe_upstream(0.1, None)
        exposition = collector.metrics.exposition()
    assert promtool("check", "metrics", given=exposition) == (0, "")


def test_it_accepts_the_alerting_rules() -> None:
    status, said = promtool("check", "rules", str(ALERTS))
    assert status == 0, said
    assert "SUCCESS: 8 rules found" in said


def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(CASES.format(alerts=ALERTS), encoding="utf-8")
    status, said = promtool("test", "rules", str(cases))
    assert status == 0, said
