"""How much there is of what, the dead letters, and keys that are old enough to be forgotten."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from collector.dead_letters import REASON_LETTERS, SHOWN_LETTERS, SHOWN_REASONS, DeadLetter, DeadLetters, Reason
from collector.queue.base import AppStats, QueueStats
from collector.queue.jetstream.connection import ANSWER_SECONDS, Connection, ServerError, raise_error
from collector.queue.jetstream.stream import Streams

PURGE_STEP = 50_000
"""Keys purged one by one in one request, where events that wait keep the stream from being cut off in one go."""


class LetterBody(msgspec.Struct, frozen=True, rename="camel"):
    """A dead letter as it is stored."""

    app_id: str
    reason: str
    buried_ms: int
    event: msgspec.Raw


class Stored(msgspec.Struct, frozen=True):
    """A message as the stream has it."""

    sequence: int
    subject: str
    when: datetime
    data: bytes


async def first_message(connection: Connection, stream: str, *, after: int = 0, subject: str = ">") -> Stored | None:
    """The stream's first message behind a number; None where there is none.

    Raises QueueUnavailable, ServerError.
    """
    body = {"seq": after + 1, "next_by_subj": subject}
    message = await connection.ask(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(body), ANSWER_SECONDS)
    headers = message.headers or {}
    if headers.get("Status") == "404":
        return None
    if (status := headers.get("Status")) is not None:
        raise_error({"code": int(status), "description": headers.get("Description", "no description")})
    return Stored(
        int(headers["Nats-Sequence"]),
        headers["Nats-Subject"],
        time_of(headers["Nats-Time-Stamp"]),
        message.data,
    )


async def stats(connection: Connection, streams: Streams) -> QueueStats:
    """The queue at this instant. Raises QueueUnavailable, ServerError."""
    info = await streams.info(connection, streams.events, f"{streams.data}.>")
    dead = await streams.info(connection, streams.letters, f"{streams.dead}.>")
    waiting = streams.waiting(info["state"]["subjects"])
    buried: dict[str, int] = {}
    for subject in dead["state"]["subjects"]:
        token = subject.removeprefix(streams.dead + ".").split(".")[0]
        buried[token] = buried.get(token, 0) + 1
    apps = await streams.apps(connection)
    now = time_of(info["ts"])
    rows = []
    for token in sorted(waiting.keys() | buried.keys()):
        first = await first_message(connection, streams.events, subject=f"{streams.data}.{token}.>")
        age_ms = None if first is None else max(0, int((now - first.when).total_seconds() * 1000))
        events, size = waiting.get(token, (0, 0))
        share = round(dead["state"]["bytes"] * buried.get(token, 0) / max(1, dead["state"]["messages"]))
        rows.append(AppStats(apps.get(token, token), events, size, age_ms, buried.get(token, 0), share, 0))
    ages = [row.oldest_age_ms for row in rows if row.oldest_age_ms is not None]
    messages = sum(info["state"]["subjects"].values())
    return QueueStats(
        waiting_events=sum(row.waiting_events for row in rows),
        waiting_bytes=sum(row.waiting_bytes for row in rows),
        oldest_age_ms=max(ages, default=None),
        dead_events=dead["state"]["messages"],
        dead_bytes=dead["state"]["bytes"],
        kept_events=0,
        remembered_keys=info["state"]["messages"] - messages,
        file_bytes=info["state"]["bytes"] + dead["state"]["bytes"],
        wal_bytes=0,
        apps=rows,
    )


async def dead_letters(connection: Connection, streams: Streams) -> DeadLetters:
    """Why events became dead letters, by the latest of them. Raises QueueUnavailable, ServerError."""
    info = await connection.request(f"STREAM.INFO.{streams.letters}")
    after = max(0, info["state"]["last_seq"] - REASON_LETTERS)
    reasons: dict[str, Reason] = {}
    latest: list[DeadLetter] = []
    while (found := await first_message(connection, streams.letters, after=after)) is not None:
        after = found.sequence
        letter = msgspec.json.decode(found.data, type=LetterBody)
        before = reasons.get(letter.reason, Reason(letter.reason, 0, 0))
        reasons[letter.reason] = Reason(letter.reason, before.events + 1, letter.buried_ms)
        latest = [DeadLetter(letter.app_id, letter.buried_ms, letter.reason), *latest[: SHOWN_LETTERS - 1]]
    ranked = sorted(reasons.values(), key=lambda reason: -reason.events)
    return DeadLetters(ranked[:SHOWN_REASONS], latest)


async def purge_keys(connection: Connection, streams: Streams, retention_seconds: float) -> None:
    """Keys that were received longer ago than the retention are forgotten; what waits is left alone, however old.

    By the time of the servers, who stamp what they receive. Raises QueueUnavailable, ServerError.
    """
    info = await streams.info(connection, streams.events, f"{streams.data}.>")
    before = time_of(info["ts"]) - timedelta(seconds=retention_seconds)
    if not info["state"]["messages"] or time_of(info["state"]["first_ts"]) >= before:
        return
    young = await _first_since(connection, streams, before, info["state"])
    waiting = await first_message(connection, streams.events, subject=f"{streams.data}.>")
    purge = f"STREAM.PURGE.{streams.events}"
    if waiting is None and info["state"]["subjects"]:
        return  # it was just delivered; or the replica that was asked is behind, and does not know of it yet
    if waiting is None or waiting.sequence >= young:
        await connection.request(purge, {"seq": young}, seconds=30.0)
        return
    await connection.request(purge, {"seq": waiting.sequence}, seconds=30.0)
    key = await first_message(connection, streams.events, after=waiting.sequence, subject=f"{streams.keys}.*")
    while key is not None and key.sequence < young:
        step = min(young, key.sequence + PURGE_STEP)
        await connection.request(purge, {"seq": step, "filter": f"{streams.keys}.*"}, seconds=30.0)
        await asyncio.sleep(0)
        key = await first_message(connection, streams.events, after=step - 1, subject=f"{streams.keys}.*")


async def _first_since(connection: Connection, streams: Streams, since: datetime, state: dict[str, Any]) -> int:
    """The number of the first message that is not older; behind the last one where all are."""
    low, high = state["first_seq"], state["last_seq"] + 1
    while low < high:  # numbers and times grow together
        middle = (low + high) // 2
        try:
            found = await first_message(connection, streams.events, after=middle - 1)
        except ServerError:
            found = None
        if found is None or found.when >= since:
            high = middle
        else:
            low = found.sequence + 1
    return int(low)


def time_of(text: str) -> datetime:
    """A time of the server's, to the microsecond."""
    whole, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=UTC) + timedelta(microseconds=int(rest[:6].ljust(6, "0") or 0))
