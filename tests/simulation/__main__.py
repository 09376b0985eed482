"""`python -m tests.simulation --seeds 1000`: as many worlds, one after the other. A failure tells its story.

`--first N --seeds 1 --story` tells the story of one seed, sound or not.
"""

import argparse
import itertools
import sys
import time

from tests.simulation.world import Defect, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--story", action="store_true", help="tell every world's story")
    parser.add_argument("--go-on", action="store_true", help="go on after a failure; say what failed and where first")
    options = parser.parse_args()
    found: dict[str, int] = {}
    started, started_working = time.perf_counter(), time.process_time()
    done = 0
    for seed in itertools.islice(itertools.count(options.first), options.seeds):
        done += 1
        try:
            story = simulate(seed)
        except Defect as defect:
            if not options.go_on:
                say(*defect.story, "")
            if defect.what not in found:
                say(str(defect), f"again: make simulate FIRST={seed} SEEDS=1")
            found.setdefault(defect.what, seed)
            if not options.go_on:
                break
        else:
            if options.story:
                say(*story)
    rate = done / (time.perf_counter() - started) * 60
    working_rate = done / (time.process_time() - started_working) * 60
    rates = f"{rate:,.0f} seeds a minute, {working_rate:,.0f} a minute of processor time"
    say(f"{done} seeds from {options.first}, {len(found) or 'nothing'} found ({rates})")
    return 1 if found else 0


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201 - a program's output


if __name__ == "__main__":
    sys.exit(main())
