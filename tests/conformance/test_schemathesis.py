"""schemathesis, which makes requests from an OpenAPI document, right ones and wrong ones, finds nothing at the sandbox.

Its command line runs as a child, as a stranger would run it: all phases, all checks, links followed.
"""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import aiohttp

from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET
from tests.cli.child import own_environment, started

PROJECT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")
SECONDS = 300.0
EXAMPLES = os.environ.get("COLLECTOR_CONFORMANCE_EXAMPLES", "6")
"""Requests of each operation beside those of the coverage phase; more find more, and take longer."""

SEED = {
    "apps": [{"appId": "wiki", "users": [{"email": "person@example.com"}], "contracts": [{"startDate": "2026-01-15"}]}],
    "workflows": [
        {
            "workflowId": "leavers",
            "executions": [
                {"executionId": "first", "startTime": "2026-01-15T10:30:00Z", "users": [{"actionedOutcome": "removed"}]}
            ],
        }
    ],
    "auditEvents": [{"eventId": f"event {number}", "timestamp": "2026-01-15T10:30:00Z"} for number in range(600)],
}


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_text(json.dumps(SEED))
    options = ("--listen", "127.0.0.1:0", "--create-apps", "--export-limit", "0", "--seed", str(seed))
    async with started("sandbox", *options) as sandbox, aiohttp.ClientSession() as session:
        assert sandbox.stdout is not None
        match = re.search(rb"listens on (\S+)", await asyncio.wait_for(sandbox.stdout.readline(), SECONDS))
        assert match is not None
        url = match[1].decode()
        form = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        async with session.post(f"{url}/oauth2/token", data=form) as answer:
            token = (await answer.json())["access_token"]

        words = ["--config-file", str(CONFIG), "run", f"{url}/openapi.json", "--no-color"]
        # The same requests each time: a suite that is red by chance is no use to whoever did not cause it.
        words += ["--max-examples", EXAMPLES, "--seed", "1", "--generation-database", "none"]
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "schemathesis.cli",
            *words,
            cwd=tmp_path,
            env=own_environment() | {"PYTHONPATH": str(PROJECT), "SANDBOX_TOKEN": token},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            out, _ = await asyncio.wait_for(child.communicate(), SECONDS)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    said = out.decode()
    assert child.returncode == 0, said
    assert re.search(r"Tested: 15\b", said), said
    assert "Warnings" not in said, said
