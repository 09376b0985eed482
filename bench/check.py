"""Compares the latest run's ratios with those that are committed: `make bench-check`, after a `make bench`.

Ratios, not times: those are the machine's. Ends with status 1 where one is worse than the tolerance allows.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from bench.rows import Row

FOLDER = Path(__file__).parent / "results"
TOLERANCE = 0.25
"""Medians of five rounds of one and the same version differ by up to a fifth on a shared machine."""


def worse(committed: Row, latest: Row | None, tolerance: float) -> str | None:
    """What of a row is worse than it may be, or None."""
    if committed.ratio is None:
        return None
    if latest is None or latest.ratio is None:
        return f"{committed.name}: not measured"
    least = committed.ratio * (1 - tolerance)
    if latest.ratio < least:
        return f"{committed.name}: {latest.ratio:.2f} of {latest.against}, was {committed.ratio:.2f}; least {least:.2f}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="part of a ratio that may be missing")
    options = parser.parse_args()
    committed, latest = (
        {row.name: row for row in msgspec.json.decode((FOLDER / name).read_bytes(), type=list[Row])}
        for name in ("committed.json", "latest.json")
    )
    problems = [
        problem for name, row in committed.items() if (problem := worse(row, latest.get(name), options.tolerance))
    ]
    for problem in problems:
        print(problem)
    print(f"{len(problems)} of {len(committed)} rows are worse than committed, by more than {options.tolerance:.0%}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
