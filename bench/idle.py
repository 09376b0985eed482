"""Holds a collector that has nothing to do, and its start, to what they may cost: `make bench-idle`.

Ends with status 1 where a bound is broken. Times are medians of a few starts. A wake-up is an instant at which any
thread of the collector had the processor and gave it away of its own accord: threads that hand one piece of work to one
another within 20 ms wake once. Two rounds of a second each are what a collector has that does nothing: the queue's
maintenance and the observer's look. How often each thread gave the processor away stands beside it.
"""

import argparse
import compileall
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import collector as collector_package
from bench.bounds import Row
from bench.daemon import collector
from bench.processes import cpu_seconds, family, memory_bytes

IDLE_SECONDS, SETTLED_SECONDS, LOOK_SECONDS, STARTS = 30.0, 3.0, 0.02, 7


def wakeups(pid: int) -> dict[str, int]:
    """Of each thread, by its number and name."""
    found = {}
    for task in (task for member in family(pid) for task in Path(f"/proc/{member}/task").iterdir()):
        status = (task / "status").read_text()
        found[f"{task.name} {(task / 'comm').read_text().strip()}"] = int(
            status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]
        )
    return found


def median_ms(command: Sequence[str]) -> float:
    took = []
    for _ in range(STARTS):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


def idle(folder: Path) -> list[Row]:
    with collector(folder) as running:
        time.sleep(SETTLED_SECONDS)
        cpu_before, before, began = cpu_seconds(running.pid), wakeups(running.pid), time.perf_counter()
        instants, is_awake, seen = 0, False, before
        while time.perf_counter() < began + IDLE_SECONDS:
            time.sleep(LOOK_SECONDS)
            was_awake, last, seen = is_awake, seen, wakeups(running.pid)
            is_awake = seen != last
            instants += is_awake and not was_awake
        seconds = time.perf_counter() - began
        each = {name: count - before.get(name, 0) for name, count in wakeups(running.pid).items()}
        said = ", ".join(f"{name.split()[1]} {count / seconds:.2f}/s" for name, count in each.items())
        percent = 100 * (cpu_seconds(running.pid) - cpu_before) / seconds
        resident = memory_bytes(running.pid, "VmRSS") / 2**20
    return [
        Row("processor while idle", percent, 0.2, "%"),
        Row("wake-ups", instants / seconds, 2.1, "/s", said),
        Row("memory while idle", resident, 120, "MiB"),
    ]


def starts(folder: Path) -> list[Row]:
    # Installing compiles what is installed; a checkout where PYTHONDONTWRITEBYTECODE is set is compiled at each start.
    compileall.compile_dir(Path(collector_package.__file__).parent, quiet=1)
    ready = []
    for _ in range(STARTS):
        with collector(folder) as running:
            ready.append(running.ready_seconds * 1000)
    program = str(Path(sys.executable).with_name("collector"))
    return [
        Row("start to ready", statistics.median(ready), 300, "ms"),
        Row("collector --help", median_ms([program, "--help"]), 150, "ms"),
        Row("python -c pass", median_ms([sys.executable, "-c", "pass"]), 150, "ms", "in every start"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path())
    folder = parser.parse_args().folder.resolve()
    rows = [*starts(folder), *idle(folder)]
    for row in rows:
        verdict = "" if row.holds else "  BROKEN"
        print(f"{row.name:<32}{row.value:>9.2f} {row.unit:<4} at most {row.limit:g}{verdict}  {row.beside}")
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
