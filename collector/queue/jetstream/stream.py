"""The streams and consumers as they must be, and the names of everything in them."""

import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from collector.config.model import JetStream
from collector.errors import QueueUnavailable, Unusable
from collector.queue.jetstream.connection import Connection, ServerError

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
NO_SUITABLE_PEERS = 10005
"""What a cluster says whose servers have not all found one another yet."""
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})

MAX_ACK_PENDING = 100_000
"""Messages that all collectors together may hold of one app: enough for full batches of messages of one event each."""

NAME_CHARS = 100
KEY_CHARS = 32

_PLAIN = re.compile(rb"[A-Za-z0-9_-]")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def app_token(app_id: str) -> str:
    """An app's name as a part of subjects and consumers' names: no two apps have the same.

    Bytes other than letters, digits, _ and - are written as =HH; a long name as its digest.
    """
    token = "".join(
        chr(byte) if _PLAIN.match(bytes([byte])) else f"={byte:02X}" for byte in app_id.encode("utf-8", "surrogatepass")
    )
    digest = hashlib.blake2b(app_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return token if len(token) <= NAME_CHARS else f"==={digest}"


def key_tokens(keys: bytes) -> list[bytes]:
    """Each key as the last token of its subject."""
    text = binascii.b2a_base64(keys, newline=False).translate(_URL_SAFE)
    return [text[start : start + KEY_CHARS] for start in range(0, len(text), KEY_CHARS)]


class Streams:
    """Names and definitions of one fleet's streams."""

    def __init__(self, settings: JetStream) -> None:
        self._settings = settings
        self.events = settings.stream
        self.letters = f"{settings.stream}-dead"
        self.keys = f"{settings.stream}.k"
        self.data = f"{settings.stream}.d"
        self.dead = f"{settings.stream}.x"
        self.fleet = f"{settings.stream}.fleet"
        self.place = f"JetStream stream {settings.stream} at {', '.join(settings.servers)}"

    def data_subject(self, app_id: str, events: int, size: int) -> str:
        """Of a message with so many events; who counts the subjects' messages knows how many events wait."""
        return f"{self.data}.{app_token(app_id)}.{events}.{-(-size // 1024)}"

    def waiting(self, subjects: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Events and bytes by an app's token, from how many messages each subject has; bytes are rounded up to KiB."""
        found: dict[str, tuple[int, int]] = {}
        for subject, messages in subjects.items():
            token, events, kib = subject.removeprefix(self.data + ".").split(".")
            before = found.get(token, (0, 0))
            found[token] = (before[0] + messages * int(events), before[1] + messages * int(kib) * 1024)
        return found

    def definitions(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """How the stream of events and that of dead letters must be."""
        common = {
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "num_replicas": self._settings.replicas,
            "allow_direct": True,
            "max_age": 0,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msgs_per_subject": -1,
            "max_msg_size": -1,
            "no_ack": False,
            "deny_delete": False,
            "deny_purge": False,
            "sealed": False,
            "mirror": None,
            "sources": None,
            "subject_transform": None,
        }
        events = {"name": self.events, "subjects": [f"{self.keys}.*", f"{self.data}.>"], "allow_atomic": True}
        return events | common, {"name": self.letters, "subjects": [f"{self.dead}.>"]} | common

    def consumer(self, app_id: str) -> dict[str, Any]:
        """How an app's consumer must be."""
        token = app_token(app_id)
        return {
            "durable_name": token,
            "name": token,
            "filter_subject": f"{self.data}.{token}.>",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_policy": "explicit",
            "ack_wait": int(self._settings.lease_timeout * 1e9),
            "max_deliver": -1,
            "max_ack_pending": MAX_ACK_PENDING,
            "max_batch": 0,
            "headers_only": False,
            "inactive_threshold": 0,
            "backoff": None,
            "metadata": {"app": app_id},
        }

    async def ensure(self, connection: Connection) -> None:
        """Both streams are there, as they must be. Raises Unusable with every difference, QueueUnavailable."""
        for wanted in self.definitions():
            found = await self._found_or_made(connection, wanted)
            refuse_differences(f"stream {wanted['name']!r}", wanted, found)

    async def ensure_consumer(self, connection: Connection, app_id: str) -> dict[str, Any]:
        """The app's consumer is there, as it must be; what the server says of it.

        Raises Unusable with every difference, QueueUnavailable.
        """
        wanted = self.consumer(app_id)
        name = wanted["name"]
        try:
            found = await connection.request(f"CONSUMER.INFO.{self.events}.{name}")
        except ServerError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise _unusable(f"consumer {name!r}", error) from error
            body = {"stream_name": self.events, "config": wanted, "action": "create"}
            found = await connection.request(f"CONSUMER.CREATE.{self.events}.{name}.{wanted['filter_subject']}", body)
        refuse_differences(f"consumer {name!r} of stream {self.events!r}", wanted, found["config"])
        return found

    async def apps(self, connection: Connection) -> dict[str, str]:
        """Every app that ever had events, by its token."""
        found: dict[str, str] = {}
        while True:
            page = await connection.request(f"CONSUMER.LIST.{self.events}", {"offset": len(found)})
            consumers = page.get("consumers") or []
            before = len(found)
            for consumer in consumers:
                app_id = (consumer["config"].get("metadata") or {}).get("app", consumer["name"])
                found[consumer["name"]] = app_id
            if len(found) >= page["total"] or len(found) == before:
                return found

    async def info(self, connection: Connection, stream: str, subjects: str) -> dict[str, Any]:
        """A stream's state, in it how many messages each of these subjects has. Raises QueueUnavailable, ServerError.

        The server tells of 100,000 subjects at a time.
        """
        wanted = {"subjects_filter": subjects}
        info = await connection.request(f"STREAM.INFO.{stream}", wanted)
        found: dict[str, int] = dict(info["state"].get("subjects") or {})
        while len(found) < info.get("total", 0):
            page = await connection.request(f"STREAM.INFO.{stream}", wanted | {"offset": len(found)})
            before = len(found)
            found |= page["state"].get("subjects") or {}
            if len(found) == before:
                break  # what was left has gone meanwhile
        info["state"]["subjects"] = found
        return info

    async def _found_or_made(self, connection: Connection, wanted: Mapping[str, Any]) -> dict[str, Any]:
        name = wanted["name"]
        try:
            return dict((await connection.request(f"STREAM.INFO.{name}"))["config"])
        except ServerError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise _unusable(f"stream {name!r}", error) from error
        try:
            made = await connection.request(f"STREAM.CREATE.{name}", wanted, seconds=10.0)
        except ServerError as error:
            if error.err_code == NO_SUITABLE_PEERS:
                raise QueueUnavailable(f"JetStream cannot at the moment: {error}") from error
            raise _unusable(f"stream {name!r}", error) from error
        return dict(made["config"])


def refuse_differences(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises Unusable with each setting that is not as it must be."""
    defaults: dict[type, Any] = {bool: False, int: 0}  # the server leaves these out
    compared = [(name, found.get(name, defaults.get(type(value))), value) for name, value in wanted.items()]
    differences = [f"{name} is {is_!r}, must be {value!r}" for name, is_, value in compared if not _same(is_, value)]
    if differences:
        raise Unusable(
            f"jetstream: {what} is configured differently, and is left alone: {'; '.join(differences)}. Change it, or "
            "set jetstream.stream to another name (allow_atomic needs nats-server 2.12 or newer)"
        )


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(found.get(name) == value for name, value in wanted.items())
    return sorted(found or ()) == sorted(wanted) if isinstance(wanted, list) else bool(found == wanted)


def _unusable(what: str, error: ServerError) -> Unusable:
    return Unusable(f"jetstream: {what} cannot be used or made: {error}")


def sequences_behind(last: int, count: int) -> Iterable[int]:
    """The numbers of the `count` messages that end with number `last`."""
    return range(last - count + 1, last + 1)
