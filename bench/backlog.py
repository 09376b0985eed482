"""Puts a backlog into a queue, in batches of a thousand of one app, as an outage leaves it. Runs as a process."""

import argparse
import asyncio
from itertools import islice
from pathlib import Path

import msgspec

from bench.bounds import opened
from bench.load import events
from collector.clock import Clock
from collector.events import UsageEvent, event_key
from collector.queue.base import Batch

BATCH_EVENTS = 1000


async def fill(folder: Path, count: int) -> None:
    source = events(count, seed=0)
    decode = msgspec.json.Decoder(UsageEvent).decode_lines
    async with opened(folder, Clock()) as queue:
        for _ in range(count // BATCH_EVENTS):
            lines = "\n".join(islice(source, BATCH_EVENTS)).encode()
            keys = [event_key("bench", event.timestamp, event.email, event.event_name) for event in decode(lines)]
            await queue.put([Batch("bench", b"".join(keys), lines)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--events", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(fill(options.folder, options.events))


if __name__ == "__main__":
    main()
