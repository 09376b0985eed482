"""The streams by hand, for one command: what waits, dead letters, and whether all is as it must be.

Commands do one thing after another; each asks its question in a loop of its own and waits for the answer.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, Self, TypeVar

import msgspec

from collector.config.model import JetStream
from collector.errors import Unusable
from collector.queue.base import DeadLetters, QueueStats
from collector.queue.by_hand import Choice, Entry
from collector.queue.jetstream.connection import Connection, ServerError, decoded
from collector.queue.jetstream.figures import dead_letters, stats
from collector.queue.jetstream.stored import LetterBody, Stored, first_message
from collector.queue.jetstream.stream import STREAM_NOT_FOUND, Streams, app_token, refuse_differences

T = TypeVar("T")


class StreamByHand:
    """A connection to the servers for one command. Raises what connecting raises, and Unusable."""

    def __init__(self, settings: JetStream) -> None:
        self._connection = Connection(settings)
        self._streams = Streams(settings)
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        self._loop.__enter__()
        try:
            self._run(self._connection.open())
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._connection.close())
        finally:
            self._loop.close()

    def stats(self) -> QueueStats:
        """The queue at this instant."""
        return self._run(stats(self._connection, self._streams))

    def dead_letters(self) -> DeadLetters:
        """Why events became dead letters, and the latest of them."""
        return self._run(dead_letters(self._connection, self._streams))

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self._streams.place

    def problems(self) -> list[str]:
        """What is wrong with the streams, one sentence each."""
        return self._run(self._problems())

    def newest_dead(self) -> int:
        """See `ByHand.newest_dead`."""
        info = self._run(self._connection.request(f"STREAM.INFO.{self._streams.letters}"))
        return int(info["state"]["last_seq"])

    def count_dead(self, choice: Choice) -> int:
        """See `ByHand.count_dead`."""
        return sum(1 for _ in self.dead(choice))

    def count_delivered(self, choice: Choice) -> int:  # noqa: ARG002 - as for SQLite
        """None: what was delivered is deleted."""
        return 0

    def dead(self, choice: Choice) -> Iterator[Entry]:
        """See `ByHand.dead`."""
        token = "*" if choice.app_id is None else app_token(choice.app_id)
        after = 0 if choice.number is None else choice.number - 1
        for stored in self._messages(self._streams.letters, f"{self._streams.dead}.{token}.>", after):
            body = msgspec.json.decode(stored.data, type=LetterBody)
            entry = Entry(stored.sequence, body.app_id, body.buried_ms, body.reason, bytes(body.event))
            if entry.number > choice.last or choice.number not in {None, entry.number}:
                return
            is_meant = choice.reason is None or choice.reason in body.reason
            if is_meant and choice.since_ms <= body.buried_ms < choice.until_ms:
                yield entry

    def waiting(self, choice: Choice) -> Iterator[Entry]:
        """See `ByHand.waiting`: messages, in the order of the stream."""
        apps = self._run(self._streams.apps(self._connection))
        token = "*" if choice.app_id is None else app_token(choice.app_id)
        for stored in self._messages(self._streams.events, f"{self._streams.data}.{token}.>"):
            name = stored.subject.removeprefix(self._streams.data + ".").split(".")[0]
            yield Entry(stored.sequence, apps.get(name, name), 0, None, stored.data)

    def delivered(self, choice: Choice) -> Iterator[Entry]:  # noqa: ARG002 - as for SQLite
        """Nothing: what was delivered is deleted."""
        return iter(())

    def retry(self, choice: Choice) -> int:
        """See `ByHand.retry`. One may be sent twice if this is interrupted; upstream absorbs that."""
        letters = list(self.dead(choice))
        for letter in letters:
            self._run(self._put_back(letter))
        return len(letters)

    def purge(self, choice: Choice) -> int:
        """See `ByHand.purge`."""
        letters = list(self.dead(choice))
        for letter in letters:
            self._run(self._delete(letter))
        return len(letters)

    def replay(self, choice: Choice) -> int:  # noqa: ARG002 - as for SQLite
        """Raises Unusable: what was delivered is not kept."""
        raise Unusable('nothing that was delivered is kept with queue.backend = "jetstream"')

    def _messages(self, stream: str, subject: str, after: int = 0) -> Iterator[Stored]:
        while (found := self._run(first_message(self._connection, stream, after=after, subject=subject))) is not None:
            after = found.sequence
            yield found

    async def _put_back(self, letter: Entry) -> None:
        await self._streams.ensure_consumer(self._connection, letter.app_id)
        subject = self._streams.data_subject(letter.app_id, 1, len(letter.lines) + 1)
        decoded((await self._connection.ask(subject, letter.lines)).data)
        await self._delete(letter)

    async def _delete(self, letter: Entry) -> None:
        body = {"seq": letter.number, "no_erase": True}
        await self._connection.request(f"STREAM.MSG.DELETE.{self._streams.letters}", body)

    async def _problems(self) -> list[str]:
        found = []
        for wanted in self._streams.definitions():
            info = await self._connection.request(f"STREAM.INFO.{wanted['name']}")
            try:
                refuse_differences(f"stream {wanted['name']!r}", wanted, info["config"])
            except Unusable as error:
                found.append(str(error))
            replicas = (info.get("cluster") or {}).get("replicas") or []
            found += [
                f"stream {wanted['name']!r}: the replica on {replica['name']} is "
                + ("offline" if replica.get("offline") else "not up to date")
                for replica in replicas
                if replica.get("offline") or not replica.get("current")
            ]
        for app_id in (await self._streams.apps(self._connection)).values():
            try:
                await self._streams.ensure_consumer(self._connection, app_id)
            except Unusable as error:
                found.append(str(error))
        return found

    def _run(self, question: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run(question)
        except ServerError as error:
            missing = f"there is no stream {self._streams.events!r}; a collector makes it when it first starts"
            text = missing if error.err_code == STREAM_NOT_FOUND else f"JetStream: {error}"
            raise Unusable(text) from error
