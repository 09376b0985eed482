"""`python -m tests.fuzz --inputs 1000000`: as many inputs, shared among all targets. A failure says its seed."""

import argparse
import asyncio
import logging
import time

from tests.fuzz.targets import TARGETS, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    logging.disable()
    targets = options.target or TARGETS
    count = -(-options.inputs // len(targets))
    for name in targets:
        started = time.perf_counter()
        asyncio.run(run(name, range(options.seed, options.seed + count)))
        rate = count / (time.perf_counter() - started)
        print(f"{name}: {count} inputs, nothing found ({rate:,.0f}/s)", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
