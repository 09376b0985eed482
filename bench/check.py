"""Compares the latest run's ratios with those that are committed: `make bench-check`, after a `make bench`.

Ratios, not times: those are the machine's. Ends with status 1 where one is worse than its tolerance allows.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.rows import Row

FOLDER = Path(__file__).parent / "results"
RATE_TOLERANCE = 0.5
"""Part of a rate's ratio that may be missing: of one version it differed by a factor of two, with the disk's mood."""
CPU_TOLERANCE = 0.25
"""Part by which CPU an event may have grown beside the limit's: of one version it differed by a tenth."""


def read(name: str) -> dict[str, Row]:
    """The rows of a run. Ends the program where there are none, or they are of another version's bench."""
    try:
        return {row.name: row for row in msgspec.json.decode((FOLDER / name).read_bytes(), type=list[Row])}
    except FileNotFoundError:
        sys.exit(f"{FOLDER / name}: missing; `make bench` writes latest.json, and committed.json is a copy of one")
    except msgspec.DecodeError as error:
        sys.exit(f"{FOLDER / name}: {error}; run `make bench` again")


def worse(committed: Row, latest: Row | None, rate_tolerance: float, cpu_tolerance: float) -> Iterator[str]:
    """What of a row is worse than it may be."""
    if latest is None:
        yield f"{committed.name}: not measured"
        return
    if committed.ratio and (latest.ratio or 0) < (least := committed.ratio * (1 - rate_tolerance)):
        yield f"{committed.name}: rate {latest.ratio} of {committed.against}, was {committed.ratio}; least {least:.2f}"
    if committed.cpu_ratio:
        most = committed.cpu_ratio * (1 + cpu_tolerance)
        if latest.cpu_ratio is None or latest.cpu_ratio > most:
            said = f"CPU {latest.cpu_ratio} times {committed.against}"
            yield f"{committed.name}: {said}, was {committed.cpu_ratio}; most {most:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    parser.add_argument("--rate-tolerance", type=float, default=RATE_TOLERANCE)
    parser.add_argument("--cpu-tolerance", type=float, default=CPU_TOLERANCE)
    options = parser.parse_args()
    committed, latest = read("committed.json"), read("latest.json")
    problems = [
        problem
        for name, row in committed.items()
        for problem in worse(row, latest.get(name), options.rate_tolerance, options.cpu_tolerance)
    ]
    for problem in problems:
        print(problem)
    print(
        f"{len(problems)} ratios of {len(committed)} rows are worse than committed, "
        f"by more than {options.rate_tolerance:.0%} of the rate or {options.cpu_tolerance:.0%} of the CPU"
    )
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
