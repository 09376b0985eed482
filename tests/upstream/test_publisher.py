"""Delivery of batches to the real sandbox over real sockets."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from collector.config.kinds import Secret
from collector.contract.models import MAX_EVENTS_PER_REQUEST
from collector.contract.operations import GET_ACCESS_TOKEN, PUBLISH_USAGE_EVENTS, SCOPE_READ, SCOPE_WRITE
from collector.errors import (
    AppUnusable,
    CollectorError,
    CredentialsRefused,
    Rejected,
    Retryable,
    TooLarge,
    Unanswered,
    Unusable,
)
from collector.events import EVENT_NAME_MAX_CHARS, UsageEvent
from collector.observe.metrics import Metrics
from collector.sandbox.faults import Fault
from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, Sandbox
from collector.sandbox.state import State
from collector.upstream.auth import TokenSource
from collector.upstream.publisher import UsageEventsPublisher
from collector.upstream.transport import MAX_RESPONSE_BYTES, PIECE_BYTES, Transport
from tests.fake_clock import FakeClock
from tests.patience import until

APP = "the-app"
OTHER_APP = "other-app"


class Delivery:
    """A publisher with all that belongs to it."""

    def __init__(
        self,
        sandbox: Sandbox,
        transport: Transport,
        clock: FakeClock,
        *,
        secret: str = CLIENT_SECRET,
        scope: str = SCOPE_WRITE,
        token_transport: Transport | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.tokens = TokenSource(
            token_transport or transport,
            token_url=sandbox.url + GET_ACCESS_TOKEN.path,
            client_id=CLIENT_ID,
            client_secret=Secret(secret),
            scope=scope,
            clock=clock,
            metrics=self.metrics,
        )
        self._publisher = UsageEventsPublisher(
            transport,
            self.tokens,
            base_url=sandbox.url,
            path=PUBLISH_USAGE_EVENTS.path,
            clock=clock,
            metrics=self.metrics,
        )

    async def publish(self, *numbers: int, app_id: str = APP, event_name: str = "login") -> None:
        events = [UsageEvent(number, f"user-{number}@example.com", event_name) for number in numbers]
        lines = msgspec.json.Encoder().encode_lines(events)[:-1]
        await self._publisher.publish(app_id, lines, len(events))

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"collector_{name}", labels) or 0


@pytest.fixture
async def delivery(sandbox: Sandbox, state: State, transport: Transport, clock: FakeClock) -> AsyncIterator[Delivery]:
    await state.add_app(APP, APP)
    await state.add_app(OTHER_APP, OTHER_APP)
    delivery = Delivery(sandbox, transport, clock)
    yield delivery
    await delivery.tokens.close()


async def received(sandbox: Sandbox, app_id: str = APP) -> tuple[int, int]:
    """Requests that came for the app, and events that were taken of them."""
    counts = (await sandbox.stats()).apps[app_id]
    return counts.requests, counts.received


# -- delivery ----------------------------------------------------------------------------------------------------------


async def test_a_batch_arrives_whole_and_is_counted(delivery: Delivery, sandbox: Sandbox, state: State) -> None:
    await delivery.publish(*range(1000))
    await delivery.publish(1000)
    assert await received(sandbox) == (2, 1001)
    assert len(list(await state.events())) == 1001
    assert (await sandbox.stats()).tokens == 1
    assert delivery.counted("deliveries_total", outcome="delivered") == 2
    assert delivery.counted("batch_events_sum") == 1001
    assert delivery.counted("upstream_seconds_count", status="2xx") == 2


async def test_batches_of_many_apps_share_one_token(delivery: Delivery, sandbox: Sandbox) -> None:
    await asyncio.gather(*(delivery.publish(number, app_id=(APP, OTHER_APP)[number % 2]) for number in range(20)))
    stats = await sandbox.stats()
    assert (stats.received, stats.distinct, stats.tokens) == (20, 20, 1)


@pytest.mark.parametrize(
    "app_id", ["a/b", "a b", "a?b=c", "a#b", "%2F", "a+b", "\u00e9", "\U0001f600", "\x00\n", "http://example.com/"]
)
async def test_an_app_id_arrives_as_it_is(delivery: Delivery, sandbox: Sandbox, state: State, app_id: str) -> None:
    await state.add_app(app_id, "an app")
    await delivery.publish(1, app_id=app_id)
    assert await received(sandbox, app_id) == (1, 1)


async def test_the_largest_batch_there_can_be_arrives_whole_also_with_its_second_token(
    delivery: Delivery, sandbox: Sandbox, state: State
) -> None:
    event_name = "\U0001f600" * EVENT_NAME_MAX_CHARS
    await delivery.publish(0)
    sandbox.forget_tokens()
    await delivery.publish(*range(1, MAX_EVENTS_PER_REQUEST + 1), event_name=event_name)
    kept = [json for _, json in await state.events()][1:]
    assert await received(sandbox) == (3, MAX_EVENTS_PER_REQUEST + 1)
    assert sum(map(len, kept)) > PIECE_BYTES
    assert {msgspec.json.decode(json, type=UsageEvent).event_name for json in kept} == {event_name}


# -- the token ---------------------------------------------------------------------------------------------------------


async def test_a_refused_token_is_replaced_and_the_batch_delivered(delivery: Delivery, sandbox: Sandbox) -> None:
    await delivery.publish(1)
    sandbox.forget_tokens()
    await delivery.publish(2)
    assert await received(sandbox) == (3, 2)
    assert (await sandbox.stats()).tokens == 2
    assert delivery.counted("deliveries_total", outcome="delivered") == 2
    assert delivery.counted("upstream_seconds_count", status="2xx") == 2
    assert delivery.counted("upstream_seconds_count", status="4xx") == 1


async def test_many_batches_with_a_refused_token_need_one_new_token_in_all(
    delivery: Delivery, sandbox: Sandbox
) -> None:
    await delivery.publish(0)
    sandbox.forget_tokens()
    await asyncio.gather(*(delivery.publish(number) for number in range(1, 21)))
    stats = await sandbox.stats()
    assert (stats.received, stats.distinct, stats.tokens) == (21, 21, 2)


async def test_a_second_refusal_in_a_row_is_final(delivery: Delivery, sandbox: Sandbox) -> None:
    sandbox.set_faults(Fault(status=401))
    with pytest.raises(CredentialsRefused, match="publishUsageEvents: 401"):
        await delivery.publish(1)
    assert await received(sandbox) == (2, 0)
    assert (await sandbox.stats()).tokens == 2
    assert delivery.counted("deliveries_total", outcome="held") == 1
    sandbox.set_faults()
    await delivery.publish(1)


async def test_a_refusal_and_then_another_failure_is_that_other_failure(delivery: Delivery, sandbox: Sandbox) -> None:
    sandbox.set_faults(Fault(status=401, times=1), Fault(status=503, headers={"Retry-After": "9"}, times=1))
    with pytest.raises(Retryable) as caught:
        await delivery.publish(1)
    assert caught.value.retry_after_seconds == 9
    assert delivery.counted("deliveries_total", outcome="retried") == 1


@pytest.mark.parametrize(
    ("secret", "scope"), [("hunter2", SCOPE_WRITE), (CLIENT_SECRET, SCOPE_READ)], ids=["secret", "scope"]
)
async def test_wrong_credentials_hold_the_batch_and_nothing_arrives(
    sandbox: Sandbox, state: State, transport: Transport, clock: FakeClock, secret: str, scope: str
) -> None:
    await state.add_app(APP, APP)
    delivery = Delivery(sandbox, transport, clock, secret=secret, scope=scope)
    with pytest.raises(CredentialsRefused) as caught:
        await delivery.publish(1)
    assert "hunter2" not in str(caught.value)
    assert (await sandbox.stats()).received == 0
    assert delivery.counted("deliveries_total", outcome="held") == 1
    await delivery.tokens.close()


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "meaning", "outcome", "taken"),
    [
        (Fault(cut=True), Unanswered, "retried", 0),
        (Fault(cut=True, after=True), Unanswered, "retried", 1),
        (Fault(status=200, headers={"Content-Encoding": "gzip"}, body="not gzip"), Unanswered, "retried", 0),
        (Fault(status=200, body='{"success":false}'), Retryable, "retried", 0),
        (Fault(status=500, body="x" * (2 * MAX_RESPONSE_BYTES)), Retryable, "retried", 0),
        (Fault(status=503, after=True), Retryable, "retried", 1),
        (Fault(status=400, body="no"), Rejected, "rejected", 0),
        (Fault(status=413), TooLarge, "rejected", 0),
        (Fault(status=404), AppUnusable, "held", 0),
        (Fault(status=405), Unusable, "held", 0),
        (Fault(operation="getAccessToken", cut=True), Unanswered, "retried", 0),
        (Fault(operation="getAccessToken", status=401), CredentialsRefused, "held", 0),
    ],
    ids=lambda value: repr((value.operation, value.status, value.cut, value.after)) if isinstance(value, Fault) else "",
)
async def test_each_failure_says_what_to_do_and_the_same_batch_can_be_sent_again(
    delivery: Delivery, sandbox: Sandbox, fault: Fault, meaning: type[CollectorError], outcome: str, taken: int
) -> None:
    fault.times = 1
    sandbox.set_faults(fault)
    with pytest.raises(meaning) as caught:
        await delivery.publish(1)
    assert type(caught.value) is meaning
    assert delivery.counted("deliveries_total", outcome=outcome) == 1
    assert delivery.counted("batch_events_count") == 0
    assert (await sandbox.stats()).received == taken
    await delivery.publish(1)
    stats = await sandbox.stats()
    assert (stats.received, stats.distinct) == (taken + 1, 1)


async def test_a_retry_after_is_handed_on(delivery: Delivery, sandbox: Sandbox) -> None:
    sandbox.set_faults(Fault(status=429, headers={"Retry-After": "17"}))
    with pytest.raises(Retryable) as caught:
        await delivery.publish(1)
    assert caught.value.retry_after_seconds == 17


async def test_an_unknown_app_is_that_apps_trouble_alone(delivery: Delivery, sandbox: Sandbox) -> None:
    with pytest.raises(AppUnusable, match="'nobodys'"):
        await delivery.publish(1, app_id="nobodys")
    await delivery.publish(1)
    assert await received(sandbox) == (1, 1)


async def test_no_answer_in_time_means_try_again(
    sandbox: Sandbox, state: State, transport: Transport, clock: FakeClock
) -> None:
    await state.add_app(APP, APP)
    sandbox.set_faults(Fault(delay_seconds=3600))
    # The only wait here is this: the time in which the sandbox's answer does not come.
    hasty = Transport(timeout_seconds=0.05)
    await hasty.open()
    impatient = Delivery(sandbox, hasty, clock, token_transport=transport)
    with pytest.raises(Retryable, match=r"no answer within 0\.05 s"):
        await impatient.publish(1)
    await hasty.close()
    await impatient.tokens.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_for_it_would_carry_the_token_elsewhere(
    delivery: Delivery, sandbox: Sandbox, status: int
) -> None:
    elsewhere = sandbox.url + PUBLISH_USAGE_EVENTS.path.replace("{appId}", OTHER_APP)
    sandbox.set_faults(Fault(app_id=APP, status=status, headers={"Location": elsewhere}))
    with pytest.raises(Unusable, match="redirect"):
        await delivery.publish(1)
    assert await received(sandbox, APP) == (1, 0)
    assert await received(sandbox, OTHER_APP) == (0, 0)


async def test_nobody_there_means_try_again_and_says_nothing_secret(
    delivery: Delivery, sandbox: Sandbox, transport: Transport
) -> None:
    token = await delivery.tokens.token()
    url = sandbox.url
    assert transport._session is not None
    assert transport._session.connector is not None
    [[(kept, _)]] = transport._session.connector._conns.values()
    await sandbox.stop()
    await until(lambda: not kept.is_connected())
    with pytest.raises(Retryable) as refused:
        await delivery.publish(1)
    await transport.close()
    with pytest.raises(Retryable, match="closed") as closed:
        await delivery.publish(1)
    assert url.removeprefix("http://") in str(refused.value)
    for error in (refused.value, closed.value):
        assert token not in f"{error} {error!r} {error.__cause__!r}"
        assert "user-1" not in f"{error} {error!r} {error.__cause__!r}"
    assert delivery.counted("deliveries_total", outcome="retried") == 2
