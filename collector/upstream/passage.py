"""Operations that others ask for, carried out with the collector's own token; the answer is handed over as it comes."""

from collections.abc import Mapping, Sequence
from typing import Any

from collector.contract.operations import Operation
from collector.errors import CredentialsRefused, NotDone
from collector.upstream.auth import TokenSource
from collector.upstream.pace import EXPORT_SPACING_SECONDS, export_limiter
from collector.upstream.transport import Streamed, Transport
from collector.upstream.wire import api_request

MAX_WAITING_EXPORTS = 100
"""Five seconds' worth at the rate that is allowed. More would be carried out for clients that are long gone, and
whoever comes next would wait behind these."""


class Passage:
    """The gateway's way to upstream. `close` it with the transport that it uses."""

    def __init__(self, transport: Transport, tokens: Mapping[str, TokenSource], *, base_url: str) -> None:
        self._transport = transport
        self._tokens = tokens
        self._base_url = base_url
        self._export_limiter = export_limiter()
        self._waiting_exports = 0

    def use_address(self, base_url: str) -> None:
        """From now on requests go there."""
        self._base_url = base_url

    async def carry_out(
        self, operation: Operation[Any], names: Mapping[str, str], query: Sequence[tuple[str, str]], body: bytes
    ) -> Streamed:
        """What upstream has answered, whatever its status but 401: then CredentialsRefused, after a second token.

        Nothing is tried again beyond that: whoever asked decides. Raises CollectorError where there is no answer, and
        NotDone where too many wait for their turn.
        """

        async def attempt(token: str) -> Streamed:
            request = api_request(operation, self._base_url, names, token=token, query=query, body=body)
            if operation.is_export:
                await self._wait_for_turn(operation)
            answer = await self._transport.stream(request)
            if answer.status == 401:
                answer.close()
                raise CredentialsRefused(f"{operation.id}: 401, the collector's access token was refused")
            return answer

        assert operation.scope is not None  # noqa: S101 - the token itself is not for others
        return await self._tokens[operation.scope].authorize(attempt)

    async def _wait_for_turn(self, operation: Operation[Any]) -> None:
        if self._waiting_exports >= MAX_WAITING_EXPORTS:
            raise NotDone(
                f"{operation.id}: {self._waiting_exports} export requests wait for their turn",
                retry_after_seconds=self._waiting_exports * EXPORT_SPACING_SECONDS,
            )
        self._waiting_exports += 1
        try:
            await self._export_limiter.acquire()
        finally:
            self._waiting_exports -= 1
