"""Keys that are old enough are forgotten."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

from collector.queue.jetstream.connection import Connection, ServerError
from collector.queue.jetstream.stored import first_message, time_of
from collector.queue.jetstream.stream import Streams

PURGE_STEP = 50_000
"""Keys purged one by one in one request, where events that wait keep the stream from being cut off in one go."""


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
