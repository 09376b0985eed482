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


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def memory_bytes(pid: int, field: str) -> int:
    """VmRSS or VmHWM of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024
