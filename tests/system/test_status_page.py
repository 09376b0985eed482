"""The status page in a real browser: it lives, shows an outage as one, and runs nothing that strangers wrote."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from collector.agent import Collector
from collector.sandbox.faults import Fault
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.embedded import embedded
from tests.system.browser import Tab, browser

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    async with browser(tmp_path) as tab:
        yield tab


async def post(collector: Collector, count: int = 1, **fields: str) -> None:
    event = {"appId": "wiki", "email": "person@example.com", "eventName": "page_viewed", **fields}
    events = [{**event, "timestamp": number} for number in range(count)]
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{collector.http_address}/v1/events", json=events) as answer,
    ):
        assert answer.status == 200


async def test_it_lives_and_shows_an_outage_and_its_end(tmp_path: Path, tab: Tab, state: State) -> None:
    await state.add_app("wiki", "wiki")
    sandbox = Sandbox(state)
    await sandbox.start("127.0.0.1", 0)
    port = urlsplit(sandbox.url).port or 0
    async with embedded(tmp_path, sandbox.url, stop__deadline="0s") as collector:
        url = f"http://{collector.http_address}/"
        await tab.open(url)
        await tab.shows("headline", "Ready")
        await post(collector, 1234)
        await tab.shows("totals", "1,234")
        await tab.shows("headline", "All is well")
        await tab.shows("upstream-state", "ok")
        await tab.until("document.querySelector('#rates .line.in').getAttribute('d').length > 10")

        await sandbox.stop()
        await post(collector, 77, eventName="saved")
        await tab.shows("headline", "Upstream does not take events")
        await tab.shows("problems", "cannot connect")
        await tab.shows("waiting", "77")
        await tab.shows("apps", "failing")
        assert await tab.value("document.body.dataset.state") == "error"
        assert "Upstream" in await tab.value("document.title")

        again = Sandbox(state)
        await again.start("127.0.0.1", port)
        await tab.shows("headline", "All is well")
        await tab.shows("totals", "1,311")
        await again.stop()
        assert set(tab.requests) == {url, f"{url}status.json"}
        assert tab.complaints == []
    await tab.shows("headline", "does not answer")
    assert await tab.value("document.body.dataset.state") == "lost"


async def test_what_strangers_wrote_is_shown_as_text(tmp_path: Path, tab: Tab, state: State) -> None:
    await state.add_app(HOSTILE, HOSTILE)
    sandbox = Sandbox(state)
    await sandbox.start("127.0.0.1", 0)
    sandbox.set_faults(Fault(status=400, body=f"unknown eventName {HOSTILE}", event_name=HOSTILE))
    async with embedded(tmp_path, sandbox.url) as collector:
        await post(collector, appId=HOSTILE, eventName=HOSTILE)
        await tab.open(f"http://{collector.http_address}/")
        await tab.shows("dead", HOSTILE)
        await tab.shows("apps", HOSTILE)
        await tab.shows("headline", "something to look into")
        assert await tab.value("document.querySelectorAll('main script, main img').length") == 0
        assert "owned" not in await tab.value("document.title")
        assert tab.complaints == []
        ran = await tab.value(
            "new Promise((done) => {"
            "  document.addEventListener('securitypolicyviolation', () => done(false));"
            "  window.done = done;"
            "  const script = document.createElement('script');"
            "  script.textContent = 'window.done(true)';"
            "  document.body.append(script);"
            "})"
        )
        assert ran is False, "the policy keeps a script out that got in somehow"
    await sandbox.stop()


async def test_it_fits_every_screen_and_both_schemes(tmp_path: Path, tab: Tab) -> None:
    async with embedded(tmp_path, "http://127.0.0.1:1", stop__deadline="0s") as collector:
        for number in range(3):
            await post(collector, appId=f"{'a-rather-long-name-of-an-app-' * 4}{number}")
        await tab.open(f"http://{collector.http_address}/")
        await tab.shows("apps", "failing")
        colours = {}
        for scheme in ("light", "dark"):
            for width in (1280, 400, 320):
                await tab.look_like(scheme=scheme, width=width)
                assert await tab.value("document.documentElement.scrollWidth") <= width, f"{width} scrolls sideways"
                assert "Dead" in await tab.value("document.getElementById('apps').innerText"), f"{width} hides it"
            colours[scheme] = await tab.value("getComputedStyle(document.body).backgroundColor")
        assert colours == {"light": "rgb(246, 246, 244)", "dark": "rgb(16, 19, 22)"}
