"""What the status document says while things go wrong, and what it costs to look."""

import asyncio
from pathlib import Path

import pytest

from collector.errors import QueueUnavailable
from collector.observe.status import Severity
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.embedded import embedded, metric
from tests.patience import until
from tests.queue.samples import batch

NOWHERE = "http://127.0.0.1:1"


async def test_apps_in_trouble_come_first_each_with_its_reason(tmp_path: Path, sandbox: Sandbox, state: State) -> None:
    await state.add_app("crm", "crm")
    sandbox.set_faults(Fault(status=503, app_id="crm"))
    async with embedded(tmp_path, sandbox.url, stop__deadline="0s") as collector:
        await collector._queue.put([batch("crm", range(30)), batch("unknown", range(2))])
        await until(lambda: len(list(collector._flusher.outages)) >= 2)
        status = await collector.status()
    assert [(app.app_id, app.state, app.waiting_events) for app in status.apps] == [
        ("unknown", "held", 2),
        ("crm", "failing", 30),
    ]
    assert "does not know app 'unknown'" in (status.apps[0].reason or "")
    assert "503" in (status.upstream.reason or "")
    assert status.upstream.state == "failing"
    assert [problem.severity for problem in status.problems] == [Severity.ERROR, Severity.ERROR]


async def test_dead_letters_are_there_with_their_reasons_and_without_their_events(
    tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    await state.add_app("wiki", "wiki")
    sandbox.set_faults(Fault(status=400, body="no such day", times=20))
    async with embedded(tmp_path, sandbox.url) as collector:
        await collector._queue.put([batch("wiki", range(1))])
        await until(lambda: metric(collector, "buried_events_total"))  # it is counted a moment after the commit
        status = await collector.status()
    [reason] = status.dead_letters.reasons
    assert reason.events == 1
    assert "no such day" in reason.reason
    assert [letter.app_id for letter in status.dead_letters.latest] == ["wiki"]
    assert (status.totals.buried, status.queue.dead_events) == (1, 1)


async def test_who_asks_often_gets_the_same_document_and_the_file_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded(tmp_path, NOWHERE, stop__deadline="0s") as collector:
        monkeypatch.setattr(collector._observer, "_clock", clock := _Clock())
        first = await collector.status()
        assert await collector.status() is first
        clock.seconds += 1.0
        assert await collector.status() is not first


class _Clock:
    seconds = 1e9

    def monotonic(self) -> float:
        return self.seconds

    def now_ms(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def test_a_disk_that_cannot_be_read_leaves_the_figures_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable() -> None:
        raise QueueUnavailable("the disk is away")

    async with embedded(tmp_path, NOWHERE, flush__linger="1h", stop__deadline="0s") as collector:
        await collector._queue.put([batch("wiki", range(3))])
        await collector._observer._look_at_file()
        monkeypatch.setattr(collector._queue, "stats", unavailable)
        status = await collector.status()
        assert status.queue.waiting_events == 3
        assert [app.app_id for app in status.apps] == ["wiki"]


async def test_more_apps_than_fit_are_counted(tmp_path: Path) -> None:
    async with embedded(tmp_path, NOWHERE, flush__linger="1h", stop__deadline="0s") as collector:
        await collector._queue.put([batch(f"app{number:03}", range(1)) for number in range(130)])
        status = await collector.status()
    assert (len(status.apps), status.apps_left_out) == (100, 30)
    assert status.queue.waiting_events == 130


async def test_held_apps_are_counted_also_where_they_do_not_fit(tmp_path: Path) -> None:
    async with embedded(tmp_path, NOWHERE, flush__linger="1h", stop__deadline="0s") as collector:
        apps = [f"app{number:03}" for number in range(130)]
        await collector._queue.put([batch(app_id, range(1)) for app_id in apps])
        for app_id in apps:
            collector._flusher.outages.hold(app_id, "unknown", again_in_seconds=300.0, waiting_events=1)
        status = await collector.status()
    assert status.problems[-1].text == "127 more apps are held."
