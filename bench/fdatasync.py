"""The limit of an acknowledgement's delay: a loop that appends a page and calls fdatasync, nothing else.

Runs as a process until it is told to end; prints one JSON object.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from pathlib import Path

PAGE_BYTES = 4096


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    took, page = [], bytes(PAGE_BYTES)
    with tempfile.NamedTemporaryFile(dir=options.folder, buffering=0) as file:
        began = time.perf_counter()
        while not told:
            before = time.perf_counter()
            file.write(page)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - before)
        seconds = time.perf_counter() - began
    took.sort()
    print(json.dumps({"seconds": seconds, "events": len(took), "p99_ms": took[len(took) * 99 // 100] * 1000}))


if __name__ == "__main__":
    main()
