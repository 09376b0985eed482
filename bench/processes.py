"""The processes that a benchmark starts, and what the kernel says of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def python(module: str, *options: str) -> list[str]:
    return [sys.executable, "-m", module, *options]


@contextmanager
def child(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone afterwards; its standard output can be read."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("COLLECTOR_")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own | environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=30)


def first_line(stream: Iterator[str] | None) -> str:
    assert stream is not None
    return next(stream)


def family(pid: int) -> list[int]:
    """A process and those that it has started and that run: of a collector, the one that writes its queue."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [pid, *(member for child in children for member in family(child))]


def cpu_seconds(pid: int) -> float:
    """User and system, of the family, with those of it that have ended."""
    fields = [Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split() for member in family(pid)]
    return sum(int(number) for each in fields for number in each[11:15]) / TICKS_PER_SECOND


def memory_bytes(pid: int, field: str) -> int:
    """VmRSS or VmHWM of the family, where what its members share counts once."""
    return sum(
        (_kib(f"/proc/{member}/status", field) - _kib(f"/proc/{member}/status", "VmRSS")) * 1024
        + _kib(f"/proc/{member}/smaps_rollup", "Pss") * 1024
        for member in family(pid)
    )


def _kib(file: str, field: str) -> int:
    return int(Path(file).read_text().partition(f"\n{field}:")[2].split()[0])
