"""Calls of the API's operations: with a token, at the rate that is allowed, and again where that helps.

What may be done twice without harm is tried again when it fails for a reason that passes. setupApplication and
publishSpendData may not: they are tried again only where upstream has certainly not acted, and else `OutcomeUnknown`
says where to look.
"""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from collector.backoff import delay_seconds
from collector.clock import Clock
from collector.config.model import Upstream
from collector.contract import operations
from collector.contract.models import AccessToken
from collector.contract.operations import SCOPE_WRITE, Answer, Operation
from collector.errors import MalformedAnswer, NotDone, OutcomeUnknown, Rejected, Retryable
from collector.observe.metrics import Metrics
from collector.upstream.auth import token_sources
from collector.upstream.pace import export_limiter
from collector.upstream.transport import Transport
from collector.upstream.wire import NOTHING, api_request, date_seconds, read_answer, read_upload, upload_request

ATTEMPTS = 5
"""How often a request is tried before its error is the caller's: 15 s of waits at most, if Retry-After says no more."""
BACKOFF_BASE_SECONDS, BACKOFF_MAX_SECONDS = 1.0, 30.0

MAX_ANSWER_BYTES = 256 * 2**20
"""Of an answer with a list in it; it is held in memory whole."""

WHERE_TO_LOOK = {
    operations.SETUP_APPLICATION.id: "The app may exist: look for it in getAppSummaries",
    operations.PUBLISH_SPEND_DATA.id: "The spend may be booked: look at FiscalSpend in getAppDetails",
}


Result = TypeVar("Result")
OnWait = Callable[[Retryable, float], object]
"""Hears why an attempt has failed, and in how many seconds the next one follows."""


def outcome_unknown(operation: Operation[Any], why: str) -> OutcomeUnknown:
    """The error of an operation that is not replayable and may have been carried out: why, and where to look."""
    return OutcomeUnknown(f"{why}. {WHERE_TO_LOOK[operation.id]}, which may lag by a day, before you try again")


class Calls:
    """`open` and `close` it inside the loop that uses it."""

    def __init__(self, settings: Upstream, *, clock: Clock, on_wait: OnWait | None = None) -> None:
        self._base_url = settings.base_url
        self._clock = clock
        self._on_wait = on_wait
        self._transport = Transport(timeout_seconds=settings.timeout)
        self._tokens = token_sources(self._transport, settings, clock=clock, metrics=Metrics())
        self._export_limiter = export_limiter()
        self.ahead_seconds = 0.0
        """How far our clock is ahead of upstream's, as the last answer's Date says; 0 where it says no such thing."""

    async def open(self) -> None:
        """Ready to call."""
        await self._transport.open()

    async def close(self) -> None:
        """All connections are closed."""
        for tokens in self._tokens.values():
            await tokens.close()
        await self._transport.close()

    async def access_token(self, scope: str) -> AccessToken:
        """A token of this scope, `SCOPE_WRITE` or `SCOPE_READ`."""
        return await self._retried(self._tokens[scope].ask)

    async def call(
        self,
        operation: Operation[Answer],
        names: Mapping[str, str] = NOTHING,
        *,
        path: str = "",
        query: Sequence[tuple[str, str]] = (),
        body: msgspec.Struct | None = None,
    ) -> Answer:
        """What the operation has answered. The errors are those of `read_answer`, once all attempts have failed.

        Raises Rejected, and sends nothing, where a text in it cannot be written in UTF-8.
        """
        try:
            content = b"" if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise Rejected(f"{operation.id}: {error.object!r} is not UTF-8") from None

        async def attempt(token: str) -> Answer:
            request = api_request(operation, self._base_url, names, token=token, path=path, query=query, body=content)
            if operation.is_export:
                await self._export_limiter.acquire()
            try:
                response = await self._transport.send(request, max_response_bytes=MAX_ANSWER_BYTES)
                now_seconds = self._clock.now_ms() / 1000
                told_seconds = date_seconds(response.headers.get("date", ""))
                self.ahead_seconds = max(0.0, now_seconds - (now_seconds if told_seconds is None else told_seconds))
                return read_answer(response, operation, now_seconds=now_seconds)
            except (Retryable, MalformedAnswer) as error:
                if operation.is_replayable or isinstance(error, NotDone):
                    raise
                raise outcome_unknown(operation, str(error)) from error

        tokens = self._tokens[operation.scope or SCOPE_WRITE]
        return await self._retried(lambda: tokens.authorize(attempt))

    async def _retried(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        failures = 0
        while True:
            try:
                return await attempt()
            except Retryable as error:
                failures += 1
                if failures == ATTEMPTS:
                    raise
                wait_seconds = delay_seconds(
                    failures,
                    base_seconds=BACKOFF_BASE_SECONDS,
                    maximum_seconds=BACKOFF_MAX_SECONDS,
                    random_fraction=random.random(),  # noqa: S311 - jitter
                    retry_after_seconds=error.retry_after_seconds,
                )
                if self._on_wait is not None:
                    self._on_wait(error, wait_seconds)
                await self._clock.sleep(wait_seconds)

    async def upload(self, url: str, file: Path, on_sent: Callable[[int], object] | None) -> None:
        """The file is at its signed URL. Raises CredentialsRefused where another URL is needed."""

        async def put() -> None:
            response = await self._transport.send(upload_request(url, file), on_sent=on_sent)
            read_upload(response, file, now_seconds=self._clock.now_ms() / 1000)

        await self._retried(put)
