"""The way to the servers: connected, with credentials, again and again; requests whose errors are ours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from collector.config.model import JetStream
from collector.errors import CredentialsRefused, QueueUnavailable, Unusable
from collector.observe.logs import get_logger
from collector.queue.jetstream.credentials import credentials

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = get_logger(__name__)

CONNECT_SECONDS = 5.0
"""How long all servers together may take to be found at the start."""
RECONNECT_SECONDS = 0.25
PING_SECONDS = 2
"""A server that is silent, its connection still open, is left after three times as long."""
ANSWER_SECONDS = 3.0
"""How long the server may take for an answer. A new leader is elected within about five; who asks tries again."""

NO_LEADER_CODES = frozenset({408, 503, 504})


class ServerError(Exception):
    """JetStream answered with an error of its own."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.err_code = err_code


class Connection:
    """One connection, which finds another server by itself when its own is gone."""

    def __init__(self, settings: JetStream) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._said = ""
        self._scope: asyncio.Timeout | None = None

    @property
    def place(self) -> str:
        """What a person calls it: the servers."""
        return ", ".join(self._settings.servers)

    @property
    def is_up(self) -> bool:
        """Whether a server is connected now."""
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> "Client":
        """The connection. Raises QueueUnavailable where there is none now."""
        if self._client is None or not self._client.is_connected:
            raise self._unavailable()
        return self._client

    async def open(self) -> None:
        """A server is connected. Raises QueueUnavailable, CredentialsRefused or Unusable."""
        try:
            from nats.aio.client import Client  # noqa: PLC0415 - an extra, and a daemon with SQLite starts without it
            from nats.errors import AuthorizationError, NoServersError  # noqa: PLC0415
        except ImportError as error:
            raise Unusable(
                'queue.backend = "jetstream" needs the package nats-py; install usage-collector[nats]'
            ) from error
        options = credentials(self._settings)
        self._said = ""
        client = Client()
        try:
            async with asyncio.timeout(CONNECT_SECONDS) as self._scope:
                await client.connect(
                    list(self._settings.servers),
                    name="usage-collector",
                    connect_timeout=2,
                    reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # for a sleep
                    max_reconnect_attempts=-1,
                    ping_interval=PING_SECONDS,
                    max_outstanding_pings=2,
                    error_cb=self._note,
                    disconnected_cb=self._lost,
                    reconnected_cb=self._found,
                    pending_size=0,
                    **options,
                )
            self._client = client
        except AuthorizationError as error:
            raise self._refused() from error
        except (TimeoutError, NoServersError, OSError) as error:
            raise (self._refused() if self._is_refused() else self._unavailable()) from error
        except Exception as error:  # nats-py raises what its parsers of credentials raise
            keys = [key for key in ("credentials_file", "nkey_file") if getattr(self._settings, key) is not None]
            advice = f"; look at jetstream.{' and '.join(keys)}" if keys else ""
            raise Unusable(f"jetstream: cannot connect to {self.place}: {describe(error)}{advice}") from error
        finally:
            if self._client is not client:
                with contextlib.suppress(Exception):
                    await client.close()

    def _is_refused(self) -> bool:
        return "authorization" in self._said.lower()

    async def close(self) -> None:
        """Nothing is connected. Harmless to repeat."""
        if self._client is not None and not self._client.is_closed:
            with contextlib.suppress(Exception):
                await self._client.close()

    async def revive(self) -> None:
        """Connects anew where the client has given up, as after refused credentials. Raises what `open` raises."""
        if self._client is None or has_given_up(self._client):
            await self.close()
            self._client = None
            await self.open()

    async def request(self, subject: str, body: Any = None, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The answer to a request to JetStream's API. Raises QueueUnavailable, ServerError."""
        answer = await self.ask(f"$JS.API.{subject}", b"" if body is None else msgspec.json.encode(body), seconds)
        return decoded(answer.data)

    async def ask(
        self, subject: str, payload: bytes, seconds: float = ANSWER_SECONDS, headers: dict[str, str] | None = None
    ) -> "Msg":
        """The answer to any request. Raises QueueUnavailable."""
        from nats.errors import Error  # noqa: PLC0415

        try:
            return await self.client.request(subject, payload, timeout=seconds, headers=headers)
        except (Error, TimeoutError, OSError) as error:
            raise QueueUnavailable(f"JetStream does not answer ({describe(error)})") from error

    @contextlib.asynccontextmanager
    async def answers(self) -> AsyncIterator[tuple[str, "asyncio.Queue[Msg]"]]:
        """An inbox for several answers to one request. Raises QueueUnavailable."""
        from nats.errors import Error  # noqa: PLC0415

        client = self.client
        inbox = client.new_inbox()
        arrived: asyncio.Queue[Msg] = asyncio.Queue()

        async def arrive(message: "Msg") -> None:
            arrived.put_nowait(message)

        try:
            subscription = await client.subscribe(inbox, cb=arrive)
        except (Error, OSError) as error:
            raise QueueUnavailable(f"the connection to JetStream is lost ({describe(error)})") from error
        try:
            yield inbox, arrived
        finally:
            with contextlib.suppress(Error, OSError):
                await subscription.unsubscribe()

    async def send(self, commands: bytes) -> None:
        """Hands the server PUB and HPUB commands. Raises QueueUnavailable.

        As one piece: nats-py's own `publish` takes 10 us a message, most of it for headers, and this nearly nothing.
        """
        client = self.client
        await client._send_command(commands)  # noqa: SLF001 - see above
        await client._flush_pending()  # noqa: SLF001

    async def arrived(self) -> bool:
        """Whether the server has read all that was sent, as far as it says so in time."""
        from nats.errors import Error  # noqa: PLC0415

        try:
            await self.client.flush(timeout=round(ANSWER_SECONDS))
        except (Error, TimeoutError, OSError):
            return False
        return True

    def _unavailable(self) -> QueueUnavailable:
        return QueueUnavailable(
            f"no NATS server of jetstream.servers is connected ({self.place}): {self._said or 'no answer'}",
            retry_after_seconds=1.0,
        )

    def _refused(self) -> CredentialsRefused:
        return CredentialsRefused(
            f"NATS at {self.place} refuses the credentials; look at jetstream.user and password, credentials_file, "
            "nkey_file or the TLS certificate"
        )

    async def _note(self, error: Exception) -> None:
        self._said = describe(error)
        if self._is_refused() and self._client is None and self._scope is not None:
            self._scope.reschedule(0)  # no other server of the cluster will think better of it
        log.debug("jetstream.connection_failed", error=self._said)

    async def _lost(self) -> None:
        log.warning("jetstream.disconnected", servers=self.place)

    async def _found(self) -> None:
        self._said = ""
        log.info("jetstream.reconnected", servers=self.place)


def has_given_up(client: "Client") -> bool:
    """Whether it will not connect any more. nats-py dies of a key that it cannot read just when it needs it."""
    attempts = client._reconnection_task  # noqa: SLF001 - nothing else tells
    has_died = (
        attempts is not None and attempts.done() and not attempts.cancelled() and attempts.exception() is not None
    )
    return client.is_closed or has_died


def describe(error: BaseException) -> str:
    """What nats-py has to say, which is nothing for some of its errors."""
    return str(error) or type(error).__name__


def decoded(data: bytes) -> dict[str, Any]:
    """JetStream's answer. Raises QueueUnavailable where it has no leader now, ServerError for its other errors."""
    if not data:
        raise QueueUnavailable("JetStream does not answer (no responders)")
    answer: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    raise_error(answer.get("error"))
    return answer


def raise_error(error: Mapping[str, Any] | None) -> None:
    """Raises what an answer's error stands for, if there is one."""
    if error:
        description = str(error.get("description", "no description"))
        if error.get("code") in NO_LEADER_CODES:
            raise QueueUnavailable(f"JetStream cannot at the moment: {description}")
        raise ServerError(int(error.get("code", 0)), int(error.get("err_code", 0)), description)
