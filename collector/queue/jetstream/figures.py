"""How much there is of what, and why events are dead letters."""

import msgspec

from collector.queue.base import (
    REASON_LETTERS,
    SHOWN_LETTERS,
    SHOWN_REASONS,
    AppStats,
    DeadLetter,
    DeadLetters,
    QueueStats,
    Reason,
)
from collector.queue.jetstream.connection import Connection
from collector.queue.jetstream.stored import LetterBody, first_message, time_of
from collector.queue.jetstream.stream import Streams


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
    return QueueStats.over(
        rows,
        remembered_keys=info["state"]["messages"] - sum(info["state"]["subjects"].values()),
        file_bytes=info["state"]["bytes"] + dead["state"]["bytes"],
        wal_bytes=0,
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
