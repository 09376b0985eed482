"""Runs every row in turn, several rounds, and prints medians beside the limit that each is held against.

A ratio is taken within a round, between neighbours in time, because a shared machine's speed drifts by the minute.
CPU is user + system of the collector's process alone, from before the load until the sink has every event.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench.loads import (
    BATCHES,
    DATAGRAM_RATE,
    MANY_SINGLES,
    SINGLES,
    TRACED_SINGLES,
    backlog,
    beside_nothing,
    by_datagram,
    by_http,
    by_long_queue,
    through_nothing,
)
from bench.processes import python
from bench.rows import Row, Sample, measured, summary, table

RESULTS = Path(__file__).parent / "results" / "latest.json"


class Kind(msgspec.Struct):
    """How a row is measured, given a seed, and the rows that its rate and its p99 are held against."""

    measure: Callable[[int], Sample]
    against: str | None = None
    p99_against: str | None = None


def kinds(folder: Path) -> dict[str, Kind]:
    bare = python("bench.bare", "--folder", str(folder), "--batches", str(BATCHES.requests))
    return {
        "sqlite_keys_only": Kind(lambda _: measured(bare)),
        "http_batch_1000": Kind(lambda seed: by_http(folder, BATCHES, seed), "sqlite_keys_only"),
        "aiohttp_noop": Kind(lambda seed: through_nothing(SINGLES, seed)),
        "fdatasync_loop": Kind(lambda seed: beside_nothing(folder, seed)),
        "http_single": Kind(lambda seed: by_http(folder, SINGLES, seed), "aiohttp_noop", "fdatasync_loop"),
        "aiohttp_noop_128": Kind(lambda seed: through_nothing(MANY_SINGLES, seed)),
        "http_single_128": Kind(lambda seed: by_http(folder, MANY_SINGLES, seed), "aiohttp_noop_128"),
        "aiohttp_noop_traced": Kind(lambda seed: through_nothing(TRACED_SINGLES, seed)),
        "http_single_traced": Kind(lambda seed: by_http(folder, TRACED_SINGLES, seed), "aiohttp_noop_traced"),
        "udp_paced": Kind(lambda seed: by_datagram(folder, "udp", DATAGRAM_RATE, seed)),
        "udp_full": Kind(lambda seed: by_datagram(folder, "udp", 0, seed), "sqlite_keys_only"),
        "unix_full": Kind(lambda seed: by_datagram(folder, "unix", 0, seed), "udp_full"),
        "unix_full_512": Kind(lambda seed: by_long_queue(folder, seed), "udp_full"),
        "drain_million": Kind(lambda _: backlog(folder), "sqlite_keys_only"),
    }


def run(rounds: int, folder: Path, only: Sequence[str] = ()) -> list[Row]:
    """All rows, or some and those they are held against, interleaved."""
    rows = kinds(folder)
    if only:
        wanted: set[str | None] = set(only)
        for name in reversed(rows):  # a row's limits stand before it
            if name in wanted:
                wanted |= {rows[name].against, rows[name].p99_against}
        rows = {name: kind for name, kind in rows.items() if name in wanted}
    samples: dict[str, list[Sample]] = {name: [] for name in rows}
    for number in range(1, rounds + 1):
        for name, kind in rows.items():
            print(f"round {number} of {rounds}: {name}", file=sys.stderr)
            samples[name].append(kind.measure(number))
    return [summary(name, kind.against, kind.p99_against, samples) for name, kind in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="where queues are made: on the disk to be measured")
    parser.add_argument("--only", nargs="+", default=[], choices=kinds(Path()), help="these rows and their limits")
    options = parser.parse_args()
    rows = run(options.rounds, options.folder.resolve(), options.only)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    print(table(rows))
    print(f"medians of {options.rounds} rounds; also in {RESULTS.relative_to(Path(__file__).parents[1])}")


if __name__ == "__main__":
    main()
