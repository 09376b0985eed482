"""The limit of batched posts: a loop that does nothing but one multi-row INSERT OR IGNORE of keys a batch.

Same key table, same pragmas, same fsync at each commit; no events beside the keys, no HTTP, no delivery. Runs as a
process; prints one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from collector.events import event_key
from collector.queue.sqlite.database import FILE_NAME, make_file, open_writer

BATCH = 1000
INSERT = "INSERT OR IGNORE INTO seen (key, stamp) VALUES " + ", ".join(["(?, ?)"] * BATCH)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batches", type=int, required=True)
    options = parser.parse_args()
    stamp = int(time.time())
    batches = []
    for batch in range(options.batches):
        numbers = range(batch * BATCH, (batch + 1) * BATCH)
        keys = [
            event_key("bench", 1_700_000_000_000 + n // 2, f"person{n % 5000}@example.com", f"document_opened_{n % 20}")
            for n in numbers
        ]
        batches.append([value for key in keys for value in (key, stamp)])
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make_file(Path(folder, FILE_NAME))
        connection = open_writer(Path(folder))
        started, cpu_started = time.perf_counter(), sum(os.times()[:2])
        for values in batches:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(INSERT, values)
            connection.execute("COMMIT")
        seconds, cpu_seconds = time.perf_counter() - started, sum(os.times()[:2]) - cpu_started
        connection.close()
    events = options.batches * BATCH
    print(json.dumps({"seconds": seconds, "events": events, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main()
