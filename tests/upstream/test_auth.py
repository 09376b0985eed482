"""Access tokens, from the real sandbox over real sockets; only the collector's clock is ours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from collector.config.kinds import Secret
from collector.contract.operations import GET_ACCESS_TOKEN, SCOPE_WRITE
from collector.errors import CollectorError, CredentialsRefused, NotDone, Retryable, Unanswered, Unusable
from collector.observe.metrics import Metrics
from collector.sandbox.faults import Fault
from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, Sandbox
from collector.upstream.auth import RENEW_AGAIN_SECONDS, RENEW_AT_FRACTION, TokenSource
from collector.upstream.transport import Transport
from tests.fake_clock import FakeClock
from tests.patience import until

LIFETIME_SECONDS = 3600
"""The sandbox's default."""
RENEWAL_SECONDS = LIFETIME_SECONDS * RENEW_AT_FRACTION

GET_TOKEN = "getAccessToken"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@contextlib.asynccontextmanager
async def token_source(
    sandbox: Sandbox, transport: Transport, clock: FakeClock, metrics: Metrics, *, secret: str
) -> AsyncIterator[TokenSource]:
    source = TokenSource(
        transport,
        token_url=sandbox.url + GET_ACCESS_TOKEN.path,
        client_id=CLIENT_ID,
        client_secret=Secret(secret),
        scope=SCOPE_WRITE,
        clock=clock,
        metrics=metrics,
    )
    try:
        yield source
    finally:
        await source.close()


@pytest.fixture
async def tokens(
    sandbox: Sandbox, transport: Transport, clock: FakeClock, metrics: Metrics
) -> AsyncIterator[TokenSource]:
    async with token_source(sandbox, transport, clock, metrics, secret=CLIENT_SECRET) as source:
        yield source


async def granted(sandbox: Sandbox) -> int:
    """How many tokens the sandbox has issued."""
    return (await sandbox.stats()).tokens


def renewal() -> asyncio.Task[str] | None:
    """The renewal that is under way."""
    found = [task for task in asyncio.all_tasks() if task.get_name() == "renew token"]
    assert len(found) <= 1
    return found[0] if found else None


async def renewed() -> None:
    """The renewal that was under way has ended, one way or the other."""
    task = renewal()
    assert task is not None
    await asyncio.wait([task])


