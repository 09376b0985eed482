"""Operations that others ask for, carried out with the collector's own token; the answer is handed over as it comes."""

from collections.abc import Mapping, Sequence
from typing import Any

from collector.contract.operations import Operation
from collector.errors import CredentialsRefused
from collector.upstream.auth import TokenSource
from collector.upstream.pace import export_limiter
from collector.upstream.transport import Streamed, Transport
from collector.upstream.wire import api_request


class Passage:
    """The gateway's way to upstream. `close` it with the transport that it uses."""

    def __init__(self, transport: Transport, tokens: Mapping[str, TokenSource], *, base_url: str) -> None:
        self._transport = transport
        self._tokens = tokens
        self._base_url = base_url
        self._export_limiter = export_limiter()

    def use_address(self, base_url: str) -> None:
        """From now on requests go there."""
        self._base_url = base_url

    async def carry_out(
        self, operation: Operation[Any], names: Mapping[str, str], query: Sequence[tuple[str, str]], body: bytes
    ) -> Streamed:
        """What upstream has answered, whatever its status but 401: then CredentialsRefused, after a second token.

        Nothing is tried again beyond that: whoever asked decides. Raises CollectorError where there is no answer.
        """

        async def attempt(token: str) -> Streamed:
            request = api_request(operation, self._base_url, names, token=token, query=query, body=body)
            if operation.is_export:
                await self._export_limiter.acquire()
            answer = await self._transport.stream(request)
            if answer.status == 401:
                answer.close()
                raise CredentialsRefused(f"{operation.id}: 401, the collector's access token was refused")
            return answer

        assert operation.scope is not None  # noqa: S101 - the token itself is not for others
        return await self._tokens[operation.scope].authorize(attempt)
