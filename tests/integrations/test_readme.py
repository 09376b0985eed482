"""README's examples for programs do what they say."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.daemon import environment
from tests.patience import PATIENCE_SECONDS
from tests.queue.samples import opened
from tests.test_client import closed, listening, stored

README = Path(__file__).parents[2] / "README.md"
SECTION = "## In your program"


def examples(url: str) -> list[str]:
    """The section's Python, sent to `url`."""
    section = README.read_text(encoding="utf-8").partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [example.replace("http://127.0.0.1:8787", url) for example in found]


async def test_the_client_of_the_readme_records_and_says_so(tmp_path: Path) -> None:
    async with listening(tmp_path) as collector:
        program, *_ = examples(f"http://{collector.http_address}")
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert said.startswith(b"Counters(recorded=1, sent=1, accepted=1, ")
        assert process.returncode == 0
        await stored(collector, 1)


@pytest.mark.parametrize(("number", "said", "stored_events"), [(2, b"accepted\n", 1), (3, b"", 2)])
async def test_the_collectors_inside_programs_of_the_readme_store_what_they_record(
    tmp_path: Path, number: int, said: bytes, stored_events: int
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", examples("")[number]),
        env=environment(tmp_path, "http://127.0.0.1:9", stop__deadline="100ms"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert (await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS))[0] == said
    assert process.returncode == 0
    with opened(tmp_path / "queue") as connection:
        assert connection.execute("SELECT sum(waiting_events) FROM app").fetchone() == (stored_events,)


async def test_the_web_application_of_the_readme_records_its_requests(tmp_path: Path) -> None:
    async with listening(tmp_path) as collector:
        _, program, *_ = examples(f"http://{collector.http_address}")
        names: dict[str, Any] = {}
        exec(program, names)  # noqa: S102 - README is ours
        app = names["app"]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://wiki.example.com") as browser:
            assert (await browser.get("/pages")).json() == ["Home"]
            assert (await browser.get("/nothing")).status_code == 404
        await stored(collector, 1)
        [middleware] = app.user_middleware
        assert await closed(middleware.kwargs["recorder"])
        assert middleware.kwargs["recorder"].counters[:3] == (1, 1, 1)
