"""What passes between a collector and an app's consumer: messages fetched, held, given back, settled and buried."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from collector.errors import QueueUnavailable
from collector.queue.jetstream.connection import Connection, ServerError, decoded
from collector.queue.jetstream.lanes import Message, MessageId, Origin
from collector.queue.jetstream.stored import LetterBody, Stored, first_message, time_of
from collector.queue.jetstream.stream import WRONG_LAST_SEQUENCE, Streams, app_token

if TYPE_CHECKING:
    from nats.aio.msg import Msg

FETCH_SECONDS = 2.0
NO_REPLY = ""
"""Of a message that no consumer has given."""
MESSAGE_NOT_FOUND = frozenset({10037, 10043})


class Deliveries:
    """The questions and answers. Each raises QueueUnavailable where the servers do not answer."""

    def __init__(self, connection: Connection, streams: Streams) -> None:
        self._connection = connection
        self._streams = streams

    async def fetch(self, app_id: str, wanted: int) -> AsyncIterator["Msg"]:
        """Up to so many messages that nobody holds; fewer where there are no more."""
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._streams.events}.{app_token(app_id)}"
        body = msgspec.json.encode({"batch": wanted, "no_wait": True})
        async with self._connection.answers() as (inbox, arrived):
            await self._connection.client.publish(subject, body, reply=inbox)
            for number in range(wanted):
                try:
                    async with asyncio.timeout(FETCH_SECONDS):
                        message = await arrived.get()
                except TimeoutError as error:
                    if number:
                        return
                    raise QueueUnavailable("JetStream does not answer") from error
                if (message.headers or {}).get("Status") is not None or not message.reply:
                    return
                yield message

    async def left_over(self, app_id: str, most: int) -> list[Stored]:
        """An app's first messages that are there, whatever its consumer knows of them."""
        subject, found = f"{self._streams.data}.{app_token(app_id)}.>", list[Stored]()
        while len(found) < most:
            after = found[-1].sequence if found else 0
            stored = await first_message(self._connection, self._streams.events, after=after, subject=subject)
            if stored is None:
                break
            found.append(stored)
        return found

    async def bury(self, app_id: str, reason: str, origin: Origin, now_ms: int) -> bool:
        """An event is a dead letter, once however often this is repeated; whether this call has made it one."""
        message, position, line = origin
        body = LetterBody(app_id, reason, now_ms, msgspec.Raw(line))
        # With a digest: in a stream that was made anew the numbers begin again, and old letters are still there.
        name = f"{message.sequence}.{position}.{hashlib.blake2b(line, digest_size=8).hexdigest()}"
        subject = f"{self._streams.dead}.{app_token(app_id)}.{name}"
        once = {"Nats-Expected-Last-Subject-Sequence": "0"}
        try:
            decoded((await self._connection.ask(subject, msgspec.json.encode(body), headers=once)).data)
        except ServerError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                return False
            raise QueueUnavailable(f"JetStream does not store a dead letter: {error}") from error
        return True

    async def finish(self, messages: Iterable[MessageId]) -> None:
        """These messages are deleted, which settles them with their consumer too. Raises QueueUnavailable.

        What the stream has under the number of one of them and is another message stays. Nothing but a stream that is
        made anew and filled up to this number between the look and the deletion could confuse the two.
        """
        results = await asyncio.gather(*map(self._delete, messages), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _delete(self, message: MessageId) -> None:
        number: dict[str, Any] = {"seq": message.sequence}
        try:
            found = await self._connection.request(f"STREAM.MSG.GET.{self._streams.events}", number)
            if time_of(found["message"]["time"]) == message.stored:
                await self._connection.request(f"STREAM.MSG.DELETE.{self._streams.events}", number | {"no_erase": True})
        except ServerError as error:
            if error.err_code not in MESSAGE_NOT_FOUND:  # else it was deleted before, and the answer was lost
                raise QueueUnavailable(f"JetStream does not delete what was delivered: {error}") from error

    async def extend(self, messages: Iterable[Message]) -> None:
        """The servers know that this collector is alive and holds these."""
        await self._tell(messages, b"+WPI")

    async def give_back(self, messages: Iterable[Message]) -> None:
        """These are anybody's; where no server hears of it now, they are once their lease has ended."""
        if self._connection.is_up and await self._tell(messages, b"-NAK"):
            await self._connection.arrived()

    async def _tell(self, messages: Iterable[Message], word: bytes) -> bool:
        """Whether there was anything to say."""
        replies = [message.reply.encode() for message in messages if message.reply != NO_REPLY]
        if replies:
            await self._connection.send(
                b"".join(b"PUB %s %d\r\n%s\r\n" % (reply, len(word), word) for reply in replies)
            )
        return bool(replies)