def counted(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("collector_token_requests_total", {"outcome": outcome}) or 0


# -- one request for all -----------------------------------------------------------------------------------------------


async def test_fifty_callers_at_once_are_served_by_one_request(
    tokens: TokenSource, sandbox: Sandbox, metrics: Metrics
) -> None:
    got = await asyncio.gather(*(tokens.token() for _ in range(50)))
    assert len(set(got)) == 1
    assert await granted(sandbox) == 1
    assert counted(metrics, "granted") == 1


async def test_fifty_callers_at_once_hear_of_one_failure_and_nobody_asks_again_before_the_retry_after(
    tokens: TokenSource, sandbox: Sandbox, clock: FakeClock, metrics: Metrics
) -> None:
    sandbox.set_faults(Fault(operation=GET_TOKEN, status=503, headers={"Retry-After": "7"}, times=1))
    errors = await asyncio.gather(*(tokens.token() for _ in range(50)), return_exceptions=True)
    # The fault hits one request only: had there been a second, somebody would have got a token.
    assert [(type(e), e.retry_after_seconds) for e in errors if isinstance(e, Retryable)] == [(Retryable, 7)] * 50
    clock.advance(3)
    with pytest.raises(Retryable) as heard:
        await tokens.token()
    assert heard.value.retry_after_seconds == 4
    clock.advance(4)
    assert await tokens.token()
    assert (counted(metrics, "failed"), counted(metrics, "granted")) == (1, 1)


async def test_a_token_serves_until_it_is_due_for_renewal(
    tokens: TokenSource, sandbox: Sandbox, clock: FakeClock
) -> None:
    first = await tokens.token()
    clock.advance(RENEWAL_SECONDS - 0.001)
    assert await tokens.token() == first
    assert renewal() is None
    assert await granted(sandbox) == 1


async def test_a_cancelled_caller_does_not_cancel_the_request_of_the_others(
    tokens: TokenSource, sandbox: Sandbox
) -> None:
    callers = [asyncio.create_task(tokens.token()) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    got = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(got[0], asyncio.CancelledError)
    assert got[1] == got[2] == await tokens.token()
    assert await granted(sandbox) == 1


async def test_a_request_whose_callers_have_all_gone_still_serves_the_next(
    tokens: TokenSource, sandbox: Sandbox
) -> None:
    caller = asyncio.create_task(tokens.token())
    await asyncio.sleep(0)
    caller.cancel()
    assert isinstance((await asyncio.gather(caller, return_exceptions=True))[0], asyncio.CancelledError)
    await renewed()
    assert await tokens.token()
    assert await granted(sandbox) == 1


async def test_a_failure_that_nobody_waits_for_any_more_is_no_trouble(tokens: TokenSource, sandbox: Sandbox) -> None:
    """A task whose exception nobody took would be reported as a warning, and warnings are errors here."""
    sandbox.set_faults(Fault(operation=GET_TOKEN, cut=True, times=1))
    caller = asyncio.create_task(tokens.token())
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    await renewed()
    assert await tokens.token()


# -- renewal -----------------------------------------------------------------------------------------------------------


async def test_a_token_is_renewed_before_it_expires_while_the_old_one_serves(
    tokens: TokenSource, sandbox: Sandbox, clock: FakeClock
) -> None:
    first = await tokens.token()
    clock.advance(RENEWAL_SECONDS)
    assert [await tokens.token() for _ in range(3)] == [first] * 3
    await renewed()
    second = await tokens.token()
    assert second != first
    assert await granted(sandbox) == 2
    clock.advance(RENEWAL_SECONDS - 0.001)
    assert await tokens.token() == second
    assert await granted(sandbox) == 2


async def test_an_expired_token_is_never_handed_out(tokens: TokenSource, sandbox: Sandbox, clock: FakeClock) -> None:
    first = await tokens.token()
    clock.advance(LIFETIME_SECONDS)
    got = await asyncio.gather(*(tokens.token() for _ in range(10)))
    assert len(set(got)) == 1
    assert first not in got
    assert await granted(sandbox) == 2


async def test_a_renewal_that_fails_leaves_the_old_token_in_service_until_it_expires(
    tokens: TokenSource, sandbox: Sandbox, clock: FakeClock
) -> None:
    first = await tokens.token()
    sandbox.set_faults(Fault(operation=GET_TOKEN, status=503))
    clock.advance(RENEWAL_SECONDS)
    for _ in range(2):
        assert await tokens.token() == first
        await renewed()
        for _ in range(3):  # not with each request that leaves meanwhile
            assert await tokens.token() == first
            assert renewal() is None
        clock.advance(RENEW_AGAIN_SECONDS)
    clock.advance(LIFETIME_SECONDS - RENEWAL_SECONDS - 2 * RENEW_AGAIN_SECONDS)
    with pytest.raises(Retryable):
        await tokens.token()


@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_renewal_that_was_under_way_when_the_client_changed_says_nothing_of_the_new_one(
    tokens: TokenSource, sandbox: Sandbox, is_refused: bool
) -> None:
    fault = Fault(operation=GET_TOKEN, delay_seconds=0.05, status=401 if is_refused else None, times=1)
    sandbox.set_faults(fault)
    old = asyncio.create_task(tokens.token())
    await until(lambda: not sandbox._faults.list())
    tokens.use_client(
        token_url=sandbox.url + GET_ACCESS_TOKEN.path,
        client_id=CLIENT_ID,
        client_secret=Secret(CLIENT_SECRET),
        scope=f"{SCOPE_WRITE} ",
    )
    new = await tokens.token()
    await asyncio.wait([old])
    assert (old.exception() is not None) == is_refused
    assert is_refused or old.result() != new
    assert await tokens.token() == new


async def test_a_renewal_that_is_refused_is_heard_of_at_once(
    tokens: TokenSource, sandbox: Sandbox, clock: FakeClock, metrics: Metrics
) -> None:
    await tokens.token()
    sandbox.set_faults(Fault(operation=GET_TOKEN, status=401))
    clock.advance(RENEWAL_SECONDS)
    await tokens.token()
    await renewed()
    with pytest.raises(CredentialsRefused):
        await tokens.token()
    assert (counted(metrics, "refused"), counted(metrics, "failed")) == (2, 0)


async def test_a_refused_token_is_replaced(tokens: TokenSource, sandbox: Sandbox) -> None:
    first = await tokens.token()
    tokens.refused(first)
    assert await tokens.token() != first
    assert await granted(sandbox) == 2


@pytest.mark.parametrize("old", ["", "never issued", "the one before"])
async def test_only_the_token_in_service_can_be_refused(tokens: TokenSource, sandbox: Sandbox, old: str) -> None:
    first = await tokens.token()
    tokens.refused(first)
    second = await tokens.token()
    tokens.refused(first if old == "the one before" else old)
    assert await tokens.token() == second
    assert await granted(sandbox) == 2


# -- refusals and faults -----------------------------------------------------------------------------------------------


async def test_a_wrong_secret_is_a_persons_matter_and_is_not_shown(
    sandbox: Sandbox, transport: Transport, clock: FakeClock, metrics: Metrics
) -> None:
    async with token_source(sandbox, transport, clock, metrics, secret="hunter2") as tokens:
        for _ in range(2):
            with pytest.raises(CredentialsRefused) as caught:
                await tokens.token()
            assert "hunter2" not in f"{caught.value} {caught.value!r}"
    assert await granted(sandbox) == 0
    assert counted(metrics, "refused") == 2


@pytest.mark.parametrize(
    ("fault", "meaning"),
    [
        (Fault(cut=True), Unanswered),
        (Fault(cut=True, after=True), Unanswered),
        (Fault(status=500), Retryable),
        (Fault(status=429), NotDone),
        (Fault(status=200, body="<html>"), Retryable),
        (Fault(status=200, body="{}"), Retryable),
        (Fault(status=200, headers={"Content-Encoding": "gzip"}, body="not gzip"), Unanswered),
        (Fault(status=400), CredentialsRefused),
        (Fault(status=403), CredentialsRefused),
        (Fault(status=404), Unusable),
        (Fault(status=307, headers={"Location": GET_ACCESS_TOKEN.path}), Unusable),
    ],
    ids=lambda value: "" if isinstance(value, type) else repr((value.status, value.cut, value.after, value.body)),
)
async def test_each_failure_says_what_to_do_and_the_next_call_asks_anew(
    tokens: TokenSource, sandbox: Sandbox, fault: Fault, meaning: type[CollectorError]
) -> None:
    fault.operation, fault.times = GET_TOKEN, 1
    sandbox.set_faults(fault)
    with pytest.raises(meaning) as caught:
        await tokens.token()
    assert type(caught.value) is meaning
    assert CLIENT_SECRET not in str(caught.value)
    assert await tokens.token()


async def test_nobody_there_means_try_again(
    tokens: TokenSource, sandbox: Sandbox, transport: Transport, metrics: Metrics
) -> None:
    await sandbox.stop()
    with pytest.raises(Retryable):
        await tokens.token()
    await transport.close()
    with pytest.raises(Retryable, match="closed"):
        await tokens.token()
    assert counted(metrics, "failed") == 2


async def test_close_ends_the_request_that_is_under_way(tokens: TokenSource, sandbox: Sandbox) -> None:
    sandbox.set_faults(Fault(operation=GET_TOKEN, delay_seconds=3600))
    caller = asyncio.create_task(tokens.token())
    await asyncio.sleep(0)
    assert renewal() is not None
    await tokens.close()
    assert renewal() is None
    assert isinstance((await asyncio.gather(caller, return_exceptions=True))[0], asyncio.CancelledError)
    await tokens.close()
