"""Access tokens: fetched once for all who need one, renewed before they expire."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypedDict, TypeVar

from collector.clock import Clock
from collector.config.kinds import Secret
from collector.config.model import Upstream
from collector.contract.models import AccessToken
from collector.contract.operations import SCOPE_READ, SCOPE_WRITE
from collector.errors import CollectorError, CredentialsRefused, Retryable, Unusable
from collector.observe.metrics import Metrics
from collector.upstream.transport import Transport
from collector.upstream.wire import read_token, token_request

Result = TypeVar("Result")

RENEW_AGAIN_SECONDS = 10.0
"""After a renewal that failed, while the token before it still serves."""

MAX_LIFE_SECONDS = 10 * 365 * 86_400
"""A token that is said to live longer is asked for again by then."""

RENEW_AT_FRACTION = 0.8
"""A token is renewed when this much of its life is over, while the old one still serves."""


class TokenSource:
    """OAuth2 client credentials. However many ask, one request is under way at a time."""

    def __init__(
        self,
        transport: Transport,
        *,
        token_url: str,
        client_id: str,
        client_secret: Secret,
        scope: str,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._transport = transport
        self._client = (token_url, client_id, client_secret, scope)
        self._clock = clock
        self._metrics = metrics
        self._token: str | None = None
        self._renew_at = self._expires_at = 0.0
        self._not_before = float("-inf")  # upstream asked to be left alone until then
        self._renewal: asyncio.Task[str] | None = None
        self._outdated: set[asyncio.Task[str]] = set()

    def use_client(self, *, token_url: str, client_id: str, client_secret: Secret, scope: str) -> None:
        """From now on tokens are asked for in this way; one that was granted to another client is not used any more."""
        client = (token_url, client_id, client_secret, scope)
        if client != self._client:
            self._client = client
            self._token, self._not_before = None, float("-inf")
            if self._renewal is not None:  # who waits for it gets what it brings; nobody else does
                self._outdated.add(self._renewal)
                self._renewal = None

    async def token(self) -> str:
        """A token that has not expired. Raises CredentialsRefused or Retryable; a Retry-After holds for all who ask.

        Cancelling one caller does not cancel the request that others wait for.
        """
        now = self._clock.monotonic()
        if self._token is not None and now < self._renew_at:
            return self._token
        renewal = self._renewal
        if renewal is None and now < self._not_before:
            if self._token is not None and now < self._expires_at:
                return self._token
            raise Retryable("getAccessToken: asked to wait", retry_after_seconds=self._not_before - now)
        if renewal is None:
            renewal = self._renewal = asyncio.create_task(self._renew(), name="renew token")
            renewal.add_done_callback(self._renewed)
        if self._token is not None and now < self._expires_at:
            return self._token
        return await asyncio.shield(renewal)

    def refused(self, token: str) -> None:
        """Upstream answered 401 to `token`: it will not be handed out again."""
        if token == self._token:
            self._token = None

    async def authorize(self, attempt: Callable[[str], Awaitable[Result]]) -> Result:
        """What `attempt` makes of a token. Where upstream refuses the token, it is tried once more with a new one."""
        token = await self.token()
        try:
            return await attempt(token)
        except CredentialsRefused:
            self.refused(token)
            return await attempt(await self.token())

    async def ask(self) -> AccessToken:
        """GetAccessToken: a new token, whatever is known already. Raises CredentialsRefused or Retryable."""
        token_url, client_id, client_secret, scope = self._client
        request = token_request(token_url, client_id=client_id, client_secret=client_secret.reveal(), scope=scope)
        try:
            response = await self._transport.send(request)
            token = read_token(response, now_seconds=self._clock.now_ms() / 1000)
        except CollectorError as error:
            self._metrics.token_requests.labels("refused" if isinstance(error, Unusable) else "failed").inc()
            raise
        self._metrics.token_requests.labels("granted").inc()
        return token

    async def close(self) -> None:
        """No request is under way any more."""
        renewals = {*self._outdated, *([self._renewal] if self._renewal is not None else [])}
        for renewal in renewals:
            renewal.cancel()
        if renewals:
            await asyncio.wait(renewals)

    async def _renew(self) -> str:
        client = self._client
        try:
            answer = await self.ask()
        except Retryable as error:
            if client == self._client:
                now = self._clock.monotonic()
                if error.retry_after_seconds is not None:
                    self._not_before = now + error.retry_after_seconds
                self._renew_at = min(now + RENEW_AGAIN_SECONDS, self._expires_at)
            raise
        if client != self._client:
            return answer.access_token
        now = self._clock.monotonic()
        self._token = answer.access_token
        life_seconds = min(answer.expires_in, MAX_LIFE_SECONDS)
        self._expires_at = now + life_seconds
        self._renew_at = now + life_seconds * RENEW_AT_FRACTION
        return self._token

    def _renewed(self, renewal: asyncio.Task[str]) -> None:
        if renewal in self._outdated:
            self._outdated.discard(renewal)
            return
        self._renewal = None
        if not renewal.cancelled() and isinstance(renewal.exception(), CredentialsRefused):
            self._token = None  # a renewal in the background that was refused: the next caller shall hear of it


def token_sources(
    transport: Transport, settings: Upstream, *, clock: Clock, metrics: Metrics
) -> Mapping[str, TokenSource]:
    """A source of tokens for what is pushed (`SCOPE_WRITE`) and one for what is read (`SCOPE_READ`)."""
    return {
        scope: TokenSource(transport, **client, clock=clock, metrics=metrics)
        for scope, client in _clients(settings).items()
    }


def use_settings(tokens: Mapping[str, TokenSource], settings: Upstream) -> None:
    """From now on the sources that `token_sources` has made ask for tokens by these settings."""
    for scope, client in _clients(settings).items():
        tokens[scope].use_client(**client)


class _Client(TypedDict):
    token_url: str
    client_id: str
    client_secret: Secret
    scope: str


def _clients(settings: Upstream) -> dict[str, _Client]:
    return {
        scope: _Client(
            token_url=settings.token_url,
            client_id=settings.client_id or "",
            client_secret=settings.client_secret or Secret(""),
            scope=asked,
        )
        for scope, asked in ((SCOPE_WRITE, settings.scope), (SCOPE_READ, settings.export_scope))
    }
