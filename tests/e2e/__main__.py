"""`python -m tests.e2e --rounds 1000`: the daemon dies so often, at random instants and at every named step."""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.crashes import Figures, crashes

BOOK_ROUNDS = 50
"""After so many rounds the books are closed, and new ones begun with a new queue and a seed of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="the first one")
    parser.add_argument("--first", type=int, default=0, help="the place in the list of named deaths where to begin")
    options = parser.parse_args()
    figures, started = Figures(), time.monotonic()
    seed, first = options.seed, options.first
    print(f"{options.rounds} rounds, seed {seed}", flush=True)  # noqa: T201
    try:
        for done in range(0, options.rounds, BOOK_ROUNDS):
            rounds = min(BOOK_ROUNDS, options.rounds - done)
            with tempfile.TemporaryDirectory(prefix="collector-soak-") as folder:
                asyncio.run(crashes(Path(folder), seed=seed, rounds=rounds, figures=figures, first=first))
            print(f"{figures} [{time.monotonic() - started:.0f} s]", flush=True)  # noqa: T201
            seed, first = seed + 1, first + rounds // 2
    except BaseException:
        print(f"in round {figures.rounds}: {figures}", flush=True)  # noqa: T201
        print(f"again: python -m tests.e2e --seed {seed} --first {first} --rounds {BOOK_ROUNDS}")  # noqa: T201
        raise
    if figures.missed:
        sys.exit(f"these deaths did not take place: {', '.join(figures.missed)}")


if __name__ == "__main__":
    main()
