"""The gateway's way to upstream: who waits for a turn there."""

import asyncio

import pytest
from aiolimiter import AsyncLimiter

from collector.config.kinds import Secret
from collector.config.model import Upstream
from collector.contract.operations import GET_APP_SUMMARIES, GET_PROVISIONED_USERS
from collector.errors import NotDone
from collector.observe.metrics import Metrics
from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, Sandbox
from collector.upstream.auth import token_sources
from collector.upstream.pace import EXPORT_SPACING_SECONDS
from collector.upstream.passage import MAX_WAITING_EXPORTS, Passage
from collector.upstream.transport import Transport
from tests.fake_clock import FakeClock
from tests.patience import PATIENCE_SECONDS


async def test_no_more_exports_wait_for_their_turn_than_are_waited_for(
    sandbox: Sandbox, transport: Transport, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = asyncio.Semaphore(0)
    monkeypatch.setattr(AsyncLimiter, "acquire", lambda _limiter: turns.acquire())
    settings = Upstream(
        base_url=sandbox.url,
        token_url=f"{sandbox.url}/oauth2/token",
        client_id=CLIENT_ID,
        client_secret=Secret(CLIENT_SECRET),
    )
    tokens = token_sources(transport, settings, clock=clock, metrics=Metrics())
    passage = Passage(transport, tokens, base_url=sandbox.url)

    async def status() -> int:
        answer = await passage.carry_out(GET_APP_SUMMARIES, {}, (), b"")
        answer.close()
        return answer.status

    async with asyncio.timeout(PATIENCE_SECONDS):
        waiting = [asyncio.create_task(status()) for _ in range(MAX_WAITING_EXPORTS + 1)]
        [refused], still = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(NotDone, match="wait for their turn") as caught:
            await refused
        assert caught.value.retry_after_seconds == MAX_WAITING_EXPORTS * EXPORT_SPACING_SECONDS
        answer = await passage.carry_out(GET_PROVISIONED_USERS, {"appId": "wiki"}, (), b"")
        answer.close()
        assert answer.status == 200, "pushes wait for nobody"

        gone = still.pop()
        gone.cancel()
        await asyncio.wait([gone])
        waiting = [*still, asyncio.create_task(status())]
        for _ in waiting:
            turns.release()
        assert set(await asyncio.gather(*waiting)) <= {200, 429}
