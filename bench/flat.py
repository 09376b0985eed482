"""Holds the same loads against each other with nothing remembered and with fifty million keys: `make bench-flat`.

The keys are of the thirty days before the load, evenly. Events in disorder come up to a minute late, or are of any time
in the thirty days, where each meets another page of the index. Also prints what an event takes on the disk while it is
queued, and a key that is remembered. Takes some minutes and 3 GB.
"""

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.load import BEGIN_MS
from bench.loads import BATCHES, SINGLES, Posts, by_datagram, by_http
from bench.processes import python
from bench.rows import Sample, summary, table
from collector.queue.sqlite.database import FILE_NAME, MAX_FRESH_KEYS, SQL, make_file, open_writer

RESULTS = Path(__file__).parent / "results" / "flat.json"
DAY_MS = 86_400_000
QUEUED_EVENTS = 1_000_000

REMEMBER = "INSERT INTO seen (key, stamp) SELECT substr(?1, at, 24), ?2 FROM place WHERE at < length(?1)"


def remember(folder: Path, count: int) -> None:
    """So many keys are in the queue's file, as if their events had been delivered."""
    folder.mkdir(parents=True, exist_ok=True)
    make_file(folder / FILE_NAME)
    connection = open_writer(folder)
    connection.execute("PRAGMA synchronous = OFF")
    stamp, digests = int(time.time()), struct.Struct(f"={'16s' * MAX_FRESH_KEYS}")
    pack, began_ms = struct.Struct(">q").pack, BEGIN_MS - 30 * DAY_MS
    for start in range(0, count, MAX_FRESH_KEYS):
        random = digests.unpack(os.urandom(digests.size))
        keys = [
            pack(began_ms + (start + number) * 30 * DAY_MS // count) + digest for number, digest in enumerate(random)
        ]
        keys.sort()
        connection.execute(REMEMBER, (b"".join(keys), stamp))
    assert connection.execute("SELECT count(*) FROM seen").fetchone() == (-(-count // MAX_FRESH_KEYS) * MAX_FRESH_KEYS,)
    connection.execute(SQL["count_pruned"], (-count,))  # what is remembered is what was stored and not forgotten
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


def queued_bytes(folder: Path) -> float:
    """What an event takes of the file while it is queued, its key included."""
    with tempfile.TemporaryDirectory(dir=folder) as queue:
        command = python("bench.backlog", "--folder", queue, "--events", str(QUEUED_EVENTS))
        subprocess.run(command, check=True)
        return Path(queue, FILE_NAME).stat().st_size / QUEUED_EVENTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.flat", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=50_000_000)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--queue", type=Path, help="with the keys: filled where it is empty, and kept")
    options = parser.parse_args()
    folder = options.folder.resolve()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        queue = (options.queue or Path(temporary)).resolve()
        if not (queue / FILE_NAME).exists():
            print(f"{options.keys:,} keys are made", file=sys.stderr)
            remember(queue, options.keys)
            print(f"a remembered key takes {(queue / FILE_NAME).stat().st_size / options.keys:.1f} bytes")
        if options.rounds:
            measure(folder, queue, options.rounds)


def measure(folder: Path, queue: Path, rounds: int) -> None:
    late, scattered = 60_000, 30 * DAY_MS
    rows: dict[str, tuple[str | None, Callable[[int], Sample]]] = {
        "batch, fresh": (None, lambda seed: by_http(folder, BATCHES, seed)),
        "batch, full": ("batch, fresh", lambda seed: by_http(folder, BATCHES, seed, queue)),
        "batch, full, late": ("batch, full", posts(folder, BATCHES._replace(disorder_ms=late), queue)),
        "batch, full, any": ("batch, full", posts(folder, BATCHES._replace(disorder_ms=scattered), queue)),
        "single, fresh": (None, lambda seed: by_http(folder, SINGLES, seed)),
        "single, full": ("single, fresh", lambda seed: by_http(folder, SINGLES, seed, queue)),
        "single, full, late": ("single, full", posts(folder, SINGLES._replace(disorder_ms=late), queue)),
        "unix, fresh": (None, lambda seed: by_datagram(folder, "unix", 0, seed)),
        "unix, full": ("unix, fresh", lambda seed: by_datagram(folder, "unix", 0, seed, queue)),
    }
    samples: dict[str, list[Sample]] = {name: [] for name in rows}
    seed = int(time.time()) % 100_000  # no event may be known from an earlier run, and a row takes more than a second
    for number in range(1, rounds + 1):
        for name, (_, run) in rows.items():
            print(f"round {number} of {rounds}: {name}", file=sys.stderr)
            seed += 1
            samples[name].append(run(seed))
    summaries = [summary(name, against, None, samples) for name, (against, _) in rows.items()]
    RESULTS.parent.mkdir(exist_ok=True)
    found: dict[str, Any] = {"rows": summaries, "bytes_per_queued_event": round(queued_bytes(folder), 1)}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    print(table(summaries))
    print(f"a queued event takes {found['bytes_per_queued_event']} bytes, its key included")


def posts(folder: Path, load: Posts, queue: Path) -> Callable[[int], Sample]:
    return lambda seed: by_http(folder, load, seed, queue)


if __name__ == "__main__":
    main()
